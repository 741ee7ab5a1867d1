import numpy as np
import pytest

from synthjax.report.tables import table
from synthjax.scaling import error_law, noise
from synthjax.scaling.bootstrap import resample
from synthjax.scaling.multiples import analyse
from synthjax.scaling.noise import Bootstrap
from tests.scaling.simulated import FEW, SIZES, flat, holds, point, study


def with_a_floor(problems):
  return 0.15 + 4 * problems**-0.5


def exponential(problems):
  return 0.6 * np.exp(-problems / 6000)


@pytest.mark.parametrize(("law", "direction"), [(with_a_floor, -1), (exponential, 1)])
def test_a_curved_law_is_reported_as_unsupported_and_never_used(law, direction):
  runs = study(0, {"sft": 1, "rft": 2}, law=law, count=4000, spread=0.0)
  efficiency = analyse(resample(runs, FEW))
  found = efficiency.law
  assert not found.supported
  assert "p = " in found.reason
  exponents = [local.exponent for local in found.local_exponents]
  assert direction * (exponents[-1] - exponents[0]) > 0.05
  assert all(one.law_multiple is None for one in efficiency.points)
  assert holds(point(efficiency, "rft", 512).multiple, 2)
  text = table(efficiency)
  assert "not supported by the data" in text
  assert "local exponents: 128 to 256" in text
  if law is with_a_floor:
    assert found.floor == pytest.approx(0.15, abs=0.03)
    assert found.floor_p_value < 0.01


def test_a_law_that_does_not_fall_or_cannot_be_tested_is_unsupported():
  def rising_law(problems):
    return 0.1 * problems**0.1

  rising = analyse(resample(study(0, {"sft": 1}, law=rising_law), FEW))
  assert "does not fall" in rising.law.reason
  assert any("rises with N" in note for note in rising.notes)
  two_sizes = analyse(resample(study(0, {"sft": 1}, sizes=(128, 512)), FEW))
  assert "2 sizes" in two_sizes.law.reason
  perfect = flat("sft", {128: 0.0, 256: 0.0, 512: 0.0, 1024: 0.0})
  assert "do not vary" in analyse(resample(perfect, FEW)).law.reason


def test_an_exact_law_is_recovered_to_the_last_digits():
  sizes = [2**k for k in range(7, 13)]
  exact_N1 = np.log([[0.9 * n**-0.17] for n in sizes])
  noise_NB = np.random.default_rng(0).normal(0, 0.05, (6, 500))
  fit = error_law.fit(sizes, np.hstack([exact_N1, exact_N1 + noise_NB]))
  assert fit.law.coefficient == pytest.approx(0.9, rel=1e-9)
  assert fit.law.exponent == pytest.approx(0.17, rel=1e-9)
  assert fit.law.supported
  assert fit.law.chi_square == pytest.approx(0, abs=1e-12)
  assert fit.law.low < 0.17 < fit.law.high
  log_problems_R = fit.invert(np.full(501, np.log(0.9 * 700**-0.17)))
  assert np.exp(log_problems_R)[0] == pytest.approx(700)


def replicated(log_error_N, own, common, count=4000):
  """Replicates with noise of each size on its own and noise that all sizes share."""
  random = np.random.default_rng(0)
  own_NB = own * random.normal(size=(len(log_error_N), count))
  common_1B = common * random.normal(size=(1, count))
  noise_NB = own_NB + np.repeat(common_1B, len(log_error_N), axis=0)
  return np.hstack([log_error_N[:, None], log_error_N[:, None] + noise_NB])


LOG_ERROR_WITH_A_FLOOR_N = np.log(0.1 + 0.9 * np.array(SIZES) ** -0.3)


def test_a_floor_is_found_where_the_scatter_alone_would_let_the_law_pass():
  law = error_law.fit(SIZES, replicated(LOG_ERROR_WITH_A_FLOOR_N, 0.015, 0.0)).law
  assert law.p_value > 0.05 > law.floor_p_value
  assert law.floor == pytest.approx(0.1, rel=0.02)
  assert not law.supported
  assert "an irreducible error of 0.1" in law.reason


def test_noise_that_all_sizes_share_does_not_hide_a_curved_law():
  law = error_law.fit(SIZES, replicated(LOG_ERROR_WITH_A_FLOOR_N, 0.005, 0.2)).law
  assert law.p_value < 1e-6
  # Of the difference of two sizes over one doubling; what they share cancels.
  expected = 0.005 * 2**0.5 / np.log(2)
  for local in law.local_exponents:
    assert local.standard_error == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("sizes", [(128, 256, 512, 1024), (128, 256, 512, 1024, 2048)])
def test_both_tests_of_a_law_together_reject_a_true_one_as_often_as_they_say(sizes):
  truth = noise.Spread(
    deviations_SC=np.zeros((8, len(sizes))),
    present_SC=np.ones((8, len(sizes)), bool),
    problems_C=sizes,
    seeds_S=tuple(range(8)),
    variance=0.01,
    nested=0.5,
  )
  law_N = np.array(sizes, float) ** -0.25
  smaller_p_values = []
  for seed in (0, 1):
    simulated = noise.simulated(truth, Bootstrap(replicates=4000, seed=seed))
    tests = error_law._tests(*simulated, np.log(sizes), law_N)
    scores = error_law._scores(tests, len(sizes) - 2, truth.counted)
    smaller_p_values.append(scores.smaller_B)
  study_B, reference_B = smaller_p_values
  p_values = np.array([error_law._share_below(score, reference_B) for score in study_B])
  tolerance = 3 * (2 * 0.05 * 0.95 / 4000) ** 0.5
  assert abs((p_values < 0.05).mean() - 0.05) < tolerance
  # What F and t say, each at 0.7 of the level, does not hold it.
  assert (study_B < 0.7 * 0.05).mean() > 0.05 + tolerance
