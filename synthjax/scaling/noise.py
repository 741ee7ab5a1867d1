"""What a mean of marks may differ by: replicates over test problems and seeds.

Two effects are added:

- Test problems are drawn anew, the same draw for all cells, so that arms stay paired. A problem's
  mean mark also holds the luck of single answers. The seeds' deviations hold that luck too, and count
  it (else it would count twice: Owen 2007, The pigeonhole bootstrap), so it is taken out here. What
  a problem's difficulty explains (its mean mark over all runs of the baseline) has none and stays as
  it is: cells have it in common. Only the rest is scaled to the problems' own variance. Scaling all
  would shrink what cells have in common too, and a ratio of two of them would seem less certain.
- Seeds deviate by a normal draw whose variance is that of their means. It is pooled over the N of an
  arm, in units in which seeds spread alike, and is still known to few degrees of freedom: every
  replicate has its own variance, scaled by freedom / chi-square(freedom), so that a replicate's
  quantiles are those of Student's t. Drawing from the deviations themselves covers too little:
  three deviations have a standard deviation that is 18 % low, and no tails.

The training problems of a seed are nested over N (the first N are among the first 2N), so its
deviations are correlated by share * sqrt(N / N'), with the share estimated from the deviations, and
the pooled variance has fewer degrees of freedom than seeds by sizes. Two arms that share a seed's
problems deviate together, as much as they did where both were measured.

Shapes: P test problems, S seeds, N sizes, B replicates, C cells.
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
class Marks:
  """What a cell's runs got on the test problems."""

  problems: int  # N
  seeds: tuple[int, ...]
  marks_SP: np.ndarray
  unit: float  # of the seeds' deviations, which are pooled over N in it


_Weights = dict[tuple[int, int], float]  # by N and seed


class Spread(NamedTuple):
  """How an arm's seeds spread."""

  deviations_SC: np.ndarray  # of a seed's mean from its cell's, in units; 0 where it has none
  present_SC: np.ndarray  # whether the cell has the seed, and a spread
  problems_C: tuple[int, ...]  # N
  seeds_S: tuple[int, ...]
  variance: float  # of one seed
  nested: float  # share of the variance that is correlated over N

  def deviations(self) -> dict[tuple[int, int], float]:
    """By N and seed, in units."""
    found = {}
    for row, column in zip(*self.present_SC.nonzero()):
      found[self.problems_C[column], self.seeds_S[row]] = float(self.deviations_SC[row, column])
    return found

  @property
  def counted(self) -> int:
    """Deviations less means taken off: the degrees of freedom, were they independent."""
    return int(_less_means(self.present_SC).sum())

  @property
  def freedom(self) -> float:
    """Degrees of freedom of the variance; inf where there is none."""
    if not self.variance:
      return float("inf")
    return freedom(_less_means(self.present_SC), self.problems_C, self.nested)


class Replicates(NamedTuple):
  """A cell's mean mark and how far each replicate moves it."""

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
    """[B] both, the seeds' part scaled for its degrees of freedom, or for these."""
    if freedom is None:
      freedom = self.freedom
    return self.problems_B + scale(freedom, len(self.seeds_B)) * self.seeds_B


