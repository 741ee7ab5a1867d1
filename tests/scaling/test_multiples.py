import dataclasses
import json
import random as shuffling
import time

import numpy as np
import pytest

from synthjax.files import DataError
from synthjax.report.tables import table
from synthjax.scaling import coverage, isotonic
from synthjax.scaling.bootstrap import resample
from synthjax.scaling.multiples import Multiple, above, analyse
from synthjax.scaling.noise import Bootstrap
from tests.scaling.simulated import FEW, ONE_SIZE, SIZES, flat, holds, point, study


def check_interval(multiple, truth):
  assert holds(multiple, truth)
  assert not multiple.beyond
  assert multiple.low > 0.6 * truth
  assert multiple.high < 2.1 * truth


def test_known_multiples_and_the_exponent_lie_in_their_intervals():
  efficiency = analyse(resample(study(3, {"sft": 1, "rft": 2, "step": 8}, count=1500), Bootstrap()))
  for arm, truth, sizes in (("rft", 2, (256, 512)), ("step", 8, (128, 256))):
    for problems in sizes:
      measured = point(efficiency, arm, problems)
      check_interval(measured.multiple, truth)
      check_interval(measured.law_multiple, truth)
  law = efficiency.law
  assert law.supported
  assert law.low < 0.25 < law.high
  for local in law.local_exponents:
    assert abs(local.exponent - 0.25) < 4 * local.standard_error


def test_a_bound_is_flagged_on_either_side_and_is_the_end_of_the_measured_range():
  runs = flat("sft", {128: 0.4, 256: 0.3, 512: 0.2})
  runs += flat("good", {256: 0.1}) + flat("bad", {256: 0.6}) + flat("same", {256: 0.3})
  efficiency = analyse(resample(runs, FEW))
  two = pytest.approx(2)
  good = point(efficiency, "good", 256).multiple
  assert good == Multiple(two, two, two, beyond="above", low_beyond="above", high_beyond="above")
  assert str(good) == "> 2.0x (> 2.0x)"
  bad = point(efficiency, "bad", 256).multiple
  assert bad.value == pytest.approx(0.5)
  assert (bad.beyond, bad.low_beyond, bad.high_beyond) == ("below", "below", "below")
  same = point(efficiency, "same", 256).multiple
  assert same.value == pytest.approx(1)
  assert same.beyond == ""
  assert not point(efficiency, "sft", 512).multiple.beyond


def test_an_interval_that_leaves_the_range_ends_in_a_bound_while_its_value_does_not():
  multiple = point(analyse(resample(study(0, {"sft": 1, "rft": 2}), FEW)), "rft", 1024).multiple
  assert multiple.beyond == ""
  assert multiple.value < 4
  assert multiple.high == pytest.approx(4)
  assert multiple.high_beyond == "above"
  assert multiple.low < multiple.value
  assert multiple.low_beyond == ""


def points_by_name(runs):
  points = analyse(resample(runs, FEW)).points
  return {(one.arm, one.problems): one for one in points}


def test_neither_the_order_of_runs_nor_other_arms_move_a_number():
  runs = study(0, {"sft": 1, "rft": 2, "step": 4})
  points = points_by_name(runs)
  shuffled = shuffling.Random(0).sample(runs, len(runs))
  assert points_by_name(shuffled) == points
  without_step = points_by_name([run for run in runs if run.arm != "step"])
  assert without_step == {name: one for name, one in points.items() if one.arm != "step"}


def test_names_of_seeds_do_not_matter():
  runs = study(0, {"sft": 1, "rft": 2})
  renamed = [dataclasses.replace(run, seed=(run.seed + 1) % 3 + 40) for run in runs]
  many = Bootstrap(replicates=4000)
  points = analyse(resample(runs, many)).points
  points_renamed = analyse(resample(renamed, many)).points
  for one, other in zip(points, points_renamed, strict=True):
    assert one.accuracy == pytest.approx(other.accuracy)
    assert one.standard_error == pytest.approx(other.standard_error)
    assert one.multiple.value == pytest.approx(other.multiple.value)
    # A seed's draws come from its name: the interval moves by the noise of its replicates alone.
    assert one.multiple.low == pytest.approx(other.multiple.low, rel=0.1)


