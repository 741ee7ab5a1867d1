"""Intervals and verdicts, by simulated studies."""

import dataclasses

import numpy as np
import pytest

from synthjax import config
from synthjax.scaling import coverage
from tests.scaling.simulated import ONE_SIZE, gain_at


@pytest.mark.parametrize(
  ("path", "curvature"),
  [
    ("configs/quickstart.py", 0.0),
    ("configs/quickstart.py", 0.05),
    ("configs/math_scaling_world.py", 0.0),
  ],
)
def test_intervals_cover_the_truth_and_a_true_law_is_rejected_as_often_as_they_say(path, curvature):
  design = dataclasses.replace(coverage.of_study(config.load(path)), curvature=curvature)
  measured = coverage.measure(design, studies=100, replicates=400)
  # Numbers of one study are not independent: as if each kind were one number a study, at 3 errors.
  lowest = 0.95 - 3 * (0.95 * 0.05 / 100) ** 0.5
  # The mean over a study's numbers varies less than that: more than 98.5 % is too wide.
  assert lowest < measured.multiples < 0.985
  assert lowest < measured.differences < 0.985
  # A multiple off the measured range has one end that can miss.
  assert np.isnan(measured.bounds) or measured.bounds > lowest
  if not curvature and len(design.baseline) > 3:
    assert measured.exponents > lowest
    assert measured.rejected < 1 - lowest


def test_intervals_of_one_seed_cover_the_noise_of_test_problems():
  design = dataclasses.replace(ONE_SIZE, seeds=1, spread=0.0)
  measured = coverage.measure(design, studies=100, replicates=400)
  assert measured.multiples > 0.885
  assert measured.differences > 0.885


def median_width(seeds):
  design = dataclasses.replace(ONE_SIZE, seeds=seeds)
  gains = [gain_at(512, coverage.simulate(design, study), "rft", "branch") for study in range(12)]
  return np.median([gain.high - gain.low for gain in gains])


def test_eight_seeds_narrow_an_interval_of_one_size_more_than_their_number_says():
  # Two degrees of freedom have a t of 4.3, seven of 2.4: 2.9 times narrower, where the square root
  # of the number of seeds gives 1.6.
  assert median_width(3) / median_width(8) > 2


def test_an_arm_is_seldom_reported_above_controls_that_equal_it_and_often_above_worse_ones():
  multiples = (("branch", 2.0), ("rft", 2.0), ("rft2", 2.0))
  equal = dataclasses.replace(ONE_SIZE, seeds=8, multiples=multiples)
  # 2.5 %, at 3 standard errors 8.5 %.
  assert coverage.claims(equal, studies=60, arm="branch") <= 0.085
  better = dataclasses.replace(equal, multiples=(("branch", 6.0), ("rft", 1.5)))
  assert coverage.claims(better, studies=10, arm="branch") > 0.5
