"""Test errors of arms, resampled over test problems and seeds: every interval rests on them.

`noise` estimates the spread; `coverage` shows by simulation that the intervals are wide enough.

Shapes: P test problems, S seeds, B replicates, R = 1 + B (the estimate, then its replicates).
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
  """One trained policy and its accuracy on every test problem.

  All runs of a study have the same test problems in the same order.
  """

  arm: str
  problems: int  # N, training problems; only they count as data
  seed: int
  accuracy_P: np.ndarray  # 0 or 1, or the share of correct samples
  tokens_trained: float  # with those of the stages that the policy starts from; only shown
  tokens_sampled: float  # likewise
  # Of everything that was computed to make the policy (`compute.Compute.total`), without tuning.
  flops: float


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
  half_answer: float  # half a test answer, as a share of all: smaller errors count as this one
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
    """[R] the estimate, then its replicates.

    Args:
      freedom: degrees of freedom for which the seeds' part is scaled; None: its own.
    """
    return self._log_moved(self.drawn.moves(freedom))

  def log_error_of_seeds(self) -> np.ndarray:
    """[R] the same by the seeds' part alone, with its variance as estimated."""
    return self._log_moved(self.drawn.seeds_B)

  def log_error_of_problems(self) -> np.ndarray:
    """[R] the same by the test problems' part alone."""
    return self._log_moved(self.drawn.problems_B)

  @property
  def log_slope(self) -> float:
    """How far the log error moves when the error moves by one unit of the seeds' deviations.

    The unit is error * (1 - error), and d log(error) = d error / error.
    """
    if 0 < self.error < 1:
      return 1 - self.error
    return 0.0

  def _log_moved(self, moves_B: np.ndarray) -> np.ndarray:
    error_R = _moved_on_logit_scale(self.error, moves_B)
    return np.log(np.maximum(error_R, self.half_answer))


def resample(runs: Sequence[Run], bootstrap: Bootstrap, baseline: str = "sft") -> dict[Key, Cell]:
  """Every cell with its error and B replicates of it, in order of arm (as first seen) and N.

  A replicate draws the test problems anew, the same draw for every cell, and the seeds' deviations
  as `noise.replicates` says: scaled for their degrees of freedom, correlated over N and over the
  arms of a seed. Errors are moved on the logit scale, on which seeds spread alike for policies that
  are nearly always incorrect and nearly always correct (docs/log.md); so no error leaves 0..1.
  An arm's interval depends on no other arm but the baseline, whose runs say how difficult the test
  problems are and which part of the arm's deviations follows its own (`paired` compares two arms
  seed by seed). All is float64.

  Args:
    runs: of all arms.
    bootstrap: how they are resampled.
    baseline: the arm that all are compared with.

  Raises:
    DataError: no runs, two runs with one name, test problems that differ in number, or an accuracy
      outside 0..1.
  """
  groups = grouped(runs)
  sizes = tuple(sorted({key.problems for key in groups}))
  baseline_runs = [run.accuracy_P for run in runs if run.arm == baseline]
  difficulty_P = spread = None
  if baseline_runs:
    difficulty_P = 1 - np.mean(baseline_runs, axis=0)
    baseline_groups = [group for key, group in groups.items() if key.arm == baseline]
    spread = noise.spread_of([_errors(group) for group in baseline_groups])
  cells = {}
  for arm in dict.fromkeys(key.arm for key in groups):
    keys = [key for key in groups if key.arm == arm]
    errors = [_errors(groups[key]) for key in keys]
    replicates = noise.replicates(errors, sizes, bootstrap, difficulty_P, spread)
    for key, drawn in zip(keys, replicates):
      cells[key] = _cell(key, groups[key], drawn)
  return cells


def _errors(group: Sequence[Run]) -> noise.CellScores:
  """Errors of a cell; the unit of its deviations is the slope of the error by its logit."""
  error_SP = 1 - np.array([run.accuracy_P for run in group], np.float64)
  return noise.CellScores(
    problems=group[0].problems,
    seeds=tuple(run.seed for run in group),
    scores_SP=error_SP,
    unit=float(error_SP.mean() * (1 - error_SP.mean())),
  )


def _cell(key: Key, group: Sequence[Run], drawn: noise.Replicates) -> Cell:
  test_problems = len(group[0].accuracy_P)
  return Cell(
    key=key,
    seeds=tuple(run.seed for run in group),
    drawn=drawn,
    test_problems=test_problems,
    half_answer=0.5 / (len(group) * test_problems),
    tokens_trained=float(np.mean([run.tokens_trained for run in group])),
    tokens_sampled=float(np.mean([run.tokens_sampled for run in group])),
    flops=float(np.mean([run.flops for run in group])),
  )


def _moved_on_logit_scale(error: float, moves_B: np.ndarray) -> np.ndarray:
  """[R] the error, then the error moved on the logit scale, to first order by these amounts."""
  if not 0 < error < 1:
    return np.full(1 + len(moves_B), error)
  logit_B = scipy.special.logit(error) + moves_B / (error * (1 - error))
  return np.append(error, scipy.special.expit(logit_B))


def grouped(runs: Sequence[Run]) -> dict[Key, list[Run]]:
  """Runs by cell, in order of arm (as first seen), N and seed.

  Raises DataError as `resample` says.
  """
  if not runs:
    raise DataError("no runs to compare; give at least the runs of the baseline arm")
  arms = list(dict.fromkeys(run.arm for run in runs))
  groups: dict[Key, list[Run]] = collections.defaultdict(list)
  for run in sorted(runs, key=lambda run: (arms.index(run.arm), run.problems, run.seed)):
    key = Key(run.arm, run.problems)
    group = groups[key]
    if group and group[-1].seed == run.seed:
      raise DataError(f"{key}, seed {run.seed}: found twice; keep one of the two runs")
    _check(run, key, first=runs[0])
    group.append(run)
  return dict(groups)


def _check(run: Run, key: Key, first: Run) -> None:
  """Raises DataError unless the run can be compared with the first one."""
  shape, expected = np.shape(run.accuracy_P), np.shape(first.accuracy_P)
  if shape != expected or len(shape) != 1 or not shape[0]:
    raise DataError(
      f"{key}, seed {run.seed}: accuracies of shape {shape}, "
      f"but {first.arm} at N={first.problems:,} has {expected}; "
      "evaluate all runs on the same test problems in the same order"
    )
  # A NaN fails both comparisons.
  in_range_P = (run.accuracy_P >= 0) & (run.accuracy_P <= 1)
  if not in_range_P.all() or run.problems < 1:
    raise DataError(
      f"{key}, seed {run.seed}: expected accuracies from 0 to 1 and at least one training problem, "
      f"found accuracies from {np.min(run.accuracy_P)} to {np.max(run.accuracy_P)}"
    )
