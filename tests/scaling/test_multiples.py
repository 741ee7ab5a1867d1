import dataclasses
import json
import random as shuffling
import time

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from synthjax import config, stats
from synthjax.files import DataError
from synthjax.report.tables import lower_bounds, table
from synthjax.scaling import coverage, error_law, isotonic, noise
from synthjax.scaling.bootstrap import Key, Run, resample
from synthjax.scaling.multiples import Multiple, above, analyse
from synthjax.scaling.noise import Bootstrap
from synthjax.scaling.paired import differences

SIZES = (128, 256, 512, 1024, 2048, 4096)
FEW = Bootstrap(replicates=300)


def power(problems):
  return 1.2 * problems**-0.25


def study(seed, multiples, law=power, sizes=SIZES, seeds=3, count=400, spread=0.03):
  """Runs whose true error is law(multiple * N); `spread`: of a seed's true error, relative. 60 % of the noise is the test problem's own."""
  random = np.random.default_rng(seed)
  difficulty_P = random.normal(size=count)
  runs = []
  for arm, multiple in multiples.items():
    for problems in sizes:
      for run in range(seeds):
        threshold = scipy.stats.norm.isf(
          law(multiple * problems) * np.exp(spread * random.normal())
        )
        right_P = 0.6**0.5 * difficulty_P + 0.4**0.5 * random.normal(size=count) <= threshold
        trained, sampled, flops = (100.0, 0.0, 1e9) if arm == "sft" else (300.0, 900.0, 7e9)
        runs.append(
          Run(
            arm,
            problems,
            run,
            right_P.astype(float),
            trained * problems,
            sampled * problems,
            flops * problems,
          )
        )
  return runs


def flat(arm, error_of, seeds=(0,), count=1000):
  """Runs with exactly these errors, the same problems being hard for all."""
  return [
    Run(
      arm,
      problems,
      seed,
      (np.arange(count) >= round(error * count)).astype(float),
      100.0 * problems,
      0.0,
      1e9 * problems,
    )
    for problems, error in error_of.items()
    for seed in seeds
  ]


def holds(multiple, truth):
  above_low = (
    multiple.low_beyond == "below"
    or truth > multiple.low
    or (truth == multiple.low and not multiple.low_beyond)
  )
  below_high = (
    multiple.high_beyond == "above"
    or truth < multiple.high
    or (truth == multiple.high and not multiple.high_beyond)
  )
  return above_low and below_high


def point(efficiency, arm, problems):
  return next(p for p in efficiency.at(arm) if p.problems == problems)


def gain_at(problems, runs, arm, other, bootstrap=FEW):
  return next(
    gain for gain in differences(runs, arm, other, bootstrap) if gain.problems == problems
  )


def test_known_multiples_and_the_exponent_lie_in_their_intervals():
  efficiency = analyse(resample(study(3, {"sft": 1, "rft": 2, "step": 8}, count=1500), Bootstrap()))
  for arm, truth, problems in (
    ("rft", 2, 256),
    ("rft", 2, 512),
    ("step", 8, 128),
    ("step", 8, 256),
  ):
    for multiple in (
      point(efficiency, arm, problems).multiple,
      point(efficiency, arm, problems).law_multiple,
    ):
      assert (
        holds(multiple, truth)
        and not multiple.beyond
        and multiple.low > 0.6 * truth
        and multiple.high < 2.1 * truth
      )
  assert efficiency.law.supported and efficiency.law.low < 0.25 < efficiency.law.high
  assert all(
    abs(local.exponent - 0.25) < 4 * local.standard_error
    for local in efficiency.law.local_exponents
  )


ONE_SIZE = coverage.Design(baseline=(512, 2048, 4096), sizes=(512,), seeds=3)


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
  found = coverage.measure(design, studies=100, replicates=400)
  # numbers of one study are not independent: as if each kind were one number a study, at 3 errors
  lowest = 0.95 - 3 * (0.95 * 0.05 / 100) ** 0.5
  assert found.multiples > lowest and found.differences > lowest
  # the mean over a study's numbers varies less than that: more than 98.5 % is too wide
  assert found.multiples < 0.985 and found.differences < 0.985
  # a multiple off the measured range has one end that can miss
  assert np.isnan(found.bounds) or found.bounds > lowest
  if not curvature and len(design.baseline) > 3:
    assert found.exponents > lowest and found.rejected < 1 - lowest


