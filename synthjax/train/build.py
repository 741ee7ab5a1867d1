"""Builds a trainer: the mesh, the model on it and the optimizer of a config, each once."""

import math
from collections.abc import Sequence

from synthjax.config import schema
from synthjax.data import trees
from synthjax.model.transformer import Transformer, sized
from synthjax.sharding import check_fit, make_layout
from synthjax.train import optimizer
from synthjax.train.preference import PreferenceTrainer
from synthjax.train.step import Trainer


def build_trainer(experiment: schema.Experiment, vocabulary: int, steps: int) -> Trainer:
  """The trainer of a config over documents; nothing is allocated or compiled.

  Args:
    experiment: the resolved config.
    vocabulary: number of the tokenizer's ids.
    steps: length of the schedule.

  Raises:
    MeshError: the mesh does not fit the devices, the model or the batch.
    ConfigError: the model's vocabulary is smaller than the tokenizer's.
  """
  cfg = experiment.train
  layout = make_layout(experiment.mesh)
  model = Transformer(sized(experiment.model, vocabulary), layout.constrain)
  check_fit(layout, model.cfg, cfg.batch_size // cfg.accumulate, experiment.data.seq_len)
  return Trainer(model, optimizer.make(cfg.optimizer, steps), layout, cfg)


def build_preference_trainer(
  experiment: schema.Experiment,
  vocabulary: int,
  steps: int,
  tree_rows: Sequence[Sequence[trees.Node]],
) -> PreferenceTrainer:
  """As `build_trainer`, with `experiment.objective` over packed trees.

  Args:
    experiment: the resolved config.
    vocabulary: number of the tokenizer's ids.
    steps: length of the schedule.
    tree_rows: the trees of every packed sequence; the largest ones decide the static shapes.
  """
  cfg = experiment.train
  trainer = build_trainer(experiment, vocabulary, steps)
  layout = trainer.layout
  group_size = cfg.batch_size // cfg.accumulate // layout.batch_shards
  # Blocks of 8 for the kernel, and equal parts for the devices that split a group's predictions.
  multiple = math.lcm(8, layout.mesh.shape["context"])
  return PreferenceTrainer(
    model=trainer.model,
    optimizer=trainer.optimizer,
    layout=layout,
    cfg=cfg,
    objective=experiment.objective,
    limits=trees.bounds(tree_rows, group_size, experiment.data.seq_len, multiple),
  )
