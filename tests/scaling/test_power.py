import dataclasses

import numpy as np
import pytest

from synthjax.scaling import coverage, paired
from synthjax.scaling.noise import Bootstrap
from synthjax.scaling.power import power, sentence

DESIGN = coverage.Design(baseline=(512,), sizes=(512,), seeds=8, spread=0.35, coefficient=2.4)
STUDIES = 60


def multiple_of(error):
  """The multiple at which the law of DESIGN has this error at 512 problems."""
  return (error / DESIGN.coefficient) ** (-1 / DESIGN.exponent) / 512


def test_a_detectable_difference_is_detected_in_about_four_of_five_studies():
  found = power(DESIGN.sizes, DESIGN.seeds, DESIGN.test_problems)
  worse = multiple_of(0.5 + found.detectable / 2)
  better = multiple_of(0.5 - found.detectable / 2)
  design = dataclasses.replace(DESIGN, multiples=(("worse", worse), ("better", better)))
  detected = 0
  values = []
  for seed in range(STUDIES):
    runs = coverage.simulate(design, seed)
    (gain,) = paired.differences(runs, "worse", "better", Bootstrap(replicates=400))
    detected += gain.low > 0
    values.append(gain.value)
  assert 0.65 < detected / STUDIES < 0.93
  assert np.mean(values) == pytest.approx(found.detectable, rel=0.1)
  assert np.std(values) == pytest.approx(found.standard_error, rel=0.3)


def test_more_seeds_sizes_and_test_problems_detect_smaller_differences():
  few = power((512,), 3, 1000).detectable
  assert few > 2 * power((512,), 8, 1000).detectable
  assert few > power((256, 512), 3, 1000).detectable
  assert few > power((512,), 3, 2000).detectable
  assert power((512,), 3, 1000, chance=0.9).detectable > few


def test_the_sentence_says_what_was_assumed():
  text = sentence((256,), 8, 1000)
  assert "8 seeds and 1,000 test problems" in text
  assert "points on" in text
  assert "0.35 on the logit scale" in text


def test_the_sentence_of_one_seed_says_that_seeds_are_not_in_the_interval():
  assert "another seed" in sentence((256,), 1, 1000)
