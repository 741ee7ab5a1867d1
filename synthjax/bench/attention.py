"""`synthjax bench attention`: interval attention beside jax.nn.dot_product_attention with the same mask, forward and backward; JSON."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from synthjax.bench import beside
from synthjax.kernels.interval_attention import interval_attention


def run(seconds: float) -> None:
  """Prints seconds, temporary memory and ratios for packed documents in rows of two lengths."""
  print(
    json.dumps(
      [_compare(*shape, seconds / 2) for shape in ((16, 512, 4, 32), (2, 2048, 8, 64))], indent=2
    )
  )


def _compare(B: int, T: int, H: int, K: int, seconds: float) -> dict[str, Any]:
  q, k, v = (jax.random.normal(key, (B, T, H, K)) for key in jax.random.split(jax.random.key(0), 3))
  index_T = np.arange(T)
  until_BT = jnp.asarray(np.tile(np.minimum((index_T // 180 + 1) * 180, T), (B, 1)), jnp.int32)
  mask = (index_T <= index_T[:, None]) & (index_T[:, None] < until_BT[:, None, :])
  ways = {
    "dot_product_attention": lambda q, k, v: jax.nn.dot_product_attention(
      q, k, v, mask=mask[:, None]
    ),
    "interval": lambda q, k, v: interval_attention(q, k, v, until_BT),
  }
  losses = {
    name: lambda q, k, v, way=way: jnp.sin(way(q, k, v)).sum() for name, way in ways.items()
  }
  return {
    "shape": [B, T, H, K],
    "peer": f"jax.nn.dot_product_attention, jax {jax.__version__}",
    **beside.gradients(losses, (q, k, v), seconds),
  }