def replicates(
  cells: Sequence[Marks],
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
    difficulty_P: the problems' mean marks over runs enough for luck to be small; None: unknown.
    baseline: of the arm that this one is compared with; None: with none.
  """
  spread = spread_of(cells)
  parts = _parts(spread, baseline)
  found = []
  for cell in cells:
    mean_P = _without_luck(cell, spread, difficulty_P)
    problems_B = _weights(bootstrap, len(mean_P)) @ mean_P / len(mean_P)
    # over seeds: a mean of S has a variance S times smaller
    step = cell.unit / len(cell.seeds) ** 0.5
    seeds_B = step * _deviations(parts, spread.variance, cell.problems, sizes, bootstrap)
    variance = mean_P.var() / len(mean_P) + step**2 * spread.variance
    found.append(
      Replicates(
        mean=float(mean_P.mean()),
        problems_B=problems_B,
        seeds_B=seeds_B,
        standard_error=float(variance**0.5),
        spread=spread,
      )
    )
  return found


def spread_of(cells: Sequence[Marks]) -> Spread:
  """How the seeds of an arm's cells spread."""
  seeds = sorted({seed for cell in cells for seed in cell.seeds})
  deviations_SC = np.zeros((len(seeds), len(cells)))
  present_SC = np.zeros(deviations_SC.shape, bool)
  for column, cell in enumerate(cells):
    if cell.unit > 0:
      rows = [seeds.index(seed) for seed in cell.seeds]
      deviation_S = cell.marks_SP.mean(axis=1) - cell.marks_SP.mean()
      deviations_SC[rows, column] = deviation_S / cell.unit
      present_SC[rows, column] = True
  problems = tuple(cell.problems for cell in cells)
  variance, nested = _estimated(deviations_SC, present_SC, problems)
  return Spread(deviations_SC, present_SC, problems, tuple(seeds), float(variance), float(nested))


def _less_means(present_SC: np.ndarray) -> np.ndarray:
  """[C] a cell's seeds less one for their mean."""
  return np.maximum(present_SC.sum(axis=0) - 1.0, 0.0)


def _estimated(
  deviations_XSC: np.ndarray, present_SC: np.ndarray, problems: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
  """[X] the pooled variance, and its share that is correlated over N, 0 to 1, of deviations from cells' means.

  The share is the least-squares coefficient of the products of a seed's deviations at two N on
  sqrt(N / N').
  """
  counted = _less_means(present_SC).sum()
  variance_X = (deviations_XSC**2).sum(axis=(-2, -1)) / max(1.0, counted)
  present = present_SC.astype(float)
  shared_CC = np.maximum(present.T @ present - 1, 0.0)  # seeds of two cells, less their mean
  weight_CC = np.tril(_correlation(problems), -1) * (shared_CC > 0)
  products_XCC = np.swapaxes(deviations_XSC, -2, -1) @ deviations_XSC
  found_X = (products_XCC * weight_CC).sum(axis=(-2, -1))
  expected_X = variance_X * (shared_CC * weight_CC**2).sum()
  nested_X = np.divide(found_X, expected_X, out=np.zeros_like(found_X), where=expected_X > 0)
  return variance_X, np.clip(nested_X, 0.0, 1.0)


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
  # a mean of chi-squares whose deviations correlate by r has 1 / sum(r^2) of their freedom
  together_CC = np.minimum(freedom_C[:, None], freedom_C[None, :])
  correlation_CC = np.where(np.eye(len(freedom_C)), 1.0, nested * _correlation(problems))
  return float(freedom_C.sum()) ** 2 / float((together_CC * correlation_CC**2).sum())


def _correlation(problems: Sequence[int]) -> np.ndarray:
  """[C, C] of the means of nested problems: sqrt(N / N')."""
  problems_C = np.array(problems, float)
  least_CC = np.minimum(problems_C[:, None], problems_C[None, :])
  return least_CC / np.sqrt(problems_C[:, None] * problems_C[None, :])


def covariance(
  variance_X: np.ndarray | float, nested_X: np.ndarray | float, spread: Spread
) -> np.ndarray:
  """[X, C, C] of cells' means over their seeds, in units, of seeds that spread like this."""
  present = spread.present_SC.astype(float)
  count_C = np.maximum(present.sum(axis=0), 1.0)
  shared_CC = present.T @ present / count_C[:, None] / count_C
  nested_X11 = np.asarray(nested_X)[..., None, None]
  correlation_XCC = np.where(
    np.eye(len(count_C)), 1.0, nested_X11 * _correlation(spread.problems_C)
  )
  return np.asarray(variance_X)[..., None, None] * shared_CC * correlation_XCC


def redrawn(spread: Spread, bootstrap: Bootstrap) -> tuple[np.ndarray, np.ndarray]:
  """[B, C] cells' mean deviations, in units, and [B, C, C] the covariance of these that each estimates.

  Studies that are drawn anew, seeds and all, from what this one found. Each estimates its variance
  and its nested share as `replicates` does, so that a statistic which is weighted by the estimated
  covariance can be compared with what such estimates do to it.
  """
  problems_C = np.array(spread.problems_C, float)
  order_C = np.argsort(problems_C, kind="stable")
  added_C = np.diff(problems_C[order_C], prepend=0.0)
  random = np.random.default_rng([bootstrap.seed, len(problems_C)])
  shape = (bootstrap.replicates, *spread.present_SC.shape)
  walk_BSC = np.empty(shape)
  walk_BSC[..., order_C] = np.cumsum(random.normal(size=shape) * added_C**0.5, axis=-1)
  nested_BSC = spread.nested**0.5 * walk_BSC / problems_C**0.5
  own_BSC = (1 - spread.nested) ** 0.5 * random.normal(size=shape)
  drawn_BSC = spread.present_SC * spread.variance**0.5 * (nested_BSC + own_BSC)
  mean_BC = drawn_BSC.sum(axis=1) / np.maximum(spread.present_SC.sum(axis=0), 1)
  deviations_BSC = spread.present_SC * (drawn_BSC - mean_BC[:, None])
  estimated = _estimated(deviations_BSC, spread.present_SC, spread.problems_C)
  return mean_BC, covariance(*estimated, spread)


def _without_luck(cell: Marks, spread: Spread, difficulty_P: np.ndarray | None) -> np.ndarray:
  """[P] problems' mean marks with the variance that they have without the luck of single answers.

  As they are where the seeds' deviations do not count that luck.
  """
  count_S, count_P = cell.marks_SP.shape
  mean_P = cell.marks_SP.mean(axis=0)
  explained_P = _explained(mean_P, difficulty_P)
  rest_P = mean_P - explained_P
  variance = float(rest_P.var())
  if count_S == 1 or not spread.variance or not variance:
    return mean_P
  luck_SP = cell.marks_SP - mean_P
  luck_SP = luck_SP - luck_SP.mean(axis=1, keepdims=True)
  luck = float((luck_SP**2).sum()) / (count_S - 1) / count_P
  return explained_P + max(0.0, 1 - luck / count_S / variance) ** 0.5 * rest_P


def _explained(mean_P: np.ndarray, difficulty_P: np.ndarray | None) -> np.ndarray:
  """[P] what a cubic in the problems' difficulty says of their marks, by least squares; their mean where it is unknown."""
  if difficulty_P is None or not difficulty_P.std():
    return np.full_like(mean_P, mean_P.mean())
  scaled_P = (difficulty_P - difficulty_P.mean()) / difficulty_P.std()
  powers_P4 = np.vander(scaled_P, 4)
  return powers_P4 @ np.linalg.lstsq(powers_P4, mean_P, rcond=None)[0]


def _parts(own: Spread, baseline: Spread | None) -> list[tuple[_Weights, float]]:
  """What each deviation, by N and seed, contributes to the draws of an arm, and the nested share of these.

  The baseline is measured at more N than an arm. Were an arm's draws those of its own deviations
  alone, its correlation with the baseline, whose draws have all of its own, would be too small by
  the root of their shares. So the part of an arm that follows the baseline where both were measured
  follows it by all of its deviations; the rest is orthogonal to them. The correlation of any two
  arms is then what was measured. Squares of both parts sum to 1.
  """
  deviations = own.deviations()
  length = _length(deviations)
  if not length:
    return []
  rest = {name: deviation / length for name, deviation in deviations.items()}
  of_baseline = baseline.deviations() if baseline else {}
  shared = {name: of_baseline[name] for name in rest if name in of_baseline}
  if baseline is None or not _length(shared):
    return [(rest, own.nested)]
  correlation = sum(rest[name] * deviation for name, deviation in shared.items())
  correlation /= _length(shared)
  for name, deviation in shared.items():
    rest[name] -= correlation * deviation / _length(shared)
  step = correlation / _length(of_baseline)
  following = {name: step * deviation for name, deviation in of_baseline.items()}
  return [(rest, own.nested), (following, baseline.nested)]


def _length(deviations: _Weights) -> float:
  return sum(deviation**2 for deviation in deviations.values()) ** 0.5


def _deviations(
  parts: Sequence[tuple[_Weights, float]],
  variance: float,
  problems: int,
  sizes: tuple[int, ...],
  bootstrap: Bootstrap,
) -> np.ndarray:
  """[B] draws of one seed's deviation at N, in units: its variance is the arm's."""
  total_B = np.zeros(bootstrap.replicates)
  at = sizes.index(problems)
  for weights, nested in parts:
    for (measured, seed), weight in weights.items():
      nested_NB, own_NB = _coefficients(bootstrap, sizes, measured, seed)
      total_B += weight * nested**0.5 * nested_NB[at]
      total_B += weight * (1 - nested) ** 0.5 * own_NB[at]
  return variance**0.5 * total_B


@functools.lru_cache(maxsize=256)
def _coefficients(
  bootstrap: Bootstrap, sizes: tuple[int, ...], problems: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Two [N, B] standard normals of a deviation measured at `problems`: one correlated over N as nested problems are, one not."""
  random = np.random.default_rng([bootstrap.seed, problems, seed])
  sizes_N = np.array(sizes, float)[:, None]
  added_N = np.diff(sizes_N, axis=0, prepend=0.0)
  walk_NB = np.cumsum(added_N**0.5 * random.normal(size=(len(sizes), bootstrap.replicates)), axis=0)
  return walk_NB / sizes_N**0.5, random.normal(size=walk_NB.shape)


@functools.lru_cache(maxsize=64)
def scale(freedom: float, count: int) -> np.ndarray:
  """[B] sqrt(freedom / chi-square(freedom)) at evenly spaced shares of the distribution, in a fixed order."""
  if np.isinf(freedom):
    return np.ones(count)
  share_B = (np.random.default_rng(count).permutation(count) + 0.5) / count
  return np.sqrt(freedom / (2 * scipy.special.gammaincinv(freedom / 2, share_B)))


def welch(variances: Sequence[float], freedoms: Sequence[float]) -> float:
  """Degrees of freedom of a sum of estimated variances (Welch 1947; Satterthwaite 1946)."""
  total = sum(variances)
  if not total:
    return float("inf")
  spread = sum(variance**2 / freedom for variance, freedom in zip(variances, freedoms, strict=True))
  return total**2 / spread if spread else float("inf")


@functools.lru_cache(maxsize=2)
def _weights(bootstrap: Bootstrap, count: int) -> np.ndarray:
  """(B, P) how much more often than once a test problem is drawn."""
  random = np.random.default_rng([bootstrap.seed, count])
  return random.multinomial(count, np.full(count, 1 / count), size=bootstrap.replicates) - 1.0
