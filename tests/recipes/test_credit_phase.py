import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from synthjax import config, files
from synthjax.config.credit_phase import Chain, CreditPhase, Tuning
from synthjax.config.schema import Preference
from synthjax.credit_phase import chains, diagram, methods, training, tuning
from synthjax.credit_phase.diagram import Gain
from synthjax.credit_phase.training import SettingsGrid
from synthjax.errors import ConfigError
from synthjax.job import Job
from synthjax.losses import preference
from synthjax.losses.preference import Pairs
from synthjax.recipes import credit_phase as recipe

SMALL = Chain(success=0.3, survival=0.5, length=4, contexts=5, traces=6, problems=50)
ALL = (*methods.OUTCOME, *methods.CREDIT)
ONE_SETTING = Tuning(
  rates=(0.1,),
  betas=(0.1,),
  temperatures=(0.1,),
  steps=(5,),
  tuning_replicates=2,
  replicates=3,
)


def _random(seed=0):
  return np.random.default_rng(seed)


def _four_sigma(count):
  """Four standard errors of a share over `count` draws, at most."""
  return 4 * np.sqrt(0.25 / count)


@pytest.mark.parametrize("luck", ["at_once", "at_end"])
def test_step_values_are_the_success_rates_of_the_traces_that_have_them(luck):
  """Exact values are calibrated at every prefix, and the last one is the reward."""
  chain = dataclasses.replace(SMALL, luck=luck)
  traces = chains.sample(chain, 40, _random())
  reward = traces.reward_MS.ravel().astype(float)
  assert reward.mean() == pytest.approx(chain.success, abs=0.02)
  for step in range(chain.length + 1):
    value = traces.value_MSQ[..., step].ravel()
    for q in np.unique(value.round(9)):
      rewards = reward[np.isclose(value, q)]
      assert rewards.mean() == pytest.approx(q, abs=_four_sigma(len(rewards)))
  np.testing.assert_array_equal(traces.value_MSQ[..., -1], traces.reward_MS)


def test_a_setting_whose_luck_alone_succeeds_more_often_is_refused_and_left_out_of_planes():
  with pytest.raises(ConfigError, match=r"Chain.success is 0.3; expected above .*, here 0.656"):
    Chain(success=0.3, survival=0.9, length=4)
  study = CreditPhase(base=SMALL, survivals=(0.0, 0.9), successes=(0.3, 0.7))
  plane = diagram.planes(study)[0]
  assert set(plane.cells) == {(0.3, 0.0), (0.7, 0.0), (0.7, 0.9)}


def test_success_of_a_policy_is_that_of_sampled_solutions_of_new_problems():
  random = _random()
  chain = SMALL
  count = 40_000
  prob = random.dirichlet(np.ones(chain.actions), size=(chain.contexts, 1))
  log_prob = np.log(prob).transpose(0, 2, 1)  # [V, A, one setting]
  exact = training.success(log_prob, chain)[0, 0]

  context = random.integers(chain.contexts, size=(count, chain.length))
  chance = np.exp(log_prob[context, chains.CORRECT, 0])
  is_correct = random.random(context.shape) < chance
  is_harmless = is_correct | (random.random(context.shape) < chain.survival)
  sampled = is_harmless.all(axis=1).mean()
  assert sampled == pytest.approx(exact, abs=_four_sigma(count))


def test_the_exact_pit_is_the_step_that_was_fatal_and_pits_get_no_worse_with_rollouts():
  exact = chains.sample(SMALL, 20, _random())
  is_incorrect = ~exact.reward_MS
  fatal_step = (exact.value_MSQ[..., 1:] > 0).sum(axis=-1)
  share_found = {}
  for rollouts in (0, 2, 8, 32):
    chain = dataclasses.replace(SMALL, rollouts=rollouts)
    traces = chains.sample(chain, 20, _random())
    # The same traces: values are drawn after them.
    np.testing.assert_array_equal(traces.actions_MSL, exact.actions_MSL)
    is_found = methods.pits(traces) == fatal_step
    share_found[rollouts] = np.mean(is_found[is_incorrect])
  assert share_found[0] == 1.0
  assert share_found[2] < share_found[8] < share_found[32] <= 1.0


