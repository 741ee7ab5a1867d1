"""Losses against float64 NumPy, and the theorem of the design on a tabular policy.

Shapes: P pairs, S steps, A actions.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synthjax.config.schema import Advantage, Preference
from synthjax.errors import ConfigError
from synthjax.losses import preference, stepwise
from synthjax.losses.preference import Pairs
from synthjax.losses.registry import PAIR_LOSSES, whole_responses
from synthjax.losses.stepwise import Steps


def _pairs(P=6, seed=0):
  """Float64 values of `Pairs`, the last one padding."""
  random = np.random.default_rng(seed)
  sums = -random.uniform(1, 30, (4, P))
  tokens = random.integers(3, 20, (2, P)).astype(float)
  ratios = random.uniform(0, 5, P)
  weights, mismatched = np.ones(P), np.full(P, 2.0)
  weights[-1] = mismatched[-1] = ratios[-1] = 0.0
  return Pairs(
    chosen=sums[0],
    rejected=sums[1],
    reference_chosen=sums[2],
    reference_rejected=sums[3],
    chosen_tokens=tokens[0],
    rejected_tokens=tokens[1],
    weights=weights,
    mismatched_ratio=ratios,
    mismatched=mismatched,
    prompt=-random.uniform(5, 9, P),
    prompt_tokens=random.integers(1, 9, P).astype(float),
  )


def _float32(pairs):
  return Pairs(*(jnp.asarray(x, jnp.float32) for x in pairs))


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


def _log_odds(x):
  return x - np.log1p(-np.exp(x))


def _reference_point(pairs, cfg):
  """KTO's z."""
  ratios = (pairs.chosen - pairs.reference_chosen) + (pairs.rejected - pairs.reference_rejected)
  estimates = {
    "mismatched": pairs.mismatched_ratio.sum() / pairs.mismatched.sum(),
    "matched": (ratios / 2 * pairs.weights).sum() / pairs.weights.sum(),
    "zero": 0.0,
  }
  return max(0.0, estimates[cfg.kto_reference])


def _oracle(name, pairs, cfg, point):
  """A loss in float64, from its formula; `point` is KTO's, which carries no gradient."""
  chosen, rejected = pairs.chosen, pairs.rejected
  chosen_mean = chosen / pairs.chosen_tokens
  rejected_mean = rejected / pairs.rejected_tokens
  chosen_ratio = chosen - pairs.reference_chosen
  rejected_ratio = rejected - pairs.reference_rejected
  h, beta = chosen_ratio - rejected_ratio, cfg.beta

  def mean(x):
    return (x * pairs.weights).sum() / pairs.weights.sum()

  def smooth(margin):
    correct, flipped = np.log(_sigmoid(margin)), np.log(_sigmoid(-margin))
    return mean(-(1 - cfg.label_smoothing) * correct - cfg.label_smoothing * flipped)

  def nll(sums, tokens):
    if cfg.nll_mean == "responses":
      return mean(-sums / tokens)
    return -mean(sums) / mean(tokens)

  if name == "dpo":
    return smooth(beta * h)
  if name == "ipo":
    if cfg.ipo_length_normalised:
      h = chosen_ratio / pairs.chosen_tokens - rejected_ratio / pairs.rejected_tokens
    return mean((h - 1 / (2 * beta)) ** 2)
  if name == "dpop":
    return smooth(beta * (h - cfg.dpop * np.maximum(0, -chosen_ratio)))
  if name == "rpo":
    return smooth(beta * h) + cfg.rpo_alpha * nll(chosen, pairs.chosen_tokens)
  if name == "kto":
    desirable = cfg.kto_desirable * (1 - _sigmoid(beta * (chosen_ratio - point)))
    undesirable = cfg.kto_undesirable * (1 - _sigmoid(beta * (point - rejected_ratio)))
    return mean(desirable + undesirable) / 2
  if name == "simpo":
    return smooth(cfg.simpo_beta * (chosen_mean - rejected_mean) - cfg.simpo_margin)
  assert name == "orpo"
  log_odds = _log_odds(chosen_mean) - _log_odds(rejected_mean)
  learned, tokens = chosen, pairs.chosen_tokens
  if cfg.orpo_prompt:
    learned, tokens = chosen + pairs.prompt, tokens + pairs.prompt_tokens
  return nll(learned, tokens) - cfg.orpo_lambda * mean(np.log(_sigmoid(log_odds)))


def _finite_difference(name, pairs, cfg, point, side, number, by=1e-5):
  """The derivative of the oracle by one pair's chosen or rejected sum."""
  losses = []
  for sign in (1, -1):
    sums = getattr(pairs, side).copy()
    sums[number] += sign * by
    losses.append(_oracle(name, pairs._replace(**{side: sums}), cfg, point))
  return (losses[0] - losses[1]) / (2 * by)


