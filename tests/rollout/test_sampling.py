"""Drawing tokens.

Shapes: S sequences, V vocabulary, J ids of a block.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synthjax.config.credit import Sampling
from synthjax.rollout import sampling
from synthjax.rollout.sampling import Filters, draw

_draw = jax.jit(draw, static_argnums=3)


@pytest.fixture(autouse=True, scope="module")
def _compiled_fast():
  """Compiled fast instead of well: nearly all the time of these tests is the compiler's."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


def _oracle(logits_V, settings):
  """Probabilities in float64, by sorting and cutting."""
  scaled = logits_V.astype(np.float64) / settings.temperature
  weights = np.exp(scaled - scaled.max())
  order = np.argsort(-weights, kind="stable")
  if settings.top_k:
    weights[order[settings.top_k :]] = 0
  weights /= weights.sum()
  total, kept = 0.0, np.zeros(len(weights), bool)
  for i in order:
    if total < settings.top_p and weights[i] > 0:
      kept[i] = True
    total += weights[i]
  kept &= weights >= settings.min_p * weights.max()
  weights = np.where(kept, weights, 0)
  return weights / weights.sum()


@pytest.mark.parametrize(
  "settings",
  [
    Sampling(),
    Sampling(temperature=0.5),
    Sampling(temperature=2.0),
    Sampling(top_k=1),
    Sampling(top_k=7),
    Sampling(top_p=0.8),
    Sampling(min_p=0.2),
    Sampling(temperature=1.5, top_k=20, top_p=0.9, min_p=0.05),
    Sampling(temperature=0.3, top_p=0.05),
  ],
  ids=str,
)
def test_tokens_are_drawn_with_the_probabilities_of_a_float64_oracle(settings):
  size, V, count = 150, 192, 40_000
  logits_V = np.random.default_rng(0).normal(size=V).astype(np.float32) * 2
  logits_V[size:] = 50.0  # ids that are never drawn
  expected_V = np.append(_oracle(logits_V[:size], settings), np.zeros(V - size))
  fill = lambda value, dtype: jnp.full(count, value, dtype)
  filters = Filters(
    fill(settings.temperature, jnp.float32),
    fill(settings.top_k, jnp.int32),
    fill(settings.top_p, jnp.float32),
    fill(settings.min_p, jnp.float32),
  )
  key_S = jax.random.split(jax.random.key(1), count)
  token_S, log_prob_S = _draw(jnp.tile(logits_V, (count, 1)), key_S, filters, size)
  found_V = np.bincount(token_S, minlength=V)
  assert not found_V[expected_V == 0].any()
  likely = expected_V * count >= 5
  # A chi-squared test at five standard deviations.
  mean_V = expected_V * count
  statistic = (((found_V - mean_V) ** 2)[likely] / mean_V[likely]).sum()
  degrees = max(1, likely.sum() - 1)
  assert statistic < degrees + 5 * np.sqrt(2 * degrees)
  exact_V = logits_V.astype(np.float64)
  exact_V -= np.log(np.exp(exact_V).sum())
  np.testing.assert_allclose(log_prob_S, exact_V[np.asarray(token_S)], atol=2e-5)


def test_no_id_of_weight_zero_is_drawn_even_at_the_ends():
  weights_SJ = jnp.zeros((4, 64)).at[:, jnp.array([5, 30, 41])].set(0.1)
  drawn_S = sampling._inverse(weights_SJ, jnp.array([0.0, 0.5, 1 - 2**-24, 1.0]))
  assert drawn_S.tolist() == [5, 30, 41, 41]
  one = jax.nn.one_hot(jnp.array([70, 191, 0]), 192)
  assert sampling._weighted(one, jax.random.split(jax.random.key(0), 3)).tolist() == [70, 191, 0]


def test_sequences_of_one_call_have_their_own_settings():
  logits_SV = jnp.tile(jnp.arange(64.0) / 8, (3, 1))
  filters = Filters(jnp.array([0.0, 1.0, 1.0]), jnp.array([0, 2, 0]), jnp.ones(3), jnp.zeros(3))
  tokens = []
  for key in jax.random.split(jax.random.key(0), 50):
    token_S, _ = _draw(logits_SV, jax.random.split(key, 3), filters, 60)
    tokens.append(token_S.tolist())
  greedy, of_two, of_all = zip(*tokens)
  assert set(greedy) == {59}
  assert set(of_two) == {58, 59}
  assert len(set(of_all)) > 15
