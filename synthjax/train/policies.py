"""Training a policy on what a recipe holds in memory: documents by their likelihood, trees of traces by a preference loss."""

import math
from collections.abc import Sequence

import numpy as np

from synthjax import files
from synthjax.config import schema
from synthjax.data import loader, trees
from synthjax.data.documents import TokenDocuments
from synthjax.model.transformer import Transformer, sized
from synthjax.sharding import check_fit, make_layout
from synthjax.train import loop, optimizer
from synthjax.train.loop import Earlier, Result
from synthjax.train.preference import PreferenceTrainer


def on_documents(
  experiment: schema.Experiment,
  documents: TokenDocuments,
  folder: files.Path,
  tokenizer: tuple[int, str],
) -> Result:
  """Trains `experiment.train.init` by cross-entropy over the responses; see `loop.run`.

  Args:
    documents: none longer than `data.seq_len`.
    tokenizer: (number of ids, fingerprint).
  """
  cfg = experiment.train
  rows = loader.Rows(documents, experiment.data.seq_len, experiment.seed)
  steps = cfg.steps or math.ceil(rows.count(cfg.epochs) / cfg.batch_size)
  return loop.by_likelihood(experiment, rows, steps, folder, tokenizer)


def on_trees(
  experiment: schema.Experiment,
  plan: trees.Plan,
  reference: Sequence[np.ndarray],
  folder: files.Path,
  tokenizer: tuple[int, str],
  earlier: Sequence[Earlier] = (),
) -> Result:
  """Trains `experiment.train.init` by `experiment.objective` over planned trees.

  Args:
    reference: the reference's log-prob sums, from `preference.reference_sums`.
    earlier: trainings of which this one may be the continuation, see `loop.train`.
  """
  cfg, length = experiment.train, experiment.data.seq_len
  steps = cfg.steps or max(1, round(cfg.epochs * len(plan.rows) / cfg.batch_size))
  layout = make_layout(experiment.mesh)
  model = Transformer(sized(experiment.model, tokenizer[0]), layout.constrain)
  check_fit(layout, model.cfg, cfg.batch_size // cfg.accumulate, length)
  group_rows = cfg.batch_size // cfg.accumulate // layout.row_shards
  even = math.lcm(8, layout.mesh.shape["context"])
  limits = trees.bounds(plan.rows, group_rows, length, even)
  rows = trees.TreeRows(plan.rows, reference, limits, experiment.seed, plan.fill)
  trainer = PreferenceTrainer(
    model, optimizer.make(cfg.optimizer, steps), layout, cfg, experiment.objective, limits.trees
  )
  trunk = loop.trunk_of(experiment, steps, earlier)
  return loop.run(experiment, trainer, rows, steps, folder, tokenizer, trunk=trunk)
