"""`synthjax bench attention`: interval attention beside jax.nn.dot_product_attention with the same
mask, forward and backward; JSON.

Shapes: B batch, T tokens, H heads, K head dim.
"""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from synthjax.bench import beside
from synthjax.kernels.interval_attention import interval_attention

_DOCUMENT_TOKENS = 180
# (B, T, H, K)
_SHAPES = ((16, 512, 4, 32), (2, 2048, 8, 64))


def run(seconds: float) -> None:
  """Prints seconds, temporary memory and ratios for packed documents at two sequence lengths."""
  results = [_compare(*shape, seconds / 2) for shape in _SHAPES]
  print(json.dumps(results, indent=2))


def _compare(B: int, T: int, H: int, K: int, seconds: float) -> dict[str, Any]:
  keys = jax.random.split(jax.random.key(0), 3)
  q_BTHK, k_BTHK, v_BTHK = (jax.random.normal(key, (B, T, H, K)) for key in keys)
  index_T = np.arange(T)
  until_T = np.minimum((index_T // _DOCUMENT_TOKENS + 1) * _DOCUMENT_TOKENS, T)
  until_BT = jnp.asarray(np.tile(until_T, (B, 1)), jnp.int32)
  causal_TT = index_T <= index_T[:, None]
  mask_BTT = causal_TT & (index_T[:, None] < until_BT[:, None, :])

  def peer(q, k, v):
    attended = jax.nn.dot_product_attention(q, k, v, mask=mask_BTT[:, None])
    return jnp.sin(attended).sum()

  def ours(q, k, v):
    return jnp.sin(interval_attention(q, k, v, until_BT)).sum()

  losses = {"dot_product_attention": peer, "interval": ours}
  return {
    "shape": [B, T, H, K],
    "peer": f"jax.nn.dot_product_attention, jax {jax.__version__}",
    **beside.gradients(losses, (q_BTHK, k_BTHK, v_BTHK), seconds),
  }