@pytest.mark.parametrize("anchor", [0.0, 1.0])
@pytest.mark.parametrize("method", ["dpo", "branch", "step"])
def test_pairs_pull_log_probs_as_the_losses_of_the_trainer_do(method, anchor):
  random = _random()
  beta = 0.3
  data = methods.prepare(SMALL, (method,), 1, random)
  pairs = data.pairs[method]
  difference = pairs.difference_PK.toarray()
  prob = random.dirichlet(np.ones(SMALL.actions), size=SMALL.contexts)
  table = np.log(prob).ravel()
  reference = training._reference(SMALL, len(table))[:, 0]
  weights = jnp.asarray(pairs.weight_P, jnp.float32)

  def loss(log_prob):
    margin = difference @ log_prob
    zeros = jnp.zeros(len(margin))
    ones = jnp.ones(len(margin))
    batch = Pairs(
      chosen=margin,
      rejected=zeros,
      reference_chosen=difference @ reference,
      reference_rejected=zeros,
      chosen_tokens=ones,
      rejected_tokens=ones,
      weights=weights,
    )
    value, _ = preference.dpo(batch, Preference(beta=beta))
    # Counts of the chosen sides are known in sum alone, which is enough: RPO's anchor is linear.
    return value - anchor * pairs.anchor_K @ log_prob / weights.sum()

  gradient = np.asarray(jax.grad(loss)(jnp.asarray(table, jnp.float32)))
  expected = -gradient * pairs.weight_P.sum() / beta
  pull = training.pull_of_pairs(pairs, anchor, SMALL, np.array([beta]))
  tolerance = 1e-4 * np.abs(expected).max()
  np.testing.assert_allclose(pull(table[:, None])[:, 0], expected, rtol=1e-3, atol=tolerance)


def test_one_round_of_likelihood_divides_the_odds_of_an_incorrect_step_by_luck_and_step_goes_on():
  """The theory of docs/study_a.md: odds c / (1 - c) become c / ((1 - c) u), however many traces."""
  chain = Chain(success=0.3, survival=0.5, length=4, contexts=1, traces=200, problems=64)
  data = methods.prepare(chain, ("rft", "awr", "step"), 2, _random())
  settings = SettingsGrid(np.array([0.1]), np.array([0.01]), 300)
  correct = {}
  for method in ("rft", "awr", "step"):
    log_prob = tuning.train(method, data, chain, settings)
    correct[method] = float(np.exp(log_prob[:, chains.CORRECT]).mean())
  odds = chain.correct / (1 - chain.correct) / chain.survival
  assert correct["rft"] == pytest.approx(odds / (1 + odds), abs=0.01)
  # Fatal steps have no weight at this temperature, which leaves AWR what RFT has.
  assert correct["awr"] == pytest.approx(odds / (1 + odds), abs=0.01)
  assert correct["step"] > 0.999


def test_the_steps_that_values_cost_are_counted_as_they_are_rolled_out():
  chain = dataclasses.replace(SMALL, rollouts=3)
  traces = chains.sample(chain, 400, _random())
  steps_left = sum(chain.length - prefix for prefix in range(1, chain.length))
  incorrect = (~traces.reward_MS).sum(axis=1).mean()
  of_traces = chain.traces * chain.length
  of_values = chain.rollouts * (chain.length + incorrect * steps_left)
  assert chains.sampled_steps(chain) == pytest.approx(of_traces + of_values, rel=0.02)
  assert diagram.richer(chain).traces * chain.length >= chains.sampled_steps(chain)
  assert chains.sampled_steps(SMALL) == SMALL.traces * SMALL.length