def test_intervals_of_one_seed_cover_the_noise_of_test_problems():
  design = dataclasses.replace(ONE_SIZE, seeds=1, spread=0.0)
  found = coverage.measure(design, studies=100, replicates=400)
  assert found.multiples > 0.885 and found.differences > 0.885


def test_eight_seeds_narrow_an_interval_of_one_size_more_than_their_number_says():
  widths = {}
  for seeds in (3, 8):
    design = dataclasses.replace(ONE_SIZE, seeds=seeds)
    gains = [gain_at(512, coverage.simulate(design, study), "rft", "branch") for study in range(12)]
    widths[seeds] = np.median([gain.high - gain.low for gain in gains])
  # two degrees of freedom have a t of 4.3, seven of 2.4: 2.9 times narrower, where a root gives 1.6
  assert widths[3] / widths[8] > 2


def test_a_bound_is_flagged_on_either_side_and_is_the_end_of_the_measured_range():
  runs = (
    flat("sft", {128: 0.4, 256: 0.3, 512: 0.2})
    + flat("good", {256: 0.1})
    + flat("bad", {256: 0.6})
    + flat("same", {256: 0.3})
  )
  efficiency = analyse(resample(runs, FEW))
  good, bad, same = (point(efficiency, arm, 256).multiple for arm in ("good", "bad", "same"))
  assert (
    good
    == Multiple(pytest.approx(2), pytest.approx(2), pytest.approx(2), "above", "above", "above")
    and str(good) == "> 2.0x (> 2.0x)"
  )
  assert (bad.value, bad.beyond, bad.low_beyond, bad.high_beyond) == (
    pytest.approx(0.5),
    "below",
    "below",
    "below",
  )
  assert (same.value, same.beyond) == (pytest.approx(1), "") and not point(
    efficiency, "sft", 512
  ).multiple.beyond


def test_an_interval_that_leaves_the_range_ends_in_a_bound_while_its_value_does_not():
  multiple = point(analyse(resample(study(0, {"sft": 1, "rft": 2}), FEW)), "rft", 1024).multiple
  assert (
    multiple.beyond == ""
    and multiple.value < 4
    and (multiple.high, multiple.high_beyond) == (pytest.approx(4), "above")
  )
  assert multiple.low < multiple.value and multiple.low_beyond == ""


@pytest.mark.parametrize(
  ("law", "direction"), [(lambda n: 0.15 + 4 * n**-0.5, -1), (lambda n: 0.6 * np.exp(-n / 6000), 1)]
)
def test_a_curved_law_is_declared_unsupported_and_never_used(law, direction):
  efficiency = analyse(
    resample(study(0, {"sft": 1, "rft": 2}, law=law, count=4000, spread=0.0), FEW)
  )
  assert not efficiency.law.supported and ("p = " in efficiency.law.reason)
  exponents = [local.exponent for local in efficiency.law.local_exponents]
  assert direction * (exponents[-1] - exponents[0]) > 0.05
  assert all(p.law_multiple is None for p in efficiency.points) and holds(
    point(efficiency, "rft", 512).multiple, 2
  )
  assert "not supported by the data" in table(
    efficiency
  ) and "local exponents: 128 to 256" in table(efficiency)
  if direction < 0:
    assert (
      efficiency.law.floor == pytest.approx(0.15, abs=0.03) and efficiency.law.floor_p_value < 0.01
    )


def test_a_law_that_does_not_fall_or_cannot_be_tested_is_unsupported():
  rising = analyse(resample(study(0, {"sft": 1}, law=lambda n: 0.1 * n**0.1), FEW))
  assert "does not fall" in rising.law.reason and any(
    "rises with N" in note for note in rising.notes
  )
  assert "2 sizes" in analyse(resample(study(0, {"sft": 1}, sizes=(128, 512)), FEW)).law.reason
  assert (
    "do not vary"
    in analyse(resample(flat("sft", {128: 0.0, 256: 0.0, 512: 0.0, 1024: 0.0}), FEW)).law.reason
  )


