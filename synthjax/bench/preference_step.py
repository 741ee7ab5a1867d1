"""`synthjax bench preference_step`: a whole DPO step beside TRL's trainer on the same pairs, and
the time saved by sharing a prefix.

8 pairs of 256 tokens, 70 % of them prompt, as in the issue that set the targets.
"""

import contextlib
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from synthjax.config import schema
from synthjax.data import trees
from synthjax.model.transformer import Params, Transformer, sized
from synthjax.sharding import make_layout
from synthjax.train import preference

_PAIRS, _LENGTH, _STEPS = 8, 256, 4
_VOCABULARIES = (8192, 32_768)
# (share of the tokens that is prefix, branches)
_SHARED = ((0.7, 2), (0.9, 2), (0.9, 4), (0.9, 8))
# 10M parameters as a Llama has them: TRL trains Hugging Face models. Recomputing the layers is
# faster on CPU (1.01 s against 1.11 s) and takes a fifth of the memory.
LLAMA_10M = schema.Model(
  d_model=320,
  layers=8,
  heads=10,
  kv_heads=10,
  head_dim=32,
  mlp_dim=864,
  tie_embeddings=True,
  remat="full",
)


class PromptResponses(NamedTuple):
  """Token ids of a prompt and of its responses."""

  prompt: list[int]
  responses: list[list[int]]


def run(seconds: float) -> None:
  """Prints JSON: seconds a step, ratios, peak memory, and the peers' names and versions."""
  # A TRL step takes long; _STEPS of them are enough for a median, whatever the time allowed.
  del seconds
  results = {
    "trl": [against_trl(vocabulary) for vocabulary in _VOCABULARIES],
    "prefix_sharing": [prefix_sharing(share, branches) for share, branches in _SHARED],
  }
  print(json.dumps(results, indent=2))


def _problems(
  vocabulary: int, prefix_share: float = 0.7, branches: int = 2
) -> list[PromptResponses]:
  random = np.random.default_rng(0)
  prefix = round(prefix_share * _LENGTH)

  def draw(n: int) -> list[int]:
    return [int(i) for i in random.integers(1, vocabulary, n)]

  problems = []
  for _ in range(_PAIRS):
    prompt = draw(prefix)
    responses = [draw(_LENGTH - prefix) for _ in range(branches)]
    problems.append(PromptResponses(prompt, responses))
  return problems


class _Batch(NamedTuple):
  arrays: dict[str, jax.Array]
  limits: trees.Bounds


def _batch(rows: Sequence[Sequence[trees.Node]]) -> _Batch:
  """A batch of trees, one a sequence, as long as the first of them."""
  seq_len = rows[0][0].size()
  limits = trees.bounds(rows, len(rows), seq_len)
  arrays = {}
  for name, array in trees.layout(rows, limits).items():
    arrays[name] = jnp.asarray(array)
  return _Batch(arrays, limits)


def against_trl(vocabulary: int) -> dict[str, Any]:
  """Our step with cached reference sums beside DPOTrainer's, as JSON.

  DPOTrainer runs with its reference precomputed, and computed in the step, which is its default.
  """
  model = Transformer(sized(LLAMA_10M, vocabulary))
  params = jax.jit(model.init)(jax.random.key(0))
  problems = _problems(vocabulary)
  step = _OurStep(model, params, problems)
  results: dict[str, Any] = {
    "vocabulary": vocabulary,
    "temporary_MiB": step.compiled.memory_analysis().temp_size_in_bytes >> 20,
    "whole_logits_in_program": f",{vocabulary}]" in _activations(step.compiled.as_text()),
  }
  host = jax.device_get(params)
  step.start(params)
  rss = _reset_peak()
  step()
  results["first_loss"] = step.first_loss
  results["peak_MiB"] = _peak() - rss
  try:
    import trl

    from synthjax.bench import trl_peer
  except ImportError:
    results["peer"] = "trl is not installed: make parity"
    results["seconds"] = statistics.median(step() for _ in range(_STEPS))
    return results
  pairs = []
  for prompt, (chosen, rejected) in problems:
    pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
  for name, precomputed in (("precomputed", True), ("default", False)):
    train = functools.partial(
      trl_peer.train,
      trl_peer.model_of(model.cfg, host),
      pairs,
      _STEPS + 1,
      precomputed,
      len(os.sched_getaffinity(0)),
    )
    results[name] = _time_in_turn(train, step)
    torch_version = metadata.version("torch")
    results[name]["peer"] = (
      f"TRL {trl.__version__} DPOTrainer, reference {name}, torch {torch_version}"
    )
  return results


