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
from synthjax.credit_phase.training import Settings
from synthjax.errors import ConfigError
from synthjax.job import Job
from synthjax.losses import preference
from synthjax.losses.preference import Pairs
from synthjax.recipes import credit_phase as recipe

SMALL = Chain(success=0.3, survival=0.5, length=4, contexts=5, traces=6, problems=50)
ALL = (*methods.OUTCOME, *methods.CREDIT)


def _random(seed=0):
  return np.random.default_rng(seed)


@pytest.mark.parametrize("luck", ["at_once", "at_end"])
def test_step_values_are_the_chances_of_the_traces_that_have_them(luck):
  """Exact values are calibrated at every prefix, and their steps have no drift."""
  chain = dataclasses.replace(SMALL, luck=luck)
  traces = chains.sample(chain, 40, _random())
  reward = traces.reward_MS.ravel().astype(float)
  assert reward.mean() == pytest.approx(chain.success, abs=0.02)
  for step in range(chain.length + 1):
    value = traces.value_MSQ[..., step].ravel()
    for q in np.unique(value.round(9)):
      at_q = reward[np.isclose(value, q)]
      assert at_q.mean() == pytest.approx(q, abs=4 * np.sqrt(0.25 / len(at_q)))
  np.testing.assert_array_equal(traces.value_MSQ[..., -1], traces.reward_MS)


def test_a_setting_whose_luck_alone_succeeds_more_often_is_refused_and_left_out_of_planes():
  with pytest.raises(ConfigError, match=r"Chain.success is 0.3; expected above .*, here 0.656"):
    Chain(success=0.3, survival=0.9, length=4)
  study = CreditPhase(base=SMALL, survivals=(0.0, 0.9), successes=(0.3, 0.7))
  plane = diagram.planes(study)[0]
  assert set(plane.cells) == {(0.3, 0.0), (0.7, 0.0), (0.7, 0.9)}


def test_success_of_a_policy_is_that_of_sampled_solutions_of_new_problems():
  random, chain, count = _random(), SMALL, 40_000
  log_prob = np.log(random.dirichlet(np.ones(chain.actions), size=(chain.contexts, 1)))
  log_prob = log_prob.transpose(0, 2, 1)  # [V, A, one setting]
  exact = training.success(log_prob, chain)[0, 0]
  context = random.integers(chain.contexts, size=(count, chain.length))
  correct = random.random(context.shape) < np.exp(log_prob[context, chains.CORRECT, 0])
  harmless = correct | (random.random(context.shape) < chain.survival)
  assert harmless.all(axis=1).mean() == pytest.approx(exact, abs=4 * np.sqrt(0.25 / count))


def test_the_exact_pit_is_the_step_that_was_fatal_and_pits_get_no_worse_with_rollouts():
  found = {}
  for rollouts in (0, 2, 8, 32):
    traces = chains.sample(dataclasses.replace(SMALL, rollouts=rollouts), 20, _random())
    exact = chains.sample(SMALL, 20, _random())  # the same traces: values are drawn after them
    np.testing.assert_array_equal(traces.actions_MSL, exact.actions_MSL)
    fatal_MS = np.where(exact.reward_MS, -1, (exact.value_MSQ[..., 1:] > 0).sum(axis=-1))
    found[rollouts] = np.mean(methods.pits(traces)[~exact.reward_MS] == fatal_MS[~exact.reward_MS])
  assert found[0] == 1.0
  assert found[2] < found[8] < found[32] <= 1.0


