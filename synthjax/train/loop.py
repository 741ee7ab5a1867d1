"""The train loop: rows in, checkpoints and metrics out; resumes to the bit, one compilation, no host sync in the step."""

import dataclasses
import math
import pathlib
import signal
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import jax
import numpy as np

from synthjax import config as config_lib
from synthjax import files, multihost, progress, schema
from synthjax.data import loader
from synthjax.data.documents import CachedDocuments
from synthjax.errors import Error
from synthjax.model import count
from synthjax.model.transformer import Transformer, sized
from synthjax.sharding import check_fit, make_layout
from synthjax.train import checkpoint, optimizer
from synthjax.train.metrics import Metrics
from synthjax.train.step import Trainer


class RowsLike(Protocol):
  """A global order of rows: `loader.Rows`, `loader.Mixture`, or trees of rollouts."""

  @property
  def fill(self) -> float: ...
  def read(self, indices: list[int]) -> dict[str, np.ndarray]: ...


class TrainingStopped(Error, RuntimeError):
  """Training that cannot go on, or was asked to stop; the message says at which step, and what to do."""


@dataclasses.dataclass(frozen=True)
class Result:
  """What a finished training leaves."""

  steps: int  # updates done
  loss: float  # of the last step, nats a target token
  eval_loss: float | None  # on held-out documents, where there are some
  tokens: int  # target tokens trained on


def train(experiment: schema.Experiment, caches: Mapping[pathlib.Path, float], folder: files.Path, tokenizer: tuple[int, str],
          held_out: files.Path | None = None, say: Callable[[str], None] = progress.say) -> Result:
  """Trains as the config says and leaves checkpoints and metrics in `folder`; goes on from the newest checkpoint there.

  Args:
    experiment: the resolved config.
    caches: folders of the training documents with their rates; a single one is read epoch by epoch.
    folder: of this training.
    tokenizer: (number of ids, fingerprint).
    held_out: folder of documents for the held-out loss.
    say: prints a line.

  Raises:
    MeshError, CheckpointError, DataError: before anything is compiled.
    ValueError: a batch with an id outside the vocabulary, a negative weight or a token that nothing sees; it names the row and the value.
    TrainingStopped: a loss that is not a number, or SIGTERM (after a checkpoint).
  """
  rows, steps = _rows(experiment, caches, tokenizer[1], say)
  return by_likelihood(experiment, rows, steps, folder, tokenizer, held_out, say)


