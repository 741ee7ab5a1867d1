import dataclasses
import typing

import pytest

from synthjax import config, errors, records
from synthjax.config import fields, schema
from synthjax.config.credit import PairConfig, PitThresholds, Sampling, ValueConfig
from synthjax.config.worlds import Star, World
from synthjax.rollout import requests


def _dataclasses(hint):
  """Every dataclass below an annotation."""
  if isinstance(hint, type) and dataclasses.is_dataclass(hint):
    yield hint
    for inner in fields.hints(hint).values():
      yield from _dataclasses(inner)
  for inner in typing.get_args(hint):
    yield from _dataclasses(inner)


CLASSES = sorted(set(_dataclasses(schema.Experiment)), key=lambda cls: cls.__name__)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_number_of_an_experiment_has_its_range_beside_it(cls):
  without_range = (int, float, tuple[int, ...], tuple[float, ...])
  bare = [name for name, hint in fields.hints(cls).items() if hint in without_range]
  assert not bare
  assert issubclass(cls, fields.Checked) or cls is Sampling


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: schema.Optimizer(beta2=2), "Optimizer.beta2 is 2.0; expected float, 0 to below 1"),
    (
      lambda: schema.Optimizer(learning_rate=float("nan")),
      "learning_rate is nan; expected a finite",
    ),
    (lambda: schema.Train(batch_size=0), "Train.batch_size is 0; expected int, at least 1"),
    (lambda: schema.Train(steps=True), r"Train.steps is True \(bool\); expected int"),
    (lambda: schema.Study(problems=512), "Study.problems is 512; expected tuple of int"),
    (lambda: schema.Mesh(fsdp=0), "Mesh.fsdp is 0; expected int, at least 1, or -1"),
    (
      lambda: schema.Study(sampling=Sampling(top_p=3)),
      "Study.sampling.top_p is 3.0; expected",
    ),
    (
      lambda: dataclasses.replace(schema.Model(), head_dim=9),
      "Model.head_dim is 9; expected .*of 2",
    ),
    (lambda: World(min_events=5), "World.min_events is 5; expected at most max_events=4"),
    (lambda: Star(arms=0), "Star.arms is 0; expected int, 1 to 100"),
    (lambda: PairConfig(per_trace=0), "PairConfig.per_trace is 0; expected int, at least 1"),
    (lambda: PitThresholds(min_drop=2), "PitThresholds.min_drop is 2.0; expected float, 0 to 1"),
    (lambda: ValueConfig(threads=0), "ValueConfig.threads is 0; expected int, 1 to 256"),
  ],
)
def test_ranges_hold_for_what_python_builds(make, message):
  with pytest.raises(errors.ConfigError, match=message):
    make()


def test_whole_numbers_become_floats_and_lists_tuples_so_that_equal_settings_are_equal():
  assert isinstance(schema.Train(epochs=2).epochs, float)
  assert schema.Study(problems=[3, 4]).problems == (3, 4)


def test_a_config_goes_to_json_and_back_as_records_do():
  values = ValueConfig(rollouts=4, thresholds=PitThresholds(min_drop=0.25))
  row = records.to_json(values)
  assert row == {"rollouts": 4, "thresholds": {"min_drop": 0.25}}
  assert records.from_json(ValueConfig, row) == values


@pytest.mark.parametrize(("old", "new"), fields.RENAMED.items())
def test_a_renamed_key_is_told_its_new_name(old, new):
  with pytest.raises(errors.ConfigError, match=rf"group\.{old}: .* group\.{new}$"):
    fields.check_keys({old: 1}, [new], "group")


def test_a_sampling_out_of_range_can_be_made_and_is_refused_by_its_check():
  with pytest.raises(requests.RequestError, match="min_p is 2.0; expected float, 0 to 1"):
    requests.check(Sampling(min_p=2))


def test_config_errors_are_known_under_both_names():
  assert config.ConfigError is errors.ConfigError
  assert issubclass(fields.FieldError, errors.Error)
