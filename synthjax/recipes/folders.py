"""Work folders: which one a command works in, and that no other start works there at the same time."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from synthjax import files, locks, schema, stages
from synthjax.errors import ConfigError
from synthjax.recipes.finetune import RESULT_NEUTRAL_FIELDS, Job

# In a folder with these changed, what is there is still of use: other evaluations, and more cells of a study.
_ADDED_TO_A_FOLDER = ("evaluate", "star.attempts", "star.graphs", "study.arms", "study.baseline_problems", "study.control",
                      "study.problems", "study.seeds")
_SHARED = ("math_rl",)  # recipes of which several starts may share a folder: each cell has a lock of its own


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
    neutral = (*RESULT_NEUTRAL_FIELDS, *_ADDED_TO_A_FOLDER)
    # A field that an older synthjax did not have is not compared.
    before, after = _without(known, neutral), _without(_common(wanted, known), neutral)
    if changed := stages.difference(before, after):
      raise ConfigError(f"{folder} holds a run with other settings ({changed}); give this one a folder of its own, such as "
                        f"--workdir {_proposal(folder, before, after)}, or --workdir {folder} to work there all the same, "
                        "which keeps what it holds")
  return folder


def alone(job: Job, what: str) -> contextlib.AbstractContextManager[None]:
  """The lock of a job's folder, for a verb that writes there."""
  if job.experiment.recipe in _SHARED:
    return contextlib.nullcontext()
  return locks.folder_lock(job.workdir, what)


def _without(tree: dict, fields: Sequence[str], prefix: str = "") -> dict:
  kept = {}
  for name, value in tree.items():
    if f"{prefix}{name}" not in fields:
      kept[name] = _without(value, fields, f"{prefix}{name}.") if isinstance(value, dict) else value
  return kept


def _common(tree: Any, known: Any) -> Any:
  """`tree` without the names that `known` does not have."""
  if not isinstance(tree, dict) or not isinstance(known, dict):
    return tree
  return {name: _common(value, known[name]) for name, value in tree.items() if name in known}


def _proposal(folder: pathlib.Path, before: dict, after: dict) -> pathlib.Path:
  """A free name that says what is different."""
  name, _, value = stages.difference(before, after, most=1).partition(" ")
  value = value.rpartition(" -> ")[2].partition(",")[0]
  told = f"{folder.name}-{name.rpartition('.')[2]}-{value}"
  usable = all(letter.isalnum() or letter in "-_.+" for letter in told)
  return folder.with_name(told if usable else f"{folder.name}-2")
