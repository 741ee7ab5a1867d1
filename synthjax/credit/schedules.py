"""Schedules: which prefixes of a trace get rollouts, and how many.

A schedule is a function of the counts of one trace's prefixes. It is called again and again and
answers with the rollouts that it wants next, until it wants none. It sees only rollouts that it
asked for, so the values of a trace do not depend on the other traces of the job.

The searches assume that the value of a trace is high before its pit and low from it on. They weigh
every possible pit by the counts so far, look where they expect it, and go on elsewhere where the
fall there does not pass the thresholds.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from synthjax import stats
from synthjax.config.credit import Schedule, ValueConfig
from synthjax.credit import pits
from synthjax.credit.pits import Evidence, ValueEstimate


class _Beta(NamedTuple):
  """A Beta distribution of success probabilities."""

  correct: float
  incorrect: float


# Before a pit and from it on (our choice).
_BEFORE = _Beta(2.0, 1.0)
_AFTER = _Beta(0.3, 6.0)


class Count(NamedTuple):
  """What is known of a prefix."""

  asked: int = 0  # rollouts asked for
  n: int = 0  # decided ones among them
  c: int = 0  # correct ones among those
  undecided: int = 0
  ended: bool = False  # the trace has ended with its end-of-text token: nothing can follow
  reward: int | None = None  # of a trace that has ended; None where its verdict is undecided

  def value(self, best_of: int) -> float | None:
    """Unbiased estimate of the probability that one of `best_of` rollouts is correct.

    None where fewer than that were decided.
    """
    if self.ended:
      return None if self.reward is None else float(self.reward)
    if self.n < best_of:
      return None
    return stats.pass_at(self.n, self.c, best_of)

  def standard_error(self, best_of: int) -> float | None:
    """Of `value`: the spread of the estimate over repetitions.

    The success probability is taken to be (c + 1/2) / (n + 1), Jeffreys' mean, so that rollouts
    that all agree do not give an error of 0. The reward of a trace that has ended has the error 0.
    """
    if self.ended:
      return None if self.reward is None else 0.0
    if self.n < best_of:
      return None
    p = (self.c + 0.5) / (self.n + 1)
    shares = []
    estimates = []
    for c in range(self.n + 1):
      shares.append(math.comb(self.n, c) * p**c * (1 - p) ** (self.n - c))
      estimates.append(stats.pass_at(self.n, c, best_of))
    average = sum(share * q for share, q in zip(shares, estimates))
    return math.sqrt(sum(share * (q - average) ** 2 for share, q in zip(shares, estimates)))

  def evidence(self, best_of: int) -> Evidence | None:
    """What `value` was estimated from; None where it is the reward of a trace that has ended."""
    if self.ended:
      return None
    return Evidence(self.n, self.c, best_of)

  def completed(self, rollouts: int, correct: bool) -> "Count":
    """This count if all rollouts still to come were correct, or none of them."""
    left = max(rollouts - self.asked, 0)
    return self._replace(asked=self.asked + left, n=self.n + left, c=self.c + left * correct)

  def open(self, rollouts: int) -> bool:
    """Whether more rollouts can be asked for."""
    return not self.ended and self.asked < rollouts


def full(counts: Sequence[Count], cfg: ValueConfig) -> dict[int, int]:
  """Every prefix."""
  return {step: cfg.rollouts for step, count in enumerate(counts) if count.open(cfg.rollouts)}


def first_fail(counts: Sequence[Count], cfg: ValueConfig) -> dict[int, int]:
  """Prefix after prefix, up to the pit or to a prefix at which the trace is lost.

  Its pits are those of the full schedule.
  """
  for step, count in enumerate(counts):
    if count.open(cfg.rollouts):
      return {step: cfg.rollouts}
    if step == 0:
      continue
    if pit_of(counts[: step + 1], cfg):
      return {}
    if pits.is_lost(count.value(cfg.best_of), count.evidence(cfg.best_of), cfg.thresholds):
      return {}
  return {}


def binary(counts: Sequence[Count], cfg: ValueConfig) -> dict[int, int]:
  """Bisection for the pit (Luo et al. 2024, OmegaPRM), then its value before: O(log L) prefixes."""
  return _search(counts, cfg, cfg.rollouts)


def sequential(counts: Sequence[Count], cfg: ValueConfig) -> dict[int, int]:
  """The same search, a block of rollouts at a time.

  No prefix gets more rollouts than it takes to say on which side of the pit it is. This is meant
  for pits: the number of rollouts of a prefix depends on their outcome, which biases its value.
  Unbiased values take a fixed number of rollouts, as in the other schedules.
  """
  return _search(counts, cfg, cfg.block)


def pit_of(counts: Sequence[Count], cfg: ValueConfig) -> int | None:
  """The pit of a trace with these counts."""
  values = [count.value(cfg.best_of) for count in counts]
  return pits.first_pit(values, cfg.thresholds, [count.evidence(cfg.best_of) for count in counts])


def _search(counts: Sequence[Count], cfg: ValueConfig, block: int) -> dict[int, int]:
  """The next block of rollouts in the search for the pit."""
  outcomes = {}
  for step in range(1, len(counts)):
    outcomes[step] = _outcome(counts[step - 1], counts[step], cfg)
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
  """Prefixes of which the one with the fewest rollouts gets more; () where no pit is likely."""
  probability = _pit_probability(counts)
  share = {step: probability[step] for step, outcome in outcomes.items() if outcome is None}
  total = sum(share.values())
  if total <= 1 - cfg.confidence:
    return ()
  best = max(share, key=lambda step: share[step])
  if share[best] < cfg.confidence * total:
    halving = _halving(counts, share, total, cfg)
    if halving is not None:
      return (halving,)
  return best, best - 1


def _halving(
  counts: Sequence[Count], share: dict[int, float], total: float, cfg: ValueConfig
) -> int | None:
  """The open prefix that comes closest to halving the probability of the pits that are possible."""
  best: tuple[float, int] | None = None
  reached = 0.0
  for step in range(1, len(counts)):
    reached += share.get(step, 0.0)
    if counts[step].open(cfg.rollouts) and 0 < reached < total:
      candidate = (abs(reached / total - 0.5), step)
      if best is None or candidate < best:
        best = candidate
  return None if best is None else best[1]


def _block_of(
  counts: Sequence[Count], wanted: Sequence[int], block: int, cfg: ValueConfig
) -> dict[int, int]:
  """The next rollouts of the wanted prefix that has the fewest; on a tie, of the first one."""
  can_have_more = [step for step in wanted if counts[step].open(cfg.rollouts)]
  step = min(can_have_more, key=lambda step: counts[step].asked)
  return {step: min(counts[step].asked + block, cfg.rollouts)}


def _outcome(before: Count, after: Count, cfg: ValueConfig) -> bool | None:
  """Whether a step is the pit; None where that depends on rollouts still to come.

  It is settled before all rollouts are in where it is `cfg.confidence` certain, or where those to
  come cannot change it.
  """
  value_before, value_after = _estimate(before, cfg), _estimate(after, cfg)
  passes = _passes(before, after, cfg)
  if value_before and value_after:
    certain = min(pits.credible(value_before, value_after, cfg.thresholds))
    if certain >= cfg.confidence and passes:
      return True
    if certain <= 1 - cfg.confidence:
      return False
  total = cfg.rollouts
  worst = _passes(before.completed(total, False), after.completed(total, True), cfg)
  best = _passes(before.completed(total, True), after.completed(total, False), cfg)
  if worst and not passes and (before.open(total) or after.open(total)):
    return None  # it will be one, but the rollouts so far are too few to say so
  return best if worst == best else None


def _passes(before: Count, after: Count, cfg: ValueConfig) -> bool:
  value_before, value_after = _estimate(before, cfg), _estimate(after, cfg)
  if value_before is None or value_after is None:
    return False
  return pits.passes(value_before, value_after, cfg.thresholds)


def _estimate(count: Count, cfg: ValueConfig) -> ValueEstimate | None:
  value = count.value(cfg.best_of)
  if value is None:
    return None
  return ValueEstimate(value, count.evidence(cfg.best_of))


def _pit_probability(counts: Sequence[Count]) -> list[float]:
  """Probability of the pit at every step, 0 at step 0; the last entry is that of no pit.

  Success probabilities are Beta(2, 1) before the pit and Beta(0.3, 6) from it on (our choice); all
  steps are equally likely before anything is known.
  """
  weights = [0.0]
  for pit in range(1, len(counts) + 1):
    likelihoods = []
    for step, count in enumerate(counts):
      likelihoods.append(_likelihood(count, _BEFORE if step < pit else _AFTER))
    weights.append(math.prod(likelihoods))
  total = sum(weights)
  if not total:
    return [0.0] * len(weights)
  return [weight / total for weight in weights]


def _likelihood(count: Count, prior: _Beta) -> float:
  """Likelihood of a prefix's rollouts, or of the end of a trace, under a prior of its success.

  That of an end is 0 on the wrong side of the pit.
  """
  correct, incorrect = prior
  if count.ended and count.reward is not None:
    return float(count.reward == (correct > incorrect))
  failed = count.n - count.c
  logarithm = (
    math.lgamma(correct + count.c)
    + math.lgamma(incorrect + failed)
    - math.lgamma(correct + incorrect + count.n)
  )
  return math.exp(
    logarithm - math.lgamma(correct) - math.lgamma(incorrect) + math.lgamma(correct + incorrect)
  )


SCHEDULES: dict[Schedule, Callable[[Sequence[Count], ValueConfig], dict[int, int]]] = {
  "full": full,
  "first_fail": first_fail,
  "binary": binary,
  "sequential": sequential,
}
