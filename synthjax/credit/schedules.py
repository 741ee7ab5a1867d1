"""Schedules: which prefixes of a trace get rollouts, and how many. Each is a function of what is known of one trace.

A schedule is called again and again with the counts of the trace's prefixes and answers with what it wants next, until it wants nothing.
It sees only rollouts that it asked for itself, so a trace's values do not depend on the other traces of the job.

The searches hold that the value of a trace is high before its pit and low from it on. They weigh every
place of the pit by the counts that they have, look where they expect it, and go on elsewhere where the
fall there does not pass the thresholds.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from synthjax import stats
from synthjax.config.credit import Schedule, ValueConfig
from synthjax.credit import pits
from synthjax.credit.pits import Evidence

_BEFORE, _AFTER = (2.0, 1.0), (0.3, 6.0)  # success probabilities on the two sides of a pit, as Beta


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
    return stats.pass_at(self.n, self.c, best_of) if self.n >= best_of else None

  def standard_error(self, best_of: int) -> float | None:
    """Of `value`: the spread of the estimate over repetitions, at the success probability (c + 1/2) / (n + 1).

    That is Jeffreys' mean: rollouts that all agree do not give an error of 0. The reward of a trace that has ended has none.
    """
    if self.ended:
      return None if self.reward is None else 0.0
    if self.n < best_of:
      return None
    p = (self.c + 0.5) / (self.n + 1)
    shares = [math.comb(self.n, c) * p**c * (1 - p) ** (self.n - c) for c in range(self.n + 1)]
    estimates = [stats.pass_at(self.n, c, best_of) for c in range(self.n + 1)]
    average = sum(share * q for share, q in zip(shares, estimates))
    return math.sqrt(sum(share * (q - average) ** 2 for share, q in zip(shares, estimates)))

  def evidence(self, best_of: int) -> Evidence | None:
    """What `value` was estimated from; None where it is the reward of a trace that has ended."""
    return None if self.ended else Evidence(self.n, self.c, best_of)

  def completed(self, rollouts: int, right: bool) -> "Count":
    """This count if all rollouts still to come were correct, or none of them."""
    left = max(rollouts - self.asked, 0)
    return self._replace(asked=self.asked + left, n=self.n + left, c=self.c + left * right)

  def open(self, rollouts: int) -> bool:
    """More rollouts can be asked for."""
    return not self.ended and self.asked < rollouts


def full(counts: Sequence[Count], cfg: ValueConfig) -> dict[int, int]:
  """Every prefix."""
  return {step: cfg.rollouts for step, count in enumerate(counts) if count.open(cfg.rollouts)}


def first_fail(counts: Sequence[Count], cfg: ValueConfig) -> dict[int, int]:
  """Prefix after prefix, up to the pit or to a prefix at which the trace is lost. Its pits are those of the full schedule."""
  for step, count in enumerate(counts):
    if count.open(cfg.rollouts):
      return {step: cfg.rollouts}
    if step > 0 and (
      pit_of(counts[: step + 1], cfg)
      or pits.is_lost(count.value(cfg.best_of), count.evidence(cfg.best_of), cfg.thresholds)
    ):
      return {}
  return {}


def binary(counts: Sequence[Count], cfg: ValueConfig) -> dict[int, int]:
  """Bisection for the pit (Luo et al. 2024, OmegaPRM), then the value before it: O(log L) prefixes."""
  return _search(counts, cfg, cfg.rollouts)


def sequential(counts: Sequence[Count], cfg: ValueConfig) -> dict[int, int]:
  """The same search, a block of rollouts at a time: no prefix gets more than it takes to say on which side of the pit it is.

  It is meant for pits. The number of rollouts of a prefix depends on their outcome, which biases its value: unbiased values take a
  fixed number of rollouts, as the other schedules do.
  """
  return _search(counts, cfg, cfg.block)


def pit_of(counts: Sequence[Count], cfg: ValueConfig) -> int | None:
  """The pit of a trace of whose prefixes this is known."""
  values = [count.value(cfg.best_of) for count in counts]
  return pits.first_pit(values, cfg.thresholds, [count.evidence(cfg.best_of) for count in counts])


def _search(counts: Sequence[Count], cfg: ValueConfig, block: int) -> dict[int, int]:
  """The next block of rollouts in the search for the pit."""
  outcomes = {step: _outcome(counts[step - 1], counts[step], cfg) for step in range(1, len(counts))}
  if True not in outcomes.values():
    wanted = _where_expected(counts, outcomes, cfg)
    if wanted:
      return _block_of(counts, wanted, block, cfg)
  # A few rollouts, asked for on the way, may look like a pit that all of them would not show.
  apparent = pit_of(counts, cfg)
  if apparent and outcomes[apparent] is None:
    return _block_of(counts, (apparent, apparent - 1), block, cfg)
  return {}


def _where_expected(
  counts: Sequence[Count], outcomes: dict[int, bool | None], cfg: ValueConfig
) -> Sequence[int]:
  """Prefixes of which the one with the fewest rollouts is to get more; none where a pit is not to be expected any longer."""
  probability = _pit_probability(counts)
  share = {step: probability[step] for step, outcome in outcomes.items() if outcome is None}
  total = sum(share.values())
  if total <= 1 - cfg.confidence:
    return ()
  best = max(share, key=lambda step: share[step])
  if share[best] < cfg.confidence * total:
    before = list(itertools.accumulate(share.get(step, 0.0) for step in range(1, len(counts))))
    halving = [
      (abs(reached / total - 0.5), step)
      for step, reached in enumerate(before, 1)
      if counts[step].open(cfg.rollouts) and 0 < reached < total
    ]
    if halving:
      return (min(halving)[1],)
  return best, best - 1


def _block_of(
  counts: Sequence[Count], wanted: Sequence[int], block: int, cfg: ValueConfig
) -> dict[int, int]:
  """The next rollouts of the prefix with the fewest among those that are wanted and can have more."""
  _, step = min(
    (counts[step].asked, place)
    for place, step in enumerate(wanted)
    if counts[step].open(cfg.rollouts)
  )
  step = wanted[step]
  return {step: min(counts[step].asked + block, cfg.rollouts)}


def _outcome(before: Count, after: Count, cfg: ValueConfig) -> bool | None:
  """Whether a step is the pit; None where that hangs on rollouts still to come.

  It is settled before all rollouts are in where it is `cfg.confidence` certain, or where those to come cannot change it.
  """
  known = _valued(before, cfg), _valued(after, cfg)
  if known[0] and known[1]:
    certain = min(pits.credible(known[0], known[1], cfg.thresholds))
    if certain >= cfg.confidence and _passes(before, after, cfg):
      return True
    if certain <= 1 - cfg.confidence:
      return False
  worst = _passes(before.completed(cfg.rollouts, False), after.completed(cfg.rollouts, True), cfg)
  best = _passes(before.completed(cfg.rollouts, True), after.completed(cfg.rollouts, False), cfg)
  if (
    worst
    and not _passes(before, after, cfg)
    and (before.open(cfg.rollouts) or after.open(cfg.rollouts))
  ):
    return None  # it will be one, but the rollouts so far are too few to say so
  return best if worst == best else None


def _passes(before: Count, after: Count, cfg: ValueConfig) -> bool:
  high, low = _valued(before, cfg), _valued(after, cfg)
  return high is not None and low is not None and pits.passes(high, low, cfg.thresholds)


def _valued(count: Count, cfg: ValueConfig) -> tuple[float, Evidence | None] | None:
  value = count.value(cfg.best_of)
  return None if value is None else (value, count.evidence(cfg.best_of))


def _pit_probability(counts: Sequence[Count]) -> list[float]:
  """Probability of the pit at every step, none at 0: the last one is that of no pit.

  Success probabilities before the pit are Beta(2, 1), those from it on Beta(0.3, 6) (our choice), all places are alike before
  anything is known.
  """
  weights = [0.0]
  for pit in range(1, len(counts) + 1):
    likelihoods = [
      _likelihood(count, *(_BEFORE if step < pit else _AFTER)) for step, count in enumerate(counts)
    ]
    weights.append(math.prod(likelihoods))
  total = sum(weights)
  return [weight / total for weight in weights] if total else [0.0] * len(weights)


def _likelihood(count: Count, right: float, wrong: float) -> float:
  """Of a prefix's rollouts where its success probability is Beta(right, wrong); of an end, 0 where it is on the wrong side of the pit."""
  if count.ended and count.reward is not None:
    return float(count.reward == (right > wrong))
  failed = count.n - count.c
  logarithm = (
    math.lgamma(right + count.c)
    + math.lgamma(wrong + failed)
    - math.lgamma(right + wrong + count.n)
  )
  return math.exp(logarithm - math.lgamma(right) - math.lgamma(wrong) + math.lgamma(right + wrong))


SCHEDULES: dict[Schedule, Callable[[Sequence[Count], ValueConfig], dict[int, int]]] = {
  "full": full,
  "first_fail": first_fail,
  "binary": binary,
  "sequential": sequential,
}
