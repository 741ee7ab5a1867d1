"""Two ways to compute one loss, timed side by side."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def gradients(losses: dict[str, Callable], arguments: tuple, seconds: float) -> dict[str, Any]:
  """Compares the gradients of two losses by all arguments.

  Args:
    losses: {peer, ours}, in this order.
    arguments: of both.
    seconds: about how long to measure; each is measured at least twice.

  Returns:
    JSON: seconds and temporary memory of both, ratios of peer to ours, and the largest difference
    of the gradients.
  """
  wanted = tuple(range(len(arguments)))
  compiled: dict[str, Any] = {}
  results = {}
  for name, loss in losses.items():
    compiled[name] = jax.jit(jax.grad(loss, wanted)).lower(*arguments).compile()
  for name, step in compiled.items():
    results[name] = jax.block_until_ready(step(*arguments))
  times = time_in_turn(compiled, arguments, seconds)
  memory: dict[str, Any] = {}
  for name, step in compiled.items():
    memory[name] = step.memory_analysis().temp_size_in_bytes / 2**20
  peer_memory, our_memory = memory.values()
  peer_times, our_times = times.values()
  # Of calls that follow each other: the machine's other work then cancels.
  ratios = [theirs / ours for theirs, ours in zip(peer_times, our_times)]
  differences = []
  for theirs, ours in zip(*results.values()):
    differences.append(float(jnp.abs(theirs - ours).max()))
  medians = {}
  for name, seconds_of_calls in times.items():
    medians[name] = round(statistics.median(seconds_of_calls), 4)
  return {
    "seconds": medians,
    "speed_up": round(statistics.median(ratios), 2),
    "temporary_MiB": memory,
    "times_less_memory": round(peer_memory / our_memory, 1),
    "gradients_differ_by": max(differences),
  }


def time_in_turn(
  steps: dict[str, Callable], arguments: tuple, seconds: float
) -> dict[str, list[float]]:
  """Seconds of each call of each step. They take turns, so that the machine's other work hits all
  of them alike.
  """
  times: dict[str, list[float]] = {name: [] for name in steps}
  until = time.monotonic() + seconds
  while time.monotonic() < until or min(map(len, times.values())) < 2:
    for name, step in steps.items():
      began = time.monotonic()
      jax.block_until_ready(step(*arguments))
      times[name].append(time.monotonic() - began)
  return times
