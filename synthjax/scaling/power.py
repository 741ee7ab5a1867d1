"""The difference between two arms that a study can detect, computed before it runs.

A paired difference at one N varies with its seeds and with the luck of single answers; test
problems are the same for both arms. Its variance is pooled over the N of the study, as in
`paired.differences`, and the interval is Student's t with the degrees of freedom of `noise`.
"""

import dataclasses
import math
from collections.abc import Sequence

import scipy.optimize
import scipy.stats

from synthjax.scaling import noise


@dataclasses.dataclass(frozen=True)
class Assumptions:
  """Assumptions about runs before there are any, from earlier studies (docs/log.md)."""

  accuracy: float = 0.5  # of both arms, about: an answer's variance is largest here
  spread: float = 0.35  # standard deviation of a seed's error on the logit scale
  common: float = 0.25  # share of its variance that the two arms of a seed have in common
  nested: float = 0.5  # share of its variance that is correlated over N
  agreement: float = 0.6  # correlation of two runs' answers to a problem, on the probit scale


@dataclasses.dataclass(frozen=True)
class Power:
  """How well a study measures the difference of two arms in accuracy, at one N."""

  standard_error: float
  freedom: float  # degrees of freedom of its estimate
  detectable: float  # the smallest true difference whose interval excludes 0 with the asked chance


def power(
  sizes: Sequence[int],
  seeds: int,
  test_problems: int,
  assumed: Assumptions = Assumptions(),
  chance: float = 0.8,
  level: float = 0.95,
) -> Power:
  """The smallest paired difference that is detected with `chance` by a `level` interval.

  Args:
    sizes: N at which both arms are trained.
    seeds: of each.
    test_problems: that all runs answer.
    assumed: how runs vary.
    chance: that the interval of a true difference of this size excludes 0.
    level: of the interval.
  """
  # Of the accuracy by its logit.
  slope = assumed.accuracy * (1 - assumed.accuracy)
  of_seed = 2 * (1 - assumed.common) * (slope * assumed.spread) ** 2
  luck = _disagreement(assumed) / test_problems
  if seeds < 2:  # the interval is over test problems alone, and the spread of seeds is not in it
    of_seed, freedom = 0.0, math.inf
  else:
    freedom = noise.freedom([seeds - 1.0] * len(sizes), sizes, assumed.nested)
  error = math.sqrt((of_seed + luck) / seeds)
  freedom = min(freedom, 1e6)
  threshold = scipy.stats.t.ppf((1 + level) / 2, freedom)

  def lacking(ratio: float) -> float:
    return scipy.stats.nct.sf(threshold, freedom, ratio) - chance

  ratio = scipy.optimize.brentq(lacking, 0.0, 4 * threshold + 4)
  return Power(standard_error=error, freedom=freedom, detectable=float(ratio) * error)


def _disagreement(assumed: Assumptions) -> float:
  """Share of problems that one run answers correctly and the other does not.

  It is the variance of the difference of their answers.
  """
  threshold = scipy.stats.norm.ppf(assumed.accuracy)
  covariance = [[1, assumed.agreement], [assumed.agreement, 1]]
  both = scipy.stats.multivariate_normal.cdf([threshold] * 2, cov=covariance)
  return 2 * (assumed.accuracy - float(both))


def sentence(
  sizes: Sequence[int],
  seeds: int,
  test_problems: int,
  assumed: Assumptions = Assumptions(),
) -> str:
  """What a study can detect, as a line to print before it runs."""
  found = power(sizes, seeds, test_problems, assumed)
  points = f"{100 * found.detectable:.1f} points"
  if seeds < 2:
    return (
      f"power: with one seed and {test_problems:,} test problems a difference of two arms is "
      f"detected from {points} on (in 80 % of studies, 95 % interval) between these two policies; "
      "what another seed would give is not in the interval"
    )
  return (
    f"power: with {seeds} seeds and {test_problems:,} test problems a difference of two arms at "
    f"one N is detected from {points} on (in 80 % of studies, 95 % interval), if seeds spread by "
    f"{assumed.spread:g} on the logit scale and accuracies are near {100 * assumed.accuracy:.0f} %"
  )
