"""The baseline's error against problems and against compute: the curve that multiples are read off.

Shapes: N sizes of the baseline, R = 1 + B (the estimate, then its replicates).
"""

import math

import numpy as np

from synthjax.scaling import error_law, isotonic, noise
from synthjax.scaling.bootstrap import Cell


class ReferenceCurve:
  """The baseline's monotone curve and its law, with all replicates."""

  def __init__(self, baseline: list[Cell], level: float, significance: float):
    self.baseline = baseline
    self.problems = [cell.key.problems for cell in baseline]
    self.log_problems_N = np.log(self.problems)
    self.num_seeds_N = np.array([float(len(cell.seeds)) for cell in baseline])
    raw_NR = np.stack([cell.log_error() for cell in baseline])
    self.log_error_N = self.monotone(raw_NR[:, :1])[:, 0]
    moved_N = abs(self.log_error_N - raw_NR[:, 0]) > 1e-9
    self.pooled = [str(cell.key) for cell, moved in zip(baseline, moved_N) if moved]
    covariance_NN, simulated = _covariance(baseline)
    self.fit = error_law.fit(
      self.problems,
      raw_NR,
      level,
      significance,
      covariance_NN=covariance_NN,
      simulated=simulated,
    )
    self.seeds_NB = np.stack([cell.log_error_of_seeds()[1:] for cell in baseline])
    self.flops_N = np.array([cell.flops for cell in baseline])
    self.flops_rise = bool(self.flops_N[0] > 0 and (np.diff(self.flops_N) > 0).all())

  def monotone(self, raw_NR: np.ndarray) -> np.ndarray:
    """[N, R] log errors, made monotone."""
    return np.log(isotonic.falling(np.exp(raw_NR), self.num_seeds_N))

  def curves(self, freedom: float) -> np.ndarray:
    """[N, R] the monotone curve, the seeds' part scaled for these degrees of freedom."""
    return self.monotone(np.stack([cell.log_error(freedom) for cell in self.baseline]))

  def comparison_freedom(self, cell: Cell) -> float:
    """Degrees of freedom of the seeds' variance when a cell is compared with the curve.

    Both variances are estimates; Welch's rule combines them.
    """
    matching = isotonic.invert(
      self.log_problems_N, self.log_error_N[:, None], cell.log_error()[:1]
    )[0]
    index = np.interp(matching, self.log_problems_N, np.arange(len(self.log_problems_N)))
    below, above = math.floor(index), math.ceil(index)
    weight = index - below
    curve_B = (1 - weight) * self.seeds_NB[below] + weight * self.seeds_NB[above]
    variances = [float(cell.log_error_of_seeds()[1:].var()), float(curve_B.var())]
    return noise.welch(variances, [cell.drawn.freedom, self.baseline[0].drawn.freedom])

  def match(self, axis_N: np.ndarray, curve_NR: np.ndarray, level_R: np.ndarray) -> np.ndarray:
    """[R] the place on the axis at which the curve reaches a level.

    A replicate's curve is bent by as much as the error of leaving a point out suggests.
    """
    straight_R = isotonic.invert(axis_N, curve_NR, level_R)
    bend_N = isotonic.bends(axis_N, curve_NR)
    # The same draw for every level: two arms are read off one curve.
    random = np.random.default_rng(len(level_R))
    bent_R = np.append(0.0, random.normal(size=len(level_R) - 1))
    shift_R = bent_R * isotonic.sag(axis_N, bend_N, straight_R)
    return isotonic.invert(axis_N, curve_NR, level_R + shift_R)

  def undefined_at(self, log_error: float) -> bool:
    """Whether no single number of problems belongs to an error.

    So it is where the whole curve is flat at that error, or where the curve begins flat because
    nothing is answered correctly.
    """
    curve_N = self.log_error_N
    flat = curve_N[0] == curve_N[-1] == log_error
    no_correct_answer = curve_N[0] == curve_N[1] == log_error == 0.0
    return bool(flat or no_correct_answer)

  def points(self) -> tuple[tuple[int, float], ...]:
    """(N, error) of every measured size."""
    errors = [float(np.exp(log_error)) for log_error in self.log_error_N]
    return tuple(zip(self.problems, errors))


def _covariance(baseline: list[Cell]) -> tuple[np.ndarray, error_law.SimulatedStudies]:
  """[N, N] covariance of the log errors, and simulated studies with what each would estimate."""
  problems_NR = np.stack([cell.log_error_of_problems() for cell in baseline])
  of_problems_NN = np.atleast_2d(np.cov(problems_NR[:, 1:]))
  slope_N = np.array([cell.log_slope for cell in baseline])
  spread = baseline[0].drawn.spread  # the arm's, in the order of its cells
  num_replicates = problems_NR.shape[1] - 1
  seeds_BN, seeds_BNN = noise.simulated(spread, noise.Bootstrap(num_replicates))
  of_seeds_NN = noise.covariance(spread.variance, spread.nested, spread)
  slope_NN = slope_N[:, None] * slope_N
  simulated = error_law.SimulatedStudies(
    moves_BN=(problems_NR[:, 1:] - problems_NR[:, :1]).T + slope_N * seeds_BN,
    covariance_BNN=of_problems_NN + slope_NN * seeds_BNN,
    freedom=spread.counted or math.inf,
  )
  return of_problems_NN + slope_NN * of_seeds_NN, simulated
