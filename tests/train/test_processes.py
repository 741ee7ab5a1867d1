"""Real processes: killed, stopped, joined, starved of disk."""

import json
import os
import pathlib
import random
import resource
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from synthjax import records
from synthjax.config.worlds import World
from synthjax.records import Pair
from synthjax.train import checkpoint
from synthjax.worlds import shop

ROOT = pathlib.Path(__file__).parents[2]
SMALL = [
  "--config",
  "configs/world_sft.py:smoke",
  "--config.train.steps=60",
  "--config.train.checkpoint_every=5",
]


def _start(verb, workdir, *more, program=("-m", "synthjax"), devices=1, **environment):
  command = [sys.executable, *program, verb, *SMALL, "--workdir", str(workdir), *more]
  environment = {
    **os.environ,
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    **environment,
  }
  return subprocess.Popen(
    command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )


def _finish(run):
  output, _ = run.communicate(timeout=300)
  assert run.returncode == 0, output
  return output


def _params(workdir):
  _, params, _ = checkpoint.load_params(workdir / "train/checkpoints", _shapes(workdir))
  return params


def _shapes(workdir):
  from synthjax import config
  from synthjax.model.transformer import Transformer, sized

  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])  # whatever devices saved them
  shapes = Transformer(sized(config.load(str(ROOT / "configs/world_sft.py")).model, 65)).abstract()
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)


