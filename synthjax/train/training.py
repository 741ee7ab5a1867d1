"""What the train loop is given and what it leaves."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import NamedTuple

from synthjax import files, progress
from synthjax.config import schema
from synthjax.data.loader import SequenceSource
from synthjax.data.tokenizers import TokenizerInfo
from synthjax.errors import Error


class TrainingStopped(Error, RuntimeError):
  """Training that cannot go on; the message says at which step, and what to do."""


class Earlier(NamedTuple):
  """A training that differs in its schedule alone, so that a longer one may continue it."""

  folder: pathlib.Path  # of checkpoints
  optimizer: schema.Optimizer
  steps: int


class Trunk(NamedTuple):
  """A checkpoint of another training, which this one continues.

  Parameters, optimizer state, step and data position are taken over. From there on the steps follow
  the continuing training's own schedule.
  """

  folder: pathlib.Path  # of checkpoints
  step: int | None = None  # None: the newest


@dataclasses.dataclass(frozen=True)
class Training:
  """One training: what it reads, how long it lasts and where it writes."""

  experiment: schema.Experiment
  tokenizer: TokenizerInfo
  sequences: SequenceSource
  steps: int  # updates, in all
  folder: pathlib.Path  # of checkpoints and metrics
  held_out: files.Path | None = None  # folder of documents for the held-out loss
  trunk: Trunk | None = None  # where the folder has no checkpoint yet
  say: Callable[[str], None] = progress.say  # prints a line


@dataclasses.dataclass(frozen=True)
class Result:
  """What a finished training leaves."""

  steps: int  # updates done
  loss: float  # of the last step, nats per target token
  eval_loss: float | None  # on held-out documents, where there are some
  tokens: int  # target tokens trained on