def test_an_exact_law_is_recovered_to_the_last_digits():
  sizes = [2**k for k in range(7, 13)]
  exact_N1 = np.log([[0.9 * n**-0.17] for n in sizes])
  fit = error_law.fit(
    sizes, np.hstack([exact_N1, exact_N1 + np.random.default_rng(0).normal(0, 0.05, (6, 500))])
  )
  assert (fit.law.coefficient, fit.law.exponent) == (
    pytest.approx(0.9, rel=1e-9),
    pytest.approx(0.17, rel=1e-9),
  )
  assert (
    fit.law.supported
    and fit.law.chi_square == pytest.approx(0, abs=1e-12)
    and fit.law.low < 0.17 < fit.law.high
  )
  assert np.exp(fit.invert(np.full(501, np.log(0.9 * 700**-0.17))))[0] == pytest.approx(700)


def replicated(log_error_N, apart, together, count=4000):
  """With noise of each size on its own and noise that all sizes share."""
  random = np.random.default_rng(0)
  noise_NB = apart * random.normal(size=(len(log_error_N), count)) + together * random.normal(
    size=(1, count)
  )
  return np.hstack([log_error_N[:, None], log_error_N[:, None] + noise_NB])


def test_a_floor_is_found_where_the_scatter_alone_would_let_the_law_pass():
  log_error_N = np.log(0.1 + 0.9 * np.array(SIZES) ** -0.3)
  law = error_law.fit(SIZES, replicated(log_error_N, 0.015, 0.0)).law
  assert (
    law.p_value > 0.05 > law.floor_p_value
    and law.floor == pytest.approx(0.1, rel=0.02)
    and not law.supported
  )
  assert "an irreducible error of 0.1" in law.reason


def test_noise_that_all_sizes_share_does_not_hide_a_curved_law():
  log_error_N = np.log(0.1 + 0.9 * np.array(SIZES) ** -0.3)
  law = error_law.fit(SIZES, replicated(log_error_N, 0.005, 0.2)).law
  assert law.p_value < 1e-6
  assert all(
    local.standard_error == pytest.approx(0.005 * 2**0.5 / np.log(2), rel=0.1)
    for local in law.local_exponents
  )


def seeds_that_spread(seeds, sizes):
  return noise.Spread(
    deviations_SC=np.zeros((seeds, len(sizes))),
    present_SC=np.ones((seeds, len(sizes)), bool),
    problems_C=sizes,
    seeds_S=tuple(range(seeds)),
    variance=0.01,
    nested=0.5,
  )


def test_studies_drawn_anew_vary_as_they_should_and_know_their_variance_as_well_as_its_freedom_says():
  sizes = (128, 512, 4096)
  truth = seeds_that_spread(4, sizes)
  moves_BC, covariance_BCC = noise.redrawn(truth, Bootstrap(replicates=20_000))
  nested = [[1, 0.25, 0.0884], [0.25, 1, 0.1768], [0.0884, 0.1768, 1]]  # 0.5 sqrt(N / N')
  expected_CC = 0.01 / 4 * np.array(nested)
  np.testing.assert_allclose(np.cov(moves_BC.T), expected_CC, atol=0.05 * 0.01 / 4)
  variance_B = covariance_BCC[:, 0, 0]
  assert variance_B.mean() == pytest.approx(0.01 / 4, rel=0.02)
  # a chi-square's standard deviation over its mean
  assert variance_B.std() / variance_B.mean() == pytest.approx((2 / truth.freedom) ** 0.5, rel=0.04)


@pytest.mark.parametrize("sizes", [(128, 256, 512, 1024), (128, 256, 512, 1024, 2048)])
def test_both_tests_of_a_law_together_reject_a_true_one_as_often_as_they_say(sizes):
  truth = seeds_that_spread(8, sizes)
  law_N = np.array(sizes, float) ** -0.25
  scores = []
  for seed in (0, 1):
    drawn = noise.redrawn(truth, Bootstrap(replicates=4000, seed=seed))
    tests = error_law._tests(*drawn, np.log(sizes), law_N)
    scores.append(error_law._scores(tests, len(sizes) - 2, truth.counted)[2])
  p_values = np.array([error_law._share_below(score, scores[1]) for score in scores[0]])
  tolerance = 3 * (2 * 0.05 * 0.95 / 4000) ** 0.5
  assert abs((p_values < 0.05).mean() - 0.05) < tolerance
  # what F and t say, each at 0.7 of the level, does not hold it
  assert (scores[0] < 0.7 * 0.05).mean() > 0.05 + tolerance