def test_missing_cells_and_seeds_are_named():
  runs = []
  for run in study(0, {"sft": 1, "rft": 2}):
    if (run.arm, run.problems) != ("rft", 512) and (run.problems, run.seed) != (1024, 2):
      runs.append(run)
  efficiency = analyse(resample(runs, FEW))
  assert efficiency.missing == ("sft at N=1,024: seed 2", "rft at N=512", "rft at N=1,024: seed 2")
  assert "missing: sft at N=1,024: seed 2; rft at N=512" in table(efficiency)
  with pytest.raises(DataError, match="arm 'dpo' was not measured; there are sft, rft"):
    efficiency.at("dpo")


def no_runs(runs):
  return []


def a_run_twice(runs):
  return [*runs, runs[4]]


def fewer_test_problems(runs):
  return [*runs[1:], dataclasses.replace(runs[0], accuracy_P=runs[0].accuracy_P[1:])]


def percentages(runs):
  return [*runs[1:], dataclasses.replace(runs[0], accuracy_P=runs[0].accuracy_P * 100)]


def not_a_number(runs):
  return [*runs[1:], dataclasses.replace(runs[0], accuracy_P=runs[0].accuracy_P * np.nan)]


def no_baseline(runs):
  return [run for run in runs if run.arm != "sft"]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (no_runs, "no runs to compare"),
    (a_run_twice, "sft at N=256, seed 1: found twice"),
    (fewer_test_problems, r"sft at N=128, seed 0: accuracies of shape \(399,\)"),
    (percentages, "seed 0: expected accuracies from 0 to 1"),
    (not_a_number, "seed 0: expected accuracies from 0 to 1"),
    (
      no_baseline,
      r"baseline 'sft' was measured at 0 sizes; a curve needs two at least \(arms found: rft\)",
    ),
  ],
)
def test_runs_that_cannot_be_compared_are_refused(change, message):
  with pytest.raises(DataError, match=message):
    analyse(resample(change(study(0, {"sft": 1, "rft": 2})), FEW))


def test_compute_stands_beside_the_multiple():
  efficiency = analyse(resample(study(0, {"sft": 1, "rft": 4}, count=1000), FEW))
  rft = point(efficiency, "rft", 256)
  cost = 7e9 / 1e9  # of the arm, in SFT's for as many problems
  assert rft.compute_multiple.value == pytest.approx(rft.multiple.value / cost)
  assert rft.compute_multiple.low == pytest.approx(rft.multiple.low / cost)
  assert rft.compute_multiple.low < 1 < rft.multiple.low
  assert (rft.tokens_trained, rft.tokens_sampled, rft.flops) == (76_800, 230_400, 7e9 * 256)
  # Between two sizes FLOPs are straight in log N: never below the exact value, and within a
  # doubling at most 9 % above it.
  assert 0.999 < rft.matching_flops / (1e9 * 256 * rft.multiple.value) < 1.09
  assert rft.tuned_multiple is None
  sft = point(efficiency, "sft", 256)
  one = Multiple(1, 1, 1)
  assert (sft.multiple, sft.law_multiple, sft.compute_multiple) == (one, one, one)
  assert sft.matching_flops == pytest.approx(256e9)


def test_without_flops_there_is_no_iso_compute_multiple_and_the_notes_say_why():
  runs = [dataclasses.replace(run, flops=0.0) for run in study(0, {"sft": 1, "rft": 2})]
  efficiency = analyse(resample(runs, FEW))
  assert all(one.compute_multiple is None for one in efficiency.points)
  assert any("no iso-compute" in note for note in efficiency.notes)


def test_tuning_is_paid_once_by_either_side_and_named_for_every_arm():
  cells = resample(study(0, {"sft": 1, "rft": 4}, count=1000), FEW)
  efficiency = analyse(cells, tuning={"sft": 5e12, "rft": 40e12})
  rft = point(efficiency, "rft", 256)
  # The curve is straight in the log of what its points cost in all.
  sizes, errors = np.transpose(efficiency.curve)
  log_paid = np.interp(-np.log(1 - rft.accuracy), -np.log(errors), np.log(1e9 * sizes + 5e12))
  assert rft.tuned_multiple.value == pytest.approx(np.exp(log_paid) / (7e9 * 256 + 40e12))
  without_tuning = analyse(cells)
  assert rft.compute_multiple == point(without_tuning, "rft", 256).compute_multiple
  assert "tuning, in FLOPs: sft 5T, rft 40T" in table(efficiency)
  assert "tuning, in FLOPs" not in table(without_tuning)
  with pytest.raises(DataError, match="tuning is known for rft and not for sft; give all arms'"):
    analyse(cells, tuning={"rft": 1.0})


