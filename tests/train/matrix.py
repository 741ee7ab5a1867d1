"""Losses and gradients of every loss over meshes and micro-batches, by as many processes as the environment says.

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
  d_model=16, layers=1, heads=4, kv_heads=4, head_dim=4, mlp_dim=16, vocab_size=64, mlp="relu"
)
ROWS, LENGTH = 16, 32
MESHES = {
  "data": (2, 2, 1, 1),
  "tensor": (1, 1, 4, 1),
  "context": (1, 2, 1, 2),
  "both": (1, 1, 2, 2),
  "crossed": (1, 4, 1, 1),  # devices in an order that gives a process rows that are not neighbours
}
# (loss, mesh, micro-batches). The first ones are those that differ most in which process holds what.
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
  """Rows of two documents each."""

  def read(self, indices):
    return packing.layout([[self._document(i, 0), self._document(i, 1)] for i in indices], LENGTH)

  def _document(self, row, number):
    random = np.random.default_rng([row, number])
    length = int(random.integers(6, 15))
    return np.concatenate([[length // 3], random.integers(1, 64, length)]).astype(np.int32)


def tree_rows(group_rows: int, context: int) -> trees.TreeRows:
  """Rows of one or two pairs with the sums of a made-up reference."""
  random = np.random.default_rng(0)

  def steps(count):
    return [random.integers(1, 64, int(random.integers(1, 4))).tolist() for _ in range(count)]

  rows = []
  for number in range(12):
    counts = (2, 1 + number % 2)
    advantages = tuple(random.normal(size=count).tolist() for count in counts)
    pairs = [
      trees.pair([1, 2, 3], steps(counts[0]), steps(counts[1]), advantages=advantages)
      for _ in range(1 + number % 2)
    ]
    rows.append(pairs)
  reference = [
    -3.0 * np.ones(sum(node.predicted for tree in row for node in trees.nodes(tree)), np.float32)
    for row in rows
  ]
  return trees.TreeRows(
    rows, reference, trees.bounds(rows, group_rows, LENGTH, 8 * context), 0, 1.0
  )


def gradient(loss: str, layout: Layout, accumulate: int):
  """(loss, gradient) of the second batch, as every process gets it."""
  cfg = schema.Train(batch_size=ROWS, accumulate=accumulate)
  pieces = Transformer(MODEL, layout.constrain), optimizer.make(cfg.optimizer, 10), layout, cfg
  if loss == "cross_entropy":
    rows, trainer = Documents(), Trainer(*pieces)
  else:
    rows = tree_rows(ROWS // accumulate // layout.row_shards, layout.mesh.shape["context"])
    objective = schema.Objective(loss=loss, advantage=schema.Advantage(normalise=True))
    trainer = PreferenceTrainer(*pieces, objective, rows.limits.trees)
  batch = next(loader.batches(rows, ROWS, 1, position=ROWS, share=layout.share(ROWS)))
  trainer.check(batch)
  params = trainer.init(jax.random.key(0))["params"]

  def compute(params, batch):
    if loss != "cross_entropy":
      return trainer.preference_gradients(params, batch)
    return trainer.gradients(params, batch, batch["weights"].sum())

  found, metrics = jax.jit(compute, out_shardings=layout.replicated)(
    params, layout.put(batch, ROWS)
  )
  return jax.device_get((metrics["loss"], found))


def main(out: str, what: str) -> None:
  multihost.start(multihost.from_environment())
  results = {}
  oracle = what == "oracle"
  for loss, mesh, accumulate in CASES if oracle else CASES[: int(what)]:
    name = loss if oracle else f"{loss} {mesh} {accumulate}"
    if name not in results:
      layout = make_layout(schema.Mesh(), jax.devices()[:1]) if oracle else layout_of(mesh)
      value, leaves = gradient(loss, layout, 1 if oracle else accumulate)
      results[name] = np.concatenate([np.ravel(value), *map(np.ravel, jax.tree.leaves(leaves))])
  if multihost.is_first():
    np.savez(out, **results)
  multihost.finish()


if __name__ == "__main__":
  main(*sys.argv[1:])
