"""Drawing a token from logits: greedy, or by temperature with top-k, top-p and min-p.

A block of ids is drawn by the Gumbel-max trick, then an id of it by inverting its cumulative
probabilities. That takes V / 64 + 1 random numbers instead of V. A rounding error changes a draw
about as rarely as with V of them, and 100 times more rarely than where one number inverts all of
V.

Shapes: S sequences, V vocabulary, U blocks of the vocabulary, J ids of a block.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_BLOCK = 64  # ids of a block


class Filters(NamedTuple):
  """Of every sequence, [S]."""

  temperature: jax.Array  # float32; 0: greedy
  top_k: jax.Array  # int32; 0: all
  top_p: jax.Array  # float32; 1: all
  min_p: jax.Array  # float32; 0: all


def draw(
  logits_SV: jax.Array, key_S: jax.Array, filters: Filters, size: int
) -> tuple[jax.Array, jax.Array]:
  """Draws a token for every sequence.

  Args:
    logits_SV: float32.
    key_S: of each sequence; a token depends on its own row alone.
    filters: in the order temperature, top-k, top-p, min-p; ids that tie with the last one kept are
      kept too.
    size: ids from here on are never drawn (the vocabulary is rounded up).

  Returns:
    (token, its log-prob under the untempered, unfiltered policy), both [S].
  """
  known_SV = jnp.where((jnp.arange(logits_SV.shape[1]) < size)[None], logits_SV, -jnp.inf)
  highest_S1 = known_SV.max(-1, keepdims=True)
  scaled_SV = (known_SV - highest_S1) / jnp.maximum(filters.temperature, 1e-6)[:, None]
  filtering = jnp.any((filters.top_k > 0) | (filters.top_p < 1) | (filters.min_p > 0))
  scaled_SV = jax.lax.cond(filtering, lambda: _filtered(scaled_SV, filters), lambda: scaled_SV)
  # Two plain reductions: argmax, a reduction over pairs, takes XLA on CPU 20 times as long.
  candidates_SV = jnp.where(known_SV == highest_S1, jnp.arange(known_SV.shape[1])[None], size - 1)
  greedy_S = jnp.min(candidates_SV, axis=-1)
  token_S = jnp.where(filters.temperature > 0, _weighted(jnp.exp(scaled_SV), key_S), greedy_S)
  chosen_S = jnp.take_along_axis(logits_SV, token_S[:, None], axis=1)[:, 0]
  return token_S.astype(jnp.int32), chosen_S - jax.nn.logsumexp(logits_SV, axis=-1)


def _filtered(scaled_SV, filters):
  """-inf where an id is filtered out; `scaled_SV` has a maximum of 0."""
  ordered_SV = -jnp.sort(-scaled_SV, axis=-1)
  top_k_S = jnp.where(filters.top_k > 0, filters.top_k, ordered_SV.shape[1])
  in_top_k_SV = jnp.arange(ordered_SV.shape[1])[None] < top_k_S[:, None]
  kept_SV = jnp.where(in_top_k_SV, ordered_SV, -jnp.inf)
  probability_SV = jax.nn.softmax(kept_SV, axis=-1)
  before_SV = jnp.cumsum(probability_SV, axis=-1) - probability_SV
  # The most probable id is always kept: it has 0 before it.
  kept_SV = jnp.where(before_SV < filters.top_p[:, None], kept_SV, jnp.inf)
  last_kept_S = jnp.min(jnp.where(kept_SV == -jnp.inf, jnp.inf, kept_SV), axis=-1)
  least_S = jnp.maximum(last_kept_S, jnp.log(filters.min_p))
  return jnp.where(scaled_SV >= least_S[:, None], scaled_SV, -jnp.inf)


def _weighted(weights_SV, key_S):
  """An id with probability proportional to its weight."""
  S, V = weights_SV.shape
  weights_SUJ = jnp.pad(weights_SV, ((0, 0), (0, -V % _BLOCK))).reshape(S, -1, _BLOCK)
  key_S2 = jax.vmap(jax.random.split)(key_S)
  noise_SU = jax.vmap(lambda key: jax.random.gumbel(key, weights_SUJ.shape[1:2]))(key_S2[:, 0])
  block_S = jnp.argmax(jnp.log(weights_SUJ.sum(-1)) + noise_SU, axis=-1)
  inside_SJ = jnp.take_along_axis(weights_SUJ, block_S[:, None, None], axis=1)[:, 0]
  return block_S * _BLOCK + _inverse(inside_SJ, jax.vmap(jax.random.uniform)(key_S2[:, 1]))


def _inverse(weights_SJ, uniform_S):
  """Where the cumulative weights pass `uniform` of their sum; never at a weight of 0."""
  upto_SJ = jnp.cumsum(weights_SJ, axis=-1)
  passed_S = jnp.sum(upto_SJ <= uniform_S[:, None] * upto_SJ[:, -1:], axis=-1)
  # The last weight above 0, for a uniform number that rounding takes past all of them.
  last_S = weights_SJ.shape[1] - 1 - jnp.argmax(weights_SJ[:, ::-1] > 0, axis=-1)
  return jnp.minimum(passed_S, last_S)