class _OurStep:
  """One step of our trainer on all pairs; a call returns its seconds."""

  def __init__(self, model: Transformer, params: Params, problems: list[PromptResponses]):
    rows = []
    for prompt, (chosen, rejected) in problems:
      rows.append([trees.pair(prompt, [chosen], [rejected])])
    self._arrays, limits = _batch(rows)
    self._arrays["reference"] = preference.segment_log_probs(model, params, self._arrays)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4, weight_decay=0.0))
    layout = make_layout(schema.Mesh(), jax.devices()[:1])
    objective = schema.Objective(loss="step_dpo")
    self._trainer = preference.PreferenceTrainer(
      model, optimizer, layout, schema.Train(), objective, limits
    )
    self.compiled = self._trainer.compile(self._arrays)
    self.first_loss: float | None = None

  def start(self, params: Params) -> None:
    """Begins a training; the parameters are donated to its first step."""
    self._state = self._trainer.start_from(params)

  def __call__(self) -> float:
    began = time.monotonic()
    self._state, metrics = self.compiled(self._state, self._arrays)
    if self.first_loss is None:
      self.first_loss = float(metrics["loss"])
    jax.block_until_ready(self._state)
    return time.monotonic() - began


def _time_in_turn(train: Callable[..., dict[str, Any]], ours: _OurStep) -> dict[str, Any]:
  """Runs TRL's training with a step of ours after each of its steps."""
  their_seconds: list[float] = []
  our_seconds: list[float] = []
  peaks: list[int] = []
  began, rss = 0.0, 0

  def between(moment: str, log: dict[str, Any]) -> None:
    nonlocal began, rss
    del log
    if moment == "begin":
      rss = _reset_peak()
      began = time.monotonic()
    else:
      their_seconds.append(time.monotonic() - began)
      peaks.append(_peak() - rss)
      our_seconds.append(ours())

  # TRL prints its metrics; our output is JSON.
  with contextlib.redirect_stdout(sys.stderr):
    log = train(between=between)
  # The first step of both pays for caches.
  ratios = [theirs / mine for theirs, mine in zip(their_seconds[1:], our_seconds[1:])]
  return {
    "ratio": round(statistics.median(ratios), 2),
    "their_seconds": round(statistics.median(their_seconds[1:]), 3),
    "our_seconds": round(statistics.median(our_seconds[1:]), 3),
    "their_peak_MiB": max(peaks[1:]),
    "their_first_loss": log.get("loss"),
  }


def prefix_sharing(prefix_share: float, branches: int) -> dict[str, Any]:
  """One sequence a problem against one a branch: seconds a gradient, and the gradients compared."""
  vocabulary = 8192
  model = Transformer(sized(LLAMA_10M, vocabulary))
  params = jax.jit(model.init)(jax.random.key(0))
  shared, apart = [], []
  for prompt, responses in _problems(vocabulary, prefix_share, branches):
    shared.append([_tree(prompt, responses)])
    apart += [[_tree(prompt, [response])] for response in responses]

  def loss(params, batch):
    return -preference.segment_log_probs(model, params, batch).mean()

  gradient = jax.jit(jax.grad(loss))
  batches = {"shared": _batch(shared).arrays, "apart": _batch(apart).arrays}
  leaves = {}
  times: dict[str, list[float]] = {"shared": [], "apart": []}
  # The first call of each compiles.
  for name, batch in batches.items():
    leaves[name] = jax.tree.leaves(jax.block_until_ready(gradient(params, batch)))
  for _ in range(_STEPS):
    for name, batch in batches.items():
      began = time.monotonic()
      jax.block_until_ready(gradient(params, batch))
      times[name].append(time.monotonic() - began)
  largest, differences = [], []
  for apart_leaf, shared_leaf in zip(leaves["apart"], leaves["shared"]):
    largest.append(float(jnp.abs(apart_leaf).max()))
    differences.append(float(jnp.abs(apart_leaf - shared_leaf).max()))
  ratios = [a / b for a, b in zip(times["apart"], times["shared"])]
  return {
    "prefix": prefix_share,
    "branches": branches,
    "theory_of_linear_layers": round(_count_tokens(apart) / _count_tokens(shared), 2),
    "ratio": round(statistics.median(ratios), 2),
    "largest_gradient": max(largest),
    "gradients_differ_by": max(differences),
  }


def _tree(prompt: list[int], responses: list[list[int]]) -> trees.Node:
  branches = tuple(trees.Node(tuple(response), side=1) for response in responses)
  return trees.Node(tuple(prompt), branches, predicted=False)


def _count_tokens(rows: list[list[trees.Node]]) -> int:
  return sum(tree.size() for row in rows for tree in row)


def _activations(program: str) -> str:
  """The lines of a compiled program that compute on a batch.

  A parameter or its update may have the vocabulary as a dimension too.
  """
  lines = []
  for line in program.splitlines():
    if "f32[" in line and f"[{_PAIRS}," in line:
      lines.append(line)
  return "\n".join(lines)


def _reset_peak() -> int:
  """Resets the kernel's peak of this process's resident memory; returns the present one in MiB."""
  with open("/proc/self/clear_refs", "w") as f:
    f.write("5")
  return _status_mib("VmRSS")


def _peak() -> int:
  """The peak of resident memory since it was reset, in MiB."""
  return _status_mib("VmHWM")


def _status_mib(name: str) -> int:
  with open("/proc/self/status") as f:
    for line in f:
      if line.startswith(name):
        # The kernel gives KiB.
        return int(line.split()[1]) >> 10
  raise RuntimeError(f"/proc/self/status has no {name}")
