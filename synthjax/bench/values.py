"""`synthjax bench values`: rollouts after every step of a trace with shared prefixes and without, and what adaptive schedules save."""

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

_PROMPT, _STEP, _STEPS, _ROLLOUTS, _SLOTS = 256, 24, 6, 8, 128
_TRACES = 64
_SECONDS_A_TRACE = 4.0  # both ways, on 2 cores


class Alone(Page):
  """A page on which every prompt stands apart."""

  def add(self, ids: Sequence[int]) -> int | None:
    """As `Page.add`, nothing shared."""
    self._ids = ()
    return super().add(ids)


class Apart(JaxEngine):
  """The engine without sharing: every sample has its own prefix, computed for it."""

  page = Alone


def run(seconds: float) -> None:
  """Prints JSON, then the schedules as `bench pits` does."""
  print(json.dumps(sharing(max(4, min(_TRACES, int(seconds / _SECONDS_A_TRACE)))), indent=2))
  pits.run(min(seconds, 20.0))


def sharing(traces: int) -> dict[str, Any]:
  """8 rollouts to the end of the trace from the problem and after every step but the last; the two engines one after the other."""
  requests, random = [], np.random.default_rng(0)
  for trace in range(traces):
    ids = tuple(random.integers(1, Ids.size, _PROMPT + _STEPS * _STEP).tolist())
    requests += [
      Request(
        f"{trace} {step}",
        prompt_ids=ids[: _PROMPT + step * _STEP],
        n=_ROLLOUTS,
        seed=trace,
        sampling=Sampling(max_tokens=(_STEPS - step) * _STEP),
      )
      for step in range(_STEPS)
    ]
  model = Transformer(sized(LLAMA_10M, Ids.size))
  params = jax.jit(model.init)(jax.random.key(0))
  prompts = sorted(request.prompt_ids for request in requests for _ in range(_ROLLOUTS))
  shared = batch_shape(
    prompts, (_PROMPT + _STEPS * _STEP, _STEPS * _STEP), _SLOTS, jax.local_device_count()
  )
  # A slot of its own for every prefix, and room for the next one while it decodes.
  apart = Shape(_SLOTS, 1, 1, _PROMPT + _STEPS * _STEP, _STEPS * _STEP)
  found, answers = {}, []
  for name, engine in {
    "shared": JaxEngine(model, params, Ids(), shared),
    "apart": Apart(model, params, Ids(), apart),
  }.items():
    list(engine.generate(requests[:1]))  # compiles
    engine.counts = Counts()
    began = time.monotonic()
    answers.append(
      {result.id: [sample.ids for sample in result.samples] for result in engine.generate(requests)}
    )
    found[name] = {
      "seconds": round(time.monotonic() - began, 2),
      "prefilled": engine.counts.prefilled,
      "occupancy": round(engine.counts.used / engine.counts.offered, 3),
      "tokens": engine.counts.tokens,
    }
  same = sum(answers[0][name] == answers[1][name] for name in answers[0])
  return {
    "traces": traces,
    "rollouts": traces * _STEPS * _ROLLOUTS,
    **found,
    "times_faster": round(found["apart"]["seconds"] / found["shared"]["seconds"], 2),
    "requests_with_identical_samples": f"{same} of {len(requests)}",
  }
