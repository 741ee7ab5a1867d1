"""How far the mean score of a cell may differ by chance: replicates over test problems and seeds.

Two effects are added:

- Test problems are drawn anew, the same draw for all cells, so that arms stay paired. A problem's
  mean score also holds the luck of single answers. The seeds' deviations hold that luck too and
  count it, so it is removed here; otherwise it would count twice (Owen 2007, The pigeonhole
  bootstrap). What a problem's difficulty explains (its mean score over all runs of the baseline)
  holds no luck and is left alone, since cells have it in common. Only the rest is scaled down to
  the problems' own variance: scaling all of it would shrink the common part too, and the ratio of
  two cells would seem less certain.
- Seeds deviate by a normal draw with the variance of their means. That variance is pooled over the
  N of an arm, in units in which seeds spread alike, and still has few degrees of freedom. So every
  replicate has its own variance, scaled by freedom / chi-square(freedom), and the quantiles of the
  replicates are those of Student's t. Resampling the deviations themselves covers too little: three
  deviations have a standard deviation that is 18 % low, and no tails.

The training problems of a seed are nested over N (the first N are among the first 2N), so its
deviations are correlated by share * sqrt(N / N'). The share is estimated from the deviations. The
pooled variance therefore has fewer degrees of freedom than seeds by sizes. Two arms that share a
seed's problems deviate together, as much as they did where both were measured.

Shapes: P test problems, S seeds, N sizes, B replicates, C cells, X any leading dimensions.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.special


@dataclasses.dataclass(frozen=True)
class Bootstrap:
  """How errors are resampled."""

  # B; the ends of a 95 % interval then rest on 50 replicates each (our choice)
  replicates: int = 2000
  seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class CellScores:
  """Scores of a cell's runs on the test problems."""

  problems: int  # N
  seeds: tuple[int, ...]
  scores_SP: np.ndarray
  unit: float  # of the seeds' deviations; they are pooled over N in this unit


class SeedAt(NamedTuple):
  """Names a deviation: of which seed, at which N."""

  problems: int
  seed: int


_Deviations = dict[SeedAt, float]


class _DrawPart(NamedTuple):
  """A part of an arm's draws that follows measured deviations."""

  weights: _Deviations
  nested: float  # share of the variance that is correlated over N


class Spread(NamedTuple):
  """How an arm's seeds spread."""

  deviations_SC: np.ndarray  # of a seed's mean from its cell's, in units; 0 where it has none
  present_SC: np.ndarray  # whether the cell has the seed, and a spread
  problems_C: tuple[int, ...]  # N
  seeds_S: tuple[int, ...]
  variance: float  # of one seed
  nested: float  # share of the variance that is correlated over N

  def deviations(self) -> _Deviations:
    """By N and seed, in units."""
    deviations = {}
    for row, column in zip(*self.present_SC.nonzero()):
      name = SeedAt(self.problems_C[column], self.seeds_S[row])
      deviations[name] = float(self.deviations_SC[row, column])
    return deviations

  @property
  def counted(self) -> int:
    """Deviations less means subtracted: the degrees of freedom if they were independent."""
    return int(_less_means(self.present_SC).sum())

  @property
  def freedom(self) -> float:
    """Degrees of freedom of the variance; inf where there is none."""
    if not self.variance:
      return float("inf")
    return freedom(_less_means(self.present_SC), self.problems_C, self.nested)


class Replicates(NamedTuple):
  """A cell's mean score and how far each replicate moves it."""

  mean: float
  problems_B: np.ndarray
  seeds_B: np.ndarray  # with their variance as estimated
  standard_error: float
  spread: Spread  # of the arm's seeds

  @property
  def freedom(self) -> float:
    """Degrees of freedom of the variance of seeds; inf where there is none."""
    return self.spread.freedom

  def moves(self, freedom: float | None = None) -> np.ndarray:
    """[B] both parts together, the seeds' part scaled for its degrees of freedom.

    Args:
      freedom: of the seeds' part; None: its own.
    """
    if freedom is None:
      freedom = self.freedom
    scale_B = scale(freedom, len(self.seeds_B))
    return self.problems_B + scale_B * self.seeds_B


