"""What a config will need, from shapes alone: nothing is allocated."""

import math

import jax
import numpy as np

from synthjax import schema, sharding
from synthjax.model import count
from synthjax.model.transformer import Transformer, sized
from synthjax.train import optimizer
from synthjax.train.step import Trainer


def describe(experiment: schema.Experiment, tokenizer_size: int = 0) -> str:
  """Parameters, FLOPs a token, and what a device holds of the state on the mesh of the devices that are here; the step is traced.

  Raises:
    MeshError: the mesh does not fit the devices or the model.
  """
  cfg = experiment.train
  layout = sharding.make_layout(experiment.mesh)
  model = Transformer(sized(experiment.model, max(tokenizer_size, 2)), layout.constrain)
  sharding.check_fit(layout, model.cfg, cfg.batch_size // cfg.accumulate, experiment.data.row_length)
  trainer = Trainer(model, optimizer.make(cfg.optimizer, max(cfg.steps, 1)), layout, cfg)
  state = trainer.abstract()
  held = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(state))
  shape = (cfg.batch_size, experiment.data.row_length)
  kinds = {"tokens": np.int32, "targets": np.int32, "weights": np.float32, "positions": np.int32, "until": np.int32}
  batch = {k: jax.ShapeDtypeStruct(shape, kind, sharding=layout.batch) for k, kind in kinds.items()}
  analysis = trainer.compile(batch).memory_analysis()
  counted = count.parameters(model)
  return "\n".join([
    count.describe(model), f"embedding and head: {counted['embedding']:,}; all others: {counted['non_embedding']:,}",
    f"training FLOPs a token at {shape[1]} tokens a row: {count.training_flops(model.cfg, shape[1]):.3e}",
    f"mesh {dict(layout.mesh.shape)}: {held / 2**30:.2f} GiB of parameters and optimizer state a device, "
    f"{analysis.temp_size_in_bytes / 2**30:.2f} GiB of temporary memory for a step of {shape[0]} rows"])
