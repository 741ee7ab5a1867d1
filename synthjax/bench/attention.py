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
  q_key, k_key, v_key = jax.random.split(jax.random.key(0), 3)
  q_BTHK = jax.random.normal(q_key, (B, T, H, K))
  k_BTHK = jax.random.normal(k_key, (B, T, H, K))
  v_BTHK = jax.random.normal(v_key, (B, T, H, K))
  until_BT = _until(B, T)
  index_T = np.arange(T)
  causal_TT = index_T <= index_T[:, None]
  in_document_BTT = index_T[:, None] < until_BT[:, None, :]
  # One mask for all heads.
  mask_B1TT = (causal_TT & in_document_BTT)[:, None]

  def peer(q, k, v):
    # A sum alone has the same gradient at every output; the sine makes them differ.
    attended = jax.nn.dot_product_attention(q, k, v, mask=mask_B1TT)
    return jnp.sin(attended).sum()

  def ours(q, k, v):
    attended = interval_attention(q, k, v, until_BT)
    return jnp.sin(attended).sum()

  losses = {"dot_product_attention": peer, "interval": ours}
  return {
    "shape": [B, T, H, K],
    "peer": f"jax.nn.dot_product_attention, jax {jax.__version__}",
    **beside.gradients(losses, (q_BTHK, k_BTHK, v_BTHK), seconds),
  }


def _until(B: int, T: int) -> jax.Array:
  """Where the document of each position ends; documents follow each other without padding."""
  document_T = np.arange(T) // _DOCUMENT_TOKENS
  end_T = (document_T + 1) * _DOCUMENT_TOKENS
  # The last document is cut off.
  until_T = np.minimum(end_T, T)
  return jnp.asarray(np.tile(until_T, (B, 1)), jnp.int32)
