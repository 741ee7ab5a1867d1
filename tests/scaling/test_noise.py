import numpy as np
import pytest

from synthjax import stats
from synthjax.scaling import noise
from synthjax.scaling.bootstrap import Key, resample
from synthjax.scaling.multiples import analyse
from synthjax.scaling.noise import Bootstrap
from tests.scaling.simulated import FEW, gain_at, study


def test_simulated_studies_vary_as_they_should_and_know_their_variance_as_its_freedom_says():
  sizes = (128, 512, 4096)
  truth = noise.Spread(
    deviations_SC=np.zeros((4, 3)),
    present_SC=np.ones((4, 3), bool),
    problems_C=sizes,
    seeds_S=(0, 1, 2, 3),
    variance=0.01,
    nested=0.5,
  )
  moves_BC, covariance_BCC = noise.simulated(truth, Bootstrap(replicates=20_000))
  # 0.5 sqrt(N / N')
  correlation = [[1, 0.25, 0.0884], [0.25, 1, 0.1768], [0.0884, 0.1768, 1]]
  expected_CC = 0.01 / 4 * np.array(correlation)
  np.testing.assert_allclose(np.cov(moves_BC.T), expected_CC, atol=0.05 * 0.01 / 4)
  variance_B = covariance_BCC[:, 0, 0]
  assert variance_B.mean() == pytest.approx(0.01 / 4, rel=0.02)
  # A chi-square's standard deviation over its mean.
  relative = variance_B.std() / variance_B.mean()
  assert relative == pytest.approx((2 / truth.freedom) ** 0.5, rel=0.04)


def random_scores(random):
  """[8, 200] of seeds that differ in their error."""
  error_S1 = random.uniform(0.3, 0.7, size=(8, 1))
  return (random.random((8, 200)) < error_S1).astype(float)


def test_an_arm_at_one_size_is_drawn_with_its_measured_correlation_to_the_baseline():
  random = np.random.default_rng(0)
  sizes, seeds = (128, 256, 512, 1024, 2048), tuple(range(8))
  scores = {size: random_scores(random) for size in sizes}
  baseline = [noise.CellScores(size, seeds, scores[size], unit=0.25) for size in sizes]
  other_SP = random_scores(random)
  bootstrap = Bootstrap(replicates=5000)
  spread = noise.spread_of(baseline)
  of_baseline = noise.replicates(baseline, sizes, bootstrap, baseline=spread)[0].seeds_B
  baseline_S = scores[128].mean(axis=1)
  for scores_SP in (scores[128], 1 - scores[128], other_SP):
    arm = [noise.CellScores(128, seeds, scores_SP, unit=0.25)]
    of_arm = noise.replicates(arm, sizes, bootstrap, baseline=spread)[0].seeds_B
    measured = np.corrcoef(scores_SP.mean(axis=1), baseline_S)[0, 1]
    assert np.corrcoef(of_arm, of_baseline)[0, 1] == pytest.approx(measured, abs=0.05)


def test_one_seed_gives_the_intervals_of_test_problems_alone_and_says_so():
  runs = study(0, {"sft": 1, "rft": 2}, seeds=1, count=1000)
  many = Bootstrap(replicates=4000)
  cells = resample(runs, many)
  accuracy_P = {(run.arm, run.problems): run.accuracy_P for run in runs}
  sft_P, rft_P = accuracy_P["sft", 512], accuracy_P["rft", 512]
  expected_error = stats.mean(sft_P)[1]
  assert cells[Key("sft", 512)].standard_error == pytest.approx(expected_error, rel=0.05)
  value, error = stats.paired(sft_P, rft_P)
  gain = gain_at(512, runs, "sft", "rft", many)
  assert gain.value == pytest.approx(value)
  assert gain.standard_error == pytest.approx(error, rel=0.05)
  assert gain.low < value < gain.high
  note = "one seed only: intervals of sft, rft are over test problems"
  assert any(one.startswith(note) for one in analyse(cells).notes)
  three_seeds = analyse(resample(study(0, {"sft": 1, "rft": 2}), FEW))
  assert not any("one seed" in one for one in three_seeds.notes)


def test_the_spread_of_seeds_enters_the_standard_error_in_full():
  errors, means = [], []
  for repetition in range(40):
    runs = study(repetition, {"sft": 1}, sizes=(128, 256, 512, 1024), spread=0.2, count=300)
    cell = resample(runs, FEW)[Key("sft", 256)]
    errors.append(cell.standard_error)
    means.append(cell.error)
  assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.3)


def test_what_two_arms_have_in_common_by_difficulty_does_not_widen_their_ratio():
  random = np.random.default_rng(0)
  chance_P = random.uniform(0.1, 0.9, size=1000)
  # Of a mean over 8 seeds.
  luck = float(np.sqrt((chance_P * (1 - chance_P)).mean() / 8 / 1000))

  def problems_part(difficulty_P):
    scores_SP = (random.random((8, 1000)) < chance_P).astype(float)
    cell = noise.CellScores(512, tuple(range(8)), scores_SP, unit=0.25)
    return noise.replicates([cell], (512,), Bootstrap(), difficulty_P)[0].problems_B

  unknown = problems_part(None) - problems_part(None)
  known = problems_part(chance_P) - problems_part(chance_P)
  assert unknown.std() > luck > 3 * known.std()
  # And one arm alone varies by the problems as they are.
  expected = chance_P.std() / 1000**0.5
  assert problems_part(chance_P).std() == pytest.approx(expected, rel=0.06)