def test_settings_are_chosen_on_replicates_that_are_not_reported():
  more = dataclasses.replace(ONE_SETTING, tuning_replicates=5)
  outcomes = tuning.outcomes(SMALL, ALL, ONE_SETTING, seed=0)
  others = tuning.outcomes(SMALL, ALL, more, seed=0)
  for method in ALL:
    reported = outcomes[method].success_R
    assert reported == others[method].success_R
    assert outcomes[method].chosen.success != pytest.approx(np.mean(reported), abs=1e-9)


def test_all_methods_have_equally_many_settings_over_the_same_range_of_rates():
  for method in ALL:
    rate_G, beta_G = tuning.grid(method, Tuning())
    assert len(rate_G) == len(beta_G) == 16
    assert (rate_G[0], rate_G[-1]) == pytest.approx((0.03, 1.0), abs=1e-9)
  with pytest.raises(ConfigError, match="temperatures .*as many values as betas has, 1"):
    dataclasses.replace(ONE_SETTING, temperatures=(0.1, 0.2))


def test_intervals_are_those_of_the_t_tests():
  random = _random()
  one = random.normal(0.6, 0.1, 12)
  other = random.normal(0.5, 0.3, 9)
  mean, half = diagram.difference(one, other, paired=False)
  expected = scipy.stats.ttest_ind(one, other, equal_var=False).confidence_interval()
  assert (mean - half, mean + half) == pytest.approx((expected.low, expected.high))
  mean, half = diagram.difference(one[:9], other, paired=True)
  expected = scipy.stats.ttest_rel(one[:9], other).confidence_interval()
  assert (mean - half, mean + half) == pytest.approx((expected.low, expected.high))


def test_the_border_is_the_least_luck_from_which_every_gain_is_above_a_point():
  # The low end of the gain's interval by (value, u): above 0.01 it pays.
  lows = {
    (1, 0.0): 0.005,
    (1, 0.3): 1,
    (1, 0.6): 1,
    (2, 0.0): 1,
    (2, 0.3): -1,
    (2, 0.6): 1,
    (3, 0.0): 1,
    (3, 0.3): 1,
    (3, 0.6): -1,
    (4, 0.0): 1,
  }
  gains = {}
  for at, low in lows.items():
    gains[at] = Gain(credit="step", control="dpo", mean=low + 1, low=low, high=low + 2)
  plane = diagram.Plane("length", "length", (1, 2, 3, 4), dict.fromkeys(lows))
  assert diagram.border(plane, gains) == {1: 0.3, 2: 0.6, 3: None, 4: 0.0}


def test_the_smoke_study_is_drawn_and_a_second_start_takes_every_cell_from_the_first(tmp_path):
  job = Job(config.load("configs/credit_phase.py:smoke"), tmp_path)
  first = recipe.run(job)
  planes = diagram.planes(job.experiment.credit_phase)
  assert list(first["planes"]) == [plane.name for plane in planes]
  assert set(first["table"][0]["methods"]) == set(ALL)
  assert (tmp_path / "credit_phase.png").stat().st_size > 10_000
  assert "| setting | c | rft |" in (tmp_path / "table.md").read_text()

  cells = tmp_path / "cells.jsonl"
  lines = cells.read_text().splitlines()
  # The table reports the replicates that did not choose the setting.
  for name, row in first["table"][0]["methods"].items():
    reported = [json.loads(line)["outcomes"].get(name, (None, None)) for line in lines]
    means = [sum(success_R) / len(success_R) for _, success_R in reported if success_R]
    chosen = [setting for setting, _ in reported if setting]
    assert row["success"] in means
    assert row["tuning_success"] in [setting[3] for setting in chosen]
  cut_off = [*lines[:-1], lines[-1][:40]]
  cells.write_text("\n".join(cut_off))
  second = recipe.run(job)
  result = files.read_json(tmp_path / "results.json")
  assert json.loads(json.dumps(second)) == result
  assert json.loads(json.dumps(first)) == result
  assert cells.read_text().splitlines() == lines
