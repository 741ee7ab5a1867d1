"""Pits: where values fall, and where the counts behind them make that credible."""

import numpy as np
import pytest

from synthjax.bench import pits as simulated
from synthjax.config.credit import PitThresholds, ValueConfig
from synthjax.credit import pits
from synthjax.credit.pits import Evidence, ValueEstimate, first_pit
from synthjax.credit.schedules import Count

THRESHOLDS = PitThresholds()


@pytest.mark.parametrize(
  ("q", "pit"),
  [
    ([0.8, 0.8, 0.1, 0.1], 2),
    ([0.8, 0.1, 0.0], 1),
    ([0.8, 0.35, 0.0], 1),
    ([0.8, 0.5, 0.2, 0.0], 2),
    ([0.6, 0.0, 0.9, 0.0], 1),
    ([0.2, 0.0, 0.9, 0.0], None),
    ([0.2, 0.0, 0.0], None),
    ([0.8, 0.5, 0.5], None),
    ([0.8, 0.4, 0.5], 1),
    ([0.6, 0.3], 1),
    ([0.8, 0.8, 0.0, 0.9, 0.0], 2),
    ([0.8], None),
    ([None, 0.0], None),
    ([0.8, None, 0.8, 0.0], 3),
    ([0.0, 0.0], None),
    ([1.0, 1.0], None),
    ([0.8, 0.8, 0.8, None], None),
    ([1 - 0.7, 0.0], 1),
    ([1.0, 0.9, 0.0, 0.5], 2),
  ],
)
def test_where_values_are_known_the_pit_is_the_first_fall_that_passes_the_thresholds(q, pit):
  assert first_pit(q, THRESHOLDS) == pit


@pytest.mark.parametrize(
  ("counts", "pit"),
  [
    ((6, 0), 1),
    ((3, 0), None),
    ((6, 2), None),
    ((8, 1), 1),
    ((4, 0), 1),
    ((6, 5, 0), 2),
    ((5, 3, 0), None),
    ((0, 6, 0), 2),
    ((2, 0, 6, 0), None),
  ],
)
def test_a_fall_by_chance_is_no_pit(counts, pit):
  evidence = [Evidence(8, c) for c in counts]
  assert first_pit([c / 8 for c in counts], THRESHOLDS, evidence) == pit


def test_what_is_known_exactly_needs_no_rollouts_and_many_rollouts_are_as_good():
  for q in ([0.31, 0.15], [0.9, 0.46], [0.9, 0.44], [0.29, 0.0], [0.6, 0.6, 0.1, 0.7, 0.0]):
    many = [Evidence(100_000, round(100_000 * p)) for p in q]
    assert first_pit(q, THRESHOLDS, many) == first_pit(q, THRESHOLDS)
  assert first_pit([0.5, 0.0], THRESHOLDS, [Evidence(8, 4), None]) == 1
  assert first_pit([0.375, 0.0], THRESHOLDS, [Evidence(8, 3), None]) is None
  with pytest.raises(ValueError, match="1 counts of 2 values; expected as many, or none"):
    first_pit([0.5, 0.0], THRESHOLDS, [None])


@pytest.mark.parametrize("best_of", [1, 3])
def test_the_posterior_is_that_of_draws(best_of):
  n = 12
  rng = np.random.default_rng(0)

  def draws(correct):
    success = rng.beta(correct + 0.5, n - correct + 0.5, 200_000)
    return 1 - (1 - success) ** best_of

  def estimate(correct):
    value = Count(n, n, correct).value(best_of)
    return ValueEstimate(value, Evidence(n, correct, best_of))

  for correct_before, correct_after in ((6, 1), (3, 0), (12, 9)):
    before, after = draws(correct_before), draws(correct_after)
    credible = pits.credible(estimate(correct_before), estimate(correct_after), THRESHOLDS)
    drawn = (np.mean(before >= 0.3), np.mean(after <= 0.5 * before))
    assert credible == pytest.approx(drawn, abs=0.01)


@pytest.mark.parametrize("schedule", ["full", "sequential"])
@pytest.mark.parametrize("levels", [(0.6, 0.05), (0.8, 0.1)])
def test_more_rollouts_find_more_true_pits_and_few_false_ones(levels, schedule):
  rates = []
  for n in (8, 16, 32, 64):
    cfg = ValueConfig(rollouts=n, block=n // 4, schedule=schedule)
    rates.append(simulated.rates(levels, 8, cfg, 300))
  true = [rate.true for rate in rates]
  assert true == sorted(true)
  assert true[0] > 0.55
  assert true[-1] > 0.97
  assert max(rate.false for rate in rates) < 0.03


def test_where_the_value_sinks_evenly_more_rollouts_name_fewer_steps():
  false = []
  for n in (8, 16, 32, 64):
    false.append(simulated.rates((0.7,), 8, ValueConfig(rollouts=n), 300).false)
  assert false == sorted(false, reverse=True)
  # The rule before it, the first step with the lowest value, named one in 24 % at 8 rollouts.
  assert false[0] < 0.24
  assert false[-1] < 0.04


def test_thresholds_can_be_taken_down_but_a_step_that_loses_nothing_is_no_pit():
  nothing = PitThresholds(min_before=0.0, min_drop=0.0)
  assert first_pit([0.2, 0.1, 0.0], nothing) == 1
  assert first_pit([0.0, 0.0], nothing) is None
  with pytest.raises(ValueError, match=r"PitThresholds.min_drop is 2.0; expected float, 0 to 1"):
    PitThresholds(min_drop=2)


def test_simulated_traces_have_their_pit_where_their_success_falls():
  world = simulated.simulate("clean", 200, 0)
  falls = []
  for prompted, pit in zip(world.traces, world.pits):
    if pit < len(prompted.trace.steps):
      before = world.success[prompted.prompt_ids + tuple(range(pit - 1))]
      after = world.success[prompted.prompt_ids + tuple(range(pit))]
      falls.append(after < before)
  assert len(falls) > 100
  assert all(falls)
  assert {len(prompted.trace.steps) for prompted in world.traces} == set(range(4, 9))
