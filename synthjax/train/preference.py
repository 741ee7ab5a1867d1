"""The step of preference training: trees in, per-step log-prob sums, a loss over them. The reference's sums come with the batch.

Shapes: B rows, T places of a row, M groups of rows (`data/trees.py`), N places of a group, E predictions and S segments of a group,
A micro-batches, D model.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from synthjax import files, multihost, progress
from synthjax.config.schema import Objective
from synthjax.data import trees
from synthjax.kernels.linear_logprob import check_segments, segment_sums
from synthjax.losses.registry import Segments, objective
from synthjax.model.transformer import Constrain, Params, Transformer, unconstrained
from synthjax.train.step import State, Trainer, check_rows

Batch = dict[str, jax.Array]


def segment_log_probs(
  model: Transformer, params: Params, batch: Batch, split=None, constrain: Constrain = unconstrained
) -> jax.Array:
  """Log-prob sums of every segment, float32 [M, S]. Only predicted places meet the vocabulary."""
  hidden_BTD = model.hidden(params, batch["tokens"], batch["positions"], batch["until"])
  groups, _ = batch["source"].shape
  hidden_MND = constrain(
    hidden_BTD.reshape(groups, -1, hidden_BTD.shape[-1]), "batch", "whole", "embed"
  )
  hidden_MED = jax.vmap(lambda hidden_ND, source_E: hidden_ND[source_E])(
    hidden_MND, batch["source"]
  )
  hidden_MED = constrain(hidden_MED, "batch", "sequence", "embed")
  log_prob_ME = model.log_prob(params, hidden_MED, batch["targets"], split).log_prob
  segments = batch["tree"].shape[1]
  return jax.vmap(lambda log_prob_E, segment_E: segment_sums(log_prob_E, segment_E, segments))(
    log_prob_ME, batch["segment"]
  )


@dataclasses.dataclass(frozen=True)
class PreferenceTrainer(Trainer):
  """The trainer of `step.py` with a loss over trees."""

  objective: Objective
  pairs: int  # most of a group

  def check(self, batch: dict[str, np.ndarray]) -> None:
    """As a trainer's; weights are checked where trees are laid out."""
    check_trees(batch, self.model.cfg.vocab_size)

  def step(self, state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
    """One update from a batch of trees; metrics are float32 scalars."""
    grads, metrics = self.preference_gradients(state["params"], batch)
    return self.update(state, grads, metrics | {"target_tokens": batch["segment_tokens"].sum()})

  def preference_gradients(
    self, params: Params, batch: Batch
  ) -> tuple[Params, dict[str, jax.Array]]:
    """(gradient of the batch's loss, metrics); accumulation changes memory and time, not the result.

    A loss may compare any two responses of the batch (KTO's reference point, normalised advantages), so micro-batches cannot be
    trained apart. But it sees the model through its sums alone: a first pass computes the sums of all micro-batches, the loss gives
    its gradient for each of them, and a second pass carries it back, micro-batch by micro-batch (Gao et al. 2021, GradCache).
    """

    def loss(sums_MS):
      return self._loss(sums_MS, batch)

    if self.cfg.accumulate == 1:
      return jax.grad(lambda params: loss(self._sums(params, batch)), has_aux=True)(params)

    micro_batches = self._micro_batches(batch)
    sums_AMS = jax.lax.map(lambda micro: self._sums(params, micro), micro_batches)
    # Micro-batch a holds the a-th of every device's groups.
    sums_MS = jnp.moveaxis(sums_AMS, 0, 1).reshape(batch["tree"].shape)
    d_sums_MS, metrics = jax.grad(loss, has_aux=True)(sums_MS)
    d_sums_AMS = self._micro_batches({"d_sums": d_sums_MS})["d_sums"]

    def carry_back(total, micro):
      batch, d_sums_MS = micro
      _, pull_back = jax.vjp(lambda params: self._sums(params, batch), params)
      return jax.tree.map(jnp.add, total, pull_back(d_sums_MS)[0]), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(carry_back, zeros, (micro_batches, d_sums_AMS))[0], metrics

  def _sums(self, params: Params, batch: Batch) -> jax.Array:
    return segment_log_probs(self.model, params, batch, self.layout.split, self.layout.constrain)

  def _loss(self, sums_MS: jax.Array, batch: Batch):
    """The objective over all segments of the batch, each of its pairs with a number of its own."""
    groups = len(batch["tree"])
    first_M1 = self.pairs * jnp.arange(groups)[:, None]
    padding = self.pairs * groups
    tree_MS = jnp.where(batch["tree"] < self.pairs, batch["tree"] + first_M1, padding)
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
    """Arrays [A, ...]: every device's rows and groups in A parts, which stay on the device."""
    shards, parts = self.layout.row_shards, self.cfg.accumulate

    def divided(x):
      by_device = x.reshape(shards, parts, -1, *x.shape[1:])
      return jnp.moveaxis(by_device, 1, 0).reshape(parts, -1, *x.shape[1:])

    return jax.tree.map(divided, arrays)


def check_trees(batch: dict[str, np.ndarray], vocabulary: int) -> None:
  """Raises ValueError, with the row and the value, for what `check_rows` finds and for a segment id that skips."""
  check_rows(batch, vocabulary)
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
  made_of: dict[str, str],
) -> list[np.ndarray]:
  """The reference's log-prob sums of every row's segments: computed once, kept in `folder`, reused by epochs, sweeps and restarts.

  Args:
    made_of: {"checkpoint", "tokenizer", "data"} -> hash; what the sums depend on.

  Raises:
    DataError: the folder holds sums of another checkpoint, tokenizer or data; it says which.
    ValueError: see `check_trees`.
  """
  folder = pathlib.Path(folder)
  if multihost.is_first() and not (folder / "made_of.json").exists():
    _compute_sums(model, params, rows, (batch_size, seq_len), folder, made_of)
  multihost.meet(f"{folder} computed")
  known = files.read_json(folder / "made_of.json")
  differ = [name for name in made_of if known.get(name) != made_of[name]]
  if differ:
    raise files.DataError(
      f"{folder}: these reference log-probs were made with another {' and another '.join(differ)}; remove the folder "
      "or name another one in config.objective.reference"
    )
  with np.load(folder / "sums.npz") as stored:
    return np.split(stored["sums"], stored["ends"][:-1])


def _compute_sums(
  model, params, rows, size: tuple[int, int], folder: pathlib.Path, made_of: dict[str, str]
) -> None:
  """Writes the sums of all rows into the folder, in batches of `size` (rows, tokens)."""
  batch_size, seq_len = size
  measure, found = jax.jit(lambda params, batch: segment_log_probs(model, params, batch)), []
  limits = trees.bounds(rows, batch_size, seq_len)
  with progress.bar("reference", len(rows), "rows") as advance:
    for start in range(0, len(rows), batch_size):
      batch = trees.layout(rows[start : start + batch_size], limits)
      check_trees(batch, model.cfg.vocab_size)
      sums_S = np.asarray(measure(params, batch))[0]  # all rows are one group
      ends = np.cumsum(
        [
          sum(node.predicted for tree in row for node in trees.nodes(tree))
          for row in rows[start : start + batch_size]
        ]
      )
      found += np.split(sums_S[: ends[-1]], ends[:-1])
      advance(len(ends))
  with files.replacing(folder / "sums.npz", "wb") as f:
    np.savez(f, sums=np.concatenate(found), ends=np.cumsum([len(sums) for sums in found]))
  files.write_json(folder / "made_of.json", made_of)