def replicates(
  cells: Sequence[CellScores],
  sizes: tuple[int, ...],
  bootstrap: Bootstrap,
  difficulty_P: np.ndarray | None = None,
  baseline: Spread | None = None,
) -> list[Replicates]:
  """Replicates of the cells of one arm (or of one difference of arms).

  An arm that has one seed everywhere has the problems' part alone.

  Args:
    cells: one a size.
    sizes: all N of the study, rising: arms that are compared share their draws.
    bootstrap: how many replicates.
    difficulty_P: the problems' mean scores over enough runs for luck to be small; None: unknown.
    baseline: spread of the arm that this one is compared with; None: with none.
  """
  spread = spread_of(cells)
  parts = _draw_parts(spread, baseline)
  replicates_of_cells = []
  for cell in cells:
    mean_P = _without_luck(cell, spread, difficulty_P)
    count = len(mean_P)
    problems_B = _weights(bootstrap, count) @ mean_P / count
    # A mean over S seeds has a variance S times smaller.
    step = cell.unit / len(cell.seeds) ** 0.5
    deviation_B = _draw(parts, spread.variance, cell.problems, sizes, bootstrap)
    variance = mean_P.var() / count + step**2 * spread.variance
    replicates_of_cells.append(
      Replicates(
        mean=float(mean_P.mean()),
        problems_B=problems_B,
        seeds_B=step * deviation_B,
        standard_error=float(variance**0.5),
        spread=spread,
      )
    )
  return replicates_of_cells


def spread_of(cells: Sequence[CellScores]) -> Spread:
  """How the seeds of an arm's cells spread."""
  seeds = sorted({seed for cell in cells for seed in cell.seeds})
  deviations_SC = np.zeros((len(seeds), len(cells)))
  present_SC = np.zeros(deviations_SC.shape, bool)
  for column, cell in enumerate(cells):
    if cell.unit > 0:
      rows = [seeds.index(seed) for seed in cell.seeds]
      deviation_S = cell.scores_SP.mean(axis=1) - cell.scores_SP.mean()
      deviations_SC[rows, column] = deviation_S / cell.unit
      present_SC[rows, column] = True
  problems = tuple(cell.problems for cell in cells)
  pooled = _pooled(deviations_SC, present_SC, problems)
  return Spread(
    deviations_SC=deviations_SC,
    present_SC=present_SC,
    problems_C=problems,
    seeds_S=tuple(seeds),
    variance=float(pooled.variance_X),
    nested=float(pooled.nested_X),
  )


def _less_means(present_SC: np.ndarray) -> np.ndarray:
  """[C] a cell's seeds less one for their mean."""
  return np.maximum(present_SC.sum(axis=0) - 1.0, 0.0)


class _Pooled(NamedTuple):
  variance_X: np.ndarray
  nested_X: np.ndarray  # share of the variance that is correlated over N, 0 to 1


def _pooled(deviations_XSC: np.ndarray, present_SC: np.ndarray, problems: Sequence[int]) -> _Pooled:
  """[X] the pooled variance of deviations from cells' means, and its nested share.

  The share is the least-squares coefficient of the products of a seed's deviations at two N on
  sqrt(N / N').
  """
  counted = _less_means(present_SC).sum()
  variance_X = (deviations_XSC**2).sum(axis=(-2, -1)) / max(1.0, counted)
  present = present_SC.astype(float)
  # Seeds of two cells, less one for their mean.
  shared_CC = np.maximum(present.T @ present - 1, 0.0)
  weight_CC = np.tril(_correlation(problems), -1) * (shared_CC > 0)
  products_XCC = np.swapaxes(deviations_XSC, -2, -1) @ deviations_XSC
  measured_X = (products_XCC * weight_CC).sum(axis=(-2, -1))
  full_X = variance_X * (shared_CC * weight_CC**2).sum()
  nested_X = np.zeros_like(measured_X)
  np.divide(measured_X, full_X, out=nested_X, where=full_X > 0)
  return _Pooled(variance_X, np.clip(nested_X, 0.0, 1.0))


def freedom(
  counted_C: Sequence[float] | np.ndarray, problems: Sequence[int], nested: float
) -> float:
  """Degrees of freedom of a variance that is pooled over cells.

  Args:
    counted_C: seeds of each cell less one.
    problems: N of each cell.
    nested: share of the variance that is correlated over N.
  """
  freedom_C = np.asarray(counted_C, float)
  together_CC = np.minimum(freedom_C[:, None], freedom_C[None, :])
  diagonal_CC = np.eye(len(freedom_C))
  correlation_CC = np.where(diagonal_CC, 1.0, nested * _correlation(problems))
  # A mean of chi-squares whose deviations correlate by r has 1 / sum(r^2) of their freedom.
  shared = float((together_CC * correlation_CC**2).sum())
  return float(freedom_C.sum()) ** 2 / shared