def _rows(workdir):
  lines = (workdir / "train/metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def _losses(workdir):
  return {row["step"]: row["loss"] for row in _rows(workdir) if "loss" in row}


@pytest.mark.slow
def test_a_run_killed_at_ten_random_moments_ends_with_the_bits_of_an_uninterrupted_one(tmp_path):
  _finish(_start("train", tmp_path / "whole"))
  moments, kills = random.Random(0), 0
  while kills < 10:
    run = _start("train", tmp_path / "killed")
    try:
      run.wait(moments.uniform(1.5, 6.5))
      assert run.returncode == 0, run.stdout.read()
      # It finished before its time: without a manifest its last steps are killed again.
      (tmp_path / "killed/train/manifest.json").unlink()
    except subprocess.TimeoutExpired:
      run.send_signal(signal.SIGKILL)
      run.wait()
      kills += 1
  _finish(_start("train", tmp_path / "killed"))
  jax.tree.map(
    np.testing.assert_array_equal, _params(tmp_path / "killed"), _params(tmp_path / "whole")
  )
  results = [
    json.loads((tmp_path / name / "train/manifest.json").read_text())["result"]
    for name in ("whole", "killed")
  ]
  assert results[0] == results[1]
  assert _losses(tmp_path / "killed") == _losses(tmp_path / "whole")


def _free_port() -> int:
  """Of a pair: the coordinator takes the port, the roll call the one after it."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def _together(workdir, processes, devices, record, stop_at=0):
  """Trains with that many processes.

  SIGTERM goes to all of them when the first says that step `stop_at` is done; 0: it never does.
  """
  port = _free_port()
  environment = {"PYTHONPATH": str(ROOT), "SYNTHJAX_RECORD": str(record)}
  if processes > 1:
    environment["SYNTHJAX_COORDINATOR"] = f"127.0.0.1:{port}"
    environment["SYNTHJAX_PROCESSES"] = str(processes)
  runs = []
  for process in range(processes):
    if processes > 1:
      environment["SYNTHJAX_PROCESS"] = str(process)
    run = _start(
      "train",
      workdir,
      "--config.train.log_every=1",
      program=[str(ROOT / "tests/train/recording.py")],
      devices=devices,
      **environment,
    )
    runs.append(run)
  if not stop_at:
    return [_finish(run) for run in runs]
  for line in runs[0].stdout:
    if line.startswith("step") and int(line.split()[1].split("/")[0]) >= stop_at:
      for run in runs:
        run.send_signal(signal.SIGTERM)
      break
  outputs = [run.communicate(timeout=300)[0] for run in runs]
  assert [run.returncode for run in runs] == [143] * processes, outputs
  assert all("stopped by SIGTERM; after step" in output for output in outputs)
  return outputs


@pytest.mark.slow
def test_one_process_then_two_with_two_devices_then_one_see_the_same_examples_in_the_same_order(
  tmp_path,
):
  _together(tmp_path / "whole", 1, 1, tmp_path / "whole.ids")
  positions = [0]
  for number, (processes, devices, stop_at) in enumerate(((1, 1, 12), (2, 2, 15), (1, 1, 0))):
    _together(tmp_path / "cut", processes, devices, tmp_path / f"{number}.ids", stop_at)
    positions.append(_rows(tmp_path / "cut")[-1]["position"])
  expected = dict(_records(tmp_path / "whole.ids"))
  for number, (first, last) in enumerate(zip(positions, positions[1:])):
    # What was read ahead but not trained on when the run stopped is read again by the next one.
    trained = sorted(
      (index, ids) for index, ids in _records(tmp_path / f"{number}.ids") if first <= index < last
    )
    assert trained == [(index, expected[index]) for index in range(first, last)]
  assert positions[-1] == 60 * 64 and len(set(positions)) == 4
  whole, cut = _losses(tmp_path / "whole"), _losses(tmp_path / "cut")
  assert whole.keys() == cut.keys()
  np.testing.assert_allclose([cut[step] for step in whole], list(whole.values()), atol=1e-4)
  # Nothing differs up to the first step on two processes; that step itself differs by rounding.
  second = positions[1] // 64 + 1
  assert cut[second] == pytest.approx(whole[second], abs=1e-5)


def _records(path):
  return [tuple(json.loads(line)) for line in path.read_text().splitlines()]


def _matrix(out, what, processes, devices):
  """Runs tests/train/matrix.py; compiled in a hurry, since nothing there is computed twice."""
  flags = (
    f"--xla_force_host_platform_device_count={devices} "
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
  )
  coordinator = f"127.0.0.1:{_free_port()}"
  runs = []
  for process in range(processes):
    who = {
      "SYNTHJAX_COORDINATOR": coordinator,
      "SYNTHJAX_PROCESSES": str(processes),
      "SYNTHJAX_PROCESS": str(process),
    }
    environment = {
      **os.environ,
      "XLA_FLAGS": flags,
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": str(ROOT),
      **who,
    }
    command = [sys.executable, str(ROOT / "tests/train/matrix.py"), str(out), what]
    runs.append(
      subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
      )
    )
  for run in runs:
    _finish(run)
  return dict(np.load(out))


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
  """Loss and gradient of every loss, on one device in one piece."""
  return _matrix(tmp_path_factory.mktemp("matrix") / "oracle.npz", "oracle", 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "cases"), [(2, 18), (4, 4)])
def test_every_loss_and_gradient_is_that_of_one_device_whatever_process_holds_what(
  tmp_path, oracle, processes, cases
):
  found = _matrix(tmp_path / "found.npz", str(cases), processes, 4 // processes)
  assert len(found) == cases
  for name, values in found.items():
    expected = oracle[name.split()[0]]
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(values, expected, atol=1e-6 * scale, err_msg=name)


def _pair(verb, workdir, *more, **environment):
  """Two processes of one start."""
  who = {"SYNTHJAX_COORDINATOR": f"127.0.0.1:{_free_port()}", "SYNTHJAX_PROCESSES": "2"}
  return [
    _start(verb, workdir, *more, SYNTHJAX_PROCESS=str(k), **who, **environment) for k in range(2)
  ]


def _ends(runs, seconds):
  """(exit codes, outputs) of runs that end by themselves in time."""
  deadline = time.monotonic() + seconds
  outputs = [run.communicate(timeout=max(1.0, deadline - time.monotonic()))[0] for run in runs]
  return [run.returncode for run in runs], outputs


def test_an_error_of_one_process_ends_all_of_them_with_its_sentence(tmp_path):
  """The first process reads the data while the other one waits for it."""
  good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
  good.write_text('{"text": "one"}\n')
  bad.write_text('{"body": "two"}\n')
  data = [
    "--config.data.task=text",
    f"--config.data.train_path={good}",
    f"--config.data.test_path={bad}",
    "--config.data.tokenizer.kind=bytes",
  ]
  runs = _pair("train", tmp_path / "run", *data)
  codes, outputs = _ends(runs, 100)
  assert codes == [1, 1], outputs
  for output in outputs:
    assert "row 1: field 'text' is None; expected text" in output.strip().splitlines()[-1]


def test_the_held_out_loss_comes_at_its_own_steps_and_is_one_whatever_process_holds_what(tmp_path):
  """A tensor axis over two processes: both hold every sequence.

  No checkpoint falls due where the loss is measured.
  """
  often = [
    "--config.train.steps=3",
    "--config.train.eval_every=2",
    "--config.train.checkpoint_every=100",
    "--config.train.log_every=1",
    "--config.train.batch_size=8",
  ]
  _finish(_start("train", tmp_path / "one", *often))
  for run in _pair(
    "train", tmp_path / "two", *often, "--config.mesh.fsdp=1", "--config.mesh.tensor=2"
  ):
    _finish(run)
  losses = []
  for name in ("one", "two"):
    rows = [row for row in _rows(tmp_path / name) if "eval_loss" in row]
    measured = {row["step"]: row["eval_loss"] for row in rows}
    assert list(measured) == [2]
    end = json.loads((tmp_path / name / "train/manifest.json").read_text())["result"]["eval_loss"]
    losses.append([*_losses(tmp_path / name).values(), *measured.values(), end])
  np.testing.assert_allclose(losses[1], losses[0], atol=1e-4)


def test_a_killed_process_ends_the_other_one_with_its_name(tmp_path):
  runs = _pair("train", tmp_path, "--config.train.steps=100000", "--config.train.log_every=1")
  for line in runs[0].stdout:
    if line.startswith("step"):
      break
  runs[1].kill()
  killed = time.monotonic()
  codes, outputs = _ends(runs, 30)
  assert codes == [1, -signal.SIGKILL] and time.monotonic() - killed < 15
  assert "process 1 of 2 ended without a word" in outputs[0].splitlines()[-1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_hanging_start(tmp_path, number, code):
  port = _free_port()
  run = _start(
    "train",
    tmp_path,
    SYNTHJAX_COORDINATOR=f"127.0.0.1:{port}",
    SYNTHJAX_PROCESSES="2",
    SYNTHJAX_PROCESS="0",
  )
  _wait_for_port(port + 1)
  run.send_signal(number)
  codes, outputs = _ends([run], 15)
  assert codes == [code] and "synthjax: stopped by" in outputs[0].splitlines()[-1]


@pytest.mark.slow
def test_a_killed_preference_training_of_two_processes_resumes_to_the_bits_of_a_whole_one(
  tmp_path,
):
  pairs, problems = tmp_path / "pairs.jsonl", list(shop.problems(World(), "train", 61))
  texts = [" " + shop.clean_trace(problem).text for problem in problems]
  rows = [
    Pair(problem.id, problem.question, *sides, "random")
    for problem, *sides in zip(problems, texts, texts[1:])
  ]
  records.write(pairs, rows)
  config = [
    "--config",
    "configs/world_dpo.py:smoke",
    f"--config.objective.pairs={pairs}",
    "--config.train.steps=60",
    "--config.train.checkpoint_every=4",
    "--config.train.log_every=1",
    "--config.train.accumulate=2",
  ]
  for run in _pair("train", tmp_path / "whole", *config):
    _finish(run)
  moments = random.Random(0)
  for victim in (1, 0):
    runs = _pair("train", tmp_path / "killed", *config)
    for line in runs[0].stdout:
      if line.startswith("step"):
        break
    time.sleep(moments.uniform(0.0, 0.5))
    assert runs[victim].poll() is None
    runs[victim].kill()
    codes, outputs = _ends(runs, 60)
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 1, outputs
    assert f"process {victim} of 2 ended without a word" in outputs[1 - victim].splitlines()[-1]
  for run in _pair("train", tmp_path / "killed", *config):
    _finish(run)
  jax.tree.map(
    np.testing.assert_array_equal, _params(tmp_path / "killed"), _params(tmp_path / "whole")
  )
  assert _losses(tmp_path / "killed") == _losses(tmp_path / "whole")


def _wait_for_port(port):
  """Until somebody listens there; the connection is nobody's and is let go."""
  while True:
    with socket.socket() as probe:
      if probe.connect_ex(("127.0.0.1", port)) == 0:
        return
    time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_with_rare_lines_follows_a_signal_at_any_moment_and_resumes_to_the_bit(
  tmp_path, processes
):
  """As the quickstart has it: no line and no checkpoint falls due before the end."""
  rare = [
    "--config.train.log_every=10000",
    "--config.train.checkpoint_every=10000",
    "--config.train.steps=300",
    "--config.train.batch_size=8",
  ]

  def begin(workdir):
    if processes == 2:
      return _pair("train", workdir, *rare)
    return [_start("train", workdir, *rare)]

  for run in begin(tmp_path / "whole"):
    _finish(run)
  moments = random.Random(processes)
  for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGTERM, 143)):
    runs = begin(tmp_path / "cut")
    for line in runs[0].stdout:
      if line.startswith("compiled the step"):
        break
    time.sleep(moments.uniform(0.0, 0.8))
    assert all(run.poll() is None for run in runs)
    runs[-1].send_signal(number)  # one of them is enough
    asked = time.monotonic()
    codes, outputs = _ends(runs, 60)
    assert codes == [code] * processes, outputs
    assert time.monotonic() - asked < 15
    assert all("synthjax: stopped by" in output.strip().splitlines()[-1] for output in outputs), (
      outputs
    )
  for run in begin(tmp_path / "cut"):
    _finish(run)
  jax.tree.map(
    np.testing.assert_array_equal, _params(tmp_path / "cut"), _params(tmp_path / "whole")
  )


