"""Checkpoints that are damaged, do not fit or cannot be read at the moment."""

import json
import os
import pathlib
import socket
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import pytest

from synthjax import files
from synthjax.train import checkpoint, read_step
from synthjax.train.checkpointer import Checkpoints

ROOT = pathlib.Path(__file__).parents[2]


def _state(value):
  return {"params": {"w": jnp.full((4, 2), value)}, "step": jnp.int32(1)}


def _abstract():
  def describe(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

  return jax.tree.map(describe, _state(0.0))


def _save(folder, *steps):
  with Checkpoints(folder, 5) as checkpoints:
    for step in steps:
      checkpoints.save(step, _state(float(step)), {"position": step})


def _value(state):
  return float(state["params"]["w"][0, 0])


def _names(folder):
  return sorted(path.name for path in folder.iterdir())


def _garble(path):
  path.write_bytes(b"xx")


def _truncate(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [pathlib.Path.unlink, _garble, _truncate])
@pytest.mark.parametrize(
  "pattern", ["_CHECKPOINT_METADATA", "state/_METADATA", "state/manifest.ocdbt", "state/d/*"]
)
def test_a_damaged_step_is_reported_set_aside_and_saved_anew_when_training_comes_to_it(
  tmp_path, pattern, damage
):
  _save(tmp_path, 1, 2)
  for path in (tmp_path / "2").glob(pattern):
    damage(path)
  said = []
  with Checkpoints(tmp_path, 5, say=said.append) as checkpoints:
    step, state, about = checkpoints.restore(_abstract())
    assert (step, about["position"], _value(state)) == (1, 1, 1.0)
    checkpoints.save(2, _state(20.0), {"position": 2})
  assert len(said) == 1
  assert said[0].startswith(f"{tmp_path / '2'}: damaged (")
  assert said[0].endswith("; trying the checkpoint before it")
  assert _names(tmp_path) == ["1", "2", "2.damaged"]
  step, params, _ = checkpoint.load_params(tmp_path, _abstract()["params"])
  assert step == 2
  assert float(params["w"][0, 0]) == 20.0


def test_a_step_that_was_not_read_is_written_over_and_one_that_was_is_not(tmp_path):
  _save(tmp_path, 1, 2)
  with Checkpoints(tmp_path, 5) as checkpoints:
    checkpoints.restore(_abstract(), 1)
    checkpoints.save(1, _state(10.0), {"position": 1})
    checkpoints.save(2, _state(20.0), {"position": 2})
    checkpoints.wait()
    assert _value(checkpoints.restore(_abstract(), 1).tree) == 1.0
    assert _value(checkpoints.restore(_abstract(), 2).tree) == 20.0


TOO_MANY_FILES = (
  "RESOURCE_EXHAUSTED: Error reading local file: Too many open files [os_error_code='24']"
)
NO_DAMAGE = [
  ValueError(TOO_MANY_FILES),
  ValueError("UNKNOWN: Error reading local file: Input/output error [os_error_code='5']"),
  ValueError("some shape does not divide the mesh"),
  jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
  PermissionError(13, "Permission denied"),
  OSError(116, "Stale file handle"),
  MemoryError(),
  TypeError("a bug"),
]


@pytest.mark.parametrize("error", NO_DAMAGE)
def test_an_error_that_is_no_damage_is_raised_as_it_is_with_the_step_and_changes_nothing(
  tmp_path, error
):
  _save(tmp_path, 1, 2)
  wrapped = KeyError("cannot load")
  wrapped.__cause__ = error
  for raised in (error, wrapped):
    with (
      Checkpoints(tmp_path, 5) as checkpoints,
      mock.patch.object(read_step.ocp, "load", side_effect=raised),
    ):
      with pytest.raises(type(raised)) as caught:
        checkpoints.restore(_abstract())
      assert caught.value is raised
      assert raised.__notes__[-1] == f"while reading the checkpoint {tmp_path / '2'}"
      with pytest.raises(type(raised)):
        checkpoint.load_params(tmp_path, _abstract()["params"])
  assert _names(tmp_path) == ["1", "2"]


def test_a_file_system_that_refuses_is_no_damage(tmp_path):
  _save(tmp_path, 1, 2)
  for path in (tmp_path / "2/state/d").iterdir():
    path.unlink()
    path.symlink_to(path.name)  # the system answers ELOOP
  with (
    Checkpoints(tmp_path, 5) as checkpoints,
    pytest.raises(ValueError, match="Too many levels of symbolic links"),
  ):
    checkpoints.restore(_abstract())
  assert _names(tmp_path) == ["1", "2"]


def test_a_finished_training_hands_out_the_step_of_its_manifest_and_no_other(tmp_path):
  folder = tmp_path / "train/checkpoints"
  params = _abstract()["params"]
  _save(folder, 1, 2, 3)
  files.write_json(tmp_path / "train/begun.json", {"inputs": "a"})
  assert checkpoint.named_step(folder) is None
  assert checkpoint.load_params(folder, params).step == 3
  files.write_json(tmp_path / "train/manifest.json", {"result": {"steps": 2}})
  assert checkpoint.named_step(folder) == 2
  assert checkpoint.load_params(folder, params).step == 2
  assert checkpoint.load_params(folder / "1", params).step == 1
  assert checkpoint.newest_step(folder / "1") == 1
  _garble(next((folder / "2/state/d").iterdir()))
  message = (
    r"2: damaged \(.*\); train again with the same settings, which goes on .* "
    r"and writes step 2 anew.*\[1, 3\]"
  )
  with pytest.raises(checkpoint.DamagedError, match=message):
    checkpoint.export_params(folder, tmp_path / "out", params)
  assert not (folder / "2").exists()
  assert (folder / "2.damaged").exists()
  assert not (tmp_path / "out").exists()
  with pytest.raises(checkpoint.DamagedError):  # not another step, now that this one is set aside
    checkpoint.load_params(folder, params)


def test_a_tree_that_does_not_fit_prints_the_difference(tmp_path):
  _save(tmp_path, 1)
  wanted = {
    "params": {"w": jax.ShapeDtypeStruct((4, 2), jnp.bfloat16)},
    "step": jax.ShapeDtypeStruct((), jnp.int32),
  }
  message = r"params.w: the checkpoint has float32\[4, 2\], this run wants bfloat16\[4, 2\]"
  with (
    Checkpoints(tmp_path) as checkpoints,
    pytest.raises(checkpoint.CheckpointError, match=message),
  ):
    checkpoints.restore(wanted)


# Restores, reads the parameters and saves; fails to read the steps that its arguments name.
_PROCESS = """
import json, sys
import jax
from synthjax import multihost
from synthjax.train import checkpoint, read_step
from synthjax.train.checkpointer import Checkpoints
from tests.train import test_checkpoint as here

folder, failures = sys.argv[1], json.loads(sys.argv[2])
multihost.start(multihost.from_environment())

def failing(function):
  def wrapped(path, *more):
    result = function(path, *more)
    name, message = failures.get(path.name, ["", ""])
    if name == function.__name__:
      raise ValueError(message)
    return result
  return wrapped

read_step._describe = failing(read_step._describe)
read_step._load = failing(read_step._load)
mesh = jax.make_mesh((2,), ("x",))
everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
abstract = jax.tree.map(
  lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), here._abstract()
)
try:
  with Checkpoints(folder, 5) as checkpoints:
    step, state, _ = checkpoints.restore(abstract)
    value = float(state["params"]["w"].addressable_data(0)[0, 0])
    loaded = checkpoint.load_params(folder, abstract["params"])
    print(json.dumps([step, value, checkpoints.steps(), loaded.step]))
    checkpoints.save(4, state, {"position": 4})
except Exception as e:
  print(json.dumps(f"{type(e).__name__}: {e}"), flush=True)
multihost.barrier("end")
multihost.finish()
"""

_CUT, _SILENT = "DATA_LOSS: cut short", "UNAVAILABLE: no answer"


def _run_together(folder, failures):
  """The last line of each process, one process for each of `failures`."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  environment = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    "SYNTHJAX_COORDINATOR": f"127.0.0.1:{port}",
    "SYNTHJAX_PROCESSES": "2",
  }
  runs = []
  for process, of_process in enumerate(failures):
    run = subprocess.Popen(
      [sys.executable, "-c", _PROCESS, str(folder), json.dumps(of_process)],
      cwd=ROOT,
      text=True,
      env={**environment, "SYNTHJAX_PROCESS": str(process)},
      stdout=subprocess.PIPE,
    )
    runs.append(run)
  return [json.loads(run.communicate(timeout=120)[0].splitlines()[-1]) for run in runs]


def test_two_processes_go_on_from_the_step_that_both_can_read(tmp_path):
  _save(tmp_path, 1, 2, 3)
  outputs = _run_together(tmp_path, [{"2": ["_load", _CUT]}, {"3": ["_describe", _CUT]}])
  assert outputs == [[1, 1.0, [1], 1]] * 2
  # What two processes wrote is exported by one.
  params = _state(0.0)["params"]
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
  assert checkpoint.export_params(tmp_path, tmp_path / "exported", abstract) == 4
  exported = checkpoint.load_params(tmp_path / "exported", _abstract()["params"])
  assert float(exported.tree["w"][0, 0]) == 1.0


def test_two_processes_end_where_one_of_them_gets_no_answer(tmp_path):
  _save(tmp_path, 1, 2, 3)
  outputs = _run_together(tmp_path, [{"3": ["_load", _SILENT]}, {"3": ["_load", _CUT]}])
  reason = "process 0 could not use it; its own message says why"
  assert outputs == [f"ValueError: {_SILENT}", f"CheckpointError: {tmp_path}/3: {reason}"]
