"""Drawing a token from logits: greedy, or by temperature with top-k, top-p and min-p.

One uniform number a sequence is enough: the token is found by inverting the cumulated probabilities, block by block.

Shapes: S sequences, V vocabulary, U blocks of the vocabulary, J ids of a block.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_BLOCK = 64
_BELOW_ONE = 1 - 2.0**-22


class Filters(NamedTuple):
  """Of every sequence, [S]."""

  temperature: jax.Array  # float32; 0: greedy
  top_k: jax.Array  # int32; 0: all
  top_p: jax.Array  # float32; 1: all
  min_p: jax.Array  # float32; 0: all


def draw(logits_SV: jax.Array, uniform_S: jax.Array, filters: Filters, size: int) -> tuple[jax.Array, jax.Array]:
  """(token, its log-prob) of every sequence. The log-prob is that of the untempered, unfiltered policy.

  Args:
    logits_SV: float32.
    uniform_S: in [0, 1).
    filters: in the order temperature, top-k, top-p, min-p; ids that tie with the last one kept are kept too.
    size: ids from here on are never drawn (the vocabulary is rounded up).
  """
  known_SV = jnp.where(jnp.arange(logits_SV.shape[1]) < size, logits_SV, -jnp.inf)
  scaled_SV = (known_SV - known_SV.max(-1, keepdims=True)) / jnp.maximum(filters.temperature, 1e-6)[:, None]
  filtering = jnp.any((filters.top_k > 0) | (filters.top_p < 1) | (filters.min_p > 0))
  scaled_SV = jax.lax.cond(filtering, lambda: _filtered(scaled_SV, filters), lambda: scaled_SV)
  token_S = jnp.where(filters.temperature > 0, _inverse(jnp.exp(scaled_SV), uniform_S), jnp.argmax(known_SV, axis=-1))
  chosen_S = jnp.take_along_axis(logits_SV, token_S[:, None], axis=1)[:, 0]
  return token_S.astype(jnp.int32), chosen_S - jax.nn.logsumexp(logits_SV, axis=-1)


def _filtered(scaled_SV, filters):
  """-inf where an id is filtered out; `scaled_SV` has a maximum of 0."""
  ordered_SV = -jnp.sort(-scaled_SV, axis=-1)
  top_k_S = jnp.where(filters.top_k > 0, filters.top_k, ordered_SV.shape[1])
  kept_SV = jnp.where(jnp.arange(ordered_SV.shape[1]) < top_k_S[:, None], ordered_SV, -jnp.inf)
  probability_SV = jax.nn.softmax(kept_SV, axis=-1)
  before_SV = jnp.cumsum(probability_SV, axis=-1) - probability_SV
  kept_SV = jnp.where(before_SV < filters.top_p[:, None], kept_SV, jnp.inf)  # the first one always has 0 before it
  least_S = jnp.maximum(jnp.min(jnp.where(kept_SV == -jnp.inf, jnp.inf, kept_SV), axis=-1), jnp.log(filters.min_p))
  return jnp.where(scaled_SV >= least_S[:, None], scaled_SV, -jnp.inf)


def _inverse(weights_SV, uniform_S):
  """The id at which the cumulated weights pass `uniform` of their sum; never one of weight 0."""
  S, V = weights_SV.shape
  weights_SUJ = jnp.pad(weights_SV, ((0, 0), (0, -V % _BLOCK))).reshape(S, -1, _BLOCK)
  upto_SU = jnp.cumsum(weights_SUJ.sum(-1), axis=-1)
  goal_S = jnp.minimum(uniform_S, _BELOW_ONE) * upto_SU[:, -1]
  block_S = jnp.sum(upto_SU <= goal_S[:, None], axis=-1)
  inside_SJ = jnp.take_along_axis(weights_SUJ, block_S[:, None, None], axis=1)[:, 0]
  before_S = jnp.take_along_axis(upto_SU, block_S[:, None], axis=1)[:, 0] - inside_SJ.sum(-1)
  passed_SJ = jnp.cumsum(inside_SJ, axis=-1) <= (goal_S - before_S)[:, None]
  last_S = _BLOCK - 1 - jnp.argmax(inside_SJ[:, ::-1] > 0, axis=-1)  # where rounding passes them all
  return block_S * _BLOCK + jnp.minimum(passed_SJ.sum(-1), last_S)
