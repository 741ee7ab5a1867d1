"""The train loop: packed sequences in, checkpoints and metrics out.

It resumes to the bit, compiles its step once, and never waits for the device within a step.
"""

import collections
import dataclasses
import itertools
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from synthjax import multihost, progress, stopping
from synthjax.data import loader
from synthjax.data.documents import CachedDocuments
from synthjax.model import count
from synthjax.model.transformer import Params
from synthjax.train import optimizer
from synthjax.train.agreed_stop import AgreedStop
from synthjax.train.checkpointer import Checkpoints
from synthjax.train.log import TrainingLog
from synthjax.train.metrics import Metrics
from synthjax.train.profiling import profiling
from synthjax.train.resume import StartingPoint, starting_point
from synthjax.train.step import State, Trainer
from synthjax.train.training import Result, Training, TrainingStopped

# Steps dispatched beyond the one the device works on: enough to keep it busy, few enough that a
# signal is followed within seconds of a step.
_AHEAD = 4


def run(trainer: Trainer, training: Training) -> Result:
  """Trains and leaves checkpoints and metrics in `training.folder`.

  It resumes from the newest checkpoint there, see `resume.starting_point`.

  Raises:
    CheckpointError, DataError: before anything is compiled.
    ValueError: a batch with an id outside the vocabulary, a negative weight or a token that nothing
      sees; it names the sequence and the value.
    TrainingStopped: a loss that is not a number, or one from which nothing is learned.
    stopping.Stopped: SIGTERM or Ctrl-C, after a checkpoint.
  """
  cfg, data = training.experiment.train, training.experiment.data
  folder = training.folder
  trunk_end = optimizer.trunk_steps(cfg.optimizer, training.steps)
  watchers = folder.parent / "watch"
  with Checkpoints(
    folder / "checkpoints", cfg.keep, watchers, training.say, trunk_end
  ) as checkpoints:
    start = starting_point(trainer, training, checkpoints)
    training.say(
      f"{count.describe(trainer.model)}; {training.steps:,} steps of {cfg.batch_size} sequences x "
      f"{data.seq_len} tokens; sequences are {100 * training.sequences.fill:.1f} % full; "
      f"mesh {dict(trainer.layout.mesh.shape)}"
    )
    metrics = None
    if multihost.is_first():
      metrics = Metrics(folder, start.step, training.say)
    log = TrainingLog(trainer, training, checkpoints, metrics, start.step)
    params = _Loop(trainer, training, checkpoints, log, trunk_end).run(start)
    if not log.learned():
      raise TrainingStopped(
        f"{folder}: the gradient was 0 at each of {training.steps:,} steps, so nothing was "
        "learned: no target counts under this loss; look at the data, the weights of their steps, "
        "and the loss's threshold"
      )
    if metrics:
      metrics.close()
    eval_loss = None
    if training.held_out:
      eval_loss = held_out_loss(trainer, training, params)
    tokens = int(log.last.get("trained_tokens", 0))
    return Result(training.steps, log.last.get("loss", 0.0), eval_loss, tokens)


