"""Where a config file becomes a checked `schema.Experiment`: ConfigDict -> frozen dataclasses.

`load("configs/x.py:smoke", ["train.steps=100"])` runs the file's `get_config("smoke")`, applies the
overrides and checks the whole: an unknown key, an incorrect type or an impossible combination is a
ConfigError that names the key, the value, what is allowed and the nearest known key. `smoke` must
be one of the file's VARIANTS.
"""

import ast
import dataclasses
import inspect
import json
import pathlib
import runpy
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from synthjax.config import fields, schema
from synthjax.config.fields import nearest
from synthjax.config.presets import PRESETS
from synthjax.errors import ConfigError as ConfigError

MODEL_OVERRIDES = (
  "model_overrides changes single fields of the preset that `model` names, "
  "for example --config.model=tiny_1m --config.model_overrides.layers=3."
)


def load(spec: str, overrides: Sequence[str] = ()) -> schema.Experiment:
  """Loads `path.py[:variant]`, applies overrides such as `train.steps=100`, checks and freezes."""
  tree = read(spec).to_dict()
  for override in overrides:
    key, equals, text = override.partition("=")
    if not equals:
      raise ConfigError(f"override {override!r}: expected KEY=VALUE, for example train.steps=100")
    _assign(tree, key, text)
  return resolve(tree)


def read(spec: str) -> ml_collections.ConfigDict:
  """The ConfigDict of `path.py[:variant]`, as the file gives it."""
  path, _, variant = spec.partition(":")
  if not pathlib.Path(path).is_file():
    known = sorted(str(p) for p in pathlib.Path("configs").glob("*.py"))
    raise ConfigError(f"--config {path}: no such file{nearest(path, known)}")
  module = runpy.run_path(path)
  if "get_config" not in module:
    raise ConfigError(f"--config {path}: the file defines no get_config(variant='')")
  get_config, variants = module["get_config"], [*module.get("VARIANTS", ())]
  if variant and variant not in variants:
    problem = _variants(variants) + nearest(variant, variants)
    raise ConfigError(f"--config {path}:{variant}: {problem}")
  if inspect.signature(get_config).parameters:
    config = get_config(variant)
  else:
    config = get_config()
  if not isinstance(config, ml_collections.ConfigDict):
    raise ConfigError(
      f"--config {path}: get_config returned {type(config).__name__}, "
      "expected ml_collections.ConfigDict"
    )
  return config


def _variants(names: list[str]) -> str:
  if names:
    return f"no such variant; the file has {', '.join(names)}"
  return "the file has no variants; one that has some lists them, as in VARIANTS = ('smoke',)"


def resolve(tree: Mapping[str, Any]) -> schema.Experiment:
  """The frozen experiment of a nested mapping.

  `model` may be a preset's name, or a folder that `synthjax import` wrote; `model_overrides`
  changes single fields of it.
  """
  tree = dict(tree)
  overrides = tree.pop("model_overrides", None) or {}
  if isinstance(tree.get("model"), str):
    tree["model"] = _named_model(tree["model"])
  if overrides:
    fields.check_keys(overrides, fields.hints(schema.Model), "config.model_overrides")
    tree["model"] = {**tree.get("model", {}), **overrides}
  experiment = fields.build(schema.Experiment, tree, "config")
  check(experiment)
  return experiment


def _named_model(name: str) -> dict[str, Any]:
  """The fields of a preset, or of an imported model by its folder."""
  if name in PRESETS:
    return dataclasses.asdict(PRESETS[name])
  imported = pathlib.Path(name) / "model.json"
  if imported.is_file():
    return json.loads(imported.read_text(encoding="utf-8"))
  raise ConfigError(
    f"config.model is {name!r}; expected a preset ({', '.join(PRESETS)}), or a folder that "
    f"`synthjax import` wrote{nearest(name, PRESETS)}"
  )


def check(experiment: schema.Experiment) -> None:
  """Raises ConfigError for values that cannot work together, before anything is compiled."""
  _check_model(experiment.model)
  _check_mesh(experiment.mesh)
  _check_data(experiment.data)
  _check_mixture(experiment.data, experiment.train)
  _check_train(experiment.train)
  _check_evaluate(experiment.evaluate)
  star = experiment.star
  _require(
    star.valued <= star.explored,
    "star.valued",
    star.valued,
    f"at most star.explored={star.explored}",
  )


def _check_model(model: schema.Model) -> None:
  _require(
    model.heads % model.kv_heads == 0,
    "model.kv_heads",
    model.kv_heads,
    f"a divisor of model.heads={model.heads}",
  )
  low, high = model.rope_low_freq_factor, model.rope_high_freq_factor
  _require(
    model.rope_scaling != "llama3" or low < high,
    "model.rope_low_freq_factor",
    low,
    f"below model.rope_high_freq_factor={high}",
  )


def _check_mesh(mesh: schema.Mesh) -> None:
  sizes = dataclasses.asdict(mesh)
  _require(list(sizes.values()).count(-1) <= 1, "mesh", sizes, "-1 on one axis at most")