def test_a_process_that_does_not_come_is_named(tmp_path):
  run = _start(
    "train",
    tmp_path,
    SYNTHJAX_COORDINATOR=f"127.0.0.1:{_free_port()}",
    SYNTHJAX_PROCESSES="3",
    SYNTHJAX_PROCESS="0",
    SYNTHJAX_START_TIMEOUT="2",
  )
  output, _ = run.communicate(timeout=60)
  assert run.returncode == 1 and "process 1, 2 of 3 did not call 127.0.0.1:" in output


def test_a_full_disk_during_a_checkpoint_is_said_and_the_run_goes_on_when_there_is_room(tmp_path):
  _finish(_start("cache", tmp_path))
  # No file may grow beyond 256 KiB: the arrays of a checkpoint do not fit, everything else does.
  command = [sys.executable, "-m", "synthjax", "train", *SMALL, "--workdir", str(tmp_path)]
  full = subprocess.run(
    command,
    cwd=ROOT,
    env={**os.environ, "XLA_FLAGS": ""},
    capture_output=True,
    text=True,
    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18)),
  )
  assert full.returncode == 1, full.stdout + full.stderr
  assert "could not write the checkpoint of step" in full.stderr and "GiB free" in full.stderr
  output = _finish(_start("train", tmp_path))
  assert "[train] goes on" in output and "step     60/60" in output


