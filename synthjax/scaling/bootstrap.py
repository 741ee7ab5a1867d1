"""Test errors of arms at numbers of problems, resampled over test problems and seeds: what every
interval of a study rests on. `noise` has the spread; `coverage` shows by simulation that it is enough.

Shapes: P test problems, S seeds, B replicates, R = 1 + B (what was found, then its replicates).
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.special

from synthjax.files import DataError
from synthjax.scaling import noise
from synthjax.scaling.noise import Bootstrap


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """One trained policy and its marks on the test problems, which all runs of a study have in the same order."""

  arm: str
  problems: int  # N, training problems; only they count as data
  seed: int
  accuracy_P: np.ndarray  # for every test problem 0 or 1, or the share of right samples
  tokens_trained: float  # with those of the stages that the policy starts from, to be shown
  tokens_sampled: float  # likewise
  flops: float  # of everything that was computed to make the policy (`compute.Compute.total`), tuning apart


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
  drawn: noise.Replicates  # of the error, 1 - accuracy
  test_problems: int  # P
  half_answer: float  # half a test answer, as a share of all: errors are not told apart below it
  tokens_trained: float  # mean over seeds
  tokens_sampled: float  # mean over seeds
  flops: float  # mean over seeds

  @property
  def error(self) -> float:
    return self.drawn.mean

  @property
  def standard_error(self) -> float:
    """Of the accuracy, over seeds and test problems."""
    return self.drawn.standard_error

  def log_error(self, freedom: float | None = None) -> np.ndarray:
    """[R] as found, then its replicates, with the seeds' part scaled for these degrees of freedom (its own)."""
    return self._log_moved(self.drawn.moves(freedom))

  def log_error_of_seeds(self) -> np.ndarray:
    """[R] the same by the seeds' part alone, with its variance as estimated."""
    return self._log_moved(self.drawn.seeds_B)

  def log_error_of_problems(self) -> np.ndarray:
    """[R] the same by the test problems' part alone."""
    return self._log_moved(self.drawn.problems_B)

  @property
  def log_slope(self) -> float:
    """How far the log error moves with an error of one unit, that of the seeds' deviations."""
    return 1 - self.error if 0 < self.error < 1 else 0.0

  def _log_moved(self, moves_B: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(_on_the_logit_scale(self.error, moves_B), self.half_answer))


def resample(runs: Sequence[Run], bootstrap: Bootstrap, baseline: str = "sft") -> dict[Key, Cell]:
  """Every cell with its error and B replicates of it, in order of arm (as first seen) and N. All is float64.

  A replicate draws the test problems anew, the same draw for every cell, and the seeds' deviations
  as `noise.replicates` says: scaled for their degrees of freedom, correlated over N and over the
  arms of a seed. Errors are moved on the logit scale, where seeds of a policy that is nearly always
  wrong and of one that is nearly always correct spread alike (docs/log.md), so that none leaves 0..1.
  No arm but the baseline, whose runs say how difficult the test problems are and which part of an
  arm's deviations follows the baseline's, moves the interval of another one (`paired` compares two
  of them seed by seed).

  Args:
    runs: of all arms.
    bootstrap: how they are resampled.
    baseline: the arm that all are compared with.

  Raises:
    DataError: no runs, two runs with one name, test problems that differ in number, or an accuracy outside 0..1.
  """
  groups = grouped(runs)
  sizes = tuple(sorted({key.problems for key in groups}))
  difficulty_P = None
  if of_baseline := [run.accuracy_P for run in runs if run.arm == baseline]:
    difficulty_P = 1 - np.mean(of_baseline, axis=0)
  of_baseline_cells = [_marks(group) for key, group in groups.items() if key.arm == baseline]
  spread = noise.spread_of(of_baseline_cells) if of_baseline_cells else None
  cells = {}
  for arm in dict.fromkeys(key.arm for key in groups):
    keys = [key for key in groups if key.arm == arm]
    marks = [_marks(groups[key]) for key in keys]
    drawn = noise.replicates(marks, sizes, bootstrap, difficulty_P, spread)
    for key, found in zip(keys, drawn):
      cells[key] = _cell(key, groups[key], found)
  return cells


def _marks(group: Sequence[Run]) -> noise.Marks:
  """Errors of a cell; its unit is that of the logit."""
  error_SP = 1 - np.array([run.accuracy_P for run in group], np.float64)
  seeds = tuple(run.seed for run in group)
  unit = float(error_SP.mean() * (1 - error_SP.mean()))
  return noise.Marks(problems=group[0].problems, seeds=seeds, marks_SP=error_SP, unit=unit)


def _cell(key: Key, group: Sequence[Run], found: noise.Replicates) -> Cell:
  return Cell(
    key=key,
    seeds=tuple(run.seed for run in group),
    drawn=found,
    test_problems=len(group[0].accuracy_P),
    half_answer=0.5 / (len(group) * len(group[0].accuracy_P)),
    tokens_trained=float(np.mean([run.tokens_trained for run in group])),
    tokens_sampled=float(np.mean([run.tokens_sampled for run in group])),
    flops=float(np.mean([run.flops for run in group])),
  )


def _on_the_logit_scale(error: float, moves_B: np.ndarray) -> np.ndarray:
  """[R] the error, then the error moved by as much as each of these says to first order."""
  if not 0 < error < 1:
    return np.full(1 + len(moves_B), error)
  moved_B = scipy.special.expit(scipy.special.logit(error) + moves_B / (error * (1 - error)))
  return np.append(error, moved_B)


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
      raise DataError(
        f"{key}, seed {run.seed}: accuracies of shape {shape}, but {runs[0].arm} at N={runs[0].problems:,} has {first}; "
        f"evaluate all runs on the same test problems in the same order"
      )
    if not ((run.accuracy_P >= 0) & (run.accuracy_P <= 1)).all() or run.problems < 1:
      raise DataError(
        f"{key}, seed {run.seed}: expected accuracies from 0 to 1 and at least one training problem, found accuracies from "
        f"{np.min(run.accuracy_P)} to {np.max(run.accuracy_P)}"
      )
    group.append(run)
  return dict(groups)
