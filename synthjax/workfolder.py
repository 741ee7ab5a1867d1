"""Work folders: which one a command works in, that it works there alone, which settings matter.

Imports nothing heavy: a second start is refused before jax is loaded.
"""

import contextlib
import dataclasses
import json
import pathlib
from typing import Any

from synthjax import files, locks
from synthjax.config import schema
from synthjax.errors import ConfigError

# Fields that may change without making another result, up to rounding: a finished stage stays
# finished, and an unfinished one goes on. What lies at a path (`init`, `pairs`) is looked at, not
# the path.
RESULT_NEUTRAL_FIELDS = (
  "data.folder",
  "data.prefetch",
  "data.threads",
  "evaluate.before",
  "evaluate.slots",
  "mesh",
  "model.kernels",
  "model.remat",
  "objective.pairs",
  "objective.reference",
  "train.accumulate",
  "train.checkpoint_every",
  "train.continue_from",
  "train.eval_every",
  "train.init",
  "train.keep",
  "train.log_every",
  "train.profile",
)

# What a folder holds stays useful when these change: other evaluations, more cells of a study.
_ADDED_TO_A_FOLDER = (
  "evaluate",
  "star.attempts",
  "star.graphs",
  "study.arms",
  "study.baseline_problems",
  "study.control",
  "study.problems",
  "study.seeds",
)
# Recipes of which several starts may share a folder: each cell has a lock of its own.
_SHARED = ("math_rl",)


def choose(experiment: schema.Experiment, given: str) -> pathlib.Path:
  """The folder that is given, else runs/NAME.

  Raises:
    ConfigError: none is given, and runs/NAME holds a run with other settings.
  """
  if given:
    return pathlib.Path(given)
  folder = pathlib.Path("runs") / experiment.name
  if (folder / "config.json").exists():
    known = files.read_json(folder / "config.json")
    wanted = json.loads(json.dumps(dataclasses.asdict(experiment)))
    neutral = _folder_neutral_fields()
    # A field that an older synthjax did not have is not compared.
    before, after = _without(known, neutral), _without(_common(wanted, known), neutral)
    changed = difference(before, after)
    if changed:
      raise ConfigError(
        f"{folder} holds a run with other settings ({changed}); give this one a folder of its own, "
        f"such as --workdir {_proposal(folder, before, after)}, or --workdir {folder} to work "
        "there all the same, which keeps what it holds"
      )
  return folder


def _folder_neutral_fields() -> set[str]:
  """Fields in which two runs of a default folder may differ: not what they start from."""
  neutral = set(RESULT_NEUTRAL_FIELDS) - {
    "train.init",
    "train.continue_from",
    "objective.pairs",
    "data.folder",
  }
  of_train = [name.removeprefix("train.") for name in neutral if name.startswith("train.")]
  for group in ("study.rft", "study.preference"):
    neutral |= {f"{group}.{name}" for name in of_train}
  neutral |= {f"study.server.{name}" for name in ("url", "key_variable", "concurrency")}
  return neutral | {"study.values.threads", *_ADDED_TO_A_FOLDER}


def check_free(experiment: schema.Experiment, folder: pathlib.Path) -> None:
  """Raises LockError where another start works in the folder, before this one has loaded jax."""
  if experiment.recipe not in _SHARED:
    locks.check_free(folder)


def alone(
  experiment: schema.Experiment, folder: pathlib.Path, what: str
) -> contextlib.AbstractContextManager[None]:
  """The lock of a folder, for a verb that writes there."""
  if experiment.recipe in _SHARED:
    return contextlib.nullcontext()
  return locks.folder_lock(folder, what)


def decisive(group: str, values: Any) -> dict:
  """The fields of a group of the config ("train") without RESULT_NEUTRAL_FIELDS, as JSON."""
  fields = dataclasses.asdict(values)
  kept = {}
  for name, value in fields.items():
    if f"{group}.{name}" not in RESULT_NEUTRAL_FIELDS:
      kept[name] = value
  return json.loads(json.dumps(kept))


def difference(before: Any, after: Any, most: int = 3) -> str:
  """Where two JSON values differ, as "train.steps 10 -> 20"; "" where they do not.

  Args:
    before: None where it is not known.
    after: the other value.
    most: names at most so many places.
  """
  if before is None:
    return "from what, an older synthjax did not write down"
  one, other = dict(_leaves(before)), dict(_leaves(after))
  names = [name for name in one | other if one.get(name, "nothing") != other.get(name, "nothing")]
  shown = []
  for name in names[:most]:
    before = _short(one.get(name, "nothing"))
    after = _short(other.get(name, "nothing"))
    shown.append(f"{name or 'inputs'} {before} -> {after}")
  if len(names) > most:
    shown.append(f"{len(names) - most} more")
  return ", ".join(shown)


def _leaves(value: Any, name: str = "") -> list[tuple[str, Any]]:
  """(dotted name, value) of everything in a JSON value that is neither an object nor a list."""
  if isinstance(value, dict):
    items = list(value.items())
  elif isinstance(value, list | tuple):
    items = list(enumerate(value))
  else:
    return [(name, value)]
  leaves = []
  for key, inner in items:
    path = str(key)
    if name:
      path = f"{name}.{key}"
    leaves += _leaves(inner, path)
  return leaves


def _short(value: Any) -> str:
  text = str(value)
  if len(text) > 40:
    return f"{text[:12]}..."
  return text


def _without(tree: dict, fields: set[str], prefix: str = "") -> dict:
  kept = {}
  for name, value in tree.items():
    path = f"{prefix}{name}"
    if path in fields:
      continue
    if isinstance(value, dict):
      value = _without(value, fields, f"{path}.")
    kept[name] = value
  return kept


def _common(tree: Any, known: Any) -> Any:
  """`tree` without the names that `known` does not have."""
  if not isinstance(tree, dict) or not isinstance(known, dict):
    return tree
  return {name: _common(value, known[name]) for name, value in tree.items() if name in known}


def _proposal(folder: pathlib.Path, before: dict, after: dict) -> pathlib.Path:
  """A free name that says what is different."""
  name, _, value = difference(before, after, most=1).partition(" ")
  value = value.rpartition(" -> ")[2].partition(",")[0]
  proposed = f"{folder.name}-{name.rpartition('.')[2]}-{value}"
  if not all(letter.isalnum() or letter in "-_.+" for letter in proposed):
    proposed = f"{folder.name}-2"
  return folder.with_name(proposed)