def _correlation(problems: Sequence[int]) -> np.ndarray:
  """[C, C] of the means of nested problems: sqrt(N / N')."""
  problems_C = np.array(problems, float)
  least_CC = np.minimum(problems_C[:, None], problems_C[None, :])
  return least_CC / np.sqrt(problems_C[:, None] * problems_C[None, :])


def covariance(
  variance_X: np.ndarray | float, nested_X: np.ndarray | float, spread: Spread
) -> np.ndarray:
  """[X, C, C] covariance of cells' means over their seeds, in units.

  Args:
    variance_X: of one seed.
    nested_X: share of the variance that is correlated over N.
    spread: says which cells have which seeds.
  """
  present = spread.present_SC.astype(float)
  count_C = np.maximum(present.sum(axis=0), 1.0)
  shared_CC = present.T @ present / count_C[:, None] / count_C
  nested_X11 = np.asarray(nested_X)[..., None, None]
  variance_X11 = np.asarray(variance_X)[..., None, None]
  across_XCC = nested_X11 * _correlation(spread.problems_C)
  correlation_XCC = np.where(np.eye(len(count_C)), 1.0, across_XCC)
  return variance_X11 * shared_CC * correlation_XCC


def simulated(spread: Spread, bootstrap: Bootstrap) -> tuple[np.ndarray, np.ndarray]:
  """Studies simulated from this one's estimates, seeds and all.

  Each estimates its variance and its nested share as `replicates` does. So a statistic that is
  weighted by the estimated covariance can be compared with its distribution under such estimates.

  Returns:
    [B, C] the cells' mean deviations, in units, and [B, C, C] their covariance as each study
    estimates it.
  """
  problems_C = np.array(spread.problems_C, float)
  order_C = np.argsort(problems_C, kind="stable")
  added_C = np.diff(problems_C[order_C], prepend=0.0)
  random = np.random.default_rng([bootstrap.seed, len(problems_C)])
  shape = (bootstrap.replicates, *spread.present_SC.shape)
  # A random walk over N correlates as means of nested problems do.
  walk_BSC = np.empty(shape)
  walk_BSC[..., order_C] = np.cumsum(random.normal(size=shape) * added_C**0.5, axis=-1)
  nested_BSC = spread.nested**0.5 * walk_BSC / problems_C**0.5
  own_BSC = (1 - spread.nested) ** 0.5 * random.normal(size=shape)
  drawn_BSC = spread.present_SC * spread.variance**0.5 * (nested_BSC + own_BSC)
  mean_BC = drawn_BSC.sum(axis=1) / np.maximum(spread.present_SC.sum(axis=0), 1)
  deviations_BSC = spread.present_SC * (drawn_BSC - mean_BC[:, None])
  pooled = _pooled(deviations_BSC, spread.present_SC, spread.problems_C)
  return mean_BC, covariance(pooled.variance_X, pooled.nested_X, spread)


def _without_luck(cell: CellScores, spread: Spread, difficulty_P: np.ndarray | None) -> np.ndarray:
  """[P] problems' mean scores, scaled to the variance that they have without single answers' luck.

  Unchanged where the seeds' deviations do not count that luck.
  """
  count_S, count_P = cell.scores_SP.shape
  mean_P = cell.scores_SP.mean(axis=0)
  explained_P = _explained(mean_P, difficulty_P)
  rest_P = mean_P - explained_P
  variance = float(rest_P.var())
  if count_S == 1 or not spread.variance or not variance:
    return mean_P
  luck_SP = cell.scores_SP - mean_P
  luck_SP = luck_SP - luck_SP.mean(axis=1, keepdims=True)
  luck = float((luck_SP**2).sum()) / (count_S - 1) / count_P
  kept = max(0.0, 1 - luck / count_S / variance)
  return explained_P + kept**0.5 * rest_P


def _explained(mean_P: np.ndarray, difficulty_P: np.ndarray | None) -> np.ndarray:
  """[P] the part of problems' scores that their difficulty explains.

  A cubic in the difficulty, by least squares; the mean where the difficulty is unknown.
  """
  if difficulty_P is None or not difficulty_P.std():
    return np.full_like(mean_P, mean_P.mean())
  scaled_P = (difficulty_P - difficulty_P.mean()) / difficulty_P.std()
  powers_P4 = np.vander(scaled_P, 4)
  coefficients = np.linalg.lstsq(powers_P4, mean_P, rcond=None)[0]
  return powers_P4 @ coefficients