SETTINGS = [
  Preference(),
  Preference(
    beta=0.3,
    label_smoothing=0.1,
    dpop=2.0,
    ipo_length_normalised=False,
    rpo_alpha=0.3,
    nll_mean="tokens",
    kto_reference="matched",
    kto_desirable=2.0,
    simpo_beta=5.0,
    simpo_margin=0.3,
    orpo_lambda=0.7,
  ),
  Preference(kto_reference="zero", kto_undesirable=0.5, orpo_prompt=True),
]


@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.parametrize("cfg", SETTINGS)
def test_every_pair_loss_and_its_gradient_equal_a_float64_oracle(name, cfg):
  values = _pairs()
  pairs, point = _float32(values), _reference_point(values, cfg)
  loss, metrics = PAIR_LOSSES[name](pairs, cfg)
  assert float(loss) == pytest.approx(_oracle(name, values, cfg, point), rel=1e-5)
  assert {"margin", "accuracy", "chosen_log_prob", "chosen_drift", "kept"} <= metrics.keys()
  gradient = jax.grad(lambda p: PAIR_LOSSES[name](p, cfg)[0])(pairs)
  for side in ("chosen", "rejected"):
    for number, found in enumerate(getattr(gradient, side)):
      expected = _finite_difference(name, values, cfg, point, side, number)
      assert float(found) == pytest.approx(expected, abs=2e-4)
  assert not np.any(gradient.mismatched_ratio), "the reference point carries no gradient"


def test_by_default_rpo_is_not_dpo_and_simpo_has_the_beta_of_its_paper():
  pairs, cfg = _float32(_pairs()), Preference()
  rpo, _ = preference.rpo(pairs, cfg)
  dpo, _ = preference.dpo(pairs, cfg)
  assert float(rpo) > float(dpo)
  assert cfg.simpo_beta >= 2
  assert cfg.rpo_alpha == 1
  assert cfg.nll == 0


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("beta", 0.0),
    ("beta", float("nan")),
    ("label_smoothing", 0.5),
    ("nll", -1.0),
    ("rpo_alpha", 0.0),
    ("simpo_beta", -2.0),
    ("orpo_lambda", 0.0),
    ("kto_reference", "none"),
    ("nll_mean", "mean"),
  ],
)
def test_a_knob_out_of_its_range_is_refused_by_its_name(field, value):
  with pytest.raises(ConfigError, match=f"Preference.{field} is {value!r}.*; expected"):
    Preference(**{field: value})


def test_kto_without_any_weight_is_refused():
  message = "kto_undesirable is 0.0; expected above 0 where kto_desirable is 0"
  with pytest.raises(ConfigError, match=message):
    Preference(kto_desirable=0.0, kto_undesirable=0.0)


def test_log_probs_that_a_loss_reads_and_the_pairs_do_not_have_are_an_error():
  optional = ("mismatched_ratio", "mismatched", "prompt", "prompt_tokens")
  bare = _float32(_pairs())._replace(**dict.fromkeys(optional))
  with pytest.raises(ValueError, match="no mismatched responses; lay them out as branches"):
    preference.kto(bare, Preference())
  with pytest.raises(ValueError, match="no log-probs of their prompts; lay the prompts out"):
    preference.orpo(bare, Preference(orpo_prompt=True))


def test_segments_on_neither_side_are_mismatched_responses_or_the_prompt_and_padding_is_nothing():
  steps = Steps(
    log_prob=jnp.float32([-1, -2, -3, -4, -5, -6, 0]),
    reference=jnp.float32([-1.5, -2, -5, -4, -4, -9, 0]),
    tokens=jnp.float32([1, 2, 3, 4, 5, 6, 0]),
    weight=jnp.float32([1, 1, 1, 0, 0, 1, 0]),
  )
  tree_S, side_S = jnp.array([0, 0, 0, 0, 0, 1, 2]), jnp.float32([1, 1, -1, 0, 0, 1, 0])
  pairs = whole_responses(steps, tree_S, side_S, 2)
  expected = Pairs(
    chosen=[-3, -6],
    rejected=[-3, 0],
    reference_chosen=[-3.5, -9],
    reference_rejected=[-5, 0],
    chosen_tokens=[3, 6],
    rejected_tokens=[3, 0],
    weights=[1, 0],
    mismatched_ratio=[-1, 0],
    mismatched=[2, 0],
    prompt=[-9, 0],
    prompt_tokens=[9, 0],
  )
  for name, found, value in zip(Pairs._fields, pairs, expected, strict=True):
    np.testing.assert_array_equal(found, value, err_msg=name)


