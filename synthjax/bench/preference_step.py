"""`synthjax bench preference_step`: a whole DPO step beside TRL's trainer on the same pairs, and what sharing a prefix saves.

Shapes: 8 pairs of 256 tokens, 70 % of them prompt, as in the issue that set the targets.
"""

import contextlib
import functools
import json
import os
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from synthjax.config import schema
from synthjax.data import trees
from synthjax.model.transformer import Transformer, sized
from synthjax.sharding import make_layout
from synthjax.train import preference

_PAIRS, _LENGTH, _STEPS = 8, 256, 4
# 10M parameters as a Llama has them: TRL trains Hugging Face models. Recomputing the layers is faster on CPU (1.01 s against 1.11 s) and
# takes a fifth of the memory.
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


def run(seconds: float) -> None:
  """Prints JSON: seconds a step, ratios, peak memory, and the peers' names and versions."""
  del seconds  # a TRL step takes what it takes; _STEPS of them are enough for a median
  print(
    json.dumps(
      {
        "trl": [against_trl(vocabulary) for vocabulary in (8192, 32_768)],
        "prefix_sharing": [
          prefix_sharing(share, branches)
          for share, branches in ((0.7, 2), (0.9, 2), (0.9, 4), (0.9, 8))
        ],
      },
      indent=2,
    )
  )


def _pairs(
  vocabulary: int, prefix_share: float = 0.7, branches: int = 2
) -> list[tuple[list[int], list[list[int]]]]:
  """(prompt, responses) of every problem."""
  random = np.random.default_rng(0)
  prefix = round(prefix_share * _LENGTH)

  def draw(n: int) -> list[int]:
    return [int(i) for i in random.integers(1, vocabulary, n)]

  return [(draw(prefix), [draw(_LENGTH - prefix) for _ in range(branches)]) for _ in range(_PAIRS)]


def _batch(rows, seq_len: int) -> tuple[dict[str, jax.Array], trees.Bounds]:
  limits = trees.bounds(rows, len(rows), seq_len)
  return {k: jnp.asarray(v) for k, v in trees.layout(rows, limits).items()}, limits


def against_trl(vocabulary: int) -> dict[str, Any]:
  """Our step with cached reference sums, and DPOTrainer's with its reference precomputed and (its default) computed in the step."""
  model = Transformer(sized(LLAMA_10M, vocabulary))
  params = jax.jit(model.init)(jax.random.key(0))
  pairs = _pairs(vocabulary)
  rows = [[trees.pair(prompt, [responses[0]], [responses[1]])] for prompt, responses in pairs]
  batch, limits = _batch(rows, rows[0][0].size())
  batch["reference"] = preference.segment_log_probs(model, params, batch)
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4, weight_decay=0.0))
  layout = make_layout(schema.Mesh(), jax.devices()[:1])
  trainer = preference.PreferenceTrainer(
    model, optimizer, layout, schema.Train(), schema.Objective(loss="step_dpo"), limits
  )
  compiled = trainer.compile(batch)
  found: dict[str, Any] = {
    "vocabulary": vocabulary,
    "temporary_MiB": compiled.memory_analysis().temp_size_in_bytes >> 20,
    "whole_logits_in_program": f",{vocabulary}]" in _activations(compiled.as_text()),
  }
  host = jax.device_get(params)
  state = {"ours": trainer.start_from(params)}
  begin_rss = _reset_peak()

  def ours() -> float:
    began = time.monotonic()
    state["ours"], metrics = compiled(state["ours"], batch)
    found.setdefault("first_loss", float(metrics["loss"]))
    jax.block_until_ready(state["ours"])
    return time.monotonic() - began

  ours()
  found["peak_MiB"] = _peak() - begin_rss
  try:
    import trl

    from synthjax.bench import trl_peer
  except ImportError:
    found["peer"] = "trl is not installed: make parity"
    found["seconds"] = statistics.median(ours() for _ in range(_STEPS))
    return found
  rows_text = [
    {"prompt": prompt, "chosen": responses[0], "rejected": responses[1]}
    for prompt, responses in pairs
  ]
  for name, precomputed in (("precomputed", True), ("default", False)):
    found[name] = _interleaved(
      functools.partial(
        trl_peer.train,
        trl_peer.model_of(model.cfg, host),
        rows_text,
        _STEPS + 1,
        precomputed,
        len(os.sched_getaffinity(0)),
      ),
      ours,
    )
    found[name]["peer"] = (
      f"TRL {trl.__version__} DPOTrainer, reference {name}, torch {_version('torch')}"
    )
  return found


