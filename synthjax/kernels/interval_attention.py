"""Attention under the one mask: key j is visible to query i iff j <= i < until[j].

Packed documents, a prompt that several branches share and a whole tree of rollouts laid out depth
first are all this rule.

Shapes: B batch, T queries and keys, H query heads, G key/value heads, R = H / G, K head dim,
Q queries and S keys of a block.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# The XLA path unrolls over blocks of queries: 64 was the fastest on CPU at 512 tokens (3.4x the
# whole matrix), 16 bounds what is compiled.
_LEAST_BLOCK, _MOST_BLOCKS = 64, 16


@jax.named_scope("interval_attention")
def interval_attention(
  q_BTHK: jax.Array,
  k_BTGK: jax.Array,
  v_BTGK: jax.Array,
  until_BT: jax.Array,
  positions_BT: jax.Array | None = None,
  window: int = 0,
  soft_cap: float = 0.0,
) -> jax.Array:
  """Causal attention over intervals, grouped-query, scaled by K^-1/2; softmax in float32.

  Args:
    q_BTHK: queries; H is a multiple of G.
    k_BTGK: keys.
    v_BTGK: values.
    until_BT: int32, above its own index everywhere (padding: index + 1, it sees itself alone); see
      `check_until`.
    positions_BT: int32, of every token in its own document or path; needed with a window.
    window: a second bound on the same rule: a key is visible to queries less than this many
      positions after it; 0: to all.
    soft_cap: scores become cap * tanh(scores / cap); 0: none.

  Returns:
    Array [B, T, H, K] of the queries' type.

  Raises:
    ValueError: a window without positions.
  """
  if window and positions_BT is None:
    raise ValueError(
      f"interval_attention: a window of {window} needs positions_BT: places in a row are not "
      "positions in a tree"
    )
  if positions_BT is None:
    positions_BT = until_BT  # not read without a window
  B, T, H, K = q_BTHK.shape
  G = k_BTGK.shape[2]
  q_BGRTK = jnp.moveaxis(q_BTHK.reshape(B, T, G, H // G, K), 1, 3) * K**-0.5
  k_BGTK, v_BGTK = jnp.moveaxis(k_BTGK, 1, 2), jnp.moveaxis(v_BTGK, 1, 2)
  # A block of queries reads the keys up to its own end alone: half the work at many blocks, and a
  # score matrix that fits a cache.
  block = max(_LEAST_BLOCK, -(-T // _MOST_BLOCKS))
  # Scores are recomputed in the backward pass: as fast, and no matrix of them is kept.
  one_block = jax.checkpoint(_block, static_argnums=5)
  out = []
  for start in range(0, T, block):
    end = start + block
    mixed_BGRQK = one_block(
      q_BGRTK[:, :, :, start:end],
      k_BGTK[:, :, :end],
      v_BGTK[:, :, :end],
      until_BT[:, :end],
      positions_BT[:, :end],
      _Bounds(start, window, soft_cap),
    )
    out.append(mixed_BGRQK)
  return jnp.moveaxis(jnp.concatenate(out, axis=3), 3, 1).reshape(B, T, H, K)


class _Bounds(NamedTuple):
  """Of one block of queries; known when it is traced."""

  start: int  # the first query
  window: int
  soft_cap: float


def _block(q_BGRQK, k_BGSK, v_BGSK, until_BS, positions_BS, bounds: _Bounds):
  """The queries start, start + 1, ... against the keys up to the last of them."""
  start, window, soft_cap = bounds
  scores_BGRQS = jnp.einsum(
    "bgrqk,bgsk->bgrqs", q_BGRQK, k_BGSK, preferred_element_type=jnp.float32
  )
  if soft_cap:
    scores_BGRQS = soft_cap * jnp.tanh(scores_BGRQS / soft_cap)
  # Indices in the row, which `until` counts in; a window counts in positions.
  query_1Q1 = start + jnp.arange(q_BGRQK.shape[3])[None, :, None]
  key_11S = jnp.arange(k_BGSK.shape[2])[None, None]
  visible_BQS = (key_11S <= query_1Q1) & (query_1Q1 < until_BS[:, None, :])
  if window:
    visible_BQS &= positions_BS[:, start:, None] - positions_BS[:, None, :] < window
  scores_BGRQS = jnp.where(visible_BQS[:, None, None], scores_BGRQS, jnp.finfo(jnp.float32).min)
  highest_BGRQ1 = jax.lax.stop_gradient(jnp.max(scores_BGRQS, axis=-1, keepdims=True))
  weights_BGRQS = jnp.exp(scores_BGRQS - highest_BGRQ1)
  total_BGRQ1 = jnp.sum(weights_BGRQS, axis=-1, keepdims=True)
  mixed = jnp.einsum(
    "bgrqs,bgsk->bgrqk",
    weights_BGRQS.astype(v_BGSK.dtype),
    v_BGSK,
    preferred_element_type=jnp.float32,
  )
  return (mixed / total_BGRQ1).astype(v_BGSK.dtype)


def check_until(until_BT: np.ndarray) -> None:
  """Raises ValueError, with row and value, where `until` is not beyond its own index.

  Such a token would see nothing, and a softmax over nothing is NaN.
  """
  until_BT = np.asarray(until_BT)
  bad = np.argwhere(until_BT <= np.arange(until_BT.shape[1]))
  if len(bad):
    row, index = bad[0]
    raise ValueError(
      f"until[{row}, {index}] is {until_BT[row, index]}; expected more than its own index {index}: "
      "a token is visible at least to itself"
    )