def test_at_the_reference_dpo_is_log_2_and_its_gradient_half_beta():
  same, ones = jnp.full(3, -7.0), jnp.ones(3)
  pairs = Pairs(same, same, same, same, chosen_tokens=ones, rejected_tokens=ones, weights=ones)

  def total(pairs):
    mean, _ = preference.dpo(pairs, Preference(beta=0.3))
    return 3 * mean

  assert float(total(pairs)) == pytest.approx(3 * np.log(2))
  gradient = jax.grad(total)(pairs)
  np.testing.assert_allclose(gradient.chosen, -0.15, rtol=1e-6)
  np.testing.assert_allclose(gradient.rejected, 0.15, rtol=1e-6)


def _steps(S=9, seed=1):
  random = np.random.default_rng(seed)
  log_prob, reference = -random.uniform(1, 9, (2, S))
  return Steps(
    log_prob=jnp.asarray(log_prob, jnp.float32),
    reference=jnp.asarray(reference, jnp.float32),
    tokens=jnp.asarray(random.integers(1, 6, S), jnp.float32),
    weight=jnp.ones(S, jnp.float32),
  )


# Two whole pairs, a pair without its rejected side, and padding.
PAIR_S = jnp.array([0, 0, 0, 1, 1, 1, 1, 2, 3])
SIGN_S = jnp.array([1, 1, -1, 1, -1, -1, 1, 1, 0.0])


def _of_whole_pairs():
  """The steps of the two whole pairs."""
  return jax.tree.map(lambda x: x[:7], (_steps(), PAIR_S, SIGN_S))


def test_per_step_dpo_with_all_weights_one_is_dpo():
  steps, pair_S, sign_S = _of_whole_pairs()
  cfg = Preference(beta=0.2)
  loss, _ = stepwise.step_dpo(steps, pair_S, sign_S, 2, cfg)
  expected, _ = preference.dpo(whole_responses(steps, pair_S, sign_S, 2), cfg)
  assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def test_per_step_dpo_with_weights_at_the_pit_alone_is_step_dpo():
  steps, pair_S, sign_S = _of_whole_pairs()
  steps = steps._replace(weight=jnp.array([0, 1, 1, 1, 1, 0, 0.0]))
  loss, metrics = stepwise.step_dpo(steps, pair_S, sign_S, 2, Preference(beta=0.2))
  ratio_S = np.asarray(steps.log_prob - steps.reference, float)
  margin_P = 0.2 * np.array([ratio_S[1] - ratio_S[2], ratio_S[3] - ratio_S[4]])
  assert float(loss) == pytest.approx(np.mean(-np.log(_sigmoid(margin_P))), rel=1e-5)
  assert float(metrics["margin"]) == pytest.approx(margin_P.mean(), rel=1e-4)


def test_the_anchor_adds_the_nll_a_token_of_all_chosen_steps_whatever_their_weights():
  steps = _steps()
  steps = steps._replace(weight=steps.weight.at[1].set(0.0))
  plain, _ = stepwise.step_dpo(steps, PAIR_S, SIGN_S, 3, Preference())
  anchored, _ = stepwise.step_dpo(steps, PAIR_S, SIGN_S, 3, Preference(nll=2.0))
  chosen = np.asarray(SIGN_S) > 0
  expected = -2.0 * float(steps.log_prob[chosen].sum() / steps.tokens[chosen].sum())
  assert float(anchored - plain) == pytest.approx(expected, rel=1e-5)


ADVANTAGE_S = jnp.array([-1, 0, 1, 5, 0, 0, 0, 0, 9.0])


def _steps_with_padding():
  """Eight steps and padding, whose advantage is the highest."""
  steps = _steps()
  return steps._replace(weight=steps.weight.at[8].set(0.0), tokens=steps.tokens.at[8].set(0.0))


def test_advantage_weights_are_clipped_normalised_and_reported():
  steps, cfg = _steps_with_padding(), Advantage(beta=0.5, clip=10.0)
  loss, metrics = stepwise.advantage_weighted(steps, ADVANTAGE_S, cfg)
  weight = np.minimum(np.exp(np.asarray(ADVANTAGE_S) / 0.5), 10.0)[:8]
  log_prob, tokens = np.asarray(steps.log_prob)[:8], np.asarray(steps.tokens)[:8]
  assert float(loss) == pytest.approx(-(weight * log_prob).sum() / tokens.sum(), rel=1e-5)
  assert float(metrics["clipped"]) == pytest.approx(1 / 8)
  cfg = Advantage(beta=0.5, clip=10.0, normalise=True)
  normalised, metrics = stepwise.advantage_weighted(steps, ADVANTAGE_S, cfg)
  assert float(metrics["step_weight"]) == pytest.approx(1.0, rel=1e-5)
  assert float(normalised) == pytest.approx(float(loss) / weight.mean(), rel=1e-5)


