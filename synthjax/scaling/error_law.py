"""The law error = c * N^-alpha: fitted in log space, tested against the data, and said to be unsupported where they speak against it.

Shapes: N measured sizes, R = 1 + B (what was found, then its replicates).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.optimize
import scipy.special

_FEWEST_SIZES = 4  # two degrees of freedom for the test (our choice)
# Of the significance for each of two tests that overlap: together they then reject a true law at it
# (`bench coverage`, designs that differ in their seeds' correlation: 3.8 to 5.2 % for 5 %).
_EACH = 0.7


@dataclasses.dataclass(frozen=True)
class LocalExponent:
  """The exponent between two neighbouring sizes."""

  start: int  # N
  end: int  # N
  exponent: float
  standard_error: float


@dataclasses.dataclass(frozen=True)
class Law:
  """error = coefficient * N^-exponent, and whether the data support it: `supported` means that they do not speak against it."""

  supported: bool
  reason: str  # why it is not supported; "" where it is
  local_exponents: tuple[LocalExponent, ...]
  coefficient: float = float("nan")  # error at N = 1
  exponent: float = float("nan")
  low: float = float("nan")  # of the exponent's percentile interval
  high: float = float("nan")
  chi_square: float = float("nan")  # of the residuals
  freedom: int = 0  # degrees of freedom of chi_square
  p_value: float = float("nan")  # of chi_square, by F where the covariance is estimated
  residuals: tuple[float, ...] = ()  # log of found over fitted error, in order of N
  floor: float = 0.0  # irreducible error with which the law fits best
  floor_p_value: float = float("nan")  # of the gain in chi_square from that floor


@dataclasses.dataclass(frozen=True)
class Fit:
  """The law with its replicates; none where there was nothing to fit."""

  law: Law
  log_coefficient_R: np.ndarray
  exponent_R: np.ndarray

  def invert(self, log_error_R: np.ndarray) -> np.ndarray:
    """[R] log N at which the law has these errors."""
    return (self.log_coefficient_R - log_error_R) / np.maximum(
      self.exponent_R, 1e-9
    )  # a law that does not fall: off the range


def fit(
  problems_N: Sequence[int],
  log_error_NR: np.ndarray,
  level: float = 0.95,
  significance: float = 0.05,
  *,
  covariance_NN: np.ndarray | None = None,
  freedom: float = float("inf"),
) -> Fit:
  """Generalised least squares of log error on log N in float64; all sizes share their test problems, so their errors are correlated.

  The law is supported when at least four sizes were measured, the error falls, the residuals'
  chi-square over its degrees of freedom is no larger than F allows, and no irreducible floor,
  error = floor + c * N^-alpha, fits better (one-sided: a floor is not negative).

  Args:
    problems_N: rising sizes.
    log_error_NR: natural logs of the errors; the spread of replicates gives the exponent's interval.
    level: of the exponent's interval.
    significance: at which the data speak against the law, by both tests together (our choice).
    covariance_NN: of the found errors, from seeds and problems; that of the replicates where None.
    freedom: degrees of freedom of its seeds' part; inf where it is known.
  """
  log_problems_N = np.log(np.asarray(problems_N, np.float64))
  if covariance_NN is None:
    covariance_NN = np.atleast_2d(np.cov(log_error_NR[:, 1:]))
  local = _local_exponents(problems_N, log_error_NR[:, 0], covariance_NN)
  try:
    whiten_NN = np.linalg.inv(np.linalg.cholesky(covariance_NN))
  except np.linalg.LinAlgError:
    return _unfitted(
      "the errors of some sizes do not vary over seeds and problems, or vary as one: no weights",
      local,
    )
  if len(problems_N) < _FEWEST_SIZES:
    return _unfitted(
      f"{len(problems_N)} sizes; a test of the law needs at least {_FEWEST_SIZES}", local
    )
  design_N2 = whiten_NN @ np.stack([np.ones_like(log_problems_N), -log_problems_N], axis=1)
  coefficients_2R = np.linalg.lstsq(design_N2, whiten_NN @ log_error_NR, rcond=None)[0]
  log_coefficient, exponent = coefficients_2R[:, 0]
  residual_N = log_error_NR[:, 0] - log_coefficient + exponent * log_problems_N
  chi_square, residual_freedom = float(((whiten_NN @ residual_N) ** 2).sum()), len(problems_N) - 2
  p_value = float(
    scipy.special.fdtrc(residual_freedom, _finite(freedom), chi_square / residual_freedom)
  )
  floor, floored = _floor(
    log_problems_N, log_error_NR[:, 0], whiten_NN, (log_coefficient, exponent)
  )
  gain = max(0.0, chi_square - floored)
  # half: the floor is on one side (Chernoff 1954)
  floor_p_value = 0.5 * float(scipy.special.fdtrc(1, _finite(freedom), gain))
  each = _EACH * significance
  low, high = np.quantile(coefficients_2R[1, 1:], [(1 - level) / 2, (1 + level) / 2])
  reason = ""
  if exponent <= 0:
    reason = f"the error does not fall with N: exponent {exponent:.3f} ({low:.3f} to {high:.3f})"
  elif p_value < each:
    reason = f"chi-square {chi_square:.1f} on {residual_freedom} degrees of freedom, p = {p_value:.2g}: the points do not lie on one line"
  elif floor_p_value < each:
    reason = f"an irreducible error of {floor:.3f} fits better, p = {floor_p_value:.2g}: the exponent falls with N"
  law = Law(
    supported=not reason,
    reason=reason,
    local_exponents=local,
    coefficient=float(np.exp(log_coefficient)),
    exponent=float(exponent),
    low=float(low),
    high=float(high),
    chi_square=chi_square,
    freedom=residual_freedom,
    p_value=p_value,
    residuals=tuple(residual_N.tolist()),
    floor=floor,
    floor_p_value=floor_p_value,
  )
  return Fit(law, coefficients_2R[0], coefficients_2R[1])


def _finite(freedom: float) -> float:
  """For scipy, to whom an F with infinite degrees of freedom is NaN."""
  return min(freedom, 1e9)


def _unfitted(reason, local) -> Fit:
  return Fit(Law(False, reason, local), np.zeros(0), np.zeros(0))


def _local_exponents(problems_N, log_error_N, covariance_NN) -> tuple[LocalExponent, ...]:
  found = []
  for k in range(len(problems_N) - 1):
    span = np.log(problems_N[k + 1] / problems_N[k])
    variance = covariance_NN[k, k] + covariance_NN[k + 1, k + 1] - 2 * covariance_NN[k, k + 1]
    found.append(
      LocalExponent(
        int(problems_N[k]),
        int(problems_N[k + 1]),
        float((log_error_N[k] - log_error_N[k + 1]) / span),
        float(max(variance, 0.0) ** 0.5 / span),
      )
    )
  return tuple(found)


def _floor(log_problems_N, log_error_N, whiten_NN, start) -> tuple[float, float]:
  """(floor, chi-square) of error = floor + c * N^-alpha at its best, with the floor between zero and the smallest error."""
  lowest = float(np.exp(log_error_N.min()))

  def residual_N(parameters):
    log_coefficient, exponent, share = parameters
    return whiten_NN @ (
      log_error_N - np.log(share * lowest + np.exp(log_coefficient - exponent * log_problems_N))
    )

  starts = [
    (*start, 0.0),
    (start[0], max(start[1], 0.0) * 2, 0.5),
    (start[0], max(start[1], 0.0) * 4, 0.9),
  ]
  fits = [
    scipy.optimize.least_squares(
      residual_N, first, bounds=([-np.inf, -np.inf, 0.0], [np.inf, np.inf, 1.0])
    )
    for first in starts
  ]
  best = min(fits, key=lambda found: found.cost)
  return float(best.x[2]) * lowest, 2 * float(best.cost)
