"""How credit is assigned: sampling, thresholds of a pit, step values, preference pairs."""

import dataclasses
from typing import Annotated, Literal

from synthjax.config.fields import Checked, NonNegativeInt, PositiveInt, Share, from_to, not_empty


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How tokens are drawn. Filters apply in the order temperature, top-k, top-p, min-p.

  A request out of range can be made: the engine answers it with its error (`requests.check`), and
  the others go on.
  """

  max_tokens: Annotated[int, from_to(1, 1 << 20)] = 64  # of a sample
  temperature: Annotated[float, from_to(0, 100)] = 1.0  # 0: greedy
  top_k: Annotated[int, from_to(0, 1 << 30)] = 0  # only the k most probable ids; 0: all
  # the fewest most probable ids that together reach this probability
  top_p: Annotated[float, from_to(1e-6, 1)] = 1.0
  min_p: Share = 0.0  # ids at least this probable relative to the most probable one
  # a sample ends before the first of these texts
  stop: tuple[Annotated[str, not_empty()], ...] = ()
  stop_ids: tuple[NonNegativeInt, ...] = ()  # ids that end a sample, besides end-of-text


@dataclasses.dataclass(frozen=True)
class PitThresholds(Checked):
  """What a step must show to be a pit. The defaults are our choice."""

  # value of the prefix before the step: below it the trace was lost already
  min_before: Share = 0.3
  min_drop: Share = 0.5  # share of that value that the step loses
  # posterior probability of `min_before`, where values are estimated; 0 takes the estimates for
  # true values. Both were chosen by simulation and on a real policy (docs/study_a.md, "Pits")
  confidence_before: Share = 0.7
  confidence_drop: Share = 0.9  # the same of `min_drop`

  def hold(self, before: float, after: float) -> bool:
    """Whether a fall from `before` to `after` is one, if these are the true values."""
    slack = 1e-9  # 0.3 of 0.6 is a fall by half, however floating point rounds it
    falls = before - after >= self.min_drop * before - slack
    return after < before and before >= self.min_before - slack and falls


Schedule = Literal["full", "first_fail", "binary", "sequential"]


@dataclasses.dataclass(frozen=True)
class ValueConfig(Checked):
  """How step values are estimated."""

  rollouts: Annotated[int, from_to(1, 1 << 16)] = 8  # a prefix, at most
  best_of: PositiveInt = 1  # K of the best-of-K value, at most `rollouts`; 1: the mean
  schedule: Schedule = "full"  # which prefixes get rollouts
  # rollouts of a request; the last one of a prefix may have fewer
  block: Annotated[int, from_to(1, 1 << 16)] = 2
  # sequential: probability of a pit at which the search ends (our choice; 8 failures in a row
  # reach it)
  confidence: Annotated[float, from_to(0.5, 1)] = 0.975
  thresholds: PitThresholds = PitThresholds()  # of the pits
  # correct rollouts of a prefix that are returned, for pairs that continue it; at most `rollouts`
  keep: NonNegativeInt = 1
  sampling: Sampling = Sampling()  # of the rollouts
  seed: NonNegativeInt = 0  # of the job
  threads: Annotated[int, from_to(1, 256)] = 2  # that judge while the engine samples

  def __post_init__(self) -> None:
    super().__post_init__()
    for name in ("best_of", "keep"):
      self.require(getattr(self, name) <= self.rollouts, name, f"at most rollouts={self.rollouts}")


PairMode = Literal["paper", "branch", "step", "random", "distant"]
PitChoice = Literal["first", "random", "last"]


@dataclasses.dataclass(frozen=True)
class PairConfig(Checked):
  """Which preference pairs are made."""

  mode: PairMode = "paper"  # see pairs.py
  # paper, branch, step: which step of a trace that has a pit the pair is about
  pit: PitChoice = "first"
  per_problem: PositiveInt = 8  # most pairs of a problem
  per_trace: PositiveInt = 1  # most pairs of an incorrect trace
  thresholds: PitThresholds = PitThresholds()  # what a step must show to be a pit
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