def test_an_arm_at_one_size_is_drawn_with_the_correlation_to_the_baseline_that_was_measured():
  random = np.random.default_rng(0)
  sizes, seeds = (128, 256, 512, 1024, 2048), tuple(range(8))
  marks = {
    size: (random.random((8, 200)) < random.uniform(0.3, 0.7, size=(8, 1))).astype(float)
    for size in sizes
  }
  baseline = [noise.Marks(size, seeds, marks[size], 0.25) for size in sizes]
  other_SP = (random.random((8, 200)) < random.uniform(0.3, 0.7, size=(8, 1))).astype(float)
  bootstrap = Bootstrap(replicates=5000)
  spread = noise.spread_of(baseline)
  drawn = noise.replicates(baseline, sizes, bootstrap, baseline=spread)[0].seeds_B
  for marks_SP in (marks[128], 1 - marks[128], other_SP):
    arm = [noise.Marks(128, seeds, marks_SP, 0.25)]
    of_arm = noise.replicates(arm, sizes, bootstrap, baseline=spread)[0].seeds_B
    measured = np.corrcoef(marks_SP.mean(axis=1), marks[128].mean(axis=1))[0, 1]
    assert np.corrcoef(of_arm, drawn)[0, 1] == pytest.approx(measured, abs=0.05)


ERRORS = st.lists(st.floats(0.01, 0.99), min_size=1, max_size=7)


@given(ERRORS, st.data())
def test_the_monotone_curve_never_rises_and_is_the_nearest_one(errors, data):
  weights_N = np.array(
    data.draw(st.lists(st.integers(1, 5), min_size=len(errors), max_size=len(errors))), float
  )
  error_NR = np.stack([errors, errors[::-1]], axis=1)
  fitted_NR = isotonic.falling(error_NR, weights_N)
  assert (np.diff(fitted_NR, axis=0) <= 0).all()
  for error_N, fitted_N in zip(error_NR.T, fitted_NR.T):
    np.testing.assert_allclose(
      fitted_N,
      scipy.optimize.isotonic_regression(error_N, weights=weights_N, increasing=False).x,
      rtol=1e-9,
    )


@given(st.lists(st.floats(-5, 0), min_size=2, max_size=7, unique=True), st.floats(-5, 0))
def test_the_inverse_of_a_curve_leads_back_to_the_level_or_says_on_which_side_it_lies(
  values, level
):
  falling_N = np.sort(values)[::-1]
  x_N = np.arange(len(values)) * 2.0
  x = isotonic.invert(x_N, falling_N[:, None], np.array([level]))[0]
  if level > falling_N[0] or level < falling_N[-1]:
    assert x == (-np.inf if level > falling_N[0] else np.inf)
  else:
    assert np.interp(x, x_N, falling_N) == pytest.approx(level, abs=1e-9)


def test_a_level_on_a_flat_stretch_is_read_in_its_middle():
  assert (
    isotonic.invert(
      np.array([0.0, 1.0, 4.0, 5.0]), np.array([[3.0], [2.0], [2.0], [1.0]]), np.array([2.0])
    )[0]
    == 2.5
  )


def test_neither_the_order_of_rows_nor_other_arms_move_a_number():
  runs = study(0, {"sft": 1, "rft": 2, "step": 4})
  whole = analyse(resample(runs, FEW))
  mixed = shuffling.Random(0).sample(runs, len(runs))
  assert {(p.arm, p.problems): p for p in analyse(resample(mixed, FEW)).points} == {
    (p.arm, p.problems): p for p in whole.points
  }
  assert analyse(resample([run for run in runs if run.arm != "step"], FEW)).at("rft") == whole.at(
    "rft"
  )


def test_names_of_seeds_do_not_matter():
  runs = study(0, {"sft": 1, "rft": 2})
  renamed = [dataclasses.replace(run, seed=(run.seed + 1) % 3 + 40) for run in runs]
  many = Bootstrap(replicates=4000)
  for one, other in zip(
    analyse(resample(runs, many)).points, analyse(resample(renamed, many)).points
  ):
    assert one.accuracy == pytest.approx(other.accuracy) and one.standard_error == pytest.approx(
      other.standard_error
    )
    assert one.multiple.value == pytest.approx(other.multiple.value)
    # a seed's draws come from its name: the interval moves by the noise of its replicates alone
    assert one.multiple.low == pytest.approx(other.multiple.low, rel=0.1)


