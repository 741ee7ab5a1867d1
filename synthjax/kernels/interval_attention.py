"""Attention under the one mask: key j is visible to query i iff j <= i < until[j].

Packed documents, a prompt that several branches share and a whole tree of rollouts laid out depth first are all this rule.

Shapes: B batch, T queries and keys, H query heads, G key/value heads, R = H / G, K head dim.
"""

import jax
import jax.numpy as jnp
import numpy as np


@jax.named_scope("interval_attention")
def interval_attention(q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGK: jax.Array, until_BT: jax.Array) -> jax.Array:
  """Causal attention over intervals, grouped-query, scaled by K^-1/2; softmax in float32.

  Args:
    q_BTHK: queries; H is a multiple of G.
    k_BTGK: keys.
    v_BTGK: values.
    until_BT: int32, above its own index everywhere (filler: index + 1, it sees itself alone); see `check_until`.

  Returns:
    Array [B, T, H, K] of the queries' type.
  """
  B, T, H, K = q_BTHK.shape
  G = k_BTGK.shape[2]
  q_BTGRK = q_BTHK.reshape(B, T, G, H // G, K) * K**-0.5
  scores_BGRTS = jnp.einsum("btgrk,bsgk->bgrts", q_BTGRK, k_BTGK, preferred_element_type=jnp.float32)
  index_T = jnp.arange(T)
  visible_BTS = (index_T <= index_T[:, None]) & (index_T[:, None] < until_BT[:, None, :])
  scores_BGRTS = jnp.where(visible_BTS[:, None, None], scores_BGRTS, jnp.finfo(jnp.float32).min)
  weights_BGRTS = jax.nn.softmax(scores_BGRTS, axis=-1).astype(v_BTGK.dtype)
  return jnp.einsum("bgrts,bsgk->btgrk", weights_BGRTS, v_BTGK).reshape(B, T, H, K)


def check_until(until_BT: np.ndarray) -> None:
  """Raises ValueError with the row and the value where `until` is not beyond its own index (such a token would see nothing)."""
  until_BT = np.asarray(until_BT)
  bad = np.argwhere(until_BT <= np.arange(until_BT.shape[1]))
  if len(bad):
    row, index = bad[0]
    raise ValueError(f"until[{row}, {index}] is {until_BT[row, index]}; expected more than its own index {index}: "
                     "a token is visible at least to itself")
