"""Test errors of arms at numbers of problems, resampled over test problems and seeds: what every interval of a study rests on.

Shapes: P test problems, S seeds, B replicates, R = 1 + B (what was found, then its replicates).
"""

import collections
import dataclasses
import functools
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from synthjax.files import DataError


@dataclasses.dataclass(frozen=True)
class Bootstrap:
  """How errors are resampled."""

  replicates: int = 1000  # B; the ends of a 95 % interval then rest on 25 replicates each (our choice)
  seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """One trained policy and its marks on the test problems, which all runs of a study have in the same order."""

  arm: str
  problems: int  # N, training problems; only they count as data
  seed: int
  accuracy_P: np.ndarray  # for every test problem 0 or 1, or the share of right samples
  tokens_trained: float  # with those of the stages that the policy starts from
  tokens_sampled: float  # likewise


class Key(NamedTuple):
  """Names a cell."""

  arm: str
  problems: int

  def __str__(self) -> str:
    return f"{self.arm} at N={self.problems:,}"


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
  """An arm at one number of training problems, over its seeds."""

  key: Key
  seeds: tuple[int, ...]
  error_R: np.ndarray  # 1 - accuracy over seeds and test problems: first as found, then its replicates
  test_problems: int  # P
  half_answer: float  # half a test answer, as a share of all: errors are not told apart below it
  tokens_trained: float  # mean over seeds
  tokens_sampled: float  # mean over seeds

  @property
  def standard_error(self) -> float:
    return float(self.error_R[1:].std())

  @property
  def log_error_R(self) -> np.ndarray:
    return np.log(np.maximum(self.error_R, self.half_answer))


def resample(runs: Sequence[Run], bootstrap: Bootstrap) -> dict[Key, Cell]:
  """Every cell with its error and B replicates of it, in order of arm (as first seen) and N. All is float64.

  A replicate draws the test problems anew, the same draw for every cell, so that arms stay paired; and the seeds of every cell on
  their own, from a stream that depends on the cell's name alone: other arms do not move an arm's interval (`paired` compares two of
  them seed by seed). The two effects are added,

    error_b = error + sum_p (w_pb - 1) e_p / P + error (1 - error) sum_s r_sb / S,

  with w multinomial counts, e_p the mean of a test problem over the seeds, and r_sb drawn from the pool of the arm's seeds: deviations
  of a seed's error from its cell's on the logit scale, where seeds of a policy that is nearly always wrong and of one that is nearly always
  right spread alike (docs/log.md). The pool spans the N of the arm, because three seeds alone have two degrees of freedom.
  Drawing both at once (v_sb * w_pb e_sp) would count the noise of single answers, which is neither the problem's nor the seed's,
  3 - 2/S times (Owen 2007, The pigeonhole bootstrap); here e_p carries it once, and the pool is scaled to what remains without it.
  An arm that has one seed everywhere has the problems' term alone.

  Raises:
    DataError: no runs, two runs with one name, test problems that differ in number, or an accuracy outside 0..1.
  """
  groups = grouped(runs)
  errors = {key: 1 - np.array([run.accuracy_P for run in group], np.float64) for key, group in groups.items()}
  units = {key: error_SP.mean() * (1 - error_SP.mean()) for key, error_SP in errors.items()}
  pools = {arm: seed_pool([(errors[key], units[key]) for key in groups if key.arm == arm]) for arm in {key.arm for key in groups}}
  cells = {}
  for key, group in groups.items():
    error_R = replicates(errors[key], pools[key.arm] * units[key], bootstrap, (zlib.crc32(key.arm.encode()), key.problems))
    cells[key] = Cell(key, tuple(run.seed for run in group), error_R, errors[key].shape[1], 0.5 / errors[key].size,
                      float(np.mean([run.tokens_trained for run in group])), float(np.mean([run.tokens_sampled for run in group])))
  return cells


def replicates(marks_SP: np.ndarray, deviations: np.ndarray, bootstrap: Bootstrap, stream: tuple[int, ...]) -> np.ndarray:
  """(R,) the mean of marks as found, then its replicates: test problems drawn anew, and a deviation for every seed drawn from the pool.

  Test problems are the same draw for all marks of as many problems; seeds are drawn from `stream`.
  """
  seeds, count = marks_SP.shape
  mean_P = marks_SP.mean(axis=0)
  random = np.random.default_rng([bootstrap.seed, *stream])
  seeds_B = random.choice(deviations, size=(bootstrap.replicates, seeds)).mean(axis=1)
  return np.append(mean_P.mean(), mean_P.mean() + _weights(bootstrap, count) @ mean_P / count + seeds_B)


@functools.lru_cache(maxsize=2)
def _weights(bootstrap: Bootstrap, count: int) -> np.ndarray:
  """(B, P) how much more often than once a test problem is drawn."""
  return np.random.default_rng([bootstrap.seed, count]).multinomial(count, np.full(count, 1 / count), size=bootstrap.replicates) - 1.0


def grouped(runs: Sequence[Run]) -> dict[Key, list[Run]]:
  """Runs by cell, in order of arm (as first seen), N and seed. Raises DataError as `resample` says."""
  if not runs:
    raise DataError("no runs to compare; give at least the runs of the baseline arm")
  arms = list(dict.fromkeys(run.arm for run in runs))
  groups: dict[Key, list[Run]] = collections.defaultdict(list)
  for run in sorted(runs, key=lambda run: (arms.index(run.arm), run.problems, run.seed)):
    group, key = groups[Key(run.arm, run.problems)], Key(run.arm, run.problems)
    if group and group[-1].seed == run.seed:
      raise DataError(f"{key}, seed {run.seed}: found twice; keep one of the two runs")
    shape, first = np.shape(run.accuracy_P), np.shape(runs[0].accuracy_P)
    if shape != first or len(shape) != 1 or not shape[0]:
      raise DataError(f"{key}, seed {run.seed}: accuracies of shape {shape}, but {runs[0].arm} at N={runs[0].problems:,} has {first}; "
                      f"evaluate all runs on the same test problems in the same order")
    if not ((run.accuracy_P >= 0) & (run.accuracy_P <= 1)).all() or run.problems < 1:
      raise DataError(f"{key}, seed {run.seed}: expected accuracies from 0 to 1 and at least one training problem, found accuracies from "
                      f"{np.min(run.accuracy_P)} to {np.max(run.accuracy_P)}")
    group.append(run)
  return dict(groups)


def seed_pool(marks: Sequence[tuple[np.ndarray, float]]) -> np.ndarray:
  """Deviations of seeds from their cells' means in units of the cell's, scaled to the standard deviation of a seed's true mark.

  Its square is the between-seed variance less the part that the noise of single answers explains (two-way analysis of variance), pooled
  over the cells and never below zero. [0.0] where no cell has two seeds.

  Args:
    marks: (S, P) marks and the unit of every cell; the number of seeds may differ.
  """
  pool: list[float] = []
  variance, freedom = 0.0, 0
  for marks_SP, unit in marks:
    seeds, count = marks_SP.shape
    if seeds == 1 or count == 1 or unit == 0:
      continue
    seed_S = marks_SP.mean(axis=1) - marks_SP.mean()
    answers = ((marks_SP - marks_SP.mean(axis=0) - seed_S[:, None])**2).sum() / (count - 1) / count  # of all S - 1 degrees of freedom
    variance += ((seed_S**2).sum() - answers) / unit**2
    freedom += seeds - 1
    pool += (seed_S / unit).tolist()
  found = np.std(pool) if pool else 0.0
  return np.sort(pool) * (max(0.0, variance / freedom)**0.5 / found) if found else np.zeros(1)
