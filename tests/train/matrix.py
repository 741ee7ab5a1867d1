"""Losses and gradients of every loss over meshes and micro-batches.

It runs in as many processes as the environment says.

Usage: python tests/train/matrix.py OUT.npz oracle|COUNT. With `oracle` each loss is computed on one
device, in one piece; else the first COUNT cases. OUT holds the loss and the gradient of each.
"""

import sys

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from synthjax import multihost
from synthjax.config import schema
from synthjax.data import loader, packing, trees
from synthjax.model.transformer import Transformer
from synthjax.sharding import AXES, Layout, make_layout
from synthjax.train import optimizer
from synthjax.train.preference import PreferenceTrainer
from synthjax.train.step import Trainer

MODEL = schema.Model(
  d_model=16,
  layers=1,
  heads=4,
  kv_heads=4,
  head_dim=4,
  mlp_dim=16,
  vocab_size=64,
  mlp="relu",
)
BATCH_SIZE, SEQ_LEN = 16, 32
MESHES = {
  "data": (2, 2, 1, 1),
  "tensor": (1, 1, 4, 1),
  "context": (1, 2, 1, 2),
  "both": (1, 1, 2, 2),
  # Devices in an order that gives a process sequences that are not neighbours.
  "crossed": (1, 4, 1, 1),
}
# (loss, mesh, micro-batches). The first ones differ most in which process holds what.
CASES = [
  ("cross_entropy", "tensor", 1),
  ("cross_entropy", "crossed", 4),
  ("step_dpo", "context", 1),
  ("kto", "crossed", 4),
  ("cross_entropy", "data", 1),
  ("cross_entropy", "context", 1),
  ("cross_entropy", "both", 4),
  ("step_dpo", "tensor", 4),
  ("step_dpo", "crossed", 1),
  ("kto", "both", 1),
  ("dpo", "context", 4),
  ("ipo", "data", 4),
  ("dpop", "tensor", 4),
  ("rpo", "both", 4),
  ("simpo", "data", 4),
  ("orpo", "tensor", 1),
  ("awr", "crossed", 4),
  ("filtered_sft", "data", 4),
]


def layout_of(mesh: str) -> Layout:
  if mesh == "crossed":
    devices = np.array(jax.devices())[[0, 2, 1, 3]].reshape(MESHES[mesh])
    return Layout(Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES)))
  return make_layout(schema.Mesh(*MESHES[mesh]))


class Documents:
  """Sequences of two documents each."""

  def read(self, indices):
    sequences = [[self._document(index, 0), self._document(index, 1)] for index in indices]
    return packing.layout(sequences, SEQ_LEN)

  def _document(self, index, number):
    random = np.random.default_rng([index, number])
    length = int(random.integers(6, 15))
    return np.concatenate([[length // 3], random.integers(1, 64, length)]).astype(np.int32)


def packed_trees(group_size: int, context: int) -> trees.PackedTrees:
  """Sequences of one or two pairs, with the sums of a made-up reference."""
  random = np.random.default_rng(0)

  def steps(count):
    return [random.integers(1, 64, int(random.integers(1, 4))).tolist() for _ in range(count)]

  rows, reference = [], []
  for number in range(12):
    counts = (2, 1 + number % 2)
    advantages = tuple(random.normal(size=count).tolist() for count in counts)
    pairs = []
    for _ in range(1 + number % 2):
      chosen, rejected = steps(counts[0]), steps(counts[1])
      pairs.append(trees.pair([1, 2, 3], chosen, rejected, advantages=advantages))
    rows.append(pairs)
    segments = sum(counts) * len(pairs)
    reference.append(-3.0 * np.ones(segments, np.float32))
  limits = trees.bounds(rows, group_size, SEQ_LEN, 8 * context)
  return trees.PackedTrees(rows, reference, limits, 0, 1.0)


def gradient(loss: str, layout: Layout, accumulate: int):
  """(loss, gradient) of the second batch, as every process gets it."""
  cfg = schema.Train(batch_size=BATCH_SIZE, accumulate=accumulate)
  model = Transformer(MODEL, layout.constrain)
  trainer = Trainer(model, optimizer.make(cfg.optimizer, 10), layout, cfg)
  if loss == "cross_entropy":
    source = Documents()
  else:
    group_size = BATCH_SIZE // accumulate // layout.batch_shards
    source = packed_trees(group_size, layout.mesh.shape["context"])
    objective = schema.Objective(loss=loss, advantage=schema.Advantage(normalise=True))
    trainer = PreferenceTrainer(model, trainer.optimizer, layout, cfg, objective, source.limits)
  indices = layout.local_indices(BATCH_SIZE)
  batch = next(loader.batches(source, BATCH_SIZE, 1, position=BATCH_SIZE, share=indices))
  trainer.check(batch)
  params = trainer.init(jax.random.key(0))["params"]

  def compute(params, batch):
    if loss == "cross_entropy":
      return trainer.gradients(params, batch, batch["weights"].sum())
    return trainer.preference_gradients(params, batch)

  compute = jax.jit(compute, out_shardings=layout.replicated)
  grads, metrics = compute(params, layout.put(batch, BATCH_SIZE))
  return jax.device_get((metrics["loss"], grads))


def flat_gradient(loss: str, layout: Layout, accumulate: int) -> np.ndarray:
  """The loss and all entries of its gradient."""
  value, grads = gradient(loss, layout, accumulate)
  return np.concatenate([np.ravel(value), *map(np.ravel, jax.tree.leaves(grads))])


def main(out: str, which: str) -> None:
  multihost.start(multihost.from_environment())
  results = {}
  if which == "oracle":
    for loss in dict.fromkeys(loss for loss, _, _ in CASES):
      one_device = make_layout(schema.Mesh(), jax.devices()[:1])
      results[loss] = flat_gradient(loss, one_device, 1)
  else:
    for loss, mesh, accumulate in CASES[: int(which)]:
      name = f"{loss} {mesh} {accumulate}"
      results[name] = flat_gradient(loss, layout_of(mesh), accumulate)
  if multihost.is_first():
    np.savez(out, **results)
  multihost.finish()


if __name__ == "__main__":
  main(*sys.argv[1:])
