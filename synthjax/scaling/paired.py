"""How much better one arm is than another: the paired difference in accuracy, with its interval over seeds and test problems.

Arms of one seed share their problems, their teacher's traces and often the policy that they start from. So a seed's difference is one
number, and what is drawn anew is test problems and differences of seeds (`noise` has the scheme); `evaluate.metrics.paired`
is the same over test problems alone.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from synthjax import stats
from synthjax.files import DataError
from synthjax.scaling import noise
from synthjax.scaling.bootstrap import Key, Run, grouped
from synthjax.scaling.noise import Bootstrap


@dataclasses.dataclass(frozen=True)
class Difference:
  """Accuracy of `other` less that of `arm` at one number of problems, over the seeds that both have and the same test problems."""

  arm: str
  other: str
  problems: int
  seeds: tuple[int, ...]
  value: float
  low: float
  high: float
  standard_error: float

  def __str__(self) -> str:
    low, value, high = (f"{100 * x:+.1f}" for x in (self.low, self.value, self.high))
    return f"N={self.problems:,}: {self.other} - {self.arm} = {value} points, 95 % interval {low} to {high}"


def differences(
  runs: Sequence[Run], arm: str, other: str, bootstrap: Bootstrap = Bootstrap()
) -> list[Difference]:
  """The difference other - arm at every N at which both have a seed in common, N rising, with 95 % intervals.

  The spread of seeds is pooled over these N on the logit scale, where a difference has the unit of
  the two arms' mean error: three seeds alone have two degrees of freedom. With one seed everywhere
  the interval is over test problems alone. Where no answer differs, the interval is Wilson's of a
  share of 0, both ways.

  Raises:
    DataError: they have no seed in common at any N, or the runs cannot be compared (see `resample.resample`).
  """
  groups = grouped(runs)
  cells = []
  for key, group in groups.items():
    if key.arm == arm and Key(other, key.problems) in groups:
      cells += _gains(group, groups[Key(other, key.problems)])
  if not cells:
    raise DataError(
      f"{arm!r} and {other!r} have no seed in common at any N; there are "
      f"{', '.join(f'{key} seed {run.seed}' for key, group in groups.items() for run in group)}"
    )
  sizes = tuple(sorted({key.problems for key in groups}))
  found = []
  for cell, drawn in zip(cells, noise.replicates(cells, sizes, bootstrap)):
    low, high = drawn.mean + np.quantile(drawn.moves(), [0.025, 0.975])
    if not cell.marks_SP.any():  # no answer differs: what share of all may differ unseen?
      high = stats.wilson(0.0, cell.marks_SP.shape[1])[1]
      low = -high
    found.append(
      Difference(
        arm=arm,
        other=other,
        problems=cell.problems,
        seeds=cell.seeds,
        value=drawn.mean,
        low=float(low),
        high=float(high),
        standard_error=drawn.standard_error,
      )
    )
  return found


def _gains(group: Sequence[Run], others: Sequence[Run]) -> list[noise.Marks]:
  """The differences of the seeds that both cells have; none where they have none in common."""
  by_seed = {run.seed: run.accuracy_P for run in others}
  shared = [run for run in group if run.seed in by_seed]
  if not shared:
    return []
  arm_SP = np.array([run.accuracy_P for run in shared], np.float64)
  other_SP = np.array([by_seed[run.seed] for run in shared], np.float64)
  accuracy = (arm_SP.mean() + other_SP.mean()) / 2
  seeds = tuple(run.seed for run in shared)
  return [
    noise.Marks(
      problems=group[0].problems,
      seeds=seeds,
      marks_SP=other_SP - arm_SP,
      unit=float(accuracy * (1 - accuracy)),
    )
  ]
