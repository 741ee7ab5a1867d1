"""Where a training begins: its newest checkpoint, another training's, given parameters, or none."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax

from synthjax import files
from synthjax.config import schema
from synthjax.data import loader
from synthjax.train import checkpoint, optimizer
from synthjax.train.checkpointer import Checkpoints
from synthjax.train.step import State, Trainer
from synthjax.train.training import Earlier, Training, Trunk


class StartingPoint(NamedTuple):
  """A state and what has been done to reach it."""

  state: State
  step: int = 0  # updates done
  position: int = 0  # sequences consumed by all processes together


def longest_trunk(
  experiment: schema.Experiment, steps: int, earlier: Sequence[Earlier]
) -> Trunk | None:
  """The latest checkpoint of earlier trainings whose updates this training would repeat.

  None where there is none.

  Args:
    experiment: the config of this training.
    steps: its updates.
    earlier: trainings that differ in their schedule alone.
  """
  longest: Trunk | None = None
  for training in earlier:
    common = optimizer.common_steps(
      (training.optimizer, training.steps), (experiment.train.optimizer, steps)
    )
    for step in checkpoint.steps_in(training.folder):
      if 0 < step <= common and (longest is None or step > (longest.step or 0)):
        longest = Trunk(training.folder, step)
  return longest


def starting_point(trainer: Trainer, training: Training, checkpoints: Checkpoints) -> StartingPoint:
  """The newest checkpoint of the training itself, else its trunk, else `train.init`, else fresh.

  Raises:
    CheckpointError: a checkpoint cannot be read or does not fit.
    DataError: it was made with another tokenizer, or its position refers to another order.
  """
  cfg = training.experiment.train
  trunk = training.trunk
  if cfg.continue_from:
    trunk = Trunk(pathlib.Path(cfg.continue_from), cfg.continue_step or None)
  folder = checkpoints.folder
  loaded = checkpoints.restore(trainer.abstract())
  if loaded is None and trunk:
    folder = trunk.folder
    loaded = checkpoint.load_state(folder, trainer.abstract(), trunk.step)
  if loaded is not None:
    return _continued(training, loaded, folder)
  # A trunk gives the whole state, `train.init` the parameters alone.
  if cfg.init:
    return _from_params(trainer, training)
  key = jax.random.key(training.experiment.seed)
  return StartingPoint(trainer.init(key))


def _continued(
  training: Training, loaded: checkpoint.Loaded, folder: pathlib.Path
) -> StartingPoint:
  step, state, about = loaded
  check_tokenizer(about["tokenizer"], training.tokenizer.fingerprint, f"checkpoint {step}")
  order = about.get("order", 1)  # the first version did not say
  if order != loader.ORDER:
    raise files.DataError(
      f"{folder}, step {step}: was trained on sequences in the order of version {order}, and this "
      f"is version {loader.ORDER}, in which its position means other sequences; train anew in "
      "another --workdir, or begin from its parameters with config.train.init"
    )
  position = about["position"]
  training.say(f"going on from step {step:,} of {folder} ({position:,} sequences)")
  return StartingPoint(state, step, position)


def _from_params(trainer: Trainer, training: Training) -> StartingPoint:
  init = training.experiment.train.init
  abstract = trainer.abstract()["params"]
  step, params, about = checkpoint.load_params(init, abstract, checkpoint.newest_step(init))
  check_tokenizer(about["tokenizer"], training.tokenizer.fingerprint, init)
  training.say(f"starting from {init}, step {step:,}")
  return StartingPoint(trainer.start_from(params))


def check_tokenizer(made_with: str, expected: str, where: str) -> None:
  """Raises DataError where something was made with another tokenizer than this run's.

  Args:
    made_with: fingerprint of the tokenizer it was made with.
    expected: fingerprint of this run's tokenizer.
    where: the thing, for the message.
  """
  if made_with != expected:
    raise files.DataError(
      f"{where}: made with tokenizer {made_with[:12]}, but this run's tokenizer is "
      f"{expected[:12]}; use the one it was made with, or cache and train again"
    )
