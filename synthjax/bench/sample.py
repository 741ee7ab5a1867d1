"""`synthjax bench sample`: generated tokens a second beside Hugging Face `generate` and Tunix, and how full the slots are.

A Llama of 10M parameters, 100 samples of one prompt of 64 or 256 tokens; samples of 32 tokens, as a rollout from the middle of a trace
takes, and of 128.
"""

import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import Any

import jax
import numpy as np

from synthjax.bench.preference_step import LLAMA_10M
from synthjax.config import schema
from synthjax.config.credit import Sampling
from synthjax.model.transformer import Params, Transformer, sized
from synthjax.rollout.engine import JaxEngine
from synthjax.rollout.requests import Request

_SAMPLES, _VOCABULARY = 100, 8192
_PAUSE = 0.5  # seconds: the peer's threads spin for a while after their work


class Ids:
  """A tokenizer of bare ids; nothing ends a sample but its length."""

  size, eos_id, pad_id, fingerprint = _VOCABULARY, -1, 0, "ids"

  def encode(self, text: str) -> list[int]:
    return [int(i) for i in text.split()]

  def decode(self, ids: Iterable[int]) -> str:
    return " ".join(map(str, ids))


def run(seconds: float) -> None:
  """Prints JSON."""
  model = Transformer(sized(LLAMA_10M, _VOCABULARY))
  params = jax.jit(model.init)(jax.random.key(0))
  samples = [
    against_peers(model, params, length, new, seconds / 4)
    for new in (32, 128)
    for length in (64, 256)
  ]
  found = {
    "devices": jax.local_device_count(),
    "jax": jax.__version__,
    "samples": samples,
    "uneven": uneven(model, params),
  }
  print(json.dumps(found, indent=2))


def against_peers(
  model: Transformer, params: Params, length: int, new: int, seconds: float
) -> dict[str, Any]:
  """100 samples of one prompt, peers and ours in turn."""
  prompt = np.random.default_rng(0).integers(1, _VOCABULARY, length).tolist()
  engine = JaxEngine(model, params, Ids(), slots=_SAMPLES)
  request = Request("a", prompt_ids=tuple(prompt), n=_SAMPLES, sampling=Sampling(max_tokens=new))

  def ours() -> None:
    (result,) = engine.generate([request])
    assert sum(len(sample.ids) for sample in result.samples) == _SAMPLES * new

  runs = {"synthjax": ours, **_peers(model.cfg, params, prompt, new)}
  for one in runs.values():
    one()  # compiles
  times: dict[str, list[float]] = {name: [] for name in runs}
  until = time.monotonic() + seconds
  while time.monotonic() < until or len(times["synthjax"]) < 3:
    for name, one in runs.items():
      time.sleep(_PAUSE)
      began = time.monotonic()
      one()
      times[name].append(time.monotonic() - began)
  ratios = {
    f"times_{name}": round(statistics.median(a / b for a, b in zip(peer, times["synthjax"])), 2)
    for name, peer in times.items()
    if name != "synthjax"
  }
  rates = {name: round(_SAMPLES * new / statistics.median(t)) for name, t in times.items()}
  return {
    "prompt": length,
    "new_tokens": new,
    "tokens_a_second": rates,
    **ratios,
    "runs": len(times["synthjax"]),
  }


def _peers(
  cfg: schema.Model, params: Params, prompt: list[int], new: int
) -> dict[str, Callable[[], Any]]:
  """The peers that are installed, by name and version: Hugging Face (make parity), Tunix (in an environment of its own)."""
  found: dict[str, Callable[[], Any]] = {}
  if importlib.util.find_spec("tunix") and importlib.util.find_spec("tunix.generate"):
    from synthjax.bench import tunix_peer

    found[f"tunix {metadata.version('google-tunix')}"] = tunix_peer.generate(
      cfg, prompt, _SAMPLES, new
    )
  if importlib.util.find_spec("transformers") and importlib.util.find_spec("torch"):
    found |= _hugging_face(cfg, params, prompt, new)
  return found


def _hugging_face(cfg, params, prompt, new) -> dict[str, Callable[[], Any]]:
  """`generate` with a static cache, all prompts in one call: its best here."""
  import torch
  import transformers

  from synthjax.bench import trl_peer

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  theirs, ids = trl_peer.model_of(cfg, params).eval(), torch.tensor([prompt] * _SAMPLES)
  theirs.generation_config.eos_token_id = None

  def generate() -> None:
    with torch.inference_mode():
      found = theirs.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        top_k=0,
        temperature=1.0,
        max_new_tokens=new,
        cache_implementation="static",
      )
    assert found.shape[1] == len(prompt) + new

  return {f"transformers {transformers.__version__}, torch {torch.__version__}": generate}


def uneven(model: Transformer, params: Params) -> dict[str, Any]:
  """2,000 requests of a sample each: prompts of 8-64 tokens, samples of 4-64."""
  random = np.random.default_rng(0)
  requests = [
    Request(
      str(i),
      prompt_ids=tuple(random.integers(1, _VOCABULARY, random.integers(8, 65)).tolist()),
      sampling=Sampling(max_tokens=int(random.integers(4, 65))),
    )
    for i in range(2000)
  ]
  engine = JaxEngine(model, params, Ids())
  assert sum(1 for _ in engine.generate(requests)) == len(requests)
  return {
    "requests": len(requests),
    "occupancy": round(engine.counts.used / engine.counts.offered, 4),
    "what": engine.counts.line(),
  }
