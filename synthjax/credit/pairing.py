"""Which preference pairs are made; `pairs.py` makes them."""

import dataclasses
from typing import Literal

from synthjax.config.fields import Checked, NonNegativeInt, PositiveInt
from synthjax.credit.pits import Guards

Mode = Literal["paper", "branch", "step", "random", "distant"]
Pit = Literal["first", "random", "last"]


@dataclasses.dataclass(frozen=True)
class Pairing(Checked):
  """Which pairs are made."""

  mode: Mode = "paper"  # see pairs.py
  # paper, branch, step: which step of a trace that has a pit the pair is about
  pit: Pit = "first"
  per_problem: PositiveInt = 8  # most pairs of a problem
  per_trace: PositiveInt = 1  # most pairs of an incorrect trace
  guards: Guards = Guards()  # what a step must show to be a pit
  # a step enters the margin with its |advantage|; every trace needs step values
  weighted: bool = False
  # weights are divided by their mean over the pair, so that beta means what it means in plain DPO
  # (our choice)
  normalise: bool = True
  seed: NonNegativeInt = 0  # of the draws among correct traces

  def __post_init__(self) -> None:
    super().__post_init__()
    self.require(
      not self.weighted or self.mode not in ("branch", "step"),
      "mode",
      "paper, random or distant where steps are weighted: "
      "the continuations of branch and step have no step values",
    )