def test_filtered_sft_trains_on_the_steps_above_the_threshold_alone():
  steps = _steps_with_padding()
  loss, metrics = stepwise.filtered(steps, ADVANTAGE_S, Advantage(threshold=0.5))
  log_prob, tokens = steps.log_prob[2:4].sum(), steps.tokens[2:4].sum()
  assert float(loss) == pytest.approx(-float(log_prob / tokens), rel=1e-5)
  assert float(metrics["kept"]) == pytest.approx(2 / 8)


def _optimum(reference, advantage, beta):
  weights = reference * np.exp(advantage / beta)
  return weights / weights.sum()


def _minimise(loss, actions, steps=4000):
  import optax

  optimizer = optax.adam(optax.cosine_decay_schedule(0.05, steps))
  logits = jnp.zeros(actions)
  state = optimizer.init(logits)

  @jax.jit
  def update(logits, state):
    updates, state = optimizer.update(jax.grad(loss)(logits), state)
    return optax.apply_updates(logits, updates), state

  for _ in range(steps):
    logits, state = update(logits, state)
  return np.asarray(jax.nn.softmax(logits))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_dpo_on_pairs_labelled_by_advantage_and_advantage_weighted_rl_have_one_optimum(seed):
  """All pairs of six actions with their exact probabilities: no sampling error is left."""
  random = np.random.default_rng(seed)
  A, beta = 6, 1.0
  reference_A, advantage_A = random.dirichlet(np.ones(A)), random.normal(size=A)
  first, second = np.divmod(np.arange(A * A), A)
  log_reference_A = jnp.asarray(np.log(reference_A), jnp.float32)

  def optimum_of_dpo(pair_weights):
    weights, ones = jnp.asarray(pair_weights, jnp.float32), jnp.ones(A * A)

    def dpo(logits):
      log_prob_A = jax.nn.log_softmax(logits)
      pairs = Pairs(
        chosen=log_prob_A[first],
        rejected=log_prob_A[second],
        reference_chosen=log_reference_A[first],
        reference_rejected=log_reference_A[second],
        chosen_tokens=ones,
        rejected_tokens=ones,
        weights=weights,
      )
      loss, _ = preference.dpo(pairs, Preference(beta=beta))
      return loss

    return _minimise(dpo, A)

  def awr(logits):
    # Each action as often as the reference takes it.
    weight_A = jnp.asarray(reference_A, jnp.float32)
    steps = Steps(jax.nn.log_softmax(logits), log_reference_A, jnp.ones(A), weight_A)
    cfg = Advantage(beta=beta, clip=1e9)
    loss, _ = stepwise.advantage_weighted(steps, jnp.asarray(advantage_A, jnp.float32), cfg)
    return loss

  expected = _optimum(reference_A, advantage_A, beta)

  def distance(policy):
    return 0.5 * np.abs(policy - expected).sum()

  wins = _sigmoid(advantage_A[first] - advantage_A[second])
  labelled = reference_A[first] * reference_A[second] * wins  # drawn i.i.d., then labelled
  assert distance(optimum_of_dpo(labelled)) < 1e-3
  assert distance(_minimise(awr, A)) < 1e-3
  # The winner drawn in proportion to sigma, after its loser: another distribution of pairs, another
  # optimum.
  wins_over = np.array([wins[second == loser].sum() for loser in second])
  assert distance(optimum_of_dpo(reference_A[second] * wins / wins_over)) > 0.2


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_no_loss_gives_a_nan_for_padding_or_extreme_sums(name):
  extreme = jnp.array([-1e4, -1e-7, 0.0])
  tokens, weights = jnp.array([10.0, 1, 0]), jnp.array([1.0, 1, 0])
  pairs = Pairs(
    chosen=extreme,
    rejected=extreme[::-1],
    reference_chosen=extreme,
    reference_rejected=extreme,
    chosen_tokens=tokens,
    rejected_tokens=tokens,
    weights=weights,
    mismatched_ratio=extreme,
    mismatched=weights,
  )

  def loss(chosen):
    return PAIR_LOSSES[name](pairs._replace(chosen=chosen), Preference())[0]

  value, gradient = jax.value_and_grad(loss)(extreme)
  assert np.isfinite(value)
  assert np.all(np.isfinite(gradient))
