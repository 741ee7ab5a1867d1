"""`synthjax bench train`: the 10M-parameter step beside PyTorch's, its memory with and without
recomputation, and how fast a training starts.
"""

import dataclasses
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from synthjax.config import schema
from synthjax.config.presets import PRESETS
from synthjax.data import packing
from synthjax.model.transformer import Transformer, sized
from synthjax.sharding import make_layout
from synthjax.train import optimizer
from synthjax.train.step import Trainer

_BATCH, _SEQ_LEN, _VOCABULARY = 8, 256, 4096
# Where the memory of activations hurts.
_LONG_SEQ_LEN = 1024

# Does one training step and returns the loss.
Step = Callable[[], float]


class Timed(NamedTuple):
  """Seconds of each step, and the loss of the very first one."""

  seconds: list[float]
  first_loss: float


def run(seconds: float) -> None:
  """Prints tokens a second and ratios, temporary memory, and the start of a training."""
  threads = len(os.sched_getaffinity(0))
  cfg = sized(PRESETS["small_10m"], _VOCABULARY)
  trainer = _trainer(cfg)
  state = trainer.init(jax.random.key(0))
  # The step donates its state: the peers' copy of the parameters is taken before the first one.
  params = jax.device_get(state["params"])
  batch = trainer.layout.put(_batch(_BATCH, _SEQ_LEN), _BATCH)
  compiled = trainer.compile(batch)

  def ours() -> float:
    nonlocal state
    state, metrics = compiled(state, batch)
    return float(metrics["loss"])

  steps: dict[str, Step] = {f"synthjax (jax {jax.__version__})": ours}
  try:
    import torch

    from synthjax.bench import torch_decoder

    peers = torch_decoder.steps(cfg, params, batch, threads)
    for name, step in peers.items():
      steps[f"{name} {torch.__version__}"] = step
  except ImportError:
    print("PyTorch is not installed: `make parity` installs it; measuring synthjax alone")
  print(
    f"small_10m, {_BATCH} sequences x {_SEQ_LEN} tokens, {_VOCABULARY} ids, float32, AdamW, "
    f"{threads} threads"
  )
  _report(_time_in_turn(steps, seconds))
  _report_memory(cfg)
  print(
    f"training start without TensorFlow: {_start_seconds():.1f} s from the command to the train "
    "loop, imported, and a device"
  )


def _trainer(cfg: schema.Model) -> Trainer:
  layout = make_layout(schema.Mesh(), jax.devices()[:1])
  adamw = schema.Optimizer(schedule="constant", warmup=0)
  train = schema.Train(batch_size=_BATCH, optimizer=adamw)
  model = Transformer(cfg, layout.constrain)
  return Trainer(model, optimizer.make(adamw, 100), layout, train)


def _batch(size: int, length: int) -> dict[str, np.ndarray]:
  """One document a sequence, with a target at every position, as PyTorch's causal attention has it.

  Each array has the shape (size, length).
  """
  random = np.random.default_rng(0)
  documents = []
  for _ in range(size):
    # The first number of a record is the length of its prompt. One token more: the last position
    # of a document has no target, and is cut off.
    ids = random.integers(0, _VOCABULARY, length + 1)
    documents.append([np.concatenate([[0], ids])])
  batch = {}
  for name, array in packing.layout(documents, length + 1).items():
    array = array[:, :-1]
    if name == "until":
      array = np.minimum(array, length)
    batch[name] = np.ascontiguousarray(array)
  return batch


def _time_in_turn(steps: dict[str, Step], seconds: float) -> dict[str, Timed]:
  """Times the steps in turn. The first two of each are left out: they compile."""
  timed = {name: Timed([], step()) for name, step in steps.items()}
  for step in steps.values():
    step()
  until = time.monotonic() + seconds
  while time.monotonic() < until:
    for name, step in steps.items():
      began = time.monotonic()
      step()
      timed[name].seconds.append(time.monotonic() - began)
  return timed


def _report(timed: dict[str, Timed]) -> None:
  ours = next(iter(timed.values()))
  for name, row in timed.items():
    rate = _BATCH * _SEQ_LEN / statistics.median(row.seconds)
    # Steps that ran one after the other are compared: the machine's other work then cancels.
    ratios = [theirs / mine for theirs, mine in zip(row.seconds, ours.seconds)]
    print(
      f"  {name:28} {rate:>8,.0f} tokens/s   synthjax is {statistics.median(ratios):.2f}x   "
      f"first loss {row.first_loss:.5f}   ({len(row.seconds)} steps)"
    )
  if any(abs(row.first_loss - ours.first_loss) > 1e-3 for row in timed.values()):
    print("  the first losses differ: the peers do not compute the same thing")


def _report_memory(cfg: schema.Model) -> None:
  """Temporary memory of a long step, with the layers' activations kept and recomputed."""
  batch = {}
  for name, array in _batch(_BATCH, _LONG_SEQ_LEN).items():
    batch[name] = jax.ShapeDtypeStruct(array.shape, array.dtype)
  kept_mib, parts = 0.0, []
  for remat in ("none", "dots", "full"):
    trainer = _trainer(dataclasses.replace(cfg, remat=remat))
    mib = trainer.compile(batch).memory_analysis().temp_size_in_bytes / 2**20
    if remat == "none":
      kept_mib = mib
    parts.append(f"remat={remat} {mib:,.0f} MiB ({kept_mib / mib:.1f}x less)")
  print(
    f"temporary memory of a step of {_BATCH} sequences x {_LONG_SEQ_LEN:,} tokens: "
    f"{', '.join(parts)}"
  )


def _start_seconds() -> float:
  code = (
    "import sys, jax, synthjax.train.loop; jax.devices(); assert 'tensorflow' not in sys.modules"
  )
  began = time.monotonic()
  subprocess.run([sys.executable, "-c", code], check=True)
  return time.monotonic() - began