def test_a_bent_curve_widens_the_interval_and_moves_no_value(monkeypatch):
  design = dataclasses.replace(ONE_SIZE, curvature=0.08, seeds=8, test_problems=2000, spread=0.05)
  cells = resample(coverage.simulate(design, 0), Bootstrap())
  bent = analyse(cells)
  monkeypatch.setattr(isotonic, "sag", lambda x_N, bend_N, x_R: np.zeros_like(x_R))
  straight = analyse(cells)
  for arm in ("rft", "dpo"):
    wide, narrow = point(bent, arm, 512).multiple, point(straight, arm, 512).multiple
    assert wide.value == narrow.value
    assert wide.high / wide.low > 1.05 * narrow.high / narrow.low


def test_more_comparisons_lower_the_end_that_each_of_them_is_read_at():
  runs = study(0, {"sft": 1, "rft": 2, "rft2": 2.5, "step": 4})
  efficiency = analyse(resample(runs, Bootstrap()))
  alone = above(efficiency, "step", ["rft"])["rft"]
  shared = above(efficiency, "step", ["rft", "rft2"])["rft"]
  assert [row.problems for row in alone] == list(SIZES)
  lower = [many.low < one.low for one, many in zip(alone, shared)]
  higher = [many.low > one.low for one, many in zip(alone, shared)]
  assert any(lower)
  assert not any(higher)


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
  runs = flat("sft", {128: 0.4, 256: 0.3, 512: 0.2})
  runs += flat("step", {128: arm}) + flat("rft", {128: other})
  efficiency = analyse(resample(runs, Bootstrap()))
  (bound,) = above(efficiency, "step", ["rft"])["rft"]
  assert bound.above == (low > 0)
  assert bound.low == pytest.approx(low, rel=0.25)


def test_an_arm_without_a_correct_answer_is_bounded_where_the_baseline_has_some():
  runs = flat("sft", {32: 0.9, 64: 0.8}) + flat("rft", {32: 1.0})
  multiple = point(analyse(resample(runs, FEW)), "rft", 32).multiple
  assert str(multiple).startswith("< 1.0x")


def test_a_multiple_is_undefined_where_the_baseline_begins_without_a_correct_answer():
  runs = flat("sft", {32: 1.0, 64: 1.0, 128: 0.7}) + flat("rft", {32: 1.0, 64: 0.8})
  efficiency = analyse(resample(runs, FEW))
  assert not point(efficiency, "rft", 32).multiple.defined
  assert point(efficiency, "rft", 64).multiple.defined


def test_a_perfect_arm_is_taken_as_half_an_incorrect_answer_and_noted():
  runs = flat("sft", {128: 0.1, 256: 0.01, 512: 0.0}) + flat("rft", {128: 0.0})
  efficiency = analyse(resample(runs, FEW))
  note = "no incorrect answer in sft at N=512, rft at N=128"
  assert any(one.startswith(note) for one in efficiency.notes)
  assert point(efficiency, "rft", 128).multiple.value == pytest.approx(4)


def test_the_json_has_null_for_what_does_not_exist():
  efficiency = analyse(resample(study(0, {"sft": 1, "rft": 2}, sizes=(128, 512)), FEW))
  parsed = json.loads(json.dumps(efficiency.to_json(), allow_nan=False))
  assert parsed["law"]["exponent"] is None
  assert parsed["points"][2]["multiple"]["value"] == efficiency.points[2].multiple.value
  assert "cells" not in parsed


def test_a_thousand_replicates_of_a_large_study_take_seconds():
  multiples = {"sft": 1} | {f"arm{k}": 1 + k for k in range(11)}
  runs = study(0, multiples, count=1000)
  start = time.process_time()
  analyse(resample(runs, Bootstrap(replicates=1000)))
  assert time.process_time() - start < 5  # 0.2 s on one free core
