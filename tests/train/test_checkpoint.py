"""Checkpoints that are damaged, do not fit, or cannot be read at the moment; what readers take and say."""

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
from synthjax.train import checkpoint

ROOT = pathlib.Path(__file__).parents[2]


def _state(value):
  return {"params": {"w": jnp.full((4, 2), value)}, "step": jnp.int32(1)}


def _abstract():
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _state(0.0)
  )


def _save(folder, *steps):
  with checkpoint.Checkpoints(folder, 5) as checkpoints:
    for step in steps:
      checkpoints.save(step, _state(float(step)), {"position": step})


def _value(state):
  return float(state["params"]["w"][0, 0])


def _garble(path):
  path.write_bytes(b"xx")


def _halve(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [pathlib.Path.unlink, _garble, _halve])
@pytest.mark.parametrize(
  "pattern", ["_CHECKPOINT_METADATA", "state/_METADATA", "state/manifest.ocdbt", "state/d/*"]
)
def test_a_damaged_step_is_said_set_aside_and_saved_anew_when_training_comes_to_it(
  tmp_path, pattern, damage
):
  _save(tmp_path, 1, 2)
  for path in (tmp_path / "2").glob(pattern):
    damage(path)
  said = []
  with checkpoint.Checkpoints(tmp_path, 5, say=said.append) as checkpoints:
    step, state, about = checkpoints.restore(_abstract())
    assert (step, about["position"], _value(state)) == (1, 1, 1.0)
    checkpoints.save(2, _state(20.0), {"position": 2})
  assert len(said) == 1 and said[0].startswith(f"{tmp_path / '2'}: damaged (")
  assert said[0].endswith("; trying the checkpoint before it")
  assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "2.damaged"]
  step, params, _ = checkpoint.load_params(tmp_path, _abstract()["params"])
  assert step == 2 and float(params["w"][0, 0]) == 20.0


def test_a_step_that_was_not_read_is_written_over_and_one_that_was_is_not(tmp_path):
  _save(tmp_path, 1, 2)
  with checkpoint.Checkpoints(tmp_path, 5) as checkpoints:
    checkpoints.restore(_abstract(), 1)
    checkpoints.save(1, _state(10.0), {"position": 1})
    checkpoints.save(2, _state(20.0), {"position": 2})
    checkpoints.wait()
    assert _value(checkpoints.restore(_abstract(), 1)[1]) == 1.0
    assert _value(checkpoints.restore(_abstract(), 2)[1]) == 20.0


@pytest.mark.parametrize(
  "error",
  [
    ValueError(
      "RESOURCE_EXHAUSTED: Error reading local file: Too many open files [os_error_code='24']"
    ),
    ValueError("UNKNOWN: Error reading local file: Input/output error [os_error_code='5']"),
    ValueError("some shape does not divide the mesh"),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
    PermissionError(13, "Permission denied"),
    OSError(116, "Stale file handle"),
    MemoryError(),
    TypeError("a bug"),
  ],
)
def test_what_is_no_damage_is_raised_as_it_is_with_the_step_and_changes_nothing(tmp_path, error):
  _save(tmp_path, 1, 2)
  wrapped = KeyError("cannot load")
  wrapped.__cause__ = error
  for raised in (error, wrapped):
    with (
      checkpoint.Checkpoints(tmp_path, 5) as checkpoints,
      mock.patch.object(checkpoint.ocp, "load", side_effect=raised),
    ):
      with pytest.raises(type(raised)) as found:
        checkpoints.restore(_abstract())
      assert (
        found.value is raised
        and raised.__notes__[-1] == f"while reading the checkpoint {tmp_path / '2'}"
      )
      with pytest.raises(type(raised)):
        checkpoint.load_params(tmp_path, _abstract()["params"])
  assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_a_file_system_that_refuses_is_no_damage(tmp_path):
  _save(tmp_path, 1, 2)
  for path in (tmp_path / "2/state/d").iterdir():
    path.unlink()
    path.symlink_to(path.name)  # the system answers ELOOP
  with (
    checkpoint.Checkpoints(tmp_path, 5) as checkpoints,
    pytest.raises(ValueError, match="Too many levels of symbolic links"),
  ):
    checkpoints.restore(_abstract())
  assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_a_finished_training_hands_out_the_step_of_its_manifest_and_no_other(tmp_path):
  folder, params = tmp_path / "train/checkpoints", _abstract()["params"]
  _save(folder, 1, 2, 3)
  files.write_json(tmp_path / "train/begun.json", {"inputs": "a"})
  assert checkpoint.named_step(folder) is None and checkpoint.load_params(folder, params)[0] == 3
  files.write_json(tmp_path / "train/manifest.json", {"result": {"steps": 2}})
  assert checkpoint.named_step(folder) == checkpoint.load_params(folder, params)[0] == 2
  assert (
    checkpoint.load_params(folder / "1", params)[0] == checkpoint.newest_step(folder / "1") == 1
  )
  _garble(next((folder / "2/state/d").iterdir()))
  message = r"2: damaged \(.*\); train again with the same settings, which goes on .* and writes step 2 anew.*\[1, 3\]"
  with pytest.raises(checkpoint.DamagedError, match=message):
    checkpoint.export_params(folder, tmp_path / "out", params)
  assert (
    not (folder / "2").exists()
    and (folder / "2.damaged").exists()
    and not (tmp_path / "out").exists()
  )
  with pytest.raises(checkpoint.DamagedError):  # not another step, now that this one lies elsewhere
    checkpoint.load_params(folder, params)