def _interleaved(train, ours) -> dict[str, Any]:
  times: dict[str, list[float]] = {"theirs": [], "ours": []}
  clock: dict[str, Any] = {"peak": []}

  def between(moment, log):
    del log
    if moment == "begin":
      clock["rss"] = _reset_peak()
      clock["began"] = time.monotonic()
    else:
      times["theirs"].append(time.monotonic() - clock["began"])
      clock["peak"].append(_peak() - clock["rss"])
      times["ours"].append(ours())

  with contextlib.redirect_stdout(sys.stderr):  # TRL prints its metrics
    log = train(between=between)
  ratios = [a / b for a, b in zip(times["theirs"], times["ours"])][1:]
  return {
    "ratio": round(statistics.median(ratios), 2),
    "their_seconds": round(statistics.median(times["theirs"][1:]), 3),
    "our_seconds": round(statistics.median(times["ours"][1:]), 3),
    "their_peak_MiB": max(clock["peak"][1:]),
    "their_first_loss": log.get("loss"),
  }


def prefix_sharing(prefix_share: float, branches: int) -> dict[str, Any]:
  """One row a problem against one row a branch: seconds a gradient, with the gradients compared."""
  vocabulary = 8192
  model = Transformer(sized(LLAMA_10M, vocabulary))
  params = jax.jit(model.init)(jax.random.key(0))
  steps = lambda responses: tuple(trees.Node(tuple(r), side=1) for r in responses)
  problems = _pairs(vocabulary, prefix_share, branches)
  shared = [
    [trees.Node(tuple(prompt), steps(responses), predicted=False)] for prompt, responses in problems
  ]
  apart = [
    [trees.Node(tuple(prompt), steps([response]), predicted=False)]
    for prompt, responses in problems
    for response in responses
  ]
  gradients, outs = {}, {}
  for name, rows in (("shared", shared), ("apart", apart)):
    batch, _ = _batch(rows, rows[0][0].size())
    gradients[name] = functools.partial(
      jax.jit(
        jax.grad(lambda params, batch: -preference.segment_log_probs(model, params, batch).mean())
      ),
      params,
      batch,
    )
    outs[name] = jax.block_until_ready(gradients[name]())
  times: dict[str, list[float]] = {name: [] for name in gradients}
  for _ in range(_STEPS):
    for name, gradient in gradients.items():
      began = time.monotonic()
      jax.block_until_ready(gradient())
      times[name].append(time.monotonic() - began)
  scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(outs["apart"]))
  apart_by = max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, outs.values())))
  tokens = [sum(tree.size() for row in rows for tree in row) for rows in (apart, shared)]
  ratio = statistics.median(a / b for a, b in zip(times["apart"], times["shared"]))
  return {
    "prefix": prefix_share,
    "branches": branches,
    "theory_of_linear_layers": round(tokens[0] / tokens[1], 2),
    "ratio": round(ratio, 2),
    "largest_gradient": scale,
    "gradients_differ_by": apart_by,
  }


def _activations(program: str) -> str:
  """Lines of the compiled program that compute (a parameter or its update may have the vocabulary as a dimension)."""
  return "\n".join(
    line for line in program.splitlines() if "f32[" in line and f"[{_PAIRS}," in line
  )


def _version(package: str) -> str:
  from importlib import metadata

  return metadata.version(package)


def _reset_peak() -> int:
  """Resets the kernel's peak of this process's resident memory; returns the present one in MiB."""
  with open("/proc/self/clear_refs", "w") as f:
    f.write("5")
  return _status("VmRSS")


def _peak() -> int:
  return _status("VmHWM")


def _status(name: str) -> int:
  with open("/proc/self/status") as f:
    return next(int(line.split()[1]) for line in f if line.startswith(name)) >> 10
