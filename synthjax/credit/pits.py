"""The pit of a trace: the first step at which its value falls, where thresholds and counts say so.

Until 2026-11-24 it was the first step with the lowest value. An incorrect trace that has ended has the
value 0 exactly, so that this found later and later steps the more rollouts a prefix had: any prefix
of which one rollout in twenty is correct is above 0 sooner or later. Now a step is a pit where the
counts make it credible that the thresholds hold, so that more rollouts find more pits
(`synthjax bench pits` prints the rates of both rules; docs/study_a.md, "Pits").
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from synthjax import stats
from synthjax.config.credit import PitThresholds

_QUANTILES = 400  # of the value before a step, over which the posterior is averaged


class Evidence(NamedTuple):
  """Rollouts that a value was estimated from."""

  n: int
  c: int  # correct ones
  best_of: int = 1  # K of the best-of-K value


Counts = Sequence[Evidence | None]
Estimate = tuple[
  float, Evidence | None
]  # a value, and its evidence; None where it is known exactly


def first_pit(
  values: Sequence[float | None], thresholds: PitThresholds, counts: Counts = ()
) -> int | None:
  """The first step whose fall in value passes the thresholds; None where none does.

  Steps after a prefix of which no rollout was correct do not count: the trace is lost by then.

  Args:
    values: q_0 (the bare problem), q_1, ..., q_L; None where a prefix was not valued.
    thresholds: what the step must show. A step whose prefix was not valued does not pass.
    counts: what each value was estimated from, None where it is known exactly (as the reward of a
      trace that has ended); () where all are known exactly.
  """
  if counts and len(counts) != len(values):
    raise ValueError(f"{len(counts)} counts of {len(values)} values; expected as many, or none")
  counts = counts or [None] * len(values)
  for step in range(1, len(values)):
    before, after = values[step - 1], values[step]
    if (
      before is not None
      and after is not None
      and passes((before, counts[step - 1]), (after, counts[step]), thresholds)
    ):
      return step
    if is_lost(after, counts[step], thresholds):
      return None
  return None


def passes(before: Estimate, after: Estimate, thresholds: PitThresholds) -> bool:
  """Whether the thresholds hold for both values as they were estimated, and with the certainty asked for."""
  high, lost = credible(before, after, thresholds)
  return (
    thresholds.hold(before[0], after[0])
    and high >= thresholds.confidence_before
    and lost >= thresholds.confidence_drop
  )


def credible(before: Estimate, after: Estimate, thresholds: PitThresholds) -> tuple[float, float]:
  """Posterior probabilities that the value before is at least `min_before`, and that `min_drop` of it is lost.

  Success probabilities have Jeffreys' posterior, Beta(c + 1/2, n - c + 1/2), independent of each other.
  """
  return _posterior(*before, *after, thresholds)


def is_lost(value: float | None, counts: Evidence | None, thresholds: PitThresholds) -> bool:
  """Whether no rollout of a prefix was correct, and that makes it credible that it is below any value before a pit."""
  if value != 0:
    return False
  if counts is None:
    return True
  import scipy.special  # heavy

  most = 1 - (1 - thresholds.min_before * (1 - thresholds.min_drop)) ** (1 / counts.best_of)
  return bool(scipy.special.betainc(0.5, counts.n + 0.5, most) >= thresholds.confidence_before)


@functools.lru_cache(maxsize=1 << 16)
def _posterior(
  before: float,
  counts_before: Evidence | None,
  after: float,
  counts_after: Evidence | None,
  thresholds: PitThresholds,
) -> tuple[float, float]:
  """(probability that the value before is high enough, that enough of it is lost)."""
  import scipy.special  # heavy

  slack = 1e-9
  if counts_before is None:
    high = float(before >= thresholds.min_before - slack)
    value_before_Q = np.array([before])
  else:
    n, c, best_of = counts_before
    success_Q = scipy.special.betaincinv(
      c + 0.5, n - c + 0.5, (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    )
    value_before_Q = 1 - (1 - success_Q) ** best_of
    least = 1 - (1 - thresholds.min_before) ** (1 / best_of)
    high = float(scipy.special.betaincc(c + 0.5, n - c + 0.5, least))
  most_Q = value_before_Q * (1 - thresholds.min_drop)
  if counts_after is None:
    return high, float(np.mean(after <= most_Q + slack))
  n, c, best_of = counts_after
  success_Q = 1 - (1 - most_Q) ** (1 / best_of)
  return high, float(np.mean(scipy.special.betainc(c + 0.5, n - c + 0.5, success_Q)))


def agreement(pits: Sequence[int | None], reference: Sequence[int | None]) -> tuple[float, float]:
  """(share of traces with the same pit, or none in both; its standard error)."""
  return stats.mean([float(one == other) for one, other in zip(pits, reference, strict=True)])