@dataclasses.dataclass(frozen=True)
class _Loop:
  trainer: Trainer
  training: Training
  checkpoints: Checkpoints
  log: TrainingLog
  trunk_end: int  # a longer training can continue from its checkpoint

  def run(self, start: StartingPoint) -> Params:
    """The steps after `start`; returns the parameters.

    Raises:
      stopping.Stopped: once the checkpoint is written that a signal asks for.
    """
    training, log = self.training, self.log
    cfg = training.experiment.train
    if start.step >= training.steps:
      training.say(f"all {training.steps:,} steps are done already")
      return start.state["params"]

    state, position = start.state, start.position
    batches = self._batches(start)
    first = next(batches)  # its shapes are those of all batches
    # Compiling takes long, and a signal need not wait for it: it comes before `deferred`.
    compiled = self._compile(_on_mesh(self.trainer, first))
    stop = AgreedStop(start.step)
    in_flight = collections.deque[dict[str, jax.Array]]()
    log.restart_clock()
    with (
      stopping.deferred(stop.agree),
      profiling(cfg, training.folder, training.say) as profile,
      progress.bar("train", training.steps, "steps", start.step) as advance,
    ):
      for step, batch in enumerate(itertools.chain([first], batches), start.step + 1):
        if not stop.may_begin(step):
          self._leave(step - 1, start, state, position)
        placed = _on_mesh(self.trainer, batch)
        profile(step, state)
        # A hidden transfer between host and device would stall every step.
        with jax.transfer_guard("disallow"):
          state, measured = compiled(state, placed)
        in_flight.append(measured)
        if len(in_flight) > _AHEAD:
          jax.block_until_ready(in_flight.popleft())
        position += cfg.batch_size
        log.add(step, measured)
        advance(1)

        # A checkpoint falls due on its interval, where a longer training would leave this one, and
        # at the end.
        saving = step % cfg.checkpoint_every == 0 or step in (self.trunk_end, training.steps)
        evaluating = bool(training.held_out and cfg.eval_every and step % cfg.eval_every == 0)
        if step % cfg.log_every == 0 or saving or evaluating:
          log.write(step, position)
        eval_loss = None
        if evaluating:
          eval_loss = held_out_loss(self.trainer, training, state["params"])
          log.write_eval_loss(step, eval_loss)
        if saving:
          self._save(step, state, position, eval_loss)
        if saving or evaluating:
          # The seconds that saving and evaluating took are no part of the training's speed.
          log.restart_clock()
    return state["params"]

  def _batches(self, start: StartingPoint) -> Iterator[dict[str, np.ndarray]]:
    cfg, data = self.training.experiment.train, self.training.experiment.data
    return loader.batches(
      self.training.sequences,
      cfg.batch_size,
      self.training.steps - start.step,
      start.position,
      self.trainer.layout.local_indices(cfg.batch_size),
      loader.Reading(data.threads, data.prefetch),
    )

  def _compile(self, batch: dict[str, jax.Array]) -> Any:
    began = time.monotonic()
    compiled = self.trainer.compile(batch)
    seconds = time.monotonic() - began
    analysis = compiled.memory_analysis()
    gib = getattr(analysis, "temp_size_in_bytes", 0) / 2**30
    self.training.say(f"compiled the step in {seconds:.1f} s, {gib:.2f} GiB of temporary memory")
    return compiled

  def _leave(self, step: int, start: StartingPoint, state: State, position: int) -> None:
    """Ends the training after `step`, with its checkpoint, because a signal asks for it."""
    if step == start.step:
      raise stopping.Stopped(stopping.asked(), f"before the first step after {step}")
    if self.log.pending:
      self.log.write(step, position)
    self._save(step, state, position, None)
    self.checkpoints.wait()
    raise stopping.Stopped(stopping.asked(), f"after step {step}, whose checkpoint is written")

  def _save(self, step: int, state: State, position: int, eval_loss: float | None) -> None:
    about = {
      "step": step,
      "position": position,
      "tokenizer": self.training.tokenizer.fingerprint,
      "tokenizer_size": self.training.tokenizer.size,
      "order": loader.ORDER,
      "config": dataclasses.asdict(self.training.experiment),
    }
    metrics = None
    if eval_loss is not None:
      metrics = {"eval_loss": eval_loss}
    self.checkpoints.save(step, state, about, metrics)


def held_out_loss(trainer: Trainer, training: Training, params: Params) -> float:
  """Cross-entropy on held-out documents, nats per target token."""
  assert training.held_out is not None
  documents = CachedDocuments(training.held_out)
  sequences = loader.PackedDocuments(documents, training.experiment.data.seq_len, None)
  batch_size = training.experiment.train.batch_size
  total = sequences.count(1)
  indices = trainer.layout.local_indices(batch_size)
  measure = jax.jit(trainer.held_out)
  loss_sum = target_count = 0.0
  batches = loader.batches(sequences, batch_size, math.ceil(total / batch_size), 0, indices)
  for number, batch in enumerate(batches):
    # The last batch is filled with sequences of a second pass, which do not count.
    batch["weights"][number * batch_size + indices >= total] = 0
    sums = jax.device_get(measure(params, _on_mesh(trainer, batch)))
    loss_sum += float(sums[0])
    target_count += float(sums[1])
  return loss_sum / max(target_count, 1.0)


def _on_mesh(trainer: Trainer, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
  """A checked batch, laid out over the mesh."""
  trainer.check(batch)
  return trainer.layout.put(batch, trainer.cfg.batch_size)
