import random as shuffling

import numpy as np
import pytest

from synthjax.files import DataError
from synthjax.scaling.bootstrap import Key, resample
from synthjax.scaling.paired import differences
from tests.scaling.simulated import FEW, gain_at, run_of, study


def test_what_the_arms_of_a_seed_share_does_not_widen_their_difference():
  # Answers that a seed costs both arms.
  shared = np.random.default_rng(1).integers(0, 80, 5)
  runs = []
  for arm, incorrect in (("sft", 100), ("rft", 80)):
    for seed, lost in enumerate(shared):
      runs.append(run_of(arm, 512, seed, np.arange(400) >= incorrect + lost))
  gain = gain_at(512, runs, "sft", "rft")
  assert gain.value == pytest.approx(0.05)
  assert gain.seeds == (0, 1, 2, 3, 4)
  assert 0 < gain.low < gain.high < 0.1
  cells = resample(runs, FEW)
  for arm in ("sft", "rft"):
    assert gain.standard_error < 0.5 * cells[Key(arm, 512)].standard_error
  shuffled = shuffling.Random(0).sample(runs, len(runs))
  assert differences(shuffled, "sft", "rft", FEW) == [gain]


def test_seeds_whose_differences_vary_widen_the_interval_in_full():
  errors, values = [], []
  for repetition in range(60):
    random = np.random.default_rng(repetition)
    runs = []
    for seed in range(4):
      for arm in ("sft", "rft"):
        answers = random.random(1000)
        deviation = (arm == "rft") * 0.1 * random.normal()
        runs.append(run_of(arm, 512, seed, answers >= 0.4 + deviation))
    gain = gain_at(512, runs, "sft", "rft")
    errors.append(gain.standard_error)
    values.append(gain.value)
  assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(values), rel=0.25)


def test_arms_are_compared_where_both_have_a_seed():
  runs = study(0, {"sft": 1, "rft": 2})
  runs = [run for run in runs if (run.arm, run.problems) != ("rft", 512)]
  gains = differences(runs, "sft", "rft")
  assert [gain.problems for gain in gains] == [128, 256, 1024, 2048, 4096]
  message = "'sft' and 'dpo' have no seed in common at any N; there are sft at N=128"
  with pytest.raises(DataError, match=message):
    differences(runs, "sft", "dpo")
