"""`synthjax bench attention`: interval attention beside jax.nn.dot_product_attention with the same mask, forward and backward; JSON."""

import json
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from synthjax.kernels.interval_attention import interval_attention


def run(seconds: float) -> None:
  """Prints seconds, temporary memory and ratios for packed documents in rows of two lengths."""
  print(json.dumps([_compare(*shape, seconds / 2) for shape in ((16, 512, 4, 32), (2, 2048, 8, 64))], indent=2))


def _compare(B: int, T: int, H: int, K: int, seconds: float) -> dict[str, Any]:
  q, k, v = (jax.random.normal(key, (B, T, H, K)) for key in jax.random.split(jax.random.key(0), 3))
  index_T = np.arange(T)
  until_BT = jnp.asarray(np.tile(np.minimum((index_T // 180 + 1) * 180, T), (B, 1)), jnp.int32)
  mask = (index_T <= index_T[:, None]) & (index_T[:, None] < until_BT[:, None, :])
  ways = {"dot_product_attention": lambda q, k, v: jax.nn.dot_product_attention(q, k, v, mask=mask[:, None]),
          "interval": lambda q, k, v: interval_attention(q, k, v, until_BT)}
  gradient = lambda way: jax.jit(jax.grad(lambda q, k, v: jnp.sin(way(q, k, v)).sum(), (0, 1, 2)))
  compiled: dict[str, Any] = {name: gradient(way).lower(q, k, v).compile() for name, way in ways.items()}
  results = {name: jax.block_until_ready(step(q, k, v)) for name, step in compiled.items()}
  times: dict[str, list[float]] = {name: [] for name in ways}
  until = time.monotonic() + seconds
  while time.monotonic() < until or len(times["interval"]) < 2:
    for name, step in compiled.items():
      began = time.monotonic()
      jax.block_until_ready(step(q, k, v))
      times[name].append(time.monotonic() - began)
  memory: dict[str, Any] = {name: step.memory_analysis().temp_size_in_bytes / 2**20 for name, step in compiled.items()}
  return {"shape": [B, T, H, K], "peer": f"jax.nn.dot_product_attention, jax {jax.__version__}",
          "seconds": {name: round(statistics.median(t), 4) for name, t in times.items()},
          "speed_up": round(statistics.median(a / b for a, b in zip(*times.values())), 2),
          "temporary_MiB": memory, "gradients_differ_by": max(float(jnp.abs(a - b).max()) for a, b in zip(*results.values()))}