def _check_data(data: schema.Data) -> None:
  task = data.task
  kind = data.tokenizer.kind
  _require(
    task == "world" or kind != "world",
    "data.tokenizer.kind",
    kind,
    f"a tokenizer that knows the words of task {task!r}: bytes, sentencepiece, hf or gpt2",
  )
  _require(
    task == "world" or data.traces == "teacher",
    "data.traces",
    data.traces,
    f"'teacher' for task {task!r}: only the embedded world has other traces",
  )
  if task in ("problems", "traces", "text"):
    _require(
      data.train_path or data.mixture,
      "data.train_path",
      data.train_path,
      f"the files of task {task!r}, or the parts of data.mixture",
    )
    _require(data.test_path, "data.test_path", data.test_path, f"the files of task {task!r}")


def _check_mixture(data: schema.Data, train: schema.Train) -> None:
  if not data.mixture:
    return
  _require(
    not data.train_path,
    "data.train_path",
    data.train_path,
    "nothing with data.mixture: each of its parts has a path",
  )
  _require(
    train.steps > 0,
    "train.steps",
    train.steps,
    "above 0 with data.mixture: a mixture has no epochs",
  )
  for i, source in enumerate(data.mixture):
    _require(
      source.path or source.task in ("world", "gsm8k", "math"),
      f"data.mixture[{i}].path",
      source.path,
      f"the files of task {source.task!r}",
    )


def _check_train(train: schema.Train) -> None:
  _require(
    train.batch_size % train.accumulate == 0,
    "train.accumulate",
    train.accumulate,
    f"a divisor of train.batch_size={train.batch_size}",
  )
  _require(
    train.steps > 0 or train.epochs > 0,
    "train.epochs",
    train.epochs,
    "above 0 where train.steps is 0",
  )
  profile_steps(train)


def _check_evaluate(evaluate: schema.Evaluate) -> None:
  samples = evaluate.samples
  _require(
    samples == 1 or evaluate.temperature > 0,
    "evaluate.temperature",
    evaluate.temperature,
    f"above 0 with evaluate.samples={samples}: greedy samples are all the same",
  )
  for k in evaluate.pass_at:
    _require(
      k <= samples,
      "evaluate.pass_at",
      evaluate.pass_at,
      f"numbers from 1 to evaluate.samples={samples}",
    )


def profile_steps(train: schema.Train) -> tuple[int, int] | None:
  """(first, last) step to trace, or None. Raises ConfigError where `train.profile` is malformed."""
  if not train.profile:
    return None
  first, last = map(int, train.profile.split(":"))
  _require(first <= last, "train.profile", train.profile, "FIRST:LAST, for example 10:12")
  return first, last


def check_files(experiment: schema.Experiment) -> None:
  """Raises ConfigError that names every missing checkpoint or tokenizer of a training.

  The files are not read.
  """
  missing = []
  for name in ("init", "continue_from"):
    path = getattr(experiment.train, name)
    if path and not pathlib.Path(path).is_dir():
      missing.append(
        f"config.train.{name} is {path!r}: there is no such folder; give the checkpoint "
        f"to start from, --config.train.{name}=FOLDER, as `synthjax export` writes it"
      )
  tokenizer = experiment.data.tokenizer
  given = tokenizer.kind in ("hf", "gpt2") or (tokenizer.kind == "sentencepiece" and tokenizer.path)
  if given and not (tokenizer.path and pathlib.Path(tokenizer.path).exists()):
    missing.append(
      f"config.data.tokenizer.path is {tokenizer.path!r}: there is no such file; give "
      f"the {tokenizer.kind} tokenizer of the model, --config.data.tokenizer.path=PATH"
    )
  if missing:
    raise ConfigError("\n".join(missing))


def describe(experiment: schema.Experiment) -> str:
  """The resolved tree, one line a field, as `synthjax config` prints it."""
  return "\n".join(f"{key} = {value!r}" for key, value in leaves(dataclasses.asdict(experiment)))


def leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
  """(dotted key, value) of every leaf of a nested mapping."""
  pairs = []
  for key, value in tree.items():
    if isinstance(value, dict):
      pairs += leaves(value, f"{prefix}{key}.")
    else:
      pairs.append((prefix + key, value))
  return pairs


def _require(condition: object, name: str, value: Any, allowed: str) -> None:
  if not condition:
    raise ConfigError(f"config.{name} is {value!r}; expected {allowed}")


def _assign(tree: dict, key: str, text: str) -> None:
  """Sets `key` (dotted) in `tree` to `text`, a Python literal where it is one and else a string."""
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError) as e:
    if text.startswith(("(", "[", "{", "'", '"')):
      raise ConfigError(
        f"config.{key}={text}: neither a Python literal nor plain text "
        f"({getattr(e, 'msg', e)}); write the whole value in quotes, for "
        f'example --config.{key}="(1, 2)" or --config.{key}=text'
      ) from e
    value = {"true": True, "false": False}.get(text, text)
  *parents, leaf = key.split(".")
  for parent in parents:
    inner = tree.setdefault(parent, {})
    if isinstance(inner, str):
      advice = MODEL_OVERRIDES
      if parent == "model":
        advice += f" Write --config.model_overrides.{leaf}={text}."
      raise ConfigError(
        f"config.{key}: config.{parent} is {inner!r}, a name, and has no fields; {advice}"
      )
    if not isinstance(inner, dict):
      raise ConfigError(
        f"config.{key}: config.{parent} is a single value ({inner!r}) and has no fields"
      )
    tree = inner
  tree[leaf] = value
