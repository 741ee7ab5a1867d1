"""ConfigDict -> frozen dataclasses: the boundary where a config file becomes a checked `schema.Experiment`.

`load("configs/x.py:smoke", ["train.steps=100"])` runs the file's `get_config("smoke")`, applies the overrides and checks the
whole: an unknown key, a wrong type or an impossible combination is a ConfigError that names the key, the value, what is
allowed and the nearest known key.
"""

import ast
import dataclasses
import difflib
import pathlib
import runpy
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from synthjax import schema
from synthjax.model.presets import PRESETS


class ConfigError(ValueError):
  """A config that cannot be used; the message names the key, the value, what is allowed and the nearest known key."""


def load(spec: str, overrides: Sequence[str] = ()) -> schema.Experiment:
  """Loads `path.py[:argument]`, applies overrides such as `train.steps=100`, checks and freezes."""
  tree = read(spec).to_dict()
  for override in overrides:
    key, equals, text = override.partition("=")
    if not equals:
      raise ConfigError(f"override {override!r}: expected KEY=VALUE, for example train.steps=100")
    _assign(tree, key, text)
  return resolve(tree)


def read(spec: str) -> ml_collections.ConfigDict:
  """The ConfigDict of `path.py[:argument]`, as the file gives it."""
  path, _, argument = spec.partition(":")
  if not pathlib.Path(path).is_file():
    known = sorted(str(p) for p in pathlib.Path("configs").glob("*.py"))
    raise ConfigError(f"--config {path}: no such file{_nearest(path, known)}")
  module = runpy.run_path(path)
  if "get_config" not in module:
    raise ConfigError(f"--config {path}: the file defines no get_config(arg='')")
  found = module["get_config"](argument)
  if not isinstance(found, ml_collections.ConfigDict):
    raise ConfigError(f"--config {path}: get_config returned {type(found).__name__}, expected ml_collections.ConfigDict")
  return found


def resolve(tree: Mapping[str, Any]) -> schema.Experiment:
  """The frozen experiment of a nested mapping. `model` may be a preset's name, changed by `model_overrides`."""
  tree = dict(tree)
  overrides = tree.pop("model_overrides", None) or {}
  if isinstance(tree.get("model"), str):
    name = tree["model"]
    if name not in PRESETS:
      raise ConfigError(f"config.model is {name!r}; expected a preset ({', '.join(PRESETS)}){_nearest(name, PRESETS)}")
    tree["model"] = dataclasses.asdict(PRESETS[name])
  if overrides:
    _known(overrides, _hints(schema.Model), "config.model_overrides")
    tree["model"] = {**tree.get("model", {}), **overrides}
  experiment = _build(schema.Experiment, tree, "config")
  check(experiment)
  return experiment


def check(experiment: schema.Experiment) -> None:
  """Raises ConfigError for values that cannot work together, before anything is compiled."""
  model, data, train, mesh = experiment.model, experiment.data, experiment.train, experiment.mesh
  name: str
  value: float
  for name, value in (
    ("model.d_model", model.d_model), ("model.layers", model.layers), ("model.heads", model.heads),
    ("model.kv_heads", model.kv_heads), ("model.head_dim", model.head_dim), ("model.mlp_dim", model.mlp_dim),
    ("data.threads", data.threads), ("data.prefetch", data.prefetch), ("data.tokenizer.vocab_size", data.tokenizer.vocab_size),
    ("train.batch_size", train.batch_size), ("train.accumulate", train.accumulate), ("train.log_every", train.log_every),
    ("train.checkpoint_every", train.checkpoint_every), ("train.keep", train.keep),
    ("evaluate.slots", experiment.evaluate.slots), ("evaluate.max_new_tokens", experiment.evaluate.max_new_tokens),
  ):
    _require(value >= 1, name, value, "at least 1")
  for name, value in (
    ("model.vocab_size", model.vocab_size), ("data.train_problems", data.train_problems),
    ("data.test_problems", data.test_problems), ("train.steps", train.steps), ("train.eval_every", train.eval_every),
    ("model.logit_soft_cap", model.logit_soft_cap), ("model.attention_soft_cap", model.attention_soft_cap),
    ("model.window", model.window), ("train.z_loss", train.z_loss),
    ("train.optimizer.warmup", train.optimizer.warmup), ("train.optimizer.decay", train.optimizer.decay),
    ("train.optimizer.clip", train.optimizer.clip), ("train.optimizer.weight_decay", train.optimizer.weight_decay),
  ):
    _require(value >= 0, name, value, "0 or more")
  _require(model.heads % model.kv_heads == 0, "model.kv_heads", model.kv_heads, f"a divisor of model.heads={model.heads}")
  _require(model.head_dim % 2 == 0, "model.head_dim", model.head_dim, "an even number: rotary embedding turns pairs")
  _require(data.row_length >= 2, "data.row_length", data.row_length, "at least 2")
  _require(train.batch_size % train.accumulate == 0, "train.accumulate", train.accumulate,
           f"a divisor of train.batch_size={train.batch_size}")
  _require(train.steps > 0 or train.epochs > 0, "train.epochs", train.epochs, "above 0 where train.steps is 0")
  _require(train.optimizer.learning_rate > 0, "train.optimizer.learning_rate", train.optimizer.learning_rate, "above 0")
  _require(0 <= train.optimizer.final <= 1, "train.optimizer.final", train.optimizer.final, "a share from 0 to 1")
  sizes = dataclasses.asdict(mesh)
  for name, size in sizes.items():
    _require(size >= 1 or size == -1, f"mesh.{name}", size, "at least 1, or -1 for what is left")
  _require(list(sizes.values()).count(-1) <= 1, "mesh", sizes, "-1 on one axis at most")
  _require(data.task == "world" or data.tokenizer.kind != "world", "data.tokenizer.kind", data.tokenizer.kind,
           f"a tokenizer that knows the words of task {data.task!r}: bytes, sentencepiece, hf or gpt2")
  _require(not data.mixture or train.steps > 0, "train.steps", train.steps, "above 0 with data.mixture: a mixture has no epochs")
  for i, source in enumerate(data.mixture):
    _require(source.rate > 0, f"data.mixture[{i}].rate", source.rate, "above 0")
    _require(source.task == "world" or source.path or source.task in ("gsm8k", "math"), f"data.mixture[{i}].path", source.path,
             f"the files of task {source.task!r}")
  for name, path in (("train_path", data.train_path), ("test_path", data.test_path)):
    _require(data.task not in ("traces", "text") or path, f"data.{name}", path, f"the files of task {data.task!r}")
  _require(data.task == "world" or data.traces == "teacher", "data.traces", data.traces,
           f"'teacher' for task {data.task!r}: only the embedded world has other traces")
  evaluate = experiment.evaluate
  _require(evaluate.samples >= 1, "evaluate.samples", evaluate.samples, "at least 1")
  _require(evaluate.temperature >= 0, "evaluate.temperature", evaluate.temperature, "0 or more")
  _require(evaluate.samples == 1 or evaluate.temperature > 0, "evaluate.temperature", evaluate.temperature,
           f"above 0 with evaluate.samples={evaluate.samples}: greedy samples are all the same")
  for k in evaluate.pass_at:
    _require(1 <= k <= evaluate.samples, "evaluate.pass_at", evaluate.pass_at, f"numbers from 1 to evaluate.samples={evaluate.samples}")
  profile_steps(train)


