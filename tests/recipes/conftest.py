"""A tiny study A with every arm, run once for all tests of this folder."""

import json
import pathlib
import shutil
import types
from unittest import mock

import jax
import pytest

from synthjax import config, files, stages
from synthjax import job as jobs
from synthjax.math_study import arms
from synthjax.recipes import math_rl

ROOT = pathlib.Path(__file__).parents[2]
RARE = {"checkpoint_every": 10_000, "log_every": 10_000}
HOW = {"max_tokens": 32, "temperature": 0.7}
# What these arms differ in from others is a field of their TracePairs, which
# tests/credit/test_pairs.py holds.
LEFT_OUT = (
  "dpo_distant",
  "dpo_equal",
  "filtered_sft",
  "last_step",
  "rft_clean",
  "rft_spurious",
  "rpo",
  "step_dpo.step",
)
ARMS = tuple(arm for arm in arms.ARMS if arm not in LEFT_OUT)
PAIRED = {
  name: arms.ARMS[name].data for name in ARMS if isinstance(arms.ARMS[name].data, arms.TracePairs)
}
TINY = {
  "name": "tiny",
  "recipe": "math_rl",
  "model": "world_160k",
  "world": {"leap": 0.3},
  "data": {"task": "world", "test_problems": 20},
  "train": {
    "batch_size": 8,
    "init": str(ROOT / "data/base_policy"),
    "epochs": 20.0,
    "optimizer": {"learning_rate": 1e-3},
    **RARE,
  },
  "objective": {"preference": {"beta": 0.1, "nll": 1.0}, "advantage": {"beta": 0.15}},
  "study": {
    "problems": (24,),
    "baseline_problems": (48,),
    "seeds": (0,),
    "start": "rft",
    "marked": 1,
    "arms": (*ARMS, "step_dpo.branch*2"),
    "split": "dev",
    "least_accuracy": 0.1,
    "samples": 6,
    "samples_many": 8,
    "sampling": HOW,
    "incorrect": 3,
    "kept": 2,
    "values": {"rollouts": 4, "block": 4, "keep": 2, "sampling": HOW},
    "pairs": {"thresholds": {"min_before": 0.1, "confidence_before": 0.0, "confidence_drop": 0.0}},
    "rft": {"batch_size": 8, "epochs": 4.0, "optimizer": {"learning_rate": 1e-3}, **RARE},
    "preference": {"batch_size": 8, "epochs": 2.0, "optimizer": {"learning_rate": 1e-4}, **RARE},
  },
  "evaluate": {"max_new_tokens": 32, "slots": 16},
}


def _experiment(**changes):
  """The tiny study with some of its settings changed, given as `study__arms=...`."""
  given = json.loads(json.dumps(TINY))
  for name, value in changes.items():
    *parts, last = name.split("__")
    inner = given
    for part in parts:
      inner = inner.setdefault(part, {})
    inner[last] = value
  return config.resolve(given)


def _run(workdir, **changes):
  """On one device, compiled fast instead of well: nearly all the time is the compiler's."""
  one, job = jax.devices()[:1], jobs.Job(_experiment(**changes), workdir)
  jax.config.update("jax_disable_most_optimizations", True)
  try:
    with (
      mock.patch.object(jax, "devices", return_value=one),
      mock.patch.object(jax, "local_devices", return_value=one),
    ):
      return math_rl.run(job)
  finally:
    jax.config.update("jax_disable_most_optimizations", False)


def _made(workdir, stage, cell="n00024_s0"):
  return files.read_json(workdir / cell / stage / "manifest.json")["result"]


def _points(result, count=24):
  return {point["arm"]: point for point in result["points"] if point["problems"] == count}


def _rows(workdir, name):
  return list(files.read_jsonl(workdir / "n00024_s0" / name))


def _state(workdir):
  """When each stage was finished."""
  return {path.parent.name: path.stat().st_mtime_ns for path in workdir.glob("n*/*/manifest.json")}


def _redone(before, workdir):
  """Stages that were finished since `before`, but for what was moved out of their way."""
  return {
    name
    for name, when in _state(workdir).items()
    if before.get(name) != when and not stages.is_kept(name)
  }


@pytest.fixture(scope="session")
def tiny():
  """The tiny study's config, ways to run it, and readers of its work folder."""
  return types.SimpleNamespace(
    given=TINY,
    arms=ARMS,
    paired=PAIRED,
    experiment=_experiment,
    run=_run,
    made=_made,
    points=_points,
    rows=_rows,
    state=_state,
    redone=_redone,
  )


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
  """(result, work folder) of the tiny study."""
  workdir = tmp_path_factory.mktemp("study") / "tiny"
  return _run(workdir), workdir


@pytest.fixture
def copied(whole, tmp_path):
  """A copy of its work folder."""
  return pathlib.Path(shutil.copytree(whole[1], tmp_path / "tiny"))
