"""Which preference pairs are made; `pairs.py` makes them."""

import dataclasses
from typing import Literal

from synthjax.rollout.pits import Guards

MODES = ("paper", "branch", "step", "random", "distant")
PITS = ("first", "random", "last")


@dataclasses.dataclass(frozen=True)
class Pairing:
  """Which pairs are made."""

  mode: Literal["paper", "branch", "step", "random", "distant"] = "paper"  # see pairs.py
  pit: Literal["first", "random", "last"] = "first"  # paper, branch, step: which step of a trace that has a pit the pair is about
  per_problem: int = 8  # most pairs of a problem
  per_trace: int = 1  # most pairs of a wrong trace
  guards: Guards = Guards()  # what a step must show to be a pit
  weighted: bool = False  # a step enters the margin with its |advantage|; every trace needs step values
  normalise: bool = True  # weights are divided by their mean over the pair, so that beta means what it means in plain DPO (our choice)
  seed: int = 0  # of the draws among right traces

  def __post_init__(self):
    if self.mode not in MODES:
      raise ValueError(f"pairs: mode {self.mode!r}; expected one of {', '.join(MODES)}")
    if self.pit not in PITS:
      raise ValueError(f"pairs: pit {self.pit!r}; expected one of {', '.join(PITS)}")
    if min(self.per_problem, self.per_trace) < 1:
      raise ValueError(f"pairs: per_problem={self.per_problem}, per_trace={self.per_trace}; expected 1 and more")
    if self.weighted and self.mode in ("branch", "step"):
      raise ValueError(f"pairs: mode {self.mode!r} cannot be weighted, its continuations have no step values; use paper, random or distant")