def profile_steps(train: schema.Train) -> tuple[int, int] | None:
  """(first, last) step to trace, or None. Raises ConfigError where `train.profile` is malformed."""
  if not train.profile:
    return None
  first, colon, last = train.profile.partition(":")
  ok = colon and first.isdigit() and last.isdigit() and int(first) <= int(last)
  _require(ok, "train.profile", train.profile, "FIRST:LAST, for example 10:12")
  return int(first), int(last)


def describe(experiment: schema.Experiment) -> str:
  """The resolved tree, one line a field, as `synthjax config` prints it."""
  return "\n".join(f"{key} = {value!r}" for key, value in leaves(dataclasses.asdict(experiment)))


def leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
  """(dotted key, value) of every leaf of a nested mapping."""
  found = []
  for key, value in tree.items():
    found += leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
  return found


def _require(condition, name, value, allowed):
  if not condition:
    raise ConfigError(f"config.{name} is {value!r}; expected {allowed}")


def _assign(tree: dict, key: str, text: str) -> None:
  """Sets `key` (dotted) in `tree` to `text`, read as a Python literal where it is one and as a string otherwise."""
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    value = {"true": True, "false": False}.get(text, text)
  *parents, leaf = key.split(".")
  for parent in parents:
    inner = tree.setdefault(parent, {})
    if isinstance(inner, str):
      raise ConfigError(f"config.{key}: config.{parent} is {inner!r}, a name; "
                        + (f"change one of its fields with config.model_overrides.{leaf}" if parent == "model" else ""))
    if not isinstance(inner, dict):
      raise ConfigError(f"config.{key}: config.{parent} is a single value ({inner!r}) and has no fields")
    tree = inner
  tree[leaf] = value


def _hints(cls) -> dict[str, Any]:
  return typing.get_type_hints(cls)


def _known(values: Mapping[str, Any], hints: Mapping[str, Any], path: str) -> None:
  for key in values:
    if key not in hints:
      raise ConfigError(f"{path}.{key}: unknown key (value {values[key]!r}){_nearest(key, hints)}; "
                        f"known here: {', '.join(hints)}")


def _build(cls, values, path):
  """An instance of the dataclass `cls` from a mapping; keys that are left out hold their defaults."""
  if not isinstance(values, Mapping):
    raise ConfigError(f"{path} is {values!r}; expected a group with the keys {', '.join(_hints(cls))}")
  hints = _hints(cls)
  _known(values, hints, path)
  try:
    return cls(**{key: _cast(hints[key], value, f"{path}.{key}") for key, value in values.items()})
  except ConfigError:
    raise
  except ValueError as e:
    raise ConfigError(f"{path}: {e}") from e


def _cast(hint, value, path):
  if dataclasses.is_dataclass(hint):
    return _build(hint, value, path)
  if typing.get_origin(hint) is typing.Literal:
    allowed = typing.get_args(hint)
    if value not in allowed:
      raise ConfigError(f"{path} is {value!r}; expected one of {', '.join(allowed)}{_nearest(str(value), allowed)}")
    return value
  if typing.get_origin(hint) is tuple and isinstance(value, (list, tuple)):
    return tuple(_cast(typing.get_args(hint)[0], v, f"{path}[{i}]") for i, v in enumerate(value))
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, hint if isinstance(hint, type) else object) or (isinstance(value, bool) and hint is not bool):
    raise ConfigError(f"{path} is {value!r} ({type(value).__name__}); expected {getattr(hint, '__name__', hint)}")
  return value


def _nearest(name, known) -> str:
  close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
  return f"; did you mean {close[0]!r}?" if close else ""
