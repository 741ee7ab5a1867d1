"""How much better one arm is than another: the paired difference in accuracy, with its interval over seeds and test problems.

Arms of one seed share their problems, their teacher's traces and often the policy that they start from. So a seed's difference is one
number, and what the bootstrap draws anew is test problems and differences of seeds (`resample` has the scheme); `evaluate.metrics.paired`
is the same over test problems alone.
"""

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np

from synthjax import stats
from synthjax.files import DataError
from synthjax.scaling.resample import Bootstrap, Key, Run, grouped, replicates, seed_pool


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


def differences(runs: Sequence[Run], arm: str, other: str, bootstrap: Bootstrap = Bootstrap()) -> list[Difference]:  # noqa: B008 - frozen
  """The difference other - arm at every N at which both have a seed in common, N rising, with 95 % percentile intervals.

  The spread of seeds is pooled over these N, in points: three seeds alone have two degrees of freedom. With one seed everywhere the
  interval is over test problems alone. Where no answer differs, the interval is Wilson's of a share of 0, both ways.

  Raises:
    DataError: they have no seed in common at any N, or the runs cannot be compared (see `resample.resample`).
  """
  marks = {(key, run.seed): run.accuracy_P for key, group in grouped(runs).items() for run in group}
  gains: dict[int, dict[int, np.ndarray]] = {}
  for key, seed in marks:
    if key.arm == arm and (Key(other, key.problems), seed) in marks:
      gains.setdefault(key.problems, {})[seed] = np.subtract(marks[Key(other, key.problems), seed], marks[key, seed], dtype=np.float64)
  if not gains:
    raise DataError(f"{arm!r} and {other!r} have no seed in common at any N; there are "
                    f"{', '.join(f'{key} seed {seed}' for key, seed in marks)}")
  gains_SP = {problems: np.stack(list(of.values())) for problems, of in gains.items()}
  pool = seed_pool([(gain_SP, 1.0) for gain_SP in gains_SP.values()])
  found = []
  for problems, gain_SP in sorted(gains_SP.items()):
    gain_R = replicates(gain_SP, pool, bootstrap, (zlib.crc32(f"{arm} {other}".encode()), problems))
    low, high = np.quantile(gain_R[1:], [0.025, 0.975])
    if not gain_SP.any():  # no answer differs: what share of all may differ unseen?
      high = stats.wilson(0.0, gain_SP.shape[1])[1]
      low = -high
    found.append(Difference(arm, other, problems, tuple(gains[problems]), float(gain_R[0]), float(low), float(high),
                            float(gain_R[1:].std())))
  return found
