"""`synthjax bench sample`: generated tokens a second beside Hugging Face `generate` and Tunix, and
how full the slots are.

A Llama of 10M parameters, 100 samples of one prompt of 64 or 256 tokens. Samples are of 32 tokens,
as a rollout from the middle of a trace takes, and of 128.
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
# The peer's threads spin for a while after their work, and would slow down ours.
_PAUSE_SECONDS = 0.5


class Ids:
  """A tokenizer of bare ids; nothing ends a sample but its length."""

  size, eos_id, pad_id, fingerprint = _VOCABULARY, -1, 0, "ids"

  def encode(self, text: str) -> list[int]:
    """Numbers separated by blanks as ids."""
    return [int(i) for i in text.split()]

  def decode(self, ids: Iterable[int]) -> str:
    """Ids as numbers separated by blanks."""
    return " ".join(map(str, ids))


def run(seconds: float) -> None:
  """Prints JSON."""
  model = Transformer(sized(LLAMA_10M, _VOCABULARY))
  params = jax.jit(model.init)(jax.random.key(0))
  samples = []
  for new in (32, 128):
    for length in (64, 256):
      samples.append(against_peers(model, params, length, new, seconds / 4))
  results = {
    "devices": jax.local_device_count(),
    "jax": jax.__version__,
    "samples": samples,
    "uneven": uneven(model, params),
  }
  print(json.dumps(results, indent=2))


def against_peers(
  model: Transformer, params: Params, length: int, new: int, seconds: float
) -> dict[str, Any]:
  """100 samples of one prompt, peers and ours in turn.

  Args:
    model: ours.
    params: ours, which Hugging Face gets too.
    length: tokens of the prompt.
    new: tokens of every sample.
    seconds: about how long to measure; each runs at least three times.

  Returns:
    JSON: tokens a second of each, and how many times faster ours is than each peer.
  """
  prompt = np.random.default_rng(0).integers(1, _VOCABULARY, length).tolist()
  engine = JaxEngine(model, params, Ids(), slots=_SAMPLES)
  request = Request("a", prompt_ids=tuple(prompt), n=_SAMPLES, sampling=Sampling(max_tokens=new))

  def ours() -> None:
    (result,) = engine.generate([request])
    assert sum(len(sample.ids) for sample in result.samples) == _SAMPLES * new

  engines = {"synthjax": ours, **_peers(model.cfg, params, prompt, new)}
  # The first run of each compiles.
  for generate in engines.values():
    generate()
  times: dict[str, list[float]] = {name: [] for name in engines}
  until = time.monotonic() + seconds
  while time.monotonic() < until or len(times["synthjax"]) < 3:
    for name, generate in engines.items():
      time.sleep(_PAUSE_SECONDS)
      began = time.monotonic()
      generate()
      times[name].append(time.monotonic() - began)
  rates, ratios = {}, {}
  for name, theirs in times.items():
    rates[name] = round(_SAMPLES * new / statistics.median(theirs))
    if name != "synthjax":
      turns = [peer / own for peer, own in zip(theirs, times["synthjax"])]
      ratios[f"times_{name}"] = round(statistics.median(turns), 2)
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
  """The installed peers by name and version.

  `make parity` installs Hugging Face's; Tunix needs an environment of its own.
  """
  peers: dict[str, Callable[[], Any]] = {}
  # Another package is called tunix too; only Google's has `generate`.
  if importlib.util.find_spec("tunix") and importlib.util.find_spec("tunix.generate"):
    from synthjax.bench import tunix_peer

    version = metadata.version("google-tunix")
    peers[f"tunix {version}"] = tunix_peer.generate(cfg, prompt, _SAMPLES, new)
  if importlib.util.find_spec("transformers") and importlib.util.find_spec("torch"):
    peers |= _hugging_face(cfg, params, prompt, new)
  return peers


def _hugging_face(
  cfg: schema.Model, params: Params, prompt: list[int], new: int
) -> dict[str, Callable[[], Any]]:
  """`generate` with a static cache and all prompts in one call, which is its best here."""
  import torch
  import transformers

  from synthjax.bench import trl_peer

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  model = trl_peer.model_of(cfg, params).eval()
  model.generation_config.eos_token_id = None
  ids = torch.tensor([prompt] * _SAMPLES)

  def generate() -> None:
    with torch.inference_mode():
      sampled = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        top_k=0,
        temperature=1.0,
        max_new_tokens=new,
        cache_implementation="static",
      )
    assert sampled.shape[1] == len(prompt) + new

  return {f"transformers {transformers.__version__}, torch {torch.__version__}": generate}


def uneven(model: Transformer, params: Params) -> dict[str, Any]:
  """How full the slots are with 2,000 requests: prompts of 8-64 tokens, samples of 4-64. JSON."""
  random = np.random.default_rng(0)
  requests = []
  for i in range(2000):
    prompt = random.integers(1, _VOCABULARY, random.integers(8, 65)).tolist()
    sampling = Sampling(max_tokens=int(random.integers(4, 65)))
    requests.append(Request(str(i), prompt_ids=tuple(prompt), sampling=sampling))
  engine = JaxEngine(model, params, Ids())
  assert sum(1 for _ in engine.generate(requests)) == len(requests)
  return {
    "requests": len(requests),
    "occupancy": round(engine.counts.used / engine.counts.offered, 4),
    "what": engine.counts.line(),
  }