def _draw_parts(own: Spread, baseline: Spread | None) -> list[_DrawPart]:
  """What each deviation contributes to the draws of an arm; squares of all weights sum to 1.

  The baseline is measured at more N than an arm, and its draws follow all of its deviations. If an
  arm's draws followed its own deviations alone, the correlation of the two would be too small by
  the root of the share of deviations that they have in common. So the part of an arm that follows
  the baseline where both were measured follows all of the baseline's deviations; the rest is
  orthogonal to them. The correlation of any two arms is then the measured one.
  """
  deviations = own.deviations()
  length = _length(deviations)
  if not length:
    return []
  rest = {name: deviation / length for name, deviation in deviations.items()}
  if baseline is None:
    return [_DrawPart(rest, own.nested)]
  of_baseline = baseline.deviations()
  shared = {name: of_baseline[name] for name in rest if name in of_baseline}
  shared_length = _length(shared)
  if not shared_length:
    return [_DrawPart(rest, own.nested)]
  correlation = sum(rest[name] * deviation for name, deviation in shared.items())
  correlation /= shared_length
  for name, deviation in shared.items():
    rest[name] -= correlation * deviation / shared_length
  step = correlation / _length(of_baseline)
  following = {name: step * deviation for name, deviation in of_baseline.items()}
  return [_DrawPart(rest, own.nested), _DrawPart(following, baseline.nested)]


def _length(deviations: _Deviations) -> float:
  return sum(deviation**2 for deviation in deviations.values()) ** 0.5


def _draw(
  parts: Sequence[_DrawPart],
  variance: float,
  problems: int,
  sizes: tuple[int, ...],
  bootstrap: Bootstrap,
) -> np.ndarray:
  """[B] draws of one seed's deviation at N, in units: its variance is the arm's."""
  total_B = np.zeros(bootstrap.replicates)
  row = sizes.index(problems)
  for part in parts:
    for name, weight in part.weights.items():
      normals = _normals(bootstrap, sizes, name)
      total_B += weight * part.nested**0.5 * normals.nested_NB[row]
      total_B += weight * (1 - part.nested) ** 0.5 * normals.own_NB[row]
  return variance**0.5 * total_B


class _Normals(NamedTuple):
  """Standard normals of one measured deviation."""

  nested_NB: np.ndarray  # correlated over N as nested problems are
  own_NB: np.ndarray  # independent over N


@functools.lru_cache(maxsize=256)
def _normals(bootstrap: Bootstrap, sizes: tuple[int, ...], measured: SeedAt) -> _Normals:
  random = np.random.default_rng([bootstrap.seed, measured.problems, measured.seed])
  sizes_N = np.array(sizes, float)[:, None]
  added_N = np.diff(sizes_N, axis=0, prepend=0.0)
  steps_NB = random.normal(size=(len(sizes), bootstrap.replicates))
  walk_NB = np.cumsum(added_N**0.5 * steps_NB, axis=0)
  return _Normals(walk_NB / sizes_N**0.5, random.normal(size=walk_NB.shape))


@functools.lru_cache(maxsize=64)
def scale(freedom: float, count: int) -> np.ndarray:
  """[B] sqrt(freedom / chi-square(freedom)) at evenly spaced quantiles, in a fixed random order."""
  if np.isinf(freedom):
    return np.ones(count)
  order_B = np.random.default_rng(count).permutation(count)
  share_B = (order_B + 0.5) / count
  # A chi-square with k degrees of freedom is twice a gamma variate of shape k / 2.
  chi_square_B = 2 * scipy.special.gammaincinv(freedom / 2, share_B)
  return np.sqrt(freedom / chi_square_B)


def welch(variances: Sequence[float], freedoms: Sequence[float]) -> float:
  """Degrees of freedom of a sum of estimated variances (Welch 1947; Satterthwaite 1946)."""
  total = sum(variances)
  if not total:
    return float("inf")
  spread = sum(variance**2 / freedom for variance, freedom in zip(variances, freedoms, strict=True))
  if not spread:
    return float("inf")
  return total**2 / spread


@functools.lru_cache(maxsize=2)
def _weights(bootstrap: Bootstrap, count: int) -> np.ndarray:
  """[B, P] how much more often than once a test problem is drawn."""
  random = np.random.default_rng([bootstrap.seed, count])
  probabilities_P = np.full(count, 1 / count)
  return random.multinomial(count, probabilities_P, size=bootstrap.replicates) - 1.0
