"""Losses against float64 NumPy, and the theorem of the design on a tabular policy. Shapes: P pairs, S steps, A actions."""

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
  """Float64 values of `Pairs`, the last one filler."""
  random = np.random.default_rng(seed)
  sums = -random.uniform(1, 30, (4, P))
  tokens = random.integers(3, 20, (2, P)).astype(float)
  mismatched = np.full(P, 2.0)
  ratios = random.uniform(0, 5, P)
  weights = np.ones(P)
  weights[-1] = mismatched[-1] = ratios[-1] = 0.0
  prompt = -random.uniform(5, 9, P)
  return Pairs(
    *sums,
    *tokens,
    weights,
    ratios,
    mismatched,
    prompt,
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
  c, r, nc, nr, w = (
    pairs.chosen,
    pairs.rejected,
    pairs.chosen_tokens,
    pairs.rejected_tokens,
    pairs.weights,
  )
  rc, rr, b = c - pairs.reference_chosen, r - pairs.reference_rejected, cfg.beta

  def smooth(m):
    return -(1 - cfg.label_smoothing) * np.log(_sigmoid(m)) - cfg.label_smoothing * np.log(
      _sigmoid(-m)
    )

  def mean(x):
    return (x * w).sum() / w.sum()

  def nll(c, nc):
    return mean(-c / nc) if cfg.nll_mean == "responses" else -(c * w).sum() / (nc * w).sum()

  learned = (c + pairs.prompt, nc + pairs.prompt_tokens) if cfg.orpo_prompt else (c, nc)
  h = rc / nc - rr / nr if cfg.ipo_length_normalised else rc - rr
  good = cfg.kto_desirable * (1 - _sigmoid(b * (rc - point)))
  bad = cfg.kto_undesirable * (1 - _sigmoid(b * (point - rr)))
  return {
    "dpo": mean(smooth(b * (rc - rr))),
    "ipo": mean((h - 1 / (2 * b)) ** 2),
    "dpop": mean(smooth(b * (rc - rr - cfg.dpop * np.maximum(0, -rc)))),
    "rpo": mean(smooth(b * (rc - rr))) + cfg.rpo_alpha * nll(c, nc),
    "kto": mean(good + bad) / 2,
    "simpo": mean(smooth(cfg.simpo_beta * (c / nc - r / nr) - cfg.simpo_margin)),
    "orpo": nll(*learned)
    - cfg.orpo_lambda * mean(np.log(_sigmoid(_log_odds(c / nc) - _log_odds(r / nr)))),
  }[name]


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
    for p in range(len(values.chosen)):
      step = np.zeros(len(values.chosen))
      step[p] = 1e-5
      above, below = (
        _oracle(name, values._replace(**{side: getattr(values, side) + by}), cfg, point)
        for by in (step, -step)
      )
      assert float(getattr(gradient, side)[p]) == pytest.approx((above - below) / 2e-5, abs=2e-4)
  assert not np.any(gradient.mismatched_ratio), "the reference point carries no gradient"


def test_by_default_rpo_is_not_dpo_and_simpo_has_the_beta_of_its_paper():
  values = _float32(_pairs())
  assert float(preference.rpo(values, Preference())[0]) > float(
    preference.dpo(values, Preference())[0]
  )
  assert Preference().simpo_beta >= 2 and Preference().rpo_alpha == 1 and Preference().nll == 0


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
  with pytest.raises(
    ConfigError, match="kto_undesirable is 0.0; expected above 0 where kto_desirable is 0"
  ):
    Preference(kto_desirable=0.0, kto_undesirable=0.0)


def test_log_probs_that_a_loss_is_to_read_and_the_pairs_do_not_have_are_an_error():
  bare = Pairs(*_float32(_pairs())[:7])
  with pytest.raises(
    ValueError, match="these pairs have no mismatched responses; lay them out as branches"
  ):
    preference.kto(bare, Preference())
  with pytest.raises(
    ValueError, match="these pairs have no log-probs of their prompts; lay the prompts out"
  ):
    preference.orpo(bare, Preference(orpo_prompt=True))


def test_segments_on_neither_side_are_mismatched_responses_or_the_prompt_and_filler_is_nothing():
  steps = Steps(
    *(
      jnp.float32(x)
      for x in (
        [-1, -2, -3, -4, -5, -6, 0],
        [-1.5, -2, -5, -4, -4, -9, 0],
        [1, 2, 3, 4, 5, 6, 0],
        [1, 1, 1, 0, 0, 1, 0],
      )
    )
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
  same = jnp.full(3, -7.0)
  pairs = Pairs(same, same, same, same, jnp.ones(3), jnp.ones(3), jnp.ones(3))
  cfg = Preference(beta=0.3)
  assert float(preference.dpo(pairs, cfg)[0]) == pytest.approx(np.log(2))
  chosen, rejected = jax.grad(
    lambda c, r: preference.dpo(pairs._replace(chosen=c, rejected=r), cfg)[0] * 3, (0, 1)
  )(same, same)
  np.testing.assert_allclose(chosen, -0.15, rtol=1e-6)
  np.testing.assert_allclose(rejected, 0.15, rtol=1e-6)


def _steps(S=9, seed=1):
  random = np.random.default_rng(seed)
  log_prob, reference = -random.uniform(1, 9, (2, S))
  return Steps(
    *(
      jnp.asarray(x, jnp.float32)
      for x in (log_prob, reference, random.integers(1, 6, S), np.ones(S))
    )
  )


PAIR_S, SIGN_S = jnp.array([0, 0, 0, 1, 1, 1, 1, 2, 3]), jnp.array([1, 1, -1, 1, -1, -1, 1, 1, 0.0])


def test_per_step_dpo_with_all_weights_one_is_dpo_and_one_hot_is_step_dpo():
  steps, cfg = _steps(), Preference(beta=0.2)
  pair, sign = PAIR_S[:7], SIGN_S[:7]
  first = Steps(*(x[:7] for x in steps))
  loss, _ = stepwise.step_dpo(first, pair, sign, 2, cfg)
  of = lambda values, side: jax.ops.segment_sum(
    jnp.where(sign == side, values, 0), pair, num_segments=2
  )
  whole = Pairs(
    of(first.log_prob, 1),
    of(first.log_prob, -1),
    of(first.reference, 1),
    of(first.reference, -1),
    of(first.tokens, 1),
    of(first.tokens, -1),
    jnp.ones(2),
  )
  assert float(loss) == pytest.approx(float(preference.dpo(whole, cfg)[0]), rel=1e-6)
  pit = jnp.array([0, 1, 1, 1, 1, 0, 0.0])
  loss, metrics = stepwise.step_dpo(first._replace(weight=pit), pair, sign, 2, cfg)
  ratio = np.asarray(first.log_prob - first.reference, float)
  margins = 0.2 * np.array([ratio[1] - ratio[2], ratio[3] - ratio[4]])
  assert float(loss) == pytest.approx(np.mean(-np.log(_sigmoid(margins))), rel=1e-5)
  assert float(metrics["margin"]) == pytest.approx(margins.mean(), rel=1e-4)


def test_the_anchor_adds_the_nll_a_token_of_all_chosen_steps_whatever_their_weights():
  steps = _steps()
  steps = steps._replace(weight=steps.weight.at[1].set(0.0))
  plain, _ = stepwise.step_dpo(steps, PAIR_S, SIGN_S, 3, Preference())
  anchored, _ = stepwise.step_dpo(steps, PAIR_S, SIGN_S, 3, Preference(nll=2.0))
  chosen = np.asarray(SIGN_S) > 0
  expected = -2.0 * float(steps.log_prob[chosen].sum() / steps.tokens[chosen].sum())
  assert float(anchored - plain) == pytest.approx(expected, rel=1e-5)


def test_advantage_weights_are_clipped_normalised_and_reported():
  steps, advantage = _steps(), jnp.array([-1, 0, 1, 5, 0, 0, 0, 0, 9.0])
  steps = steps._replace(weight=jnp.append(jnp.ones(8), 0.0), tokens=steps.tokens.at[8].set(0.0))
  loss, metrics = stepwise.advantage_weighted(steps, advantage, Advantage(beta=0.5, clip=10.0))
  weight = np.minimum(np.exp(np.asarray(advantage) / 0.5), 10.0)[:8]
  assert float(loss) == pytest.approx(
    -(weight * np.asarray(steps.log_prob)[:8]).sum() / np.asarray(steps.tokens)[:8].sum(), rel=1e-5
  )
  assert float(metrics["clipped"]) == pytest.approx(1 / 8)
  normalised, metrics = stepwise.advantage_weighted(
    steps, advantage, Advantage(beta=0.5, clip=10.0, normalise=True)
  )
  assert float(metrics["step_weight"]) == pytest.approx(1.0, rel=1e-5)
  assert float(normalised) == pytest.approx(float(loss) / weight.mean(), rel=1e-5)
  kept, metrics = stepwise.filtered(steps, advantage, Advantage(threshold=0.5))
  assert float(kept) == pytest.approx(
    -float(steps.log_prob[2:4].sum() / steps.tokens[2:4].sum()), rel=1e-5
  )
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
  reference, advantage = random.dirichlet(np.ones(A)), random.normal(size=A)
  first, second = (x.ravel() for x in np.meshgrid(np.arange(A), np.arange(A), indexing="ij"))
  log_reference = jnp.asarray(np.log(reference), jnp.float32)

  def dpo(pair_weights):
    def loss(logits):
      log_prob = jax.nn.log_softmax(logits)
      ones = jnp.ones(len(first))
      return preference.dpo(
        Pairs(
          log_prob[first],
          log_prob[second],
          log_reference[first],
          log_reference[second],
          ones,
          ones,
          jnp.asarray(pair_weights, jnp.float32),
        ),
        Preference(beta=beta),
      )[0]

    return _minimise(loss, A)

  def awr(logits):
    log_prob, one = jax.nn.log_softmax(logits), jnp.asarray(reference, jnp.float32)
    steps = Steps(
      log_prob, log_reference, jnp.ones(A), one
    )  # each action as often as the reference takes it
    return stepwise.advantage_weighted(
      steps, jnp.asarray(advantage, jnp.float32), Advantage(beta=beta, clip=1e9)
    )[0]

  expected = _optimum(reference, advantage, beta)
  apart = lambda policy: 0.5 * np.abs(policy - expected).sum()
  wins = _sigmoid(advantage[first] - advantage[second])
  labelled = reference[first] * reference[second] * wins  # drawn i.i.d., then labelled
  assert apart(dpo(labelled)) < 1e-3
  assert apart(_minimise(awr, A)) < 1e-3
  # The winner drawn in proportion to sigma, its loser after it: another distribution of pairs, another optimum.
  drawn = reference[second] * wins / np.array([wins[second == b].sum() for b in second])
  assert apart(dpo(drawn)) > 0.2


def test_no_loss_gives_a_nan_for_filler_or_extreme_sums():
  huge = jnp.array([-1e4, -1e-7, 0.0])
  tokens, weights = jnp.array([10.0, 1, 0]), jnp.array([1.0, 1, 0])
  pairs = Pairs(
    huge, huge[::-1], huge, huge, tokens, tokens, weights, mismatched_ratio=huge, mismatched=weights
  )
  for name, loss in PAIR_LOSSES.items():
    value, gradient = jax.value_and_grad(
      lambda c, loss=loss: loss(pairs._replace(chosen=c), Preference())[0]
    )(huge)
    assert np.isfinite(value) and np.all(np.isfinite(gradient)), name