def test_one_seed_gives_the_intervals_of_test_problems_alone_and_says_so():
  runs = study(0, {"sft": 1, "rft": 2}, seeds=1, count=1000)
  cells = resample(runs, Bootstrap(replicates=4000))
  by = {(run.arm, run.problems): run.accuracy_P for run in runs}
  assert cells[Key("sft", 512)].standard_error == pytest.approx(
    stats.mean(by["sft", 512])[1], rel=0.05
  )
  value, error = stats.paired(by["sft", 512], by["rft", 512])
  gain = gain_at(512, runs, "sft", "rft", Bootstrap(replicates=4000))
  assert (gain.value, gain.standard_error) == (
    pytest.approx(value),
    pytest.approx(error, rel=0.05),
  ) and gain.low < value < gain.high
  notes = analyse(cells).notes
  assert any(
    note.startswith("one seed only: intervals of sft, rft are over test problems") for note in notes
  )
  assert not any(
    "one seed" in note for note in analyse(resample(study(0, {"sft": 1, "rft": 2}), FEW)).notes
  )


def test_the_spread_of_seeds_enters_the_standard_error_in_full():
  spread, errors, means = 0.2, [], []
  for repetition in range(40):
    cells = resample(
      study(repetition, {"sft": 1}, sizes=(128, 256, 512, 1024), spread=spread, count=300), FEW
    )
    errors.append(cells[Key("sft", 256)].standard_error)
    means.append(cells[Key("sft", 256)].error)
  assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.3)


def test_what_the_arms_of_a_seed_share_does_not_widen_their_difference():
  shared = dict(
    enumerate(np.random.default_rng(1).integers(0, 80, 5))
  )  # answers that a seed costs both arms
  runs = [
    Run(arm, 512, seed, (np.arange(400) >= wrong + shared[seed]).astype(float), 1, 1, 1)
    for arm, wrong in (("sft", 100), ("rft", 80))
    for seed in shared
  ]
  gain = gain_at(512, runs, "sft", "rft")
  cells = resample(runs, FEW)
  assert (
    gain.value == pytest.approx(0.05)
    and gain.seeds == (0, 1, 2, 3, 4)
    and 0 < gain.low < gain.high < 0.1
  )
  assert gain.standard_error < 0.5 * min(
    cells[Key(arm, 512)].standard_error for arm in ("sft", "rft")
  )
  assert differences(shuffling.Random(0).sample(runs, len(runs)), "sft", "rft", FEW) == [gain]


def test_seeds_whose_differences_vary_widen_the_interval_in_full():
  errors, found = [], []
  for repetition in range(60):
    random = np.random.default_rng(repetition)
    runs = [
      Run(
        arm,
        512,
        seed,
        (random.random(1000) >= 0.4 + (arm == "rft") * 0.1 * random.normal()).astype(float),
        1,
        1,
        1,
      )
      for seed in range(4)
      for arm in ("sft", "rft")
    ]
    gain = gain_at(512, runs, "sft", "rft")
    errors.append(gain.standard_error)
    found.append(gain.value)
  assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(found), rel=0.25)


def test_missing_cells_and_seeds_are_named():
  runs = [
    run
    for run in study(0, {"sft": 1, "rft": 2})
    if (run.arm, run.problems) != ("rft", 512) and (run.problems, run.seed) != (1024, 2)
  ]
  efficiency = analyse(resample(runs, FEW))
  assert efficiency.missing == ("sft at N=1,024: seed 2", "rft at N=512", "rft at N=1,024: seed 2")
  assert "missing: sft at N=1,024: seed 2; rft at N=512" in table(efficiency)
  assert [gain.problems for gain in differences(runs, "sft", "rft")] == [128, 256, 1024, 2048, 4096]
  with pytest.raises(
    DataError, match="'sft' and 'dpo' have no seed in common at any N; there are sft at N=128"
  ):
    differences(runs, "sft", "dpo")
  with pytest.raises(DataError, match="arm 'dpo' was not measured; there are sft, rft"):
    efficiency.at("dpo")


