"""Two ways to compute one loss, timed side by side."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def gradients(losses: dict[str, Callable], arguments: tuple, seconds: float) -> dict[str, Any]:
  """Gradients of {peer, ours} by all arguments, interleaved: seconds, temporary memory, ratios of peer / ours, and how far they differ."""
  wanted = tuple(range(len(arguments)))
  compiled: dict[str, Any] = {
    name: jax.jit(jax.grad(loss, wanted)).lower(*arguments).compile()
    for name, loss in losses.items()
  }
  results = {name: jax.block_until_ready(step(*arguments)) for name, step in compiled.items()}
  times: dict[str, list[float]] = {name: [] for name in losses}
  until = time.monotonic() + seconds
  while time.monotonic() < until or min(map(len, times.values())) < 2:
    for name, step in compiled.items():
      began = time.monotonic()
      jax.block_until_ready(step(*arguments))
      times[name].append(time.monotonic() - began)
  memory: dict[str, Any] = {
    name: step.memory_analysis().temp_size_in_bytes / 2**20 for name, step in compiled.items()
  }
  peer, ours = memory.values()
  return {
    "seconds": {name: round(statistics.median(t), 4) for name, t in times.items()},
    "speed_up": round(statistics.median(a / b for a, b in zip(*times.values())), 2),
    "temporary_MiB": memory,
    "times_less_memory": round(peer / ours, 1),
    "gradients_differ_by": max(float(jnp.abs(a - b).max()) for a, b in zip(*results.values())),
  }