def test_a_tree_that_does_not_fit_prints_the_difference(tmp_path):
  _save(tmp_path, 1)
  wanted = {
    "params": {"w": jax.ShapeDtypeStruct((4, 2), jnp.bfloat16)},
    "step": jax.ShapeDtypeStruct((), jnp.int32),
  }
  message = r"params.w: the checkpoint has float32\[4, 2\], this run wants bfloat16\[4, 2\]"
  with (
    checkpoint.Checkpoints(tmp_path) as checkpoints,
    pytest.raises(checkpoint.CheckpointError, match=message),
  ):
    checkpoints.restore(wanted)


_PROCESS = """
import json, sys
import jax
from synthjax import multihost
from synthjax.train import checkpoint
from tests.train import test_checkpoint as here

folder, mine = sys.argv[1], json.loads(sys.argv[2])
multihost.start(multihost.from_environment())

def failing(function):
  def wrapped(path, *more):
    found = function(path, *more)
    if mine.get(path.name, ["", ""])[0] == function.__name__:
      raise ValueError(mine[path.name][1])
    return found
  return wrapped

checkpoint._describe, checkpoint._load = failing(checkpoint._describe), failing(checkpoint._load)
everywhere = jax.sharding.NamedSharding(jax.make_mesh((2,), ("x",)), jax.sharding.PartitionSpec())
abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), here._abstract())
try:
  with checkpoint.Checkpoints(folder, 5) as checkpoints:
    step, state, _ = checkpoints.restore(abstract)
    value = float(state["params"]["w"].addressable_data(0)[0, 0])
    print(json.dumps([step, value, checkpoints.steps(), checkpoint.load_params(folder, abstract["params"])[0]]))
    checkpoints.save(4, state, {"position": 4})
except Exception as e:
  print(json.dumps(f"{type(e).__name__}: {e}"), flush=True)
multihost.meet("end")
multihost.finish()
"""


_CUT, _SILENT = "DATA_LOSS: cut short", "UNAVAILABLE: no answer"


@pytest.mark.parametrize(
  ("errors", "found"),
  [
    (({"2": ["_load", _CUT]}, {"3": ["_describe", _CUT]}), ([1, 1.0, [1], 1],) * 2),
    (
      ({"3": ["_load", _SILENT]}, {"3": ["_load", _CUT]}),
      (
        f"ValueError: {_SILENT}",
        "CheckpointError: {}/3: process 0 could not use it; its own message says why",
      ),
    ),
  ],
)
def test_two_processes_go_on_from_one_step_though_they_read_differently(tmp_path, errors, found):
  _save(tmp_path, 1, 2, 3)
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
  runs = [
    subprocess.Popen(
      [sys.executable, "-c", _PROCESS, str(tmp_path), json.dumps(mine)],
      cwd=ROOT,
      text=True,
      env={**environment, "SYNTHJAX_PROCESS": str(process)},
      stdout=subprocess.PIPE,
    )
    for process, mine in enumerate(errors)
  ]
  outputs = [json.loads(run.communicate(timeout=120)[0].splitlines()[-1]) for run in runs]
  assert outputs == [each.format(tmp_path) if isinstance(each, str) else each for each in found]
  if isinstance(found[0], list):  # what two processes wrote is exported by one
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), _state(0.0)["params"])
    assert checkpoint.export_params(tmp_path, tmp_path / "exported", abstract) == 4
    _, params, _ = checkpoint.load_params(tmp_path / "exported", _abstract()["params"])
    assert float(params["w"][0, 0]) == 1.0