def test_a_checkpoint_made_with_another_tokenizer_is_refused(tmp_path):
  run = _start(
    "train",
    tmp_path,
    "--config.data.tokenizer.kind=bytes",
    "--config.data.seq_len=512",
    "--config.model_overrides.vocab_size=128",
  )
  output, _ = run.communicate(timeout=120)
  assert run.returncode == 1
  assert "the tokenizer has 258 ids" in output.strip().splitlines()[-1]
  run = _start("train", tmp_path, "--config.data.tokenizer.kind=bytes", "--config.data.seq_len=512")
  output, _ = run.communicate(timeout=120)
  assert run.returncode == 1
  message = "embedding: the checkpoint has float32[128, 64], this run wants float32[320, 64]"
  assert message in output


@pytest.mark.parametrize("verb", ["run", "plan"])
def test_what_cannot_work_is_one_line_and_nothing_is_written(tmp_path, verb):
  workdir = []
  if verb == "run":
    workdir = ["--workdir", str(tmp_path / "w")]
  run = subprocess.run(
    [
      sys.executable,
      "-m",
      "synthjax",
      verb,
      *SMALL,
      "--config.mesh.tensor=3",
      *workdir,
    ],
    cwd=ROOT,
    env={**os.environ, "XLA_FLAGS": ""},
    capture_output=True,
    text=True,
  )
  assert run.returncode == 1 and "does not fit 1 devices" in run.stderr.splitlines()[-1]
  assert not list(tmp_path.iterdir())
