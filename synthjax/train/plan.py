"""What a config will need, from shapes alone: nothing is allocated."""

import dataclasses
import math
import pathlib

import jax
import numpy as np

from synthjax.config import schema
from synthjax.data import tokenizers
from synthjax.model import count
from synthjax.model.transformer import sized
from synthjax.train.build import build_trainer
from synthjax.train.step import State, Trainer

_GIB = 2**30
# The arrays of a batch, as `packing.layout` makes them.
_BATCH = {
  "tokens": np.int32,
  "targets": np.int32,
  "weights": np.float32,
  "positions": np.int32,
  "until": np.int32,
}


def describe(experiment: schema.Experiment, simulated: bool = False) -> str:
  """Parameters, FLOPs per token, and what a device holds of the state on the mesh of the devices.

  The step is traced and compiled.

  Args:
    experiment: the config.
    simulated: the devices stand for accelerators, where `model.dtype` "auto" is bfloat16.

  Raises:
    MeshError: the mesh does not fit the devices or the model.
    DataError: the vocabulary is the tokenizer's, whose file is missing. (A model with a vocabulary
      of its own is planned without it.)
    ConfigError: the vocabulary is smaller than the tokenizer.
  """
  lines = []
  vocabulary = 0  # of no tokenizer; the model's own then decides
  if lacks_tokenizer(experiment):
    lines.append(
      f"tokenizer {experiment.data.tokenizer.path!r} is not here: planned with the model's own "
      f"vocabulary of {experiment.model.vocab_size:,} ids"
    )
  else:
    vocabulary = tokenizer_size(experiment)
  model_cfg = sized(experiment.model, vocabulary)
  if simulated and model_cfg.dtype == "auto":
    model_cfg = dataclasses.replace(model_cfg, dtype="bfloat16")
  planned = dataclasses.replace(experiment, model=model_cfg)
  trainer = build_trainer(planned, vocabulary, max(experiment.train.steps, 1))
  return "\n".join(lines + _lines(trainer, experiment.data.seq_len))


def _lines(trainer: Trainer, seq_len: int) -> list[str]:
  model, layout, batch_size = trainer.model, trainer.layout, trainer.cfg.batch_size
  batch = {}
  for name, dtype in _BATCH.items():
    batch[name] = jax.ShapeDtypeStruct((batch_size, seq_len), dtype, sharding=layout.batch)
  # The compiler alone knows the temporary memory.
  analysis = trainer.compile(batch).memory_analysis()
  state_gib = _bytes_per_device(trainer.abstract()) / _GIB
  temporary_gib = analysis.temp_size_in_bytes / _GIB
  counts = count.parameters(model)
  flops = count.training_flops(model.cfg, seq_len)
  return [
    count.describe(model),
    f"embedding and head: {counts['embedding']:,} of {model.cfg.vocab_size:,} ids; "
    f"all others: {counts['non_embedding']:,}",
    f"computes in {np.dtype(model.dtype).name}",
    f"training FLOPs per token at {seq_len} tokens per sequence: {flops:.3e}",
    f"mesh {dict(layout.mesh.shape)}: {state_gib:.2f} GiB of parameters and optimizer state per "
    f"device, {temporary_gib:.2f} GiB of temporary memory for a step of {batch_size} sequences",
  ]


def _bytes_per_device(state: State) -> int:
  total = 0
  for x in jax.tree.leaves(state):
    total += math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
  return total


def lacks_tokenizer(experiment: schema.Experiment) -> bool:
  """Whether a model with a vocabulary of its own has a tokenizer whose file is not here."""
  path = experiment.data.tokenizer.path
  if not experiment.model.vocab_size or not path:
    return False
  return not pathlib.Path(path).exists()


def tokenizer_size(experiment: schema.Experiment) -> int:
  """Number of ids of the config's tokenizer, even if the run has yet to train it.

  Raises:
    DataError: its file is missing or malformed.
  """
  cfg = experiment.data.tokenizer
  if cfg.kind == "sentencepiece" and not cfg.path:
    return cfg.vocab_size
  return tokenizers.load(cfg, experiment.world).size