def by_likelihood(experiment: schema.Experiment, rows: RowsLike, steps: int, folder: files.Path, tokenizer: tuple[int, str],
                  held_out: files.Path | None = None, say: Callable[[str], None] = progress.say) -> Result:
  """As `train`, over any rows of documents."""
  cfg, layout = experiment.train, make_layout(experiment.mesh)
  model = Transformer(sized(experiment.model, tokenizer[0]), layout.constrain)
  check_fit(layout, model.cfg, cfg.batch_size // cfg.accumulate, experiment.data.row_length)
  trainer = Trainer(model, optimizer.make(cfg.optimizer, steps), layout, cfg)
  return run(experiment, trainer, rows, steps, folder, tokenizer, held_out, say)


def run(experiment: schema.Experiment, trainer: Trainer, rows: RowsLike, steps: int, folder: files.Path, tokenizer: tuple[int, str],
        held_out: files.Path | None = None, say: Callable[[str], None] = progress.say) -> Result:
  """The loop itself, for any trainer over any rows."""
  cfg, model, layout = experiment.train, trainer.model, trainer.layout
  with checkpoint.Checkpoints(pathlib.Path(folder) / "checkpoints", cfg.keep, pathlib.Path(folder).parent / "watch", say) as checkpoints:
    state, start, position = _begin(experiment, trainer, checkpoints, tokenizer, say)
    say(f"{count.describe(model)}; {steps:,} steps of {cfg.batch_size} rows x {experiment.data.row_length} tokens; "
        f"rows are {100 * rows.fill:.1f} % full; mesh {dict(layout.mesh.shape)}")
    going = _Run(experiment, trainer, checkpoints, rows, tokenizer, pathlib.Path(folder), steps, say)
    return going.go(state, start, position, held_out)


def _rows(experiment, caches, tokenizer, say) -> tuple[loader.Rows | loader.Mixture, int]:
  """(the global order of the training rows, number of steps)."""
  cfg = experiment.train
  parts = []
  for number, folder in enumerate(caches):
    documents = CachedDocuments(folder)
    same_tokenizer(documents.counts["tokenizer"], tokenizer, str(folder))
    parts.append(loader.Rows(documents, experiment.data.row_length, experiment.seed + number))
  if len(parts) == 1:
    return parts[0], cfg.steps or math.ceil(parts[0].count(cfg.epochs) / cfg.batch_size)
  mixture = loader.Mixture(parts, list(caches.values()), cfg.steps * cfg.batch_size)
  for folder, share, part in zip(caches, mixture.token_shares(cfg.steps * cfg.batch_size), parts):
    epochs = share * mixture.fill / part.fill * cfg.steps * cfg.batch_size / part.count(1)
    say(f"{pathlib.Path(folder).name}: {100 * share:.2f} % of the tokens, {epochs:.2f} epochs")
  return mixture, cfg.steps


def _begin(experiment, trainer, checkpoints, tokenizer, say):
  """(state, step, rows consumed): from the newest checkpoint, from `train.init`, or fresh."""
  found = checkpoints.restore(trainer.abstract())
  if found:
    step, state, about = found
    same_tokenizer(about["tokenizer"], tokenizer[1], f"checkpoint {step}")
    say(f"going on from step {step:,} ({about['position']:,} rows)")
    return state, step, about["position"]
  if not experiment.train.init:
    return trainer.init(jax.random.key(experiment.seed)), 0, 0
  init = experiment.train.init
  step, params, about = checkpoint.load_params(init, trainer.abstract()["params"], checkpoint.newest_step(init))
  same_tokenizer(about["tokenizer"], tokenizer[1], experiment.train.init)
  say(f"starting from {experiment.train.init}, step {step:,}")
  return trainer.start_from(params), 0, 0


@dataclasses.dataclass
class _Run:
  experiment: schema.Experiment
  trainer: Trainer
  checkpoints: checkpoint.Checkpoints
  rows: RowsLike
  tokenizer: tuple[int, str]
  folder: pathlib.Path
  steps: int
  say: Callable[[str], None]

  def go(self, state, start: int, position: int, held_out) -> Result:
    cfg, data, layout = self.experiment.train, self.experiment.data, self.trainer.layout
    reading = loader.Reading(data.threads, data.prefetch)
    batches = loader.batches(self.rows, cfg.batch_size, self.steps - start, position, _shard(), reading)
    metrics = Metrics(self.folder, start, self.say) if multihost.is_first() else None
    log = _Log(self, metrics, start)
    compiled = None
    with _on_sigterm() as asked_to_stop, progress.bar("train", self.steps, "steps", start, lines=False) as advance:
      for step, batch in enumerate(batches, start + 1):
        self.trainer.check(batch)
        placed = layout.put(batch)
        if compiled is None:
          compiled = self._compile(placed)
          log.restart_clock()
        self._profile_from(step)
        with jax.transfer_guard("disallow"):
          state, measured = compiled(state, placed)
        self._profile_to(step, state)
        position += cfg.batch_size
        log.pending.append((step, measured))
        stopping = asked_to_stop()
        saving = step % cfg.checkpoint_every == 0 or step == self.steps or stopping
        if step % cfg.log_every == 0 or saving:
          advance(log.write(step, position))
        if saving:
          eval_loss = self.eval_loss(state, held_out) if self._eval_due(step, stopping) and held_out else None
          if eval_loss is not None and metrics:
            metrics.write(step, {"eval_loss": eval_loss})
          self._save(step, state, position, eval_loss)
          log.restart_clock()
        if stopping:
          self.checkpoints.wait()
          raise TrainingStopped(f"stopped by SIGTERM after step {step}; its checkpoint is written, run the same command to go on")
    if start >= self.steps:
      self.say(f"all {self.steps:,} steps are done already")
    if metrics:
      metrics.close()
    eval_loss = self.eval_loss(state, held_out) if held_out else None
    return Result(self.steps, log.last.get("loss", 0.0), eval_loss, int(log.last.get("trained_tokens", 0)))

  def _compile(self, batch):
    began = time.monotonic()
    compiled = self.trainer.compile(batch)
    self.say(f"compiled the step in {time.monotonic() - began:.1f} s, {_temporary_gib(compiled):.2f} GiB of temporary memory")
    return compiled

  def _profile_from(self, step) -> None:
    if step == (config_lib.profile_steps(self.experiment.train) or (0, 0))[0]:
      jax.profiler.start_trace(str(self.folder / "profile"))

  def _profile_to(self, step, state) -> None:
    if step == (config_lib.profile_steps(self.experiment.train) or (0, 0))[1]:
      jax.block_until_ready(state)
      jax.profiler.stop_trace()
      self.say(f"{self.folder / 'profile'}: xprof trace of steps {self.experiment.train.profile}")

  def _eval_due(self, step, stopping):
    return not stopping and self.experiment.train.eval_every and step % self.experiment.train.eval_every == 0

  def _save(self, step, state, position, eval_loss):
    about = {"step": step, "position": position, "tokenizer": self.tokenizer[1], "tokenizer_size": self.tokenizer[0],
             "config": dataclasses.asdict(self.experiment)}
    self.checkpoints.save(step, state, about, None if eval_loss is None else {"eval_loss": eval_loss})

  def speed(self, steps_a_second: float, step: int) -> dict[str, float]:
    """Tokens a second, model FLOPs utilisation (where the peak is known) and learning rate."""
    tokens = steps_a_second * self.experiment.train.batch_size * self.experiment.data.row_length
    flops = tokens * count.training_flops(self.trainer.model.cfg, self.experiment.data.row_length)
    peak = count.peak_flops(self.trainer.layout.mesh.devices.flat[0]) * self.trainer.layout.mesh.size
    rate = optimizer.schedule(self.experiment.train.optimizer, self.steps)(step - 1)
    found = {"learning_rate": float(rate), "tokens_a_second": tokens}
    return found | ({"mfu": flops / peak} if peak else {"gflops_a_second": flops / 1e9})

  def eval_loss(self, state, held_out) -> float:
    """Cross-entropy on held-out documents, nats a target token."""
    rows = loader.Rows(CachedDocuments(held_out), self.experiment.data.row_length, None)
    size, total = self.experiment.train.batch_size, rows.count(1)
    measure = jax.jit(self.trainer.held_out)
    sums = [0.0, 0.0]
    shard = _shard()
    for k, batch in enumerate(loader.batches(rows, size, math.ceil(total / size), 0, shard)):
      local = size // shard.processes
      first = k * size + shard.process * local
      batch["weights"][max(total - first, 0):] = 0  # rows of the second pass fill the last batch
      self.trainer.check(batch)
      found = jax.device_get(measure(state["params"], self.trainer.layout.put(batch)))
      sums = [a + float(b) for a, b in zip(sums, found)]
    return sums[0] / max(sums[1], 1.0)


class _Log:
  """Fetches the metrics of the steps since the last line, and says and writes them; `last` is the newest row."""

  def __init__(self, run: _Run, metrics: Metrics | None, start: int):
    self.run, self.metrics = run, metrics
    self.pending: list[tuple[int, dict[str, jax.Array]]] = []
    self.last = dict(metrics.last) if metrics else {}
    self.written, self.timed, self.began = start, start, time.monotonic()

  def restart_clock(self) -> None:
    """Leaves compiling, evaluating and saving out of the speed."""
    self.began, self.timed = time.monotonic(), self.written

  def write(self, step: int, position: int) -> int:
    """One row for the steps since the last one; returns their number. The first loss that is not finite stops the run."""
    before = self.last.get("trained_tokens", 0)
    self.last = self._fetch()
    self.last["trained_tokens"] = before + self.last.pop("target_tokens")
    steps_a_second = (step - self.timed) / (time.monotonic() - self.began)
    self.last |= self.run.speed(steps_a_second, step) | {"position": position}
    if self.metrics:
      self.metrics.write(step, self.last)
    self.run.say(_line(step, self.run.steps, self.last, steps_a_second))
    done, self.written = step - self.written, step
    self.restart_clock()
    return done

  def _fetch(self) -> dict[str, float]:
    fetched = [(step, {k: float(v) for k, v in values.items()}) for step, values in jax.device_get(self.pending)]
    self.pending.clear()
    for step, values in fetched:
      if not math.isfinite(values["loss"]) or not math.isfinite(values["grad_norm"]):
        checkpoints = self.run.checkpoints
        checkpoints.wait()
        good = max(checkpoints.steps(), default=None)
        raise TrainingStopped(
          f"step {step}: loss {values['loss']}, gradient norm {values['grad_norm']}. The last good checkpoint is "
          f"{'step ' + str(good) if good is not None else 'none'} in {checkpoints.folder}; lower the learning rate or the clip")
    return fetched[-1][1] | {"target_tokens": sum(values["target_tokens"] for _, values in fetched)}


class _on_sigterm:
  """Within the block SIGTERM sets a flag; all processes agree on the step at which they stop."""

  def __enter__(self):
    self._asked = False
    self._previous = signal.signal(signal.SIGTERM, self._ask)
    return self._agreed

  def _ask(self, *_):
    self._asked = True

  def _agreed(self) -> bool:
    if jax.process_count() == 1:
      return self._asked
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(self._asked).any())

  def __exit__(self, *_):
    signal.signal(signal.SIGTERM, self._previous)


def same_tokenizer(found: str, expected: str, where: str) -> None:
  if found != expected:
    raise files.DataError(f"{where}: made with tokenizer {found[:12]}, but this run's tokenizer is {expected[:12]}; use the one it was "
                          "made with, or cache and train again")


def _temporary_gib(compiled) -> float:
  analysis = compiled.memory_analysis()
  return getattr(analysis, "temp_size_in_bytes", 0) / 2**30


def _shard() -> loader.Shard:
  return loader.Shard(jax.process_index(), jax.process_count())


def _line(step, steps, values, steps_a_second) -> str:
  used = f"  MFU {100 * values['mfu']:.1f} %" if "mfu" in values else ""
  left = (steps - step) / steps_a_second
  return (f"step {step:>6,}/{steps:,}  loss {values['loss']:.4f}  grad {values['grad_norm']:.3f}  lr {values['learning_rate']:.2e}  "
          f"{values['tokens_a_second']:,.0f} tokens/s{used}  {left / 60:.1f} min left")
