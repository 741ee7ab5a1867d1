"""Recipes: each study as one short file that calls the rooms in order.

A recipe is a module with `run(job)`, the whole study, and where it has such parts `prepare(job)`,
the data that training reads, and `train(job)`.
"""

from collections.abc import Callable
from typing import Any

from synthjax import job as jobs
from synthjax.errors import ConfigError
from synthjax.recipes import credit_phase, finetune, math_rl, preference, star

RECIPES = {
  "finetune": finetune,
  "preference": preference,
  "math_rl": math_rl,
  "star": star,
  "credit_phase": credit_phase,
}
VERBS = {"run": "run", "prepare": "cache", "train": "train"}  # part -> the verb that calls it


def part(recipe: str, name: str) -> Callable[[jobs.Job], Any]:
  """A recipe's `run`, `prepare` or `train`.

  Raises:
    ConfigError: it has no such part.
  """
  module = RECIPES[recipe]
  if not hasattr(module, name):
    verbs = ", ".join(verb for known, verb in VERBS.items() if hasattr(module, known))
    raise ConfigError(
      f"recipe {recipe!r} has no part {name!r} for the verb {VERBS[name]!r}; its verbs are {verbs}"
    )
  return getattr(module, name)
