"""How often a study's intervals contain the truth: simulated studies with known curves.

They are analysed as real ones are. A seed's error differs from the arm's true one on the logit
scale. The deviation has up to three sources: what the seed's training problems do to all of its
arms, what they do to one arm, and the training's own random numbers. Training problems are nested:
the first N of a seed are among its first 2N, so their effect is correlated over N by sqrt(N / N')
(two means that share observations). Test problems have a difficulty that all runs share; the rest
of an answer is a run's own luck.

Shapes: P test problems, N sizes, S seeds.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.special
import scipy.stats

from synthjax.config import schema
from synthjax.scaling import multiples, paired
from synthjax.scaling.bootstrap import Bootstrap, Run, resample
from synthjax.scaling.multiples import Multiple

_DIFFICULTY = 0.6  # share of an answer's variance that is the test problem's own (our choice)
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(41)


@dataclasses.dataclass(frozen=True)
class Design:
  """A study's structure and its truth.

  The truth is error = coefficient * (multiple * N)^-exponent, bent where it has a curvature.
  """

  baseline: tuple[int, ...]  # sizes of SFT
  sizes: tuple[int, ...]  # of the other arms
  seeds: int
  # True multiples of the arms.
  multiples: tuple[tuple[str, float], ...] = (("rft", 2.0), ("dpo", 1.5), ("branch", 4.5))
  test_problems: int = 1000
  coefficient: float = 2.4
  exponent: float = 0.25
  curvature: float = 0.0  # of log error over log N: the exponent grows by twice that per unit
  spread: float = 0.15  # of a seed's error on the logit scale; measured: 0.02 to 0.3 (docs/log.md)
  nested: float = 0.5  # share of that variance that comes from the training problems
  common: float = 0.5  # share of that part which all arms of the seed have

  def error(self, problems: float, multiple: float = 1.0) -> float:
    """The arm's true error: its mean over seeds and test problems."""
    law = self.coefficient * (multiple * problems) ** -self.exponent
    return law * math.exp(-self.curvature * math.log(multiple * problems / 1024) ** 2)


def of_study(experiment: schema.Experiment) -> Design:
  """The structure of an experiment's study: its sizes, seeds and test problems.

  Where the study takes all test problems, 1,000 are assumed.
  """
  study = experiment.study
  return Design(
    baseline=tuple(sorted({*study.problems, *study.baseline_problems})),
    sizes=tuple(sorted(study.problems)),
    seeds=len(study.seeds),
    test_problems=experiment.data.test_problems or 1000,
  )


def simulate(design: Design, seed: int) -> list[Run]:
  """The runs of one study."""
  random = np.random.default_rng(seed)
  difficulty_P = random.normal(size=design.test_problems)
  common_SN = _of_nested_problems(design, random)
  runs = []
  for arm, multiple in (("sft", 1.0), *design.multiples):
    own_SN = _of_nested_problems(design, random)
    training_SN = random.normal(size=own_SN.shape)
    problems_SN = design.common**0.5 * common_SN + (1 - design.common) ** 0.5 * own_SN
    deviation_SN = design.spread * (
      design.nested**0.5 * problems_SN + (1 - design.nested) ** 0.5 * training_SN
    )
    arm_sizes = design.sizes
    if arm == "sft":
      arm_sizes = design.baseline
    for column, size in enumerate(_sizes(design)):
      if size not in arm_sizes:
        continue
      centre = _centre(design.error(size, multiple), design.spread)
      for run_seed in range(design.seeds):
        error = scipy.special.expit(centre + deviation_SN[run_seed, column])
        run = Run(
          arm=arm,
          problems=size,
          seed=run_seed,
          accuracy_P=_answers(error, difficulty_P, random),
          tokens_trained=100.0 * size,
          tokens_sampled=0.0,
          flops=1e9 * size,
        )
        runs.append(run)
  return runs


def _answers(error: float, difficulty_P: np.ndarray, random: np.random.Generator) -> np.ndarray:
  """[P] 1.0 for each test problem that a run with this true error answers correctly."""
  luck_P = random.normal(size=len(difficulty_P))
  latent_P = _DIFFICULTY**0.5 * difficulty_P + (1 - _DIFFICULTY) ** 0.5 * luck_P
  correct_P = latent_P <= scipy.stats.norm.isf(error)
  return correct_P.astype(float)


def _sizes(design: Design) -> list[int]:
  return sorted({*design.baseline, *design.sizes})


