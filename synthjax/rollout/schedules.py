"""Schedules: which prefixes of a trace get rollouts, and how many. Each is a function of what is known of one trace.

A schedule is called again and again with the counts of the trace's prefixes and answers with what it wants next, until it wants nothing.
It sees only rollouts that it asked for itself, so a trace's values do not depend on the other traces of the job.

A prefix is dead when all its rollouts fail, alive when one is right. The searches hold that no dead prefix comes before an alive one;
they agree with the full schedule on every trace for which that is so, up to their confidence.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NamedTuple

from synthjax.evaluate import metrics
from synthjax.fields import Checked, NonNegativeInt, PositiveInt, from_to
from synthjax.records import Record
from synthjax.rollout.pits import Guards
from synthjax.rollout.requests import Sampling

Schedule = Literal["full", "first_fail", "binary", "sequential"]


@dataclasses.dataclass(frozen=True)
class Values(Record, Checked):
  """How step values are estimated."""

  rollouts: Annotated[int, from_to(1, 1 << 16)] = 8  # a prefix, at most
  best_of: PositiveInt = 1  # K of the best-of-K value, at most `rollouts`; 1: the mean
  schedule: Schedule = "full"  # which prefixes get rollouts
  # rollouts of a request; the last one of a prefix may have fewer
  block: Annotated[int, from_to(1, 1 << 16)] = 2
  # sequential: probability of a pit at which its search ends (our choice; 8 failures in a row
  # reach it)
  confidence: Annotated[float, from_to(0.5, 1)] = 0.975
  guards: Guards = Guards()  # of the pits
  # correct rollouts of a prefix that are handed back, for pairs that go on from it; at most
  # `rollouts`
  keep: NonNegativeInt = 1
  sampling: Sampling = Sampling()  # of the rollouts
  seed: NonNegativeInt = 0  # of the job
  threads: Annotated[int, from_to(1, 256)] = 2  # that judge while the engine samples

  def __post_init__(self) -> None:
    super().__post_init__()
    for name in ("best_of", "keep"):
      self.require(getattr(self, name) <= self.rollouts, name, f"at most rollouts={self.rollouts}")


class Count(NamedTuple):
  """What is known of a prefix."""

  asked: int = 0  # rollouts asked for
  n: int = 0  # decided ones among them
  c: int = 0  # right ones among those
  undecided: int = 0
  ended: bool = False  # the trace has ended with its end-of-text token: nothing can follow
  reward: int | None = None  # of a trace that has ended; None where its verdict is undecided

  def value(self, best_of: int) -> float | None:
    """Unbiased estimate of the probability that one of `best_of` rollouts is right; None where fewer were decided."""
    if self.ended:
      return None if self.reward is None else float(self.reward)
    return metrics.pass_at(self.n, self.c, best_of) if self.n >= best_of else None

  def standard_error(self, best_of: int) -> float | None:
    """Of `value`: the spread of the estimate over repetitions, at the success probability (c + 1/2) / (n + 1).

    That is Jeffreys' mean: rollouts that all agree do not give an error of 0. The reward of a trace that has ended has none.
    """
    if self.ended:
      return None if self.reward is None else 0.0
    if self.n < best_of:
      return None
    p = (self.c + 0.5) / (self.n + 1)
    shares = [math.comb(self.n, c) * p**c * (1 - p)**(self.n - c) for c in range(self.n + 1)]
    estimates = [metrics.pass_at(self.n, c, best_of) for c in range(self.n + 1)]
    average = sum(share * q for share, q in zip(shares, estimates))
    return math.sqrt(sum(share * (q - average)**2 for share, q in zip(shares, estimates)))

  def alive(self) -> bool:
    return self.reward == 1 or self.c > 0

  def dead(self, rollouts: int) -> bool:
    """All of its rollouts are in and failed; undecided ones do not count."""
    return self.reward == 0 or (self.asked >= rollouts and self.n > 0 and self.c == 0)

  def open(self, rollouts: int) -> bool:
    """More rollouts can be asked for."""
    return not self.ended and self.asked < rollouts


def full(counts: Sequence[Count], cfg: Values) -> dict[int, int]:
  """Every prefix."""
  return {step: cfg.rollouts for step, count in enumerate(counts) if count.open(cfg.rollouts)}


def first_fail(counts: Sequence[Count], cfg: Values) -> dict[int, int]:
  """Prefix after prefix, up to the first step after which all rollouts fail. Its pits are those of the full schedule."""
  for step, count in enumerate(counts):
    if count.open(cfg.rollouts):
      return {step: cfg.rollouts}
    if step > 0 and count.dead(cfg.rollouts):
      return {}
  return {}


def binary(counts: Sequence[Count], cfg: Values) -> dict[int, int]:
  """Bisection for the first dead prefix (Luo et al. 2024, OmegaPRM), then the value before it: O(log L) prefixes."""
  return _search(counts, cfg, cfg.rollouts)


def sequential(counts: Sequence[Count], cfg: Values) -> dict[int, int]:
  """The same search, a block of rollouts at a time: one right rollout settles a prefix, and failed ones count by their weight.

  It is meant for pits. A prefix whose rollouts end with a right one is valued too high: unbiased values take a fixed number of rollouts,
  as the other schedules do.
  """
  return _search(counts, cfg, cfg.block)


def _search(counts: Sequence[Count], cfg: Values, block: int) -> dict[int, int]:
  """The next block of rollouts in the search for the first dead prefix."""
  steps = len(counts) - 1
  last = next((i for i in range(1, steps + 1) if counts[i].dead(cfg.rollouts)), steps + 1)  # the pit is no later; steps + 1: no pit
  low = max((i for i in range(last) if counts[i].alive()), default=0)  # the pit is later
  more = lambda *wanted: {i: min(counts[i].asked + block, cfg.rollouts) for i in wanted if counts[i].open(cfg.rollouts)}
  # Failures before an alive prefix: had they been all, the pit would be there.
  if doubtful := more(*(i for i in range(1, low) if counts[i].asked and not counts[i].alive())):
    return doubtful
  probability = _pit_probability(counts[low + 1:last])
  candidates = more(*range(low + 1, last))
  if candidates and probability[0] < cfg.confidence:
    reached = [sum(probability[:i - low]) for i in candidates]  # that the pit is at i or before
    _, i = min((abs(share - 0.5), i) for share, i in zip(reached, candidates))
    return {i: candidates[i]}
  if low + 1 > steps:
    return {}
  return more(*_unsettled(counts, low + 1, cfg))


def _pit_probability(before_last: Sequence[Count]) -> list[float]:
  """Of the pit at each of these prefixes or right after them, from rollouts that all failed.

  Where the pit is later the prefix is alive and its failures were chance: 2 / ((n + 1) (n + 2)) for n of them, with a success probability
  that is Beta(2, 1) over live prefixes (our choice).
  """
  weights = [1.0]
  for count in before_last:
    weights.append(weights[-1] * 2 / ((count.n + 1) * (count.n + 2)))
  return [weight / sum(weights) for weight in weights]


def _unsettled(counts: Sequence[Count], pit: int, cfg: Values) -> list[int]:
  """Which of the pit and the prefix before it need more rollouts: too few for a value, or the guards still hang on those to come."""
  after, before = counts[pit].value(cfg.best_of), counts[pit - 1]
  lacking = [i for i in (pit - 1, pit) if counts[i].value(cfg.best_of) is None and counts[i].open(cfg.rollouts)]
  if lacking or after is None:
    return lacking
  if not before.open(cfg.rollouts):
    return []
  left = cfg.rollouts - before.asked
  worst, best = (metrics.pass_at(before.n + left, before.c + right, cfg.best_of) for right in (0, left))
  return [] if cfg.guards.hold(worst, after) == cfg.guards.hold(best, after) else [pit - 1]


SCHEDULES: dict[Schedule, Callable[[Sequence[Count], Values], dict[int, int]]] = {
  "full": full, "first_fail": first_fail, "binary": binary, "sequential": sequential,
}
