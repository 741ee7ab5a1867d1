"""`synthjax bench logprob`: the blocked head beside log_softmax over whole logits, forward and backward; JSON."""

import json
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from synthjax.kernels.linear_logprob import linear_logprob

_N, _D = 4096, 512


def run(seconds: float) -> None:
  """Prints seconds, temporary memory by the compiler's own analysis, and ratios, for two vocabularies."""
  print(json.dumps([_compare(vocabulary, seconds / 2) for vocabulary in (32_768, 131_072)], indent=2))


def _naive(hidden_ND, head_DV, targets_N):
  log_prob_NV = jax.nn.log_softmax(hidden_ND @ head_DV, axis=-1)
  return jnp.take_along_axis(log_prob_NV, targets_N[:, None], axis=1)[:, 0]


def _compare(vocabulary: int, seconds: float) -> dict[str, Any]:
  keys = jax.random.split(jax.random.key(0), 3)
  hidden_ND, head_DV = jax.random.normal(keys[0], (_N, _D)), jax.random.normal(keys[1], (_D, vocabulary)) * _D**-0.5
  targets_N = jax.random.randint(keys[2], (_N,), 0, vocabulary)
  ways = {"naive": _naive, "blocked": lambda *arguments: linear_logprob(*arguments).log_prob}
  gradient = lambda way: jax.jit(jax.grad(lambda h, w: -way(h, w, targets_N).mean(), (0, 1)))
  compiled: dict[str, Any] = {name: gradient(way).lower(hidden_ND, head_DV).compile() for name, way in ways.items()}
  results = {name: jax.block_until_ready(step(hidden_ND, head_DV)) for name, step in compiled.items()}
  times: dict[str, list[float]] = {name: [] for name in ways}
  until = time.monotonic() + seconds
  while time.monotonic() < until or len(times["naive"]) < 2:
    for name, step in compiled.items():
      began = time.monotonic()
      jax.block_until_ready(step(hidden_ND, head_DV))
      times[name].append(time.monotonic() - began)
  memory: dict[str, Any] = {name: step.memory_analysis().temp_size_in_bytes / 2**20 for name, step in compiled.items()}
  return {"rows": _N, "d_model": _D, "vocabulary": vocabulary, "peer": f"log_softmax of whole logits, jax {jax.__version__}",
          "seconds": {name: round(statistics.median(t), 3) for name, t in times.items()},
          "time_ratio": round(statistics.median(b / a for a, b in zip(times["naive"], times["blocked"])), 3),
          "temporary_MiB": memory, "memory_ratio": round(memory["naive"] / memory["blocked"], 1),
          "gradients_differ_by": max(float(jnp.abs(a - b).max()) for a, b in zip(*results.values()))}