def _of_nested_problems(design: Design, random: np.random.Generator) -> np.ndarray:
  """[S, N] standard deviations of 1, correlated over N by sqrt(N / N')."""
  sizes_N = np.array(_sizes(design), float)
  added_N = np.diff(sizes_N, prepend=0.0)
  steps_SN = random.normal(size=(design.seeds, len(sizes_N))) * added_N**0.5
  return np.cumsum(steps_SN, axis=1) / sizes_N**0.5


def _centre(error: float, spread: float) -> float:
  """The logit around which seeds with this mean error lie."""
  centre = scipy.special.logit(error)
  # A fixed-point iteration; Gauss-Hermite quadrature gives the mean over seeds.
  for _ in range(20):
    error_of_node = scipy.special.expit(centre + spread * _NODES)
    mean = _WEIGHTS @ error_of_node / _WEIGHTS.sum()
    centre += scipy.special.logit(error) - scipy.special.logit(mean)
  return float(centre)


def holds(multiple: Multiple, truth: float) -> bool:
  """Whether the interval contains the truth; an end off the measured range is open."""
  low_holds = multiple.low_beyond == "below" or multiple.low <= truth
  high_holds = multiple.high_beyond == "above" or truth <= multiple.high
  return low_holds and high_holds


@dataclasses.dataclass(frozen=True)
class Coverage:
  """Shares of studies, averaged over the numbers of a kind; NaN where there are none."""

  studies: int
  multiples: float  # intervals that contain the truth, of multiples on SFT's measured range
  bounds: float  # the same of multiples off it: one end is open, and a 95 % interval misses 2.5 %
  differences: float
  exponents: float
  rejected: float  # true laws that are rejected


class _Shares(NamedTuple):
  """Shares of one study, as in `Coverage`."""

  multiples: float
  bounds: float
  differences: float
  exponents: float
  rejected: float


def measure(design: Design, studies: int, replicates: int = 1000, first_seed: int = 0) -> Coverage:
  """Simulates and analyses so many studies.

  Laws are counted in studies whose sizes are enough to fit one.
  """
  shares = []
  for seed in range(first_seed, first_seed + studies):
    shares.append(_shares(design, seed, replicates))
  means = _Shares._make(_mean(kind) for kind in zip(*shares))
  return Coverage(studies=studies, **means._asdict())


def _mean(shares: Sequence[float]) -> float:
  if not shares:
    return math.nan
  return float(np.mean(shares))


def _shares(design: Design, seed: int, replicates: int) -> _Shares:
  runs = simulate(design, seed)
  bootstrap = Bootstrap(replicates=replicates)
  analysis = multiples.analyse(resample(runs, bootstrap))
  truth = dict(design.multiples)
  on_range: list[bool] = []
  off_range: list[bool] = []
  for point in analysis.points:
    if point.arm == "sft":
      continue
    matching = truth[point.arm] * point.problems
    kind = off_range
    if design.baseline[0] <= matching <= design.baseline[-1]:
      kind = on_range
    kind.append(holds(point.multiple, truth[point.arm]))
  exponents = rejected = math.nan
  law = analysis.law
  if not np.isnan(law.exponent):
    exponents = float(law.low <= design.exponent <= law.high)
    rejected = float(not law.supported)
  return _Shares(
    multiples=_mean(on_range),
    bounds=_mean(off_range),
    differences=_mean(_differences_hold(design, runs, bootstrap)),
    exponents=exponents,
    rejected=rejected,
  )


def claims(
  design: Design, studies: int, arm: str, replicates: int = 2000, first_seed: int = 0
) -> float:
  """Share of studies that report the arm above one of the other arms at some size."""
  others = [name for name, _ in design.multiples if name != arm]
  claimed = 0
  for seed in range(first_seed, first_seed + studies):
    cells = resample(simulate(design, seed), Bootstrap(replicates=replicates))
    bounds = multiples.above(multiples.analyse(cells), arm, others)
    claimed += any(row.above for rows in bounds.values() for row in rows)
  return claimed / studies


def _differences_hold(design: Design, runs: list[Run], bootstrap: Bootstrap) -> list[bool]:
  """Whether each paired difference's interval contains the true one."""
  arms = dict(design.multiples)
  results = []
  for arm, other in (("rft", "dpo"), ("dpo", "branch")):
    for gain in paired.differences(runs, arm, other, bootstrap):
      truth = design.error(gain.problems, arms[arm]) - design.error(gain.problems, arms[other])
      results.append(bool(gain.low <= truth <= gain.high))
  return results
