"""The paired difference in accuracy of two arms, with its interval over seeds and test problems.

Arms of one seed share their problems, their teacher's traces and often the policy that they start
from. So a seed's difference is one number, and a replicate draws test problems and differences of
seeds anew (see `noise`). `stats.paired` is the same over test problems alone.

Shapes: P test problems, S seeds.
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
  """Accuracy of `other` less that of `arm` at one number of problems.

  Both have the same test problems; the seeds are those that both have.
  """

  arm: str
  other: str
  problems: int
  seeds: tuple[int, ...]
  value: float
  low: float
  high: float
  standard_error: float

  def __str__(self) -> str:
    return (
      f"N={self.problems:,}: {self.other} - {self.arm} = {100 * self.value:+.1f} points, "
      f"95 % interval {100 * self.low:+.1f} to {100 * self.high:+.1f}"
    )


def differences(
  runs: Sequence[Run], arm: str, other: str, bootstrap: Bootstrap = Bootstrap()
) -> list[Difference]:
  """The difference other - arm, with 95 % intervals, at every N where both have a seed, N rising.

  The spread of seeds is pooled over these N, because three seeds alone have two degrees of freedom;
  its unit is that of the logit at the two arms' mean accuracy. With one seed everywhere the
  interval is over test problems alone. Where no answer differs, the interval is Wilson's of a share
  of 0, both ways.

  Raises:
    DataError: they have no seed in common at any N, or the runs cannot be compared (see
      `bootstrap.resample`).
  """
  groups = grouped(runs)
  cells = []
  for key, group in groups.items():
    if key.arm != arm:
      continue
    gains = _gains(group, groups.get(Key(other, key.problems), []))
    if gains is not None:
      cells.append(gains)
  if not cells:
    names = [f"{key} seed {run.seed}" for key, group in groups.items() for run in group]
    raise DataError(
      f"{arm!r} and {other!r} have no seed in common at any N; there are {', '.join(names)}"
    )
  sizes = tuple(sorted({key.problems for key in groups}))
  results = []
  for cell, drawn in zip(cells, noise.replicates(cells, sizes, bootstrap)):
    low, high = drawn.mean + np.quantile(drawn.moves(), [0.025, 0.975])
    # Where no answer differs, the replicates do not vary: what share of all may differ unseen?
    if not cell.scores_SP.any():
      high = stats.wilson(0.0, cell.scores_SP.shape[1])[1]
      low = -high
    difference = Difference(
      arm=arm,
      other=other,
      problems=cell.problems,
      seeds=cell.seeds,
      value=drawn.mean,
      low=float(low),
      high=float(high),
      standard_error=drawn.standard_error,
    )
    results.append(difference)
  return results


def _gains(group: Sequence[Run], others: Sequence[Run]) -> noise.CellScores | None:
  """The differences of the seeds that both cells have; None where they have none in common."""
  by_seed = {run.seed: run.accuracy_P for run in others}
  shared = [run for run in group if run.seed in by_seed]
  if not shared:
    return None
  arm_SP = np.array([run.accuracy_P for run in shared], np.float64)
  other_SP = np.array([by_seed[run.seed] for run in shared], np.float64)
  accuracy = (arm_SP.mean() + other_SP.mean()) / 2
  return noise.CellScores(
    problems=group[0].problems,
    seeds=tuple(run.seed for run in shared),
    scores_SP=other_SP - arm_SP,
    unit=float(accuracy * (1 - accuracy)),
  )
