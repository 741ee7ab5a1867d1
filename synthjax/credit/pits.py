"""The pit of a trace: the first step at which its value falls, where thresholds and counts say so.

Until 2026-11-24 it was the first step with the lowest value. An incorrect trace that has ended has
the value 0 exactly, so that this found later and later steps the more rollouts a prefix had: any
prefix of which one rollout in twenty is correct is above 0 sooner or later. Now a step is a pit
where the counts make it credible that the thresholds hold, so that more rollouts find more pits
(`synthjax bench pits` prints the rates of both rules; docs/study_a.md, "Pits").

Shapes: Q quantiles of a posterior.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from synthjax import stats
from synthjax.config.credit import PitThresholds

_QUANTILES = 400  # of the value before a step, over which the posterior is averaged
_SLACK = 1e-9  # that of `PitThresholds.hold`: thresholds hold however floating point rounds


class Evidence(NamedTuple):
  """Rollouts that a value was estimated from."""

  n: int
  c: int  # correct ones
  best_of: int = 1  # K of the best-of-K value


class ValueEstimate(NamedTuple):
  """A value with its evidence."""

  value: float
  evidence: Evidence | None  # None where the value is known exactly


def first_pit(
  values: Sequence[float | None],
  thresholds: PitThresholds,
  counts: Sequence[Evidence | None] = (),
) -> int | None:
  """The first step whose fall in value passes the thresholds; None where none does.

  Steps after a prefix of which no rollout was correct do not count: the trace is lost by then.

  Args:
    values: q_0 (the bare problem), q_1, ..., q_L; None where a prefix was not valued.
    thresholds: what the step must show. A step whose prefix was not valued does not pass.
    counts: what each value was estimated from, None where it is known exactly (as the reward of a
      trace that has ended); () where all are known exactly.

  Raises:
    ValueError: there are counts, but not as many as values.
  """
  if counts and len(counts) != len(values):
    raise ValueError(f"{len(counts)} counts of {len(values)} values; expected as many, or none")
  counts = counts or [None] * len(values)
  for step in range(1, len(values)):
    before, after = values[step - 1], values[step]
    if before is not None and after is not None:
      high, low = ValueEstimate(before, counts[step - 1]), ValueEstimate(after, counts[step])
      if passes(high, low, thresholds):
        return step
    if is_lost(after, counts[step], thresholds):
      return None
  return None


def passes(before: ValueEstimate, after: ValueEstimate, thresholds: PitThresholds) -> bool:
  """Whether the thresholds hold for both values as estimated, and with the certainty asked for."""
  high, lost = credible(before, after, thresholds)
  return (
    thresholds.hold(before.value, after.value)
    and high >= thresholds.confidence_before
    and lost >= thresholds.confidence_drop
  )


@functools.lru_cache(maxsize=1 << 16)
def credible(
  before: ValueEstimate, after: ValueEstimate, thresholds: PitThresholds
) -> tuple[float, float]:
  """Posterior probabilities that the value before is high enough, and that enough of it is lost.

  High enough is `min_before`, enough is the share `min_drop`. Success probabilities have Jeffreys'
  posterior, Beta(c + 1/2, n - c + 1/2), independent of each other.
  """
  import scipy.special  # heavy

  if before.evidence is None:
    high = float(before.value >= thresholds.min_before - _SLACK)
    value_before_Q = np.array([before.value])
  else:
    n, c, best_of = before.evidence
    quantiles_Q = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    success_Q = scipy.special.betaincinv(c + 0.5, n - c + 0.5, quantiles_Q)
    value_before_Q = 1 - (1 - success_Q) ** best_of
    least = 1 - (1 - thresholds.min_before) ** (1 / best_of)
    high = float(scipy.special.betaincc(c + 0.5, n - c + 0.5, least))
  most_Q = value_before_Q * (1 - thresholds.min_drop)
  if after.evidence is None:
    return high, float(np.mean(after.value <= most_Q + _SLACK))
  n, c, best_of = after.evidence
  success_Q = 1 - (1 - most_Q) ** (1 / best_of)
  return high, float(np.mean(scipy.special.betainc(c + 0.5, n - c + 0.5, success_Q)))


def is_lost(value: float | None, counts: Evidence | None, thresholds: PitThresholds) -> bool:
  """Whether a prefix has no correct rollout, and is credibly below the value before any pit.

  Such a prefix cannot come before a pit.
  """
  if value != 0:
    return False
  if counts is None:
    return True
  import scipy.special  # heavy

  most = 1 - (1 - thresholds.min_before * (1 - thresholds.min_drop)) ** (1 / counts.best_of)
  return bool(scipy.special.betainc(0.5, counts.n + 0.5, most) >= thresholds.confidence_before)


def agreement(pits: Sequence[int | None], reference: Sequence[int | None]) -> tuple[float, float]:
  """(share of traces with the same pit, or none in both; its standard error)."""
  return stats.mean([float(one == other) for one, other in zip(pits, reference, strict=True)])
