import dataclasses

import numpy as np
import pytest

from synthjax.scaling import coverage, paired, power
from synthjax.scaling.noise import Bootstrap

DESIGN = coverage.Design(baseline=(512, 1024), sizes=(512,), seeds=8, spread=0.35, coefficient=2.4)


def test_a_difference_that_is_said_to_be_detectable_is_detected_in_about_four_of_five_studies():
  found = power.power(DESIGN.sizes, DESIGN.seeds, DESIGN.test_problems)
  errors = (0.5 + found.detectable / 2, 0.5 - found.detectable / 2)
  # the multiples at which the law has these errors
  arms = [(error / DESIGN.coefficient) ** (-1 / DESIGN.exponent) / 512 for error in errors]
  design = dataclasses.replace(
    DESIGN, baseline=(512,), multiples=(("worse", arms[0]), ("better", arms[1]))
  )
  detected, differences = 0, []
  for seed in range(60):
    (gain,) = paired.differences(coverage.simulate(design, seed), "worse", "better", Bootstrap(400))
    detected += gain.low > 0
    differences.append(gain.value)
  assert 0.65 < detected / 60 < 0.93
  assert np.mean(differences) == pytest.approx(found.detectable, rel=0.1)
  assert np.std(differences) == pytest.approx(found.standard_error, rel=0.3)


def test_more_seeds_sizes_and_test_problems_detect_less():
  few = power.power((512,), 3, 1000).detectable
  assert few > 2 * power.power((512,), 8, 1000).detectable
  assert few > power.power((256, 512), 3, 1000).detectable
  assert few > power.power((512,), 3, 2000).detectable
  assert power.power((512,), 3, 1000, chance=0.9).detectable > few


def test_the_sentence_says_what_was_assumed_and_one_seed_that_seeds_are_not_in_it():
  said = power.sentence((256,), 8, 1000)
  assert (
    "8 seeds and 1,000 test problems" in said
    and "points on" in said
    and "0.35 on the logit scale" in said
  )
  assert "another seed" in power.sentence((256,), 1, 1000)
