"""`synthjax bench train`: the 10M-parameter step beside PyTorch's, its memory with and without recomputation, and how fast it starts."""

import dataclasses
import os
import statistics
import subprocess
import sys
import time

import jax
import numpy as np

from synthjax.config import schema
from synthjax.config.presets import PRESETS
from synthjax.data import packing
from synthjax.model.transformer import Transformer, sized
from synthjax.sharding import make_layout
from synthjax.train import optimizer
from synthjax.train.step import Trainer

_ROWS, _ROW_LENGTH, _VOCABULARY = 8, 256, 4096


def run(seconds: float) -> None:
  """Prints tokens a second (median of interleaved steps) and ratios, temporary memory, and the start of a training."""
  threads = len(os.sched_getaffinity(0))
  cfg = sized(PRESETS["small_10m"], _VOCABULARY)
  trainer = _trainer(cfg)
  state = trainer.init(jax.random.key(0))
  params = jax.device_get(state["params"])
  batch = trainer.layout.put(_batch(_ROWS, _ROW_LENGTH), _ROWS)
  compiled = trainer.compile(batch)
  held = {"state": state}

  def ours() -> float:
    held["state"], metrics = compiled(held["state"], batch)
    return float(metrics["loss"])

  steps = {f"synthjax (jax {jax.__version__})": ours}
  try:
    import torch

    from synthjax.bench import torch_decoder

    peers = torch_decoder.steps(cfg, params, batch, threads)
    steps |= {f"{name} {torch.__version__}": step for name, step in peers.items()}
  except ImportError:
    print("PyTorch is not installed: `make parity` installs it; measuring synthjax alone")
  print(
    f"small_10m, {_ROWS} rows x {_ROW_LENGTH} tokens, {_VOCABULARY} ids, float32, AdamW, {threads} threads"
  )
  _report(_interleaved(steps, seconds))
  _memory(cfg)
  print(
    f"training start without TensorFlow: {_start_seconds():.1f} s from the command to the train loop, imported, and a device"
  )


def _trainer(cfg: schema.Model) -> Trainer:
  layout = make_layout(schema.Mesh(), jax.devices()[:1])
  train = schema.Train(batch_size=_ROWS, optimizer=schema.Optimizer(schedule="constant", warmup=0))
  return Trainer(
    Transformer(cfg, layout.constrain), optimizer.make(train.optimizer, 100), layout, train
  )


def _batch(rows: int, length: int) -> dict[str, np.ndarray]:
  """One document a row, a target at every position but the last, as PyTorch's causal attention wants it."""
  random = np.random.default_rng(0)
  batch = packing.layout(
    [[np.concatenate([[0], random.integers(0, _VOCABULARY, length + 1)])] for _ in range(rows)],
    length + 1,
  )
  return {
    name: np.ascontiguousarray(np.minimum(x[:, :-1], length) if name == "until" else x[:, :-1])
    for name, x in batch.items()
  }


def _interleaved(steps, seconds) -> dict[str, tuple[list[float], float]]:
  """name -> (seconds of each step, loss of the very first one). The first two steps of each are left out: they compile."""
  first = {name: step() for name, step in steps.items()}
  for step in steps.values():
    step()
  found: dict[str, list[float]] = {name: [] for name in steps}
  until = time.monotonic() + seconds
  while time.monotonic() < until:
    for name, step in steps.items():
      began = time.monotonic()
      step()
      found[name].append(time.monotonic() - began)
  return {name: (times, first[name]) for name, times in found.items()}


def _report(found) -> None:
  (_, (ours, our_loss)), *peers = found.items()
  for name, (times, loss) in found.items():
    rate = _ROWS * _ROW_LENGTH / statistics.median(times)
    # Steps that ran one after the other are compared with each other: the machine's other work then cancels.
    ratio = statistics.median(theirs / mine for theirs, mine in zip(times, ours))
    print(
      f"  {name:28} {rate:>8,.0f} tokens/s   synthjax is {ratio:.2f}x   first loss {loss:.5f}   ({len(times)} steps)"
    )
  if any(abs(loss - our_loss) > 1e-3 for _, (_, loss) in peers):
    print("  the first losses differ: the peers do not compute the same thing")


def _memory(cfg) -> None:
  """Temporary memory of a step at the context where it hurts, with the layers' activations kept and recomputed."""
  batch = {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in _batch(_ROWS, 1024).items()}
  kept = {}
  for remat in ("none", "dots", "full"):
    trainer = _trainer(dataclasses.replace(cfg, remat=remat))
    kept[remat] = trainer.compile(batch).memory_analysis().temp_size_in_bytes / 2**20
  print(
    f"temporary memory of a step of {_ROWS} rows x 1,024 tokens: "
    + ", ".join(
      f"remat={name} {mib:,.0f} MiB ({kept['none'] / mib:.1f}x less)" for name, mib in kept.items()
    )
  )


def _start_seconds() -> float:
  code = (
    "import sys, jax, synthjax.train.loop; jax.devices(); assert 'tensorflow' not in sys.modules"
  )
  began = time.monotonic()
  subprocess.run([sys.executable, "-c", code], check=True)
  return time.monotonic() - began
