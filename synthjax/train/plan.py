"""What a config will need, from shapes alone: nothing is allocated."""

import dataclasses
import math
import pathlib

import jax
import numpy as np

from synthjax import sharding
from synthjax.config import schema
from synthjax.data import tokenizers
from synthjax.model import count
from synthjax.model.transformer import Transformer, sized
from synthjax.train import optimizer
from synthjax.train.step import Trainer


def describe(experiment: schema.Experiment, simulated: bool = False) -> str:
  """Parameters, FLOPs a token, and what a device holds of the state on the mesh of the devices.

  The step is traced and compiled.

  Args:
    experiment: the config.
    simulated: the devices stand for accelerators, where `model.dtype` "auto" is bfloat16.

  Raises:
    MeshError: the mesh does not fit the devices or the model.
    DataError: the vocabulary is the tokenizer's, whose file is missing. (A model with a vocabulary of
      its own is planned without it.)
    ConfigError: the vocabulary is smaller than the tokenizer.
  """
  cfg = experiment.train
  layout = sharding.make_layout(experiment.mesh)
  without = lacks_tokenizer(experiment)
  shape = sized(experiment.model, 0 if without else tokenizer_size(experiment))
  if simulated and shape.dtype == "auto":
    shape = dataclasses.replace(shape, dtype="bfloat16")
  model = Transformer(shape, layout.constrain)
  sharding.check_fit(layout, model.cfg, cfg.batch_size // cfg.accumulate, experiment.data.seq_len)
  trainer = Trainer(model, optimizer.make(cfg.optimizer, max(cfg.steps, 1)), layout, cfg)
  state = trainer.abstract()
  held = sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(state)
  )
  rows = (cfg.batch_size, experiment.data.seq_len)
  kinds = {
    "tokens": np.int32,
    "targets": np.int32,
    "weights": np.float32,
    "positions": np.int32,
    "until": np.int32,
  }
  batch = {k: jax.ShapeDtypeStruct(rows, kind, sharding=layout.batch) for k, kind in kinds.items()}
  analysis = trainer.compile(batch).memory_analysis()
  counted = count.parameters(model)
  told = []
  if without:
    told = [
      f"tokenizer {experiment.data.tokenizer.path!r} is not here: planned with the model's own "
      f"vocabulary of {model.cfg.vocab_size:,} ids"
    ]
  return "\n".join(
    [
      *told,
      count.describe(model),
      f"embedding and head: {counted['embedding']:,} of {model.cfg.vocab_size:,} ids; all others: {counted['non_embedding']:,}",
      f"computes in {np.dtype(model.dtype).name}",
      f"training FLOPs a token at {rows[1]} tokens a row: {count.training_flops(model.cfg, rows[1]):.3e}",
      f"mesh {dict(layout.mesh.shape)}: {held / 2**30:.2f} GiB of parameters and optimizer state a device, "
      f"{analysis.temp_size_in_bytes / 2**30:.2f} GiB of temporary memory for a step of {rows[0]} rows",
    ]
  )


def lacks_tokenizer(experiment: schema.Experiment) -> bool:
  """Whether a model with a vocabulary of its own has a tokenizer whose file is not here."""
  path = experiment.data.tokenizer.path
  return bool(experiment.model.vocab_size and path) and not pathlib.Path(path).exists()


def tokenizer_size(experiment: schema.Experiment) -> int:
  """Ids of the config's tokenizer, of one that is trained in the run too.

  Raises:
    DataError: its file is missing or malformed.
  """
  cfg = experiment.data.tokenizer
  if cfg.kind == "sentencepiece" and not cfg.path:
    return cfg.vocab_size
  return tokenizers.load(cfg, experiment.world).size
