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
problems deviate together: a deviation enters both by the same coefficient.

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


class Replicates(NamedTuple):
  """A cell's mean mark and how far each replicate moves it."""

  mean: float
  problems_B: np.ndarray
  seeds_B: np.ndarray  # with their variance as estimated
  standard_error: float
  freedom: float  # of the variance of seeds; inf where there is none
  counted: int  # seeds' deviations it is pooled over, less means taken off: what `freedom` is were they independent

  def moves(self, freedom: float | None = None) -> np.ndarray:
    """[B] both, the seeds' part scaled for its degrees of freedom, or for these."""
    if freedom is None:
      freedom = self.freedom
    return self.problems_B + scale(freedom, len(self.seeds_B)) * self.seeds_B


class _Seeds(NamedTuple):
  """How an arm's seeds spread."""

  deviations: list[np.ndarray]  # a cell: of its seeds' means from the cell's, in units
  variance: float  # of one seed
  counted: int  # deviations less means taken off
  freedom: float
  nested: float  # share of the variance that is correlated over N


def replicates(
  cells: Sequence[Marks],
  sizes: tuple[int, ...],
  bootstrap: Bootstrap,
  difficulty_P: np.ndarray | None = None,
) -> list[Replicates]:
  """Replicates of the cells of one arm (or of one difference of arms).

  An arm that has one seed everywhere has the problems' part alone.

  Args:
    cells: one a size.
    sizes: all N of the study, rising: arms that are compared share their draws.
    bootstrap: how many replicates.
    difficulty_P: the problems' mean marks over runs enough for luck to be small; None: unknown.
  """
  seeds = _spread(cells)
  found = []
  for cell in cells:
    mean_P = _without_luck(cell, seeds, difficulty_P)
    problems_B = _weights(bootstrap, len(mean_P)) @ mean_P / len(mean_P)
    # over seeds: a mean of S has a variance S times smaller
    step = cell.unit / len(cell.seeds) ** 0.5
    seeds_B = step * _deviations(cells, seeds, cell.problems, sizes, bootstrap)
    variance = mean_P.var() / len(mean_P) + step**2 * seeds.variance
    found.append(
      Replicates(
        mean=float(mean_P.mean()),
        problems_B=problems_B,
        seeds_B=seeds_B,
        standard_error=float(variance**0.5),
        freedom=seeds.freedom,
        counted=seeds.counted,
      )
    )
  return found


def _spread(cells: Sequence[Marks]) -> _Seeds:
  deviations = []
  for cell in cells:
    deviation_S = cell.marks_SP.mean(axis=1) - cell.marks_SP.mean()
    if cell.unit > 0:
      deviation_S = deviation_S / cell.unit
    deviations.append(deviation_S)
  freedom_C = np.array([len(cell.seeds) - 1 if cell.unit > 0 else 0 for cell in cells], float)
  counted = int(freedom_C.sum())
  squares = sum(float(deviation_S @ deviation_S) for deviation_S in deviations)
  if not counted or not squares:
    return _Seeds(deviations, 0.0, 0, float("inf"), 0.0)
  variance = squares / counted
  shared_CC = _correlation([cell.problems for cell in cells])
  nested = _nested(cells, deviations, variance, shared_CC)
  return _Seeds(
    deviations,
    variance,
    counted,
    freedom(freedom_C, [cell.problems for cell in cells], nested),
    nested,
  )


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


def _nested(
  cells: Sequence[Marks], deviations: Sequence[np.ndarray], variance: float, shared_CC: np.ndarray
) -> float:
  """Least squares of the products of a seed's deviations at two N on sqrt(N / N'); 0 to 1."""
  found = expected = 0.0
  for i, one in enumerate(cells):
    for j in range(i):
      rows = {seed: row for row, seed in enumerate(cells[j].seeds)}
      pairs = [(k, rows[seed]) for k, seed in enumerate(one.seeds) if seed in rows]
      if len(pairs) > 1:
        product = sum(float(deviations[i][k] * deviations[j][row]) for k, row in pairs)
        found += product * shared_CC[i, j]
        expected += variance * (len(pairs) - 1) * float(shared_CC[i, j]) ** 2
  return min(1.0, max(0.0, found / expected)) if expected else 0.0


def _without_luck(cell: Marks, seeds: _Seeds, difficulty_P: np.ndarray | None) -> np.ndarray:
  """[P] problems' mean marks with the variance that they have without the luck of single answers.

  As they are where the seeds' deviations do not count that luck.
  """
  count_S, count_P = cell.marks_SP.shape
  mean_P = cell.marks_SP.mean(axis=0)
  explained_P = _explained(mean_P, difficulty_P)
  rest_P = mean_P - explained_P
  variance = float(rest_P.var())
  if count_S == 1 or not seeds.variance or not variance:
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


def _deviations(
  cells: Sequence[Marks], seeds: _Seeds, problems: int, sizes: tuple[int, ...], bootstrap: Bootstrap
) -> np.ndarray:
  """[B] draws of one seed's deviation at N, in units: its variance is the arm's."""
  total_B = np.zeros(bootstrap.replicates)
  if not seeds.variance:
    return total_B
  at = sizes.index(problems)
  for cell, deviation_S in zip(cells, seeds.deviations):
    for seed, deviation in zip(cell.seeds, deviation_S):
      nested_NB, own_NB = _coefficients(bootstrap, sizes, cell.problems, seed)
      coefficient_B = seeds.nested**0.5 * nested_NB[at] + (1 - seeds.nested) ** 0.5 * own_NB[at]
      total_B += deviation * coefficient_B
  return total_B / seeds.counted**0.5


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
