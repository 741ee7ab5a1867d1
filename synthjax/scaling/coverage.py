"""How often a study's intervals hold the truth: simulated studies with known curves, analysed as real ones are.

A seed's error differs from the arm's true one on the logit scale. The deviation has up to three
sources: what the seed's training problems do to all of its arms, what they do to one arm, and the
training's own random numbers. Training problems are nested: the first N of a seed are among its
first 2N, so what they do is correlated over N by sqrt(N / N') (two means that share observations).
Test problems have a difficulty that all runs share; the rest of an answer is a run's own luck.

Shapes: P test problems, N sizes, S seeds.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.special
import scipy.stats

from synthjax.config import schema
from synthjax.scaling import multiples as efficiency
from synthjax.scaling import paired
from synthjax.scaling.bootstrap import Bootstrap, Run, resample
from synthjax.scaling.multiples import Multiple

_DIFFICULTY = 0.6  # share of an answer's variance that is the test problem's own (our choice)
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(41)


@dataclasses.dataclass(frozen=True)
class Design:
  """A study's structure and its truth: error = coefficient * (multiple * N)^-exponent, bent where it has a curvature."""

  baseline: tuple[int, ...]  # sizes of SFT
  sizes: tuple[int, ...]  # of the other arms
  seeds: int
  multiples: tuple[tuple[str, float], ...] = (
    ("rft", 2.0),
    ("dpo", 1.5),
    ("branch", 4.5),
  )  # of the arms
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
  """The structure of an experiment's study: its sizes, seeds and test problems (1,000 where it takes all)."""
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
    for column, size in enumerate(_sizes(design)):
      if size not in (design.baseline if arm == "sft" else design.sizes):
        continue
      centre = _centre(design.error(size, multiple), design.spread)
      for run in range(design.seeds):
        error = scipy.special.expit(centre + deviation_SN[run, column])
        luck_P = random.normal(size=design.test_problems)
        latent_P = _DIFFICULTY**0.5 * difficulty_P + (1 - _DIFFICULTY) ** 0.5 * luck_P
        correct_P = latent_P <= scipy.stats.norm.isf(error)
        runs.append(Run(arm, size, run, correct_P.astype(float), 100.0 * size, 0.0, 1e9 * size))
  return runs


def _sizes(design: Design) -> list[int]:
  return sorted({*design.baseline, *design.sizes})


def _of_nested_problems(design: Design, random: np.random.Generator) -> np.ndarray:
  """[S, N] standard deviations of 1, correlated over N by sqrt(N / N')."""
  sizes_N = np.array(_sizes(design), float)
  added_N = np.diff(sizes_N, prepend=0.0)
  steps_SN = random.normal(size=(design.seeds, len(sizes_N))) * added_N**0.5
  return np.cumsum(steps_SN, axis=1) / sizes_N**0.5


def _centre(error: float, spread: float) -> float:
  """The logit around which seeds lie that have this mean error."""
  centre = scipy.special.logit(error)
  for _ in range(20):
    mean = _WEIGHTS @ scipy.special.expit(centre + spread * _NODES) / _WEIGHTS.sum()
    centre += scipy.special.logit(error) - scipy.special.logit(mean)
  return float(centre)


def holds(multiple: Multiple, truth: float) -> bool:
  """Whether the interval holds the truth; an end off the measured range is open."""
  above = multiple.low_beyond == "below" or multiple.low <= truth
  return above and (multiple.high_beyond == "above" or truth <= multiple.high)


@dataclasses.dataclass(frozen=True)
class Coverage:
  """Shares of studies, averaged over the numbers of a kind; NaN where there are none."""

  studies: int
  multiples: float  # intervals that hold the truth, of multiples on SFT's measured range
  bounds: float  # the same of multiples off it: one end is open, and a 95 % interval misses 2.5 %
  differences: float
  exponents: float
  rejected: float  # true laws that the data are said to speak against


def measure(design: Design, studies: int, replicates: int = 1000, first_seed: int = 0) -> Coverage:
  """Simulates and analyses so many studies; a law is counted where the sizes are enough for one."""
  found = [_checks(design, first_seed + i, replicates) for i in range(studies)]
  means = [_mean([study[kind] for study in found]) for kind in range(5)]
  return Coverage(studies, *means)


def _mean(shares: Sequence[float]) -> float:
  return float(np.mean(shares)) if len(shares) else math.nan


def _checks(design: Design, seed: int, replicates: int) -> tuple[float, ...]:
  runs = simulate(design, seed)
  bootstrap = Bootstrap(replicates=replicates)
  analysis = efficiency.analyse(resample(runs, bootstrap))
  truth = dict(design.multiples)
  multiples: list[bool] = []
  bounds: list[bool] = []
  for point in analysis.points:
    if point.arm != "sft":
      place = truth[point.arm] * point.problems
      measured = design.baseline[0] <= place <= design.baseline[-1]
      kind = multiples if measured else bounds
      kind.append(holds(point.multiple, truth[point.arm]))
  shares = [
    _mean(kind) for kind in (multiples, bounds, list(_differences(design, runs, bootstrap)))
  ]
  law = analysis.law
  if np.isnan(law.exponent):
    return (*shares, np.nan, np.nan)
  held = law.low <= design.exponent <= law.high
  return (*shares, float(held), float(not law.supported))


def claims(
  design: Design, studies: int, arm: str, replicates: int = 2000, first_seed: int = 0
) -> float:
  """Share of studies in which the arm is said to be above one of the other arms at some size."""
  others = [name for name, _ in design.multiples if name != arm]
  said = 0
  for seed in range(first_seed, first_seed + studies):
    cells = resample(simulate(design, seed), Bootstrap(replicates=replicates))
    found = efficiency.above(efficiency.analyse(cells), arm, others)
    said += any(row.above for rows in found.values() for row in rows)
  return said / studies


def _differences(design: Design, runs: list[Run], bootstrap: Bootstrap) -> Iterator[bool]:
  """Whether each paired difference's interval holds the true one."""
  arms = dict(design.multiples)
  for arm, other in (("rft", "dpo"), ("dpo", "branch")):
    for gain in paired.differences(runs, arm, other, bootstrap):
      truth = design.error(gain.problems, arms[arm]) - design.error(gain.problems, arms[other])
      yield gain.low <= truth <= gain.high
