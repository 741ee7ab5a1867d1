"""Runs of simulated studies whose truth is known, for the tests of this folder."""

import numpy as np
import scipy.stats

from synthjax.scaling import coverage
from synthjax.scaling.bootstrap import Run
from synthjax.scaling.noise import Bootstrap
from synthjax.scaling.paired import differences

SIZES = (128, 256, 512, 1024, 2048, 4096)
FEW = Bootstrap(replicates=300)
ONE_SIZE = coverage.Design(baseline=(512, 2048, 4096), sizes=(512,), seeds=3)


def power_law(problems):
  return 1.2 * problems**-0.25


def study(seed, multiples, law=power_law, sizes=SIZES, seeds=3, count=400, spread=0.03):
  """Runs whose true error is law(multiple * N); 60 % of the noise is the test problem's own.

  `spread` is that of a seed's true error, relative.
  """
  random = np.random.default_rng(seed)
  difficulty_P = random.normal(size=count)
  runs = []
  for arm, multiple in multiples.items():
    for problems in sizes:
      for run_seed in range(seeds):
        error = law(multiple * problems) * np.exp(spread * random.normal())
        latent_P = 0.6**0.5 * difficulty_P + 0.4**0.5 * random.normal(size=count)
        correct_P = latent_P <= scipy.stats.norm.isf(error)
        runs.append(run_of(arm, problems, run_seed, correct_P))
  return runs


def run_of(arm, problems, seed, correct_P):
  """A run; SFT costs less than other arms."""
  trained, sampled, flops = 300.0, 900.0, 7e9
  if arm == "sft":
    trained, sampled, flops = 100.0, 0.0, 1e9
  return Run(
    arm=arm,
    problems=problems,
    seed=seed,
    accuracy_P=correct_P.astype(float),
    tokens_trained=trained * problems,
    tokens_sampled=sampled * problems,
    flops=flops * problems,
  )


def flat(arm, error_of, seeds=(0,), count=1000):
  """Runs with exactly these errors, the same problems being hard for all."""
  runs = []
  for problems, error in error_of.items():
    correct_P = np.arange(count) >= round(error * count)
    for seed in seeds:
      run = Run(
        arm=arm,
        problems=problems,
        seed=seed,
        accuracy_P=correct_P.astype(float),
        tokens_trained=100.0 * problems,
        tokens_sampled=0.0,
        flops=1e9 * problems,
      )
      runs.append(run)
  return runs


def holds(multiple, truth):
  """Whether the interval contains the truth; an end of a closed interval belongs to it."""
  low_holds = multiple.low_beyond == "below" or truth > multiple.low
  if truth == multiple.low and not multiple.low_beyond:
    low_holds = True
  high_holds = multiple.high_beyond == "above" or truth < multiple.high
  if truth == multiple.high and not multiple.high_beyond:
    high_holds = True
  return low_holds and high_holds


def point(efficiency, arm, problems):
  (found,) = [one for one in efficiency.at(arm) if one.problems == problems]
  return found


def gain_at(problems, runs, arm, other, bootstrap=FEW):
  gains = differences(runs, arm, other, bootstrap)
  (found,) = [gain for gain in gains if gain.problems == problems]
  return found