def _without(runs, arm):
  return [run for run in runs if run.arm != arm]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda runs: [], "no runs to compare"),
    (lambda runs: [*runs, runs[4]], "sft at N=256, seed 1: found twice"),
    (
      lambda runs: [*runs[1:], dataclasses.replace(runs[0], accuracy_P=runs[0].accuracy_P[1:])],
      r"sft at N=128, seed 0: accuracies of shape \(399,\)",
    ),
    (
      lambda runs: [*runs[1:], dataclasses.replace(runs[0], accuracy_P=runs[0].accuracy_P * 100)],
      "seed 0: expected accuracies from 0 to 1",
    ),
    (
      lambda runs: [
        *runs[1:],
        dataclasses.replace(runs[0], accuracy_P=runs[0].accuracy_P * np.nan),
      ],
      "seed 0: expected accuracies from 0 to 1",
    ),
    (
      lambda runs: _without(runs, "sft"),
      r"baseline 'sft' was measured at 0 sizes; a curve needs two at least \(arms found: rft\)",
    ),
  ],
)
def test_runs_that_cannot_be_compared_are_refused(change, message):
  with pytest.raises(DataError, match=message):
    analyse(resample(change(study(0, {"sft": 1, "rft": 2})), FEW))


def test_compute_stands_beside_the_multiple():
  efficiency = analyse(resample(study(0, {"sft": 1, "rft": 4}, count=1000), FEW))
  found = point(efficiency, "rft", 256)
  cost = 7e9 / 1e9  # of the arm, in SFT's for as many problems
  assert found.compute_multiple.value == pytest.approx(found.multiple.value / cost)
  assert (
    found.compute_multiple.low == pytest.approx(found.multiple.low / cost)
    and found.compute_multiple.low < 1 < found.multiple.low
  )
  assert (found.tokens_trained, found.tokens_sampled, found.flops) == (76_800, 230_400, 7e9 * 256)
  # Between two sizes FLOPs are straight in log N: never below the exact value, and within a doubling at most 9 % above it.
  assert 0.999 < found.matching_flops / (1e9 * 256 * found.multiple.value) < 1.09
  assert found.tuned_multiple is None
  own = point(efficiency, "sft", 256)
  assert own.multiple == own.law_multiple == own.compute_multiple == Multiple(
    1, 1, 1
  ) and own.matching_flops == pytest.approx(256e9)


def test_without_flops_there_is_no_iso_compute_multiple_and_the_notes_say_why():
  runs = [dataclasses.replace(run, flops=0.0) for run in study(0, {"sft": 1, "rft": 2})]
  efficiency = analyse(resample(runs, FEW))
  assert all(p.compute_multiple is None for p in efficiency.points) and any(
    "no iso-compute" in note for note in efficiency.notes
  )


def test_tuning_is_paid_once_by_either_side_and_named_for_every_arm():
  cells = resample(study(0, {"sft": 1, "rft": 4}, count=1000), FEW)
  tuning = {"sft": 5e12, "rft": 40e12}
  efficiency = analyse(cells, tuning=tuning)
  found = point(efficiency, "rft", 256)
  # the curve is straight in the log of what its points cost in all
  sizes, errors = np.transpose(efficiency.curve)
  paid = np.exp(np.interp(-np.log(1 - found.accuracy), -np.log(errors), np.log(1e9 * sizes + 5e12)))
  assert found.tuned_multiple.value == pytest.approx(paid / (7e9 * 256 + 40e12))
  assert found.compute_multiple == point(analyse(cells), "rft", 256).compute_multiple
  assert "tuning, in FLOPs: sft 5T, rft 40T" in table(efficiency)
  assert "tuning, in FLOPs" not in table(analyse(cells))
  with pytest.raises(DataError, match="tuning is known for rft and not for sft; give all arms'"):
    analyse(cells, tuning={"rft": 1.0})


BENT = dataclasses.replace(ONE_SIZE, curvature=0.08, seeds=8, test_problems=2000, spread=0.05)


def test_how_far_the_curve_may_lie_from_its_straight_lines_widens_the_interval_and_moves_no_value(
  monkeypatch,
):
  cells = resample(coverage.simulate(BENT, 0), Bootstrap())
  bent = analyse(cells)
  monkeypatch.setattr(isotonic, "sag", lambda x_N, bend_N, x_R: np.zeros_like(x_R))
  straight = analyse(cells)
  for arm in ("rft", "dpo"):
    wide, narrow = point(bent, arm, 512).multiple, point(straight, arm, 512).multiple
    assert wide.value == narrow.value
    assert wide.high / wide.low > 1.05 * narrow.high / narrow.low


