"""The step of preference training: trees in, per-step log-prob sums, a loss over them.

The reference's sums come with the batch.

Shapes: B sequences, T tokens of a sequence, M groups of sequences (`data/trees.py`), N tokens of a
group, E predictions and S segments of a group, A micro-batches, D model.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from synthjax import files, multihost, progress
from synthjax.config.schema import Objective
from synthjax.data import trees
from synthjax.kernels.linear_logprob import Split, check_segments, segment_sums
from synthjax.losses.registry import Segments, objective
from synthjax.model.transformer import Constrain, Params, Transformer, unconstrained
from synthjax.train.step import Batch, Scalars, State, Trainer, check_sequences


def segment_log_probs(
  model: Transformer,
  params: Params,
  batch: Batch,
  split: Split | None = None,
  constrain: Constrain = unconstrained,
) -> jax.Array:
  """Log-prob sums of every segment, float32 [M, S].

  Only positions that predict something meet the vocabulary.
  """
  hidden_BTD = model.hidden(params, batch["tokens"], batch["positions"], batch["until"])
  groups, _ = batch["source"].shape
  hidden_MND = hidden_BTD.reshape(groups, -1, hidden_BTD.shape[-1])
  hidden_MND = constrain(hidden_MND, "batch", "whole", "embed")
  # A group's predictions may come from anywhere in the group, so each device needs all of it.
  gather = jax.vmap(lambda hidden_ND, source_E: hidden_ND[source_E])
  hidden_MED = gather(hidden_MND, batch["source"])
  hidden_MED = constrain(hidden_MED, "batch", "sequence", "embed")
  log_prob_ME = model.log_prob(params, hidden_MED, batch["targets"], split).log_prob
  segments = batch["tree"].shape[1]
  sums = jax.vmap(lambda log_prob_E, segment_E: segment_sums(log_prob_E, segment_E, segments))
  return sums(log_prob_ME, batch["segment"])


@dataclasses.dataclass(frozen=True)
class PreferenceTrainer(Trainer):
  """The trainer of `step.py` with a loss over trees."""

  objective: Objective
  limits: trees.Bounds  # static sizes of a group

  def check(self, batch: dict[str, np.ndarray]) -> None:
    """Raises ValueError as `check_trees`; weights are checked where trees are laid out."""
    check_trees(batch, self.model.cfg.vocab_size)

  def step(self, state: State, batch: Batch) -> tuple[State, Scalars]:
    """One update from a batch of trees."""
    grads, metrics = self.preference_gradients(state["params"], batch)
    return self.update(state, grads, metrics | {"target_tokens": batch["segment_tokens"].sum()})

  def preference_gradients(self, params: Params, batch: Batch) -> tuple[Params, Scalars]:
    """(gradient of the batch's loss, metrics).

    Accumulation changes memory and time, not the result. A loss may compare any two responses of
    the batch (KTO's reference point, normalised advantages), so micro-batches cannot be trained
    apart. But it sees the model through its sums alone: a first pass computes the sums of all
    micro-batches, the loss gives its gradient for each of them, and a second pass carries it back,
    micro-batch by micro-batch (Gao et al. 2021, GradCache).
    """

    def loss(sums_MS):
      return self._loss(sums_MS, batch)

    if self.cfg.accumulate == 1:
      return jax.grad(lambda params: loss(self._sums(params, batch)), has_aux=True)(params)

    micro_batches = self._micro_batches(batch)
    sums_AMS = jax.lax.map(lambda micro_batch: self._sums(params, micro_batch), micro_batches)
    # Micro-batch a holds the a-th of every device's groups.
    sums_MS = jnp.moveaxis(sums_AMS, 0, 1).reshape(batch["tree"].shape)
    d_sums_MS, metrics = jax.grad(loss, has_aux=True)(sums_MS)
    d_sums_AMS = self._micro_batches({"d_sums": d_sums_MS})["d_sums"]

    def carry_back(total, micro):
      micro_batch, d_sums_MS = micro
      _, pull_back = jax.vjp(lambda params: self._sums(params, micro_batch), params)
      return jax.tree.map(jnp.add, total, pull_back(d_sums_MS)[0]), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    grads, _ = jax.lax.scan(carry_back, zeros, (micro_batches, d_sums_AMS))
    return grads, metrics

  def _sums(self, params: Params, batch: Batch) -> jax.Array:
    return segment_log_probs(self.model, params, batch, self.layout.split, self.layout.constrain)

  def _loss(self, sums_MS: jax.Array, batch: Batch) -> tuple[jax.Array, Scalars]:
    """The objective over all segments of the batch, each of its trees with a number of its own."""
    groups = len(batch["tree"])
    per_group = self.limits.trees
    first_M1 = per_group * jnp.arange(groups)[:, None]
    padding = per_group * groups  # the number of segments that belong to no tree
    tree_MS = jnp.where(batch["tree"] < per_group, batch["tree"] + first_M1, padding)
    segments = Segments(
      reference_S=batch["reference"].reshape(-1),
      tokens_S=batch["segment_tokens"].reshape(-1),
      weight_S=batch["weight"].reshape(-1),
      side_S=batch["side"].reshape(-1),
      advantage_S=batch["advantage"].reshape(-1),
      pair_S=tree_MS.reshape(-1),
    )
    return objective(sums_MS.reshape(-1), segments, padding, self.objective)

  def _micro_batches(self, arrays: Batch) -> Batch:
    """Arrays [A, ...]: every device's sequences and groups in A parts, which stay on the device."""
    shards, parts = self.layout.batch_shards, self.cfg.accumulate

    def divided(x):
      by_device = x.reshape(shards, parts, -1, *x.shape[1:])
      return jnp.moveaxis(by_device, 1, 0).reshape(parts, -1, *x.shape[1:])

    return jax.tree.map(divided, arrays)


def check_trees(batch: dict[str, np.ndarray], vocabulary: int) -> None:
  """Checks a batch of trees on the host.

  Raises:
    ValueError: what `check_sequences` finds, or a segment id that skips; with its index and value.
  """
  check_sequences(batch, vocabulary)
  segments = batch["tree"].shape[1]
  for segment_E in batch["segment"]:
    check_segments(segment_E[segment_E < segments])  # padding, of segment S, comes last


def reference_sums(
  model: Transformer,
  params: Params,
  rows: Sequence[Sequence[trees.Node]],
  batch_size: int,
  seq_len: int,
  folder: files.Path,
  provenance: dict[str, str],
) -> list[np.ndarray]:
  """The reference's log-prob sums of the segments of every packed sequence.

  They are computed once, kept in `folder`, and reused by epochs, sweeps and restarts.

  Args:
    model: the reference's, on a single device.
    params: of the reference.
    rows: the trees of every packed sequence.
    batch_size: sequences that are computed at once.
    seq_len: tokens of a sequence.
    folder: of the sums.
    provenance: {"checkpoint", "tokenizer", "data"} -> hash; what the sums depend on.

  Raises:
    DataError: the folder holds sums of another checkpoint, tokenizer or data; it says which.
    ValueError: see `check_trees`.
  """
  folder = pathlib.Path(folder)
  description = folder / "made_of.json"
  if multihost.is_first() and not description.exists():
    measure = jax.jit(functools.partial(segment_log_probs, model))
    limits = trees.bounds(rows, batch_size, seq_len)
    _write_sums(measure, params, rows, limits, model.cfg.vocab_size, folder / "sums.npz")
    # Last: its presence says that the sums are complete.
    files.write_json(description, provenance)
  multihost.barrier(f"{folder} computed")
  stored = files.read_json(description)
  differ = [name for name in provenance if stored.get(name) != provenance[name]]
  if differ:
    raise files.DataError(
      f"{folder}: these reference log-probs were made with another "
      f"{' and another '.join(differ)}; remove the folder or name another one in "
      "config.objective.reference"
    )
  with np.load(folder / "sums.npz") as arrays:
    return np.split(arrays["sums"], arrays["ends"][:-1])


def _write_sums(
  measure: Any,
  params: Params,
  rows: Sequence[Sequence[trees.Node]],
  limits: trees.Bounds,
  vocabulary: int,
  path: pathlib.Path,
) -> None:
  """Computes the sums of all packed sequences, a group of `limits` at a time."""
  sums = []
  with progress.bar("reference", len(rows), "sequences") as advance:
    for start in range(0, len(rows), limits.rows):
      group = rows[start : start + limits.rows]
      batch = trees.layout(group, limits)
      check_trees(batch, vocabulary)
      sums_S = np.asarray(measure(params, batch))[0]  # the batch is one group
      # A group has room for more segments than it holds: the rest is padding.
      ends = np.cumsum([_count_segments(row) for row in group])
      sums += np.split(sums_S[: ends[-1]], ends[:-1])
      advance(len(ends))
  all_ends = np.cumsum([len(of_row) for of_row in sums])
  with files.replacing(path, "wb") as f:
    np.savez(f, sums=np.concatenate(sums), ends=all_ends)


def _count_segments(row: Sequence[trees.Node]) -> int:
  count = 0
  for tree in row:
    count += sum(node.predicted for node in trees.nodes(tree))
  return count
