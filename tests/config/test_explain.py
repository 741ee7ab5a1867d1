import dataclasses
import re

import pytest

from synthjax import config
from synthjax.config import explain, fields, schema

FIELDS = list(explain.walk(schema.Experiment, schema.Experiment()))


def test_every_field_is_explained_with_its_comment_type_range_and_default():
  text = explain.describe()
  for field in FIELDS:
    assert field.comment, field.key
    assert f"\n{field.key}" in f"\n{text}"
    if not dataclasses.is_dataclass(field.hint):
      assert fields.allowed(field.hint).partition(" with the keys")[0] in text


def test_one_key_or_one_group_is_explained_alone():
  assert explain.describe("train.optimizer.beta2") == (
    "train.optimizer.beta2 = 0.95: float, 0 to below 1\n    decay of the second moment"
  )
  assert explain.describe("--config.train.optimizer.beta2").startswith("train.optimizer.beta2")
  keys = re.findall(r"^(\S+?)(?: =|:)", explain.describe("data.tokenizer"), re.M)
  names = fields.hints(schema.Tokenizer)
  assert keys == ["data.tokenizer"] + [f"data.tokenizer.{name}" for name in names]


def test_paths_and_presets_are_explained_where_they_are_met():
  words = explain.describe("data.train_path").split()
  assert "a mixture's parts have a `path` each instead" in " ".join(words)
  assert "data.mixture[i].path" in explain.describe("data.mixture[0]")
  model = explain.describe("model")
  assert "tiny_1m" in model
  assert "model_overrides" in model
  assert "single fields of the preset" in explain.describe("model_overrides.layers")
  assert "number of blocks" in explain.describe("model_overrides.layers")


@pytest.mark.parametrize(
  ("key", "hint"),
  [
    ("beta2", "did you mean train.optimizer.beta2 or"),
    ("train.optimiser", "did you mean 'train.optimizer'"),
  ],
)
def test_an_unknown_key_is_answered_with_those_it_may_mean(key, hint):
  with pytest.raises(config.ConfigError, match=re.escape(hint)):
    explain.describe(key)