def test_the_error_of_leaving_a_point_out_gives_the_bend_of_a_parabola():
  x_N = np.array([0.0, 1.0, 3.0, 4.0])
  bend_N = isotonic.bends(x_N, -0.1 * x_N[:, None] ** 2)
  np.testing.assert_allclose(bend_N, 0.2)
  between_R = np.array([0.5, 1.5, 3.9])
  lines_R = np.interp(between_R, x_N, -0.1 * x_N**2)
  np.testing.assert_allclose(
    isotonic.sag(x_N, bend_N, between_R), abs(-0.1 * between_R**2 - lines_R)
  )
  assert not isotonic.sag(x_N, bend_N, np.array([0.0, 1.0, 4.0, np.inf, -np.inf])).any()
  assert not isotonic.bends(x_N[:2], x_N[:2, None]).any()


def test_points_that_bend_by_their_noise_alone_have_no_bend():
  x_N = np.arange(5.0)
  random = np.random.default_rng(0)
  found, truth = [], 0.3
  for curvature in (0.0, truth):
    squares = []
    for _ in range(400):
      noise_NR = 0.1 * random.normal(size=(5, 101))
      curve_NR = (
        -curvature / 2 * x_N[:, None] ** 2
        + noise_NR[:, :1]
        + np.hstack([np.zeros((5, 1)), noise_NR[:, 1:]])
      )
      squares.append(np.mean(isotonic.bends(x_N, curve_NR) ** 2))
    found.append(np.mean(squares))
  # without it: 0.06, the variance of noise 0.1 in a second difference; what is left is of squares that are not below 0
  assert found[0] < 0.04 and found[1] == pytest.approx(truth**2, rel=0.15)


def test_what_two_arms_have_in_common_by_the_problems_difficulty_does_not_widen_their_ratio():
  random = np.random.default_rng(0)
  chance_P = random.uniform(0.1, 0.9, size=1000)
  luck = float(np.sqrt((chance_P * (1 - chance_P)).mean() / 8 / 1000))  # of a mean over 8 seeds

  def problems_part(difficulty_P):
    marks_SP = (random.random((8, 1000)) < chance_P).astype(float)
    cell = noise.Marks(problems=512, seeds=tuple(range(8)), marks_SP=marks_SP, unit=0.25)
    return noise.replicates([cell], (512,), Bootstrap(), difficulty_P)[0].problems_B

  apart, known = (problems_part(p) - problems_part(p) for p in (None, chance_P))
  assert apart.std() > luck > 3 * known.std()
  # and one arm alone varies by the problems as they are
  assert problems_part(chance_P).std() == pytest.approx(chance_P.std() / 1000**0.5, rel=0.06)


def test_an_arm_is_seldom_said_to_be_above_controls_that_equal_it_and_often_above_worse_ones():
  equal = dataclasses.replace(
    ONE_SIZE, seeds=8, multiples=(("branch", 2.0), ("rft", 2.0), ("rft2", 2.0))
  )
  assert (
    coverage.claims(equal, studies=60, arm="branch") <= 0.085
  )  # 2.5 %, at 3 standard errors 8.5 %
  better = dataclasses.replace(equal, multiples=(("branch", 6.0), ("rft", 1.5)))
  assert coverage.claims(better, studies=10, arm="branch") > 0.5


def test_more_looks_lower_the_end_that_each_of_them_is_read_at():
  found = analyse(resample(study(0, {"sft": 1, "rft": 2, "rft2": 2.5, "step": 4}), Bootstrap()))
  (alone,), (shared, _) = (
    above(found, "step", others).values() for others in (["rft"], ["rft", "rft2"])
  )
  assert [row.problems for row in alone] == list(SIZES)
  assert all(many.low <= one.low for one, many in zip(alone, shared))
  assert any(many.low < one.low for one, many in zip(alone, shared))


@pytest.mark.parametrize(
  ("arm", "other", "low"),
  [
    (0.15, 0.35, 4 / 1.5),  # above the range, which ends at 4; 0.35 is at 2^0.585
    (0.35, 0.5, 1.5),  # the other is below the range: at most its beginning
    (0.5, 0.35, 0.0),  # nothing is known of how far below
    (0.35, 0.15, 0.0),
  ],
)
def test_a_multiple_off_the_range_counts_for_as_much_as_is_known_of_it(arm, other, low):
  runs = (
    flat("sft", {128: 0.4, 256: 0.3, 512: 0.2})
    + flat("step", {128: arm})
    + flat("rft", {128: other})
  )
  found = above(analyse(resample(runs, Bootstrap())), "step", ["rft"])["rft"][0]
  assert found.above == (low > 0)
  assert found.low == pytest.approx(low, rel=0.25)


