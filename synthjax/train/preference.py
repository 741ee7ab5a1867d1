"""The step of preference training: trees in, per-step log-prob sums, a loss over them. The reference's sums come with the batch.

Shapes: B rows, T places, E predictions, S segments, P pairs, D model.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from synthjax import files, progress
from synthjax.data import trees
from synthjax.kernels.linear_logprob import check_segments, segment_sums
from synthjax.losses.registry import objective
from synthjax.model.transformer import Params, Transformer
from synthjax.schema import Objective
from synthjax.train.step import State, Trainer, check_rows

Batch = dict[str, jax.Array]


def segment_log_probs(model: Transformer, params: Params, batch: Batch, split=None) -> jax.Array:
  """Log-prob sums of every segment, float32 [S]. Only predicted places meet the vocabulary."""
  hidden_BTD = model.hidden(params, batch["tokens"], batch["positions"], batch["until"])
  hidden_ED = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])[batch["source"]]
  found = model.log_prob(params, hidden_ED, batch["targets"], split)
  return segment_sums(found.log_prob, batch["segment"], len(batch["tree"]))


@dataclasses.dataclass(frozen=True)
class PreferenceTrainer(Trainer):
  """The trainer of `step.py` with a loss over trees."""

  objective: Objective
  pairs: int  # of a batch

  def check(self, batch: dict[str, np.ndarray]) -> None:
    """As a trainer's; weights are checked where trees are laid out."""
    check_trees(batch, self.model.cfg.vocab_size)

  def step(self, state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
    """One update from a batch of trees; metrics are float32 scalars."""
    def loss(params):
      sums_S = segment_log_probs(self.model, params, batch, self.layout.split)
      return objective(sums_S, batch, self.pairs, self.objective)

    grads, metrics = jax.grad(loss, has_aux=True)(state["params"])
    return self.update(state, grads, metrics | {"target_tokens": batch["segment_tokens"].sum()})


def check_trees(batch: dict[str, np.ndarray], vocabulary: int) -> None:
  """Raises ValueError, with the row and the value, for what `check_rows` finds and for a segment id that skips."""
  check_rows(batch, vocabulary)
  check_segments(batch["segment"][batch["segment"] < len(batch["tree"])])  # filler, of segment S, comes last


def reference_sums(model: Transformer, params: Params, rows: Sequence[Sequence[trees.Node]], batch_size: int, row_length: int,
                   folder: files.Path, made_of: dict[str, str]) -> list[np.ndarray]:
  """The reference's log-prob sums of every row's segments: computed once, kept in `folder`, reused by epochs, sweeps and restarts.

  Args:
    made_of: {"checkpoint", "tokenizer", "data"} -> hash; what the sums depend on.

  Raises:
    DataError: the folder holds sums of another checkpoint, tokenizer or data; it says which.
    ValueError: see `check_trees`.
  """
  folder = pathlib.Path(folder)
  if (folder / "made_of.json").exists():
    known = files.read_json(folder / "made_of.json")
    differ = [name for name in made_of if known.get(name) != made_of[name]]
    if differ:
      raise files.DataError(f"{folder}: these reference log-probs were made with another {' and another '.join(differ)}; remove the folder "
                            "or name another one in config.objective.reference")
    with np.load(folder / "sums.npz") as stored:
      return np.split(stored["sums"], stored["ends"][:-1])
  measure, found = jax.jit(lambda params, batch: segment_log_probs(model, params, batch)), []
  limits = trees.bounds_of_any(rows, batch_size, row_length)
  with progress.bar("reference", len(rows), "rows") as advance:
    for start in range(0, len(rows), batch_size):
      batch = trees.layout(rows[start:start + batch_size], limits)
      check_trees(batch, model.cfg.vocab_size)
      sums_S = np.asarray(measure(params, batch))
      ends = np.cumsum([sum(node.predicted for tree in row for node in trees.nodes(tree)) for row in rows[start:start + batch_size]])
      found += np.split(sums_S[:ends[-1]], ends[:-1])
      advance(len(ends))
  with files.replacing(folder / "sums.npz", "wb") as f:
    np.savez(f, sums=np.concatenate(found), ends=np.cumsum([len(sums) for sums in found]))
  files.write_json(folder / "made_of.json", made_of)
  return found
