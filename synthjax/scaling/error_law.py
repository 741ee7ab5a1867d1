"""The law error = c * N^-alpha: fitted in log space, tested against the data, and said to be unsupported where they speak against it.

Shapes: N measured sizes, R = 1 + B (what was found, then its replicates).
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.special

_FEWEST_SIZES = 4  # two degrees of freedom for the test (our choice)


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
  p_value: float = float("nan")  # of chi_square
  residuals: tuple[float, ...] = ()  # log of found over fitted error, in order of N
  floor: float = 0.0  # irreducible error with which the law fits best
  floor_p_value: float = float("nan")  # of the residuals' part in the direction of a small floor
  either_p_value: float = float("nan")  # of the smaller of the two: the law is judged by it


class Redrawn(NamedTuple):
  """Studies like the one found, in which the law holds."""

  moves_BN: np.ndarray  # of their log errors, from the law's
  covariance_BNN: np.ndarray  # as each of them estimates it
  freedom: float  # degrees of freedom of its seeds' part; inf where it is known


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
  redrawn: Redrawn | None = None,
) -> Fit:
  """Generalised least squares of log error on log N in float64; all sizes share their test problems, so their errors are correlated.

  The law is supported when at least four sizes were measured, the error falls, and neither the
  residuals' chi-square nor their part in the direction of an irreducible floor, error = floor +
  c * N^-alpha (one-sided: a floor is not negative; a score test), is larger than what studies drawn
  anew have in which the law holds. These estimate the covariance as this one does: chi-square with
  F's degrees of freedom forgets that the correlation over N is estimated too. How much the two
  tests overlap depends on the number of sizes; they are judged together, by the smaller p-value
  against the smaller one of each study drawn anew.

  Args:
    problems_N: rising sizes.
    log_error_NR: natural logs of the errors; the spread of replicates gives the exponent's interval.
    level: of the exponent's interval.
    significance: at which the data speak against the law, by both tests together (our choice).
    covariance_NN: of the found errors, from seeds and problems; that of the replicates where None.
    redrawn: studies drawn anew; the replicates with that covariance where None.
  """
  log_problems_N = np.log(np.asarray(problems_N, np.float64))
  if covariance_NN is None:
    covariance_NN = np.atleast_2d(np.cov(log_error_NR[:, 1:]))
  if redrawn is None:
    moves_BN = (log_error_NR[:, 1:] - log_error_NR[:, :1]).T
    redrawn = Redrawn(moves_BN, np.tile(covariance_NN, (len(moves_BN), 1, 1)), float("inf"))
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
  law_N = np.exp(log_coefficient - exponent * log_problems_N)
  tested = _tests(residual_N[None], covariance_NN[None], log_problems_N, law_N)
  drawn = _tests(redrawn.moves_BN, redrawn.covariance_BNN, log_problems_N, law_N)
  chi_square, residual_freedom = float(tested.chi_square_B[0]), len(problems_N) - 2
  scores, drawn_scores = (
    _scores(one, residual_freedom, redrawn.freedom) for one in (tested, drawn)
  )
  p_value, floor_p_value, either_p_value = (
    _share_below(score[0], score_B) for score, score_B in zip(scores, drawn_scores)
  )
  floor = _floor(log_problems_N, log_error_NR[:, 0], whiten_NN, (log_coefficient, exponent))
  low, high = np.quantile(coefficients_2R[1, 1:], [(1 - level) / 2, (1 + level) / 2])
  reason = ""
  if exponent <= 0:
    reason = f"the error does not fall with N: exponent {exponent:.3f} ({low:.3f} to {high:.3f})"
  elif either_p_value < significance and floor_p_value < p_value:
    reason = f"an irreducible error of {floor:.3f} fits better, p = {floor_p_value:.2g}: the exponent falls with N"
  elif either_p_value < significance:
    reason = f"chi-square {chi_square:.1f} on {residual_freedom} degrees of freedom, p = {p_value:.2g}: the points do not lie on one line"
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
    either_p_value=either_p_value,
  )
  return Fit(law, coefficients_2R[0], coefficients_2R[1])


class _Tests(NamedTuple):
  chi_square_B: np.ndarray  # of the residuals
  floor_B: (
    np.ndarray
  )  # their part in the direction in which a small floor moves them, in its standard deviations


def _tests(moves_BN, covariance_BNN, log_problems_N, law_N) -> _Tests:
  whiten_BNN = np.linalg.inv(np.linalg.cholesky(covariance_BNN))
  line_N2 = np.stack([np.ones_like(log_problems_N), log_problems_N], axis=1)
  basis_BN2 = np.linalg.qr(whiten_BNN @ line_N2)[0]

  def off_the_line(whitened_BN1):
    off_BN1 = whitened_BN1 - basis_BN2 @ (np.swapaxes(basis_BN2, 1, 2) @ whitened_BN1)
    return off_BN1[:, :, 0]

  residual_BN = off_the_line(whiten_BNN @ moves_BN[:, :, None])
  toward_BN = off_the_line(whiten_BNN @ (1 / law_N)[:, None])
  length_B = np.sqrt((toward_BN**2).sum(axis=1))
  return _Tests((residual_BN**2).sum(axis=1), (residual_BN * toward_BN).sum(axis=1) / length_B)


def _scores(found: _Tests, residual_freedom: int, freedom: float) -> list[np.ndarray]:
  """p-values of the two tests by F and Student's t, and the smaller one: the order in which studies drawn anew are compared."""
  freedom = min(freedom, 1e9)  # to scipy an F with infinite degrees of freedom is NaN
  chi_square_B = scipy.special.fdtrc(
    residual_freedom, freedom, found.chi_square_B / residual_freedom
  )
  floor_B = scipy.special.stdtr(freedom, -found.floor_B)
  return [chi_square_B, floor_B, np.minimum(chi_square_B, floor_B)]


def _share_below(score: float, score_B: np.ndarray) -> float:
  """p-value of a score among those of studies drawn anew; below all of them it is taken as it is, where that is smaller."""
  below = int((score_B <= score).sum())
  share = (1 + below) / (1 + len(score_B))
  return share if below else min(share, float(score))


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


def _floor(log_problems_N, log_error_N, whiten_NN, start) -> float:
  """The floor of error = floor + c * N^-alpha at its best, with the floor between zero and the smallest error."""
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
  return float(best.x[2]) * lowest
