"""`synthjax bench values`: rollouts after every step of a trace with shared prefixes and without,
and what adaptive schedules save.
"""

import json
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from synthjax.bench import pits
from synthjax.bench.preference_step import LLAMA_10M
from synthjax.bench.sample import Ids
from synthjax.config.credit import Sampling
from synthjax.model.transformer import Transformer, sized
from synthjax.rollout.engine import Counts, JaxEngine
from synthjax.rollout.prefixes import Page
from synthjax.rollout.requests import Request
from synthjax.rollout.shapes import batch_shape
from synthjax.rollout.slots import Shape

# Tokens of a problem and of a step; steps of a trace.
_PROMPT, _STEP, _STEPS = 256, 24, 6
_ROLLOUTS, _SLOTS = 8, 128
_MAX_TRACES = 64
# With both engines, on 2 cores.
_TRACE_SECONDS = 4.0


class UnsharedPage(Page):
  """A page on which every prompt stands apart."""

  def add(self, ids: Sequence[int]) -> int | None:
    """As `Page.add`, nothing shared."""
    self._ids = ()
    return super().add(ids)


class UnsharedEngine(JaxEngine):
  """The engine without sharing: every sample has its own prefix, computed for it."""

  page = UnsharedPage


def run(seconds: float) -> None:
  """Prints JSON, then the schedules as `bench pits` does."""
  traces = max(4, min(_MAX_TRACES, int(seconds / _TRACE_SECONDS)))
  print(json.dumps(sharing(traces), indent=2))
  pits.run(min(seconds, 20.0))


def sharing(traces: int) -> dict[str, Any]:
  """Rollouts to the end of the trace, from the problem and after every step but the last.

  Args:
    traces: how many; each takes `_TRACE_SECONDS`.

  Returns:
    JSON: seconds, prefilled tokens and occupancy of both engines, and how many requests got the
    same samples from them.
  """
  requests = _requests(traces)
  model = Transformer(sized(LLAMA_10M, Ids.size))
  params = jax.jit(model.init)(jax.random.key(0))
  prompts = sorted(request.prompt_ids for request in requests for _ in range(_ROLLOUTS))
  longest = _PROMPT + _STEPS * _STEP
  shape = batch_shape(prompts, (longest, _STEPS * _STEP), _SLOTS, jax.local_device_count())
  # A slot of its own for every prefix, and room for the next one while it decodes.
  unshared_shape = Shape(_SLOTS, 1, 1, longest, _STEPS * _STEP)
  engines = {
    "shared": JaxEngine(model, params, Ids(), shape),
    "apart": UnsharedEngine(model, params, Ids(), unshared_shape),
  }
  measured: dict[str, dict] = {}
  sampled_ids: dict[str, dict[str, list[tuple[int, ...]]]] = {}
  for name, engine in engines.items():
    # The first request compiles.
    list(engine.generate(requests[:1]))
    engine.counts = Counts()
    began = time.monotonic()
    results = list(engine.generate(requests))
    measured[name] = {
      "seconds": round(time.monotonic() - began, 2),
      "prefilled": engine.counts.prefilled,
      "occupancy": round(engine.counts.used / engine.counts.offered, 3),
      "tokens": engine.counts.tokens,
    }
    sampled_ids[name] = {}
    for result in results:
      sampled_ids[name][result.id] = [sample.ids for sample in result.samples]
  shared, apart = sampled_ids.values()
  same = sum(shared[id] == apart[id] for id in shared)
  return {
    "traces": traces,
    "rollouts": traces * _STEPS * _ROLLOUTS,
    **measured,
    "times_faster": round(measured["apart"]["seconds"] / measured["shared"]["seconds"], 2),
    "requests_with_identical_samples": f"{same} of {len(requests)}",
  }


def _requests(traces: int) -> list[Request]:
  random = np.random.default_rng(0)
  requests = []
  for trace in range(traces):
    ids = tuple(random.integers(1, Ids.size, _PROMPT + _STEPS * _STEP).tolist())
    for step in range(_STEPS):
      request = Request(
        id=f"{trace} {step}",
        prompt_ids=ids[: _PROMPT + step * _STEP],
        n=_ROLLOUTS,
        seed=trace,
        sampling=Sampling(max_tokens=(_STEPS - step) * _STEP),
      )
      requests.append(request)
  return requests
