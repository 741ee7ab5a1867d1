"""The law error = c * N^-alpha: fitted in log space and tested against the data.

The law is supported when at least four sizes were measured, the error falls, and two statistics
are no larger than in simulated studies in which the law holds: the residuals' chi-square, and their
part in the direction of an irreducible floor, error = floor + c * N^-alpha (a score test, one-sided
because a floor is not negative). The simulated studies estimate the covariance as the real one
does; F's degrees of freedom would neglect that the correlation over N is estimated too. How much
the two tests overlap depends on the number of sizes, so they are judged together: the smaller
p-value is compared with the smaller one of each simulated study.

Shapes: N measured sizes, R = 1 + B (the estimate, then its replicates).
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.special

_FEWEST_SIZES = 4  # two degrees of freedom for the test (our choice)
_NO_WEIGHTS = (
  "the errors of some sizes do not vary over seeds and problems, or vary as one: no weights"
)


@dataclasses.dataclass(frozen=True)
class LocalExponent:
  """The exponent between two neighbouring sizes."""

  start: int  # N
  end: int  # N
  exponent: float
  standard_error: float


@dataclasses.dataclass(frozen=True)
class Law:
  """error = coefficient * N^-exponent, and whether the data support it.

  `supported` means that the data do not speak against it.
  """

  supported: bool
  reason: str  # why it is not supported; "" where it is
  local_exponents: tuple[LocalExponent, ...]
  coefficient: float = float("nan")  # error at N = 1
  exponent: float = float("nan")
  low: float = float("nan")  # of the exponent's percentile interval
  high: float = float("nan")
  chi_square: float = float("nan")  # of the residuals
  freedom: int = 0  # degrees of freedom of chi_square
  p_value: float = float("nan")  # of chi_square
  residuals: tuple[float, ...] = ()  # log of measured over fitted error, in order of N
  floor: float = 0.0  # irreducible error with which the law fits best
  floor_p_value: float = float("nan")  # of the residuals' part in the direction of a small floor
  either_p_value: float = float("nan")  # of the smaller of the two: the law is judged by it


class SimulatedStudies(NamedTuple):
  """Studies with the same design and noise, in which the law holds."""

  moves_BN: np.ndarray  # deviations of their log errors from the law's
  covariance_BNN: np.ndarray  # as each of them estimates it
  freedom: float  # degrees of freedom of the seeds' part; inf where it is known


@dataclasses.dataclass(frozen=True)
class Fit:
  """The law with its replicates; none where there was nothing to fit."""

  law: Law
  log_coefficient_R: np.ndarray
  exponent_R: np.ndarray

  def invert(self, log_error_R: np.ndarray) -> np.ndarray:
    """[R] log N at which the law has these errors."""
    # A replicate whose law does not fall lands off the range, as it should.
    exponent_R = np.maximum(self.exponent_R, 1e-9)
    return (self.log_coefficient_R - log_error_R) / exponent_R


def fit(
  problems_N: Sequence[int],
  log_error_NR: np.ndarray,
  level: float = 0.95,
  significance: float = 0.05,
  *,
  covariance_NN: np.ndarray | None = None,
  simulated: SimulatedStudies | None = None,
) -> Fit:
  """Generalised least squares of log error on log N, in float64.

  All sizes share their test problems, so their errors are correlated.

  Args:
    problems_N: rising sizes.
    log_error_NR: natural logs of the errors; the replicates give the exponent's interval.
    level: of the exponent's interval.
    significance: at which the data speak against the law, by both tests together (our choice).
    covariance_NN: of the measured log errors, from seeds and problems; None: that of the
      replicates.
    simulated: studies in which the law holds; None: the replicates with that covariance.
  """
  log_problems_N = np.log(np.asarray(problems_N, np.float64))
  log_error_N = log_error_NR[:, 0]
  if covariance_NN is None:
    covariance_NN = np.atleast_2d(np.cov(log_error_NR[:, 1:]))
  if simulated is None:
    simulated = _of_replicates(log_error_NR, covariance_NN)
  local = _local_exponents(problems_N, log_error_N, covariance_NN)
  try:
    whiten_NN = np.linalg.inv(np.linalg.cholesky(covariance_NN))
  except np.linalg.LinAlgError:
    return _unfitted(_NO_WEIGHTS, local)
  if len(problems_N) < _FEWEST_SIZES:
    reason = f"{len(problems_N)} sizes; a test of the law needs at least {_FEWEST_SIZES}"
    return _unfitted(reason, local)
  design_N2 = whiten_NN @ np.stack([np.ones_like(log_problems_N), -log_problems_N], axis=1)
  coefficients_2R = np.linalg.lstsq(design_N2, whiten_NN @ log_error_NR, rcond=None)[0]
  log_coefficient, exponent = coefficients_2R[:, 0]
  residual_N = log_error_N - log_coefficient + exponent * log_problems_N
  law_N = np.exp(log_coefficient - exponent * log_problems_N)
  tested = _test(residual_N, covariance_NN, simulated, log_problems_N, law_N)
  low, high = np.quantile(coefficients_2R[1, 1:], [(1 - level) / 2, (1 + level) / 2])
  law = Law(
    supported=True,
    reason="",
    local_exponents=local,
    coefficient=float(np.exp(log_coefficient)),
    exponent=float(exponent),
    low=float(low),
    high=float(high),
    chi_square=tested.chi_square,
    freedom=len(problems_N) - 2,
    p_value=tested.chi_square_p_value,
    residuals=tuple(residual_N.tolist()),
    floor=_floor(log_problems_N, log_error_N, whiten_NN, (log_coefficient, exponent)),
    floor_p_value=tested.floor_p_value,
    either_p_value=tested.either_p_value,
  )
  return Fit(_judged(law, significance), coefficients_2R[0], coefficients_2R[1])


def _of_replicates(log_error_NR: np.ndarray, covariance_NN: np.ndarray) -> SimulatedStudies:
  """The replicates as studies that all know the covariance."""
  moves_BN = (log_error_NR[:, 1:] - log_error_NR[:, :1]).T
  covariance_BNN = np.tile(covariance_NN, (len(moves_BN), 1, 1))
  return SimulatedStudies(moves_BN, covariance_BNN, float("inf"))


def _judged(law: Law, significance: float) -> Law:
  reason = _reason_against(law, significance)
  return dataclasses.replace(law, supported=not reason, reason=reason)


def _reason_against(law: Law, significance: float) -> str:
  """Why the data do not support the law; "" where they do."""
  if law.exponent <= 0:
    return (
      f"the error does not fall with N: exponent {law.exponent:.3f} "
      f"({law.low:.3f} to {law.high:.3f})"
    )
  if law.either_p_value >= significance:
    return ""
  if law.floor_p_value < law.p_value:
    return (
      f"an irreducible error of {law.floor:.3f} fits better, p = {law.floor_p_value:.2g}: "
      "the exponent falls with N"
    )
  return (
    f"chi-square {law.chi_square:.1f} on {law.freedom} degrees of freedom, "
    f"p = {law.p_value:.2g}: the points do not lie on one line"
  )


class _Tests(NamedTuple):
  chi_square_B: np.ndarray  # of the residuals
  # Their part in the direction in which a small floor moves them, in its standard deviations.
  floor_B: np.ndarray


def _tests(
  moves_BN: np.ndarray,
  covariance_BNN: np.ndarray,
  log_problems_N: np.ndarray,
  law_N: np.ndarray,
) -> _Tests:
  """Both statistics of studies with these deviations from the law and estimated covariances."""
  whiten_BNN = np.linalg.inv(np.linalg.cholesky(covariance_BNN))
  line_N2 = np.stack([np.ones_like(log_problems_N), log_problems_N], axis=1)
  basis_BN2 = np.linalg.qr(whiten_BNN @ line_N2)[0]

  def off_the_line(whitened_BN1):
    along_B21 = np.swapaxes(basis_BN2, 1, 2) @ whitened_BN1
    off_BN1 = whitened_BN1 - basis_BN2 @ along_B21
    return off_BN1[:, :, 0]

  residual_BN = off_the_line(whiten_BNN @ moves_BN[:, :, None])
  # A small floor adds floor / error to the log error.
  toward_BN = off_the_line(whiten_BNN @ (1 / law_N)[:, None])
  length_B = np.sqrt((toward_BN**2).sum(axis=1))
  floor_B = (residual_BN * toward_BN).sum(axis=1) / length_B
  return _Tests((residual_BN**2).sum(axis=1), floor_B)


class _Scores(NamedTuple):
  chi_square_B: np.ndarray
  floor_B: np.ndarray
  smaller_B: np.ndarray


def _scores(tests: _Tests, residual_freedom: int, freedom: float) -> _Scores:
  """p-values by F and by Student's t, and the smaller one.

  They serve as an order in which studies are compared with simulated ones, not as probabilities.
  """
  freedom = min(freedom, 1e9)  # to scipy an F with infinite degrees of freedom is NaN
  ratio_B = tests.chi_square_B / residual_freedom
  chi_square_B = scipy.special.fdtrc(residual_freedom, freedom, ratio_B)
  floor_B = scipy.special.stdtr(freedom, -tests.floor_B)
  return _Scores(chi_square_B, floor_B, np.minimum(chi_square_B, floor_B))


class _Tested(NamedTuple):
  chi_square: float
  chi_square_p_value: float
  floor_p_value: float
  either_p_value: float


def _test(
  residual_N: np.ndarray,
  covariance_NN: np.ndarray,
  simulated: SimulatedStudies,
  log_problems_N: np.ndarray,
  law_N: np.ndarray,
) -> _Tested:
  """Both tests of the study, with p-values among the simulated ones."""
  tests = _tests(residual_N[None], covariance_NN[None], log_problems_N, law_N)
  simulated_tests = _tests(simulated.moves_BN, simulated.covariance_BNN, log_problems_N, law_N)
  residual_freedom = len(residual_N) - 2
  scores = _scores(tests, residual_freedom, simulated.freedom)
  simulated_scores = _scores(simulated_tests, residual_freedom, simulated.freedom)
  return _Tested(
    chi_square=float(tests.chi_square_B[0]),
    chi_square_p_value=_share_below(scores.chi_square_B[0], simulated_scores.chi_square_B),
    floor_p_value=_share_below(scores.floor_B[0], simulated_scores.floor_B),
    either_p_value=_share_below(scores.smaller_B[0], simulated_scores.smaller_B),
  )


def _share_below(score: float, score_B: np.ndarray) -> float:
  """p-value of a score among those of simulated studies.

  A score below all of them is its own p-value, where that is smaller than the share.
  """
  below = int((score_B <= score).sum())
  share = (1 + below) / (1 + len(score_B))
  if not below:
    share = min(share, float(score))
  return share


def _unfitted(reason: str, local: tuple[LocalExponent, ...]) -> Fit:
  return Fit(Law(False, reason, local), np.zeros(0), np.zeros(0))


def _local_exponents(
  problems_N: Sequence[int], log_error_N: np.ndarray, covariance_NN: np.ndarray
) -> tuple[LocalExponent, ...]:
  exponents = []
  for k in range(len(problems_N) - 1):
    start, end = problems_N[k], problems_N[k + 1]
    span = np.log(end / start)
    variance = covariance_NN[k, k] + covariance_NN[k + 1, k + 1] - 2 * covariance_NN[k, k + 1]
    local = LocalExponent(
      start=int(start),
      end=int(end),
      exponent=float((log_error_N[k] - log_error_N[k + 1]) / span),
      standard_error=float(max(variance, 0.0) ** 0.5 / span),
    )
    exponents.append(local)
  return tuple(exponents)


def _floor(
  log_problems_N: np.ndarray,
  log_error_N: np.ndarray,
  whiten_NN: np.ndarray,
  start: tuple[float, float],
) -> float:
  """The floor of error = floor + c * N^-alpha at its best fit.

  It lies between zero and the smallest error.

  Args:
    log_problems_N: rising.
    log_error_N: natural logs of the errors.
    whiten_NN: makes the log errors independent, with a variance of 1.
    start: log coefficient and exponent of the law without a floor.
  """
  lowest = float(np.exp(log_error_N.min()))

  def residual_N(parameters):
    log_coefficient, exponent, share = parameters
    power_N = np.exp(log_coefficient - exponent * log_problems_N)
    return whiten_NN @ (log_error_N - np.log(share * lowest + power_N))

  # A higher floor needs a steeper law above it, so the starts go up together.
  log_coefficient, exponent = start
  rising = max(exponent, 0.0)
  starts = [
    (log_coefficient, exponent, 0.0),
    (log_coefficient, rising * 2, 0.5),
    (log_coefficient, rising * 4, 0.9),
  ]
  bounds = ([-np.inf, -np.inf, 0.0], [np.inf, np.inf, 1.0])
  fits = [scipy.optimize.least_squares(residual_N, first, bounds=bounds) for first in starts]
  best = min(fits, key=lambda one: one.cost)
  return float(best.x[2]) * lowest
