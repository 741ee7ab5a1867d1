"""No problem is in two splits, whatever the task."""

import dataclasses
import itertools

import pytest

from synthjax import config, files
from synthjax.data import sources
from synthjax.math_study import splits

TEXT = {"data__tokenizer__kind": "bytes"}  # of a task that is not the world


def _experiment(**changes):
  """A study of the world with some settings changed, given as `data__task=...`."""
  given = {"recipe": "math_rl", "data": {"task": "world", "test_problems": 20}}
  given["study"] = {"arms": ("sft",), "split": "dev"}
  for name, value in changes.items():
    *parts, last = name.split("__")
    inner = given
    for part in parts:
      inner = inner.setdefault(part, {})
    inner[last] = value
  return config.resolve(given)


def _of_cell(experiment, count, seed):
  """The training problems of a cell, as cell.open_cell asks for them."""
  world = dataclasses.replace(experiment.world, seed=experiment.world.seed + seed)
  return [
    p.question
    for p in splits.training(
      dataclasses.replace(experiment, seed=experiment.seed + seed, world=world), count
    )
  ]


def _evaluated(experiment, split, count=0):
  study, data = (
    dataclasses.replace(experiment.study, split=split),
    dataclasses.replace(experiment.data, test_problems=count),
  )
  return [
    p.question for p in splits.evaluated(dataclasses.replace(experiment, study=study, data=data))
  ]


def _check_splits(experiment, evaluated):
  few, many, other = (
    _of_cell(experiment, 24, 0),
    _of_cell(experiment, 300, 0),
    _of_cell(experiment, 300, 1),
  )
  assert many[:24] == few and len(set(many)) == 300 and len({*many, *other}) > 450
  assert not {*many, *other} & {*evaluated["dev"], *evaluated["test"]} and not {
    *evaluated["dev"]
  } & {*evaluated["test"]}
  assert all(evaluated.values())


def test_no_problem_of_the_world_is_in_two_splits_and_smaller_sets_begin_larger_ones():
  _check_splits(
    _experiment(), {split: _evaluated(_experiment(), split, 500) for split in ("dev", "test")}
  )


def test_no_problem_of_gsm8k_is_in_two_splits_and_smaller_sets_begin_larger_ones(shared_data):
  experiment = _experiment(**TEXT, data__task="gsm8k", data__folder=str(shared_data))
  evaluated = {split: _evaluated(experiment, split) for split in ("dev", "test")}
  _check_splits(experiment, evaluated)
  training, development, _ = splits.divided(experiment)
  assert (
    len(development) == pytest.approx(0.1 * len(training + development), rel=0.1)
    and len(evaluated["test"]) == 1319
  )
  with pytest.raises(
    config.ConfigError,
    match=f"asks for 7,000 problems; task 'gsm8k' has {len(training):,} for training",
  ):
    splits.training(experiment, 7000)


def test_traces_from_a_file_are_divided_too(tmp_path):
  files.write_jsonl(
    tmp_path / "traces.jsonl",
    ({"inputs": f"{i} + 1", "targets": f" = {i + 1}", "answer": str(i + 1)} for i in range(200)),
  )
  path = str(tmp_path / "traces.jsonl")
  experiment = _experiment(**TEXT, data__task="traces", data__train_path=path, data__test_path=path)
  training, development = ([p.inputs for p in part] for part in splits.divided(experiment)[:2])
  assert 5 < len(development) < 50 and len({*training, *development}) == 200
  assert {*sources.examples(experiment.data, experiment.world, "train")} == {
    *itertools.chain(*splits.divided(experiment)[:2])
  }
