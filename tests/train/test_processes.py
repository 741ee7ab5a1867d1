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

import jax
import numpy as np
import pytest

from synthjax.train import checkpoint

ROOT = pathlib.Path(__file__).parents[2]
SMALL = ["--config", "configs/world_sft.py:smoke", "--config.train.steps=60", "--config.train.checkpoint_every=5"]


def _start(verb, workdir, *more, program=("-m", "synthjax"), devices=1, **environment):
  command = [sys.executable, *program, verb, *SMALL, "--workdir", str(workdir), *more]
  environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", **environment}
  return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


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

  return Transformer(sized(config.load(str(ROOT / "configs/world_sft.py")).model, 65)).abstract()


def _losses(workdir):
  rows = [json.loads(line) for line in (workdir / "train/metrics.jsonl").read_text().splitlines()]
  return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.mark.slow
def test_a_run_killed_at_ten_random_moments_ends_with_the_bits_of_an_uninterrupted_one(tmp_path):
  _finish(_start("train", tmp_path / "whole"))
  moments, kills = random.Random(0), 0
  while kills < 10:
    run = _start("train", tmp_path / "killed")
    try:
      run.wait(moments.uniform(1.5, 6.5))
      assert run.returncode == 0, run.stdout.read()
      (tmp_path / "killed/train/manifest.json").unlink()  # finished before its time: the last steps are killed again
    except subprocess.TimeoutExpired:
      run.send_signal(signal.SIGKILL)
      run.wait()
      kills += 1
  _finish(_start("train", tmp_path / "killed"))
  jax.tree.map(np.testing.assert_array_equal, _params(tmp_path / "killed"), _params(tmp_path / "whole"))
  results = [json.loads((tmp_path / name / "train/manifest.json").read_text())["result"] for name in ("whole", "killed")]
  assert results[0] == results[1]
  assert _losses(tmp_path / "killed") == _losses(tmp_path / "whole")


def _free_port() -> int:
  """Of a pair: the coordinator takes the port, the roll call the one after it."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def _together(workdir, processes, devices, record, stop_at=0):
  """Trains with that many processes; SIGTERM to all of them when the first says that step `stop_at` is done."""
  port = _free_port()
  who = {"SYNTHJAX_COORDINATOR": f"127.0.0.1:{port}", "SYNTHJAX_PROCESSES": str(processes)} if processes > 1 else {}
  runs = [_start("train", workdir, "--config.train.log_every=1", program=[str(ROOT / "tests/train/recording.py")], devices=devices,
                 PYTHONPATH=str(ROOT), SYNTHJAX_RECORD=str(record), **who, **({"SYNTHJAX_PROCESS": str(p)} if who else {}))
          for p in range(processes)]
  if not stop_at:
    return [_finish(run) for run in runs]
  for line in runs[0].stdout:
    if line.startswith("step") and int(line.split()[1].split("/")[0]) >= stop_at:
      for run in runs:
        run.send_signal(signal.SIGTERM)
      break
  outputs = [run.communicate(timeout=300)[0] for run in runs]
  assert [run.returncode for run in runs] == [1] * processes, outputs
  assert "stopped by SIGTERM after step" in outputs[0]
  return outputs


@pytest.mark.slow
def test_one_process_then_two_with_two_devices_then_one_see_the_same_examples_in_the_same_order(tmp_path):
  _together(tmp_path / "whole", 1, 1, tmp_path / "whole.ids")
  positions = [0]
  for number, (processes, devices, stop_at) in enumerate(((1, 1, 12), (2, 2, 30), (1, 1, 0))):
    _together(tmp_path / "cut", processes, devices, tmp_path / f"{number}.ids", stop_at)
    rows = [json.loads(line) for line in (tmp_path / "cut/train/metrics.jsonl").read_text().splitlines()]
    positions.append(rows[-1]["position"])
  expected = dict(_records(tmp_path / "whole.ids"))
  for number, (first, last) in enumerate(zip(positions, positions[1:])):
    # What was read ahead but not trained on when the run stopped is read again by the next one.
    trained = sorted((index, ids) for index, ids in _records(tmp_path / f"{number}.ids") if first <= index < last)
    assert trained == [(index, expected[index]) for index in range(first, last)]
  assert positions[-1] == 60 * 64 and len(set(positions)) == 4
  whole, cut = _losses(tmp_path / "whole"), _losses(tmp_path / "cut")
  assert whole.keys() == cut.keys()
  np.testing.assert_allclose([cut[step] for step in whole], list(whole.values()), atol=1e-4)
  # Up to the first step on two processes nothing differs; that step itself differs by rounding alone.
  second = positions[1] // 64 + 1
  assert cut[second] == pytest.approx(whole[second], abs=1e-5)


def _records(path):
  return [tuple(json.loads(line)) for line in path.read_text().splitlines()]


def test_a_process_that_does_not_come_is_named(tmp_path):
  run = _start("train", tmp_path, SYNTHJAX_COORDINATOR=f"127.0.0.1:{_free_port()}", SYNTHJAX_PROCESSES="3", SYNTHJAX_PROCESS="0",
               SYNTHJAX_START_TIMEOUT="2")
  output, _ = run.communicate(timeout=60)
  assert run.returncode == 1 and "process 1, 2 of 3 did not call 127.0.0.1:" in output


def test_a_full_disk_during_a_checkpoint_is_said_and_the_run_goes_on_when_there_is_room(tmp_path):
  _finish(_start("cache", tmp_path))
  # No file may grow beyond 256 KiB: the arrays of a checkpoint do not fit, everything else does.
  command = [sys.executable, "-m", "synthjax", "train", *SMALL, "--workdir", str(tmp_path)]
  full = subprocess.run(command, cwd=ROOT, env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True,
                        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18)))
  assert full.returncode == 1, full.stdout + full.stderr
  assert "could not write the checkpoint of step" in full.stderr and "GiB free" in full.stderr
  output = _finish(_start("train", tmp_path))
  assert "[train] goes on" in output and "step     60/60" in output


def test_a_checkpoint_made_with_another_tokenizer_is_refused(tmp_path):
  run = _start("train", tmp_path, "--config.data.tokenizer.kind=bytes", "--config.data.row_length=512",
               "--config.model_overrides.vocab_size=128")
  output, _ = run.communicate(timeout=120)
  assert run.returncode == 1
  assert "the tokenizer has 258 ids" in output.splitlines()[-1]
  run = _start("train", tmp_path, "--config.data.tokenizer.kind=bytes", "--config.data.row_length=512")
  output, _ = run.communicate(timeout=120)
  assert run.returncode == 1 and "embedding: the checkpoint has float32[128, 64], this run wants float32[320, 64]" in output


@pytest.mark.parametrize("verb", ["run", "plan"])
def test_what_cannot_work_is_one_line_and_nothing_is_written(tmp_path, verb):
  run = subprocess.run([sys.executable, "-m", "synthjax", verb, *SMALL, "--config.mesh.tensor=3", *(["--workdir", str(tmp_path / "w")]
                        if verb == "run" else [])], cwd=ROOT, env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True)
  assert run.returncode == 1 and "does not fit 1 devices" in run.stderr.splitlines()[-1]
  assert not list(tmp_path.iterdir())