@pytest.mark.parametrize("anchor", [0.0, 1.0])
@pytest.mark.parametrize("method", ["dpo", "branch", "step"])
def test_pairs_pull_log_probs_as_the_losses_of_the_trainer_do(method, anchor):
  random, chain, beta = _random(), SMALL, 0.3
  data = methods.prepare(chain, (method,), 1, random)
  pairs = data.pairs[method]
  dense = pairs.difference_PK.toarray()
  table = np.log(random.dirichlet(np.ones(chain.actions), size=chain.contexts)).ravel()
  reference = training._reference(chain, len(table))[:, 0]
  # Counts of the chosen sides are known in sum alone; RPO's anchor is linear, so the sum is enough.
  weights = jnp.asarray(pairs.weight_P, jnp.float32)

  def loss(log_prob):
    margin = dense @ log_prob
    zero, one = jnp.zeros(len(margin)), jnp.ones(len(margin))
    found = preference.dpo(
      Pairs(
        chosen=margin,
        rejected=zero,
        reference_chosen=dense @ reference,
        reference_rejected=zero,
        chosen_tokens=one,
        rejected_tokens=one,
        weights=weights,
      ),
      Preference(beta=beta),
    )[0]
    return found - anchor * pairs.anchor_K @ log_prob / weights.sum()

  gradient = np.asarray(jax.grad(loss)(jnp.asarray(table, jnp.float32)))
  expected = -gradient * pairs.weight_P.sum() / beta
  pull = training.pull_of_pairs(pairs, anchor, chain, np.array([beta]))(table[:, None])[:, 0]
  np.testing.assert_allclose(pull, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_one_round_of_likelihood_divides_the_odds_of_a_wrong_step_by_luck_and_negatives_go_on():
  """The theory of docs/study_a.md: odds c / (1 - c) become c / ((1 - c) u), however many traces."""
  chain = Chain(success=0.3, survival=0.5, length=4, contexts=1, traces=200, problems=64)
  data = methods.prepare(chain, ("rft", "awr", "step"), 2, _random())
  settings = Settings(np.array([0.1]), np.array([0.01]), 300)
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
  of_one = sum(chain.rollouts * (chain.length - prefix) for prefix in range(1, chain.length))
  incorrect = (~traces.reward_MS).sum(axis=1).mean()
  counted = chain.traces * chain.length + chain.rollouts * chain.length + incorrect * of_one
  assert chains.sampled_steps(chain) == pytest.approx(counted, rel=0.02)
  assert diagram.richer(chain).traces * chain.length >= chains.sampled_steps(chain)
  assert chains.sampled_steps(SMALL) == SMALL.traces * SMALL.length


def test_settings_are_chosen_on_replicates_that_are_not_reported_from_equally_many():
  one = Tuning(
    rates=(0.1,), betas=(0.1,), temperatures=(0.1,), steps=(5,), tuning_replicates=2, replicates=3
  )
  found = tuning.outcomes(SMALL, ALL, one, seed=0)
  other = tuning.outcomes(SMALL, ALL, dataclasses.replace(one, tuning_replicates=5), seed=0)
  for method in ALL:
    assert found[method].success_R == other[method].success_R
    assert found[method].chosen.success != pytest.approx(np.mean(found[method].success_R), abs=1e-9)
  default = Tuning()
  assert {len(tuning.grid(method, default)[0]) for method in ALL} == {16}
  assert {tuple(tuning.grid(m, default)[0][[0, -1]].round(9)) for m in ALL} == {(0.03, 1.0)}
  with pytest.raises(ConfigError, match="temperatures .*as many values as betas has, 1"):
    dataclasses.replace(one, temperatures=(0.1, 0.2))


def test_intervals_are_those_of_the_t_tests():
  random = _random()
  one, other = random.normal(0.6, 0.1, 12), random.normal(0.5, 0.3, 9)
  mean, half = diagram.difference(one, other, paired=False)
  expected = scipy.stats.ttest_ind(one, other, equal_var=False).confidence_interval()
  assert (mean - half, mean + half) == pytest.approx((expected.low, expected.high))
  mean, half = diagram.difference(one[:9], other, paired=True)
  expected = scipy.stats.ttest_rel(one[:9], other).confidence_interval()
  assert (mean - half, mean + half) == pytest.approx((expected.low, expected.high))


def test_the_border_is_the_least_luck_from_which_every_gain_is_above_a_point():
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
  gains = {at: diagram.Gain("step", "dpo", low + 1, low, low + 2) for at, low in lows.items()}
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
  lines = (tmp_path / "cells.jsonl").read_text().splitlines()
  (tmp_path / "cells.jsonl").write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:40])  # cut off
  assert json.loads(json.dumps(recipe.run(job))) == files.read_json(tmp_path / "results.json")
  assert files.read_json(tmp_path / "results.json") == json.loads(json.dumps(first))
  assert (tmp_path / "cells.jsonl").read_text().splitlines() == lines