def test_the_verdict_on_controls_is_a_line_and_says_that_looks_are_counted():
  found = analyse(
    resample(
      flat("sft", {128: 0.4, 256: 0.3, 512: 0.2})
      + flat("step", {128: 0.22})
      + flat("rft", {128: 0.39}),
      Bootstrap(),
    )
  )
  better, worse = lower_bounds(found, ["step"], ["rft"]), lower_bounds(found, ["rft"], ["step"])
  assert better[0] == "step is worth more than every control at N = 128"
  assert better[1].startswith("  more than rft: at N = 128 (> ") and better[1].endswith(
    "times), of 1 sizes"
  )
  assert worse[:2] == [
    "rft is not shown to be worth more than every control at any N",
    "  not shown to be more than step",
  ]
  assert "shared by all sizes and controls" in better[-1]


def test_where_nobody_answers_anything_multiples_are_undefined_and_accuracies_have_an_interval():
  runs = [
    run
    for arm, sizes in (("sft", (32, 64)), ("rft", (32,)))
    for run in flat(arm, dict.fromkeys(sizes, 1.0), count=50)
  ]
  efficiency = analyse(resample(runs, FEW))
  assert not point(efficiency, "rft", 32).multiple.defined
  lines = table(efficiency).split("\n")
  assert lines[1].split()[:8] == ["sft", "32", "1", "0.0", "(0.0", "to", "7.1)", "1"]
  assert (
    lines[3].split()[:8] == ["rft", "32", "1", "0.0", "(0.0", "to", "7.1)", "undefined"]
    and lines[3].split()[-1] == "undefined"
  )
  assert any(note.startswith("no correct answer in sft at N=32") for note in efficiency.notes)
  assert (
    lower_bounds(efficiency, ["rft"], ["sft"])[0]
    == "rft is not shown to be worth more than every control at any N"
  )
  assert (
    json.loads(json.dumps(efficiency.to_json(), allow_nan=False))["points"][2]["multiple"]["value"]
    is None
  )
  (gain,) = differences(runs, "sft", "rft", FEW)
  assert str(gain) == "N=32: rft - sft = +0.0 points, 95 % interval -7.1 to +7.1"


def test_an_arm_without_a_correct_answer_is_bounded_where_the_baseline_has_some_and_undefined_where_it_has_none():
  some = analyse(resample(flat("sft", {32: 0.9, 64: 0.8}) + flat("rft", {32: 1.0}), FEW))
  assert str(point(some, "rft", 32).multiple).startswith("< 1.0x")
  late = analyse(
    resample(flat("sft", {32: 1.0, 64: 1.0, 128: 0.7}) + flat("rft", {32: 1.0, 64: 0.8}), FEW)
  )
  assert [point(late, "rft", size).multiple.defined for size in (32, 64)] == [False, True]


def test_a_perfect_arm_is_taken_as_half_an_answer_and_said():
  efficiency = analyse(
    resample(flat("sft", {128: 0.1, 256: 0.01, 512: 0.0}) + flat("rft", {128: 0.0}), FEW)
  )
  assert any(
    note.startswith("no wrong answer in sft at N=512, rft at N=128") for note in efficiency.notes
  )
  assert point(efficiency, "rft", 128).multiple.value == pytest.approx(4)


def test_the_json_is_json_and_the_table_has_a_row_a_cell():
  efficiency = analyse(resample(study(0, {"sft": 1, "rft": 2}, sizes=(128, 512)), FEW))
  found = json.loads(json.dumps(efficiency.to_json(), allow_nan=False))
  assert (
    found["law"]["exponent"] is None
    and found["points"][2]["multiple"]["value"] == efficiency.points[2].multiple.value
  )
  lines = table(efficiency).split("\n")
  assert [line.split()[:2] for line in lines[1:5]] == [
    ["sft", "128"],
    ["sft", "512"],
    ["rft", "128"],
    ["rft", "512"],
  ]
  assert (
    str(efficiency.points[2].multiple) in lines[3] and len({len(line) for line in lines[:5]}) == 1
  )


def test_a_thousand_replicates_of_a_whole_study_take_seconds():
  runs = study(0, {"sft": 1, **{f"arm{k}": 1 + k for k in range(11)}}, count=1000)
  start = time.process_time()
  analyse(resample(runs, Bootstrap(replicates=1000)))
  assert time.process_time() - start < 5  # 0.2 s on one free core
