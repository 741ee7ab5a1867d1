"""The train loop: rows in, checkpoints and metrics out; resumes to the bit, one compilation, no host sync in the step."""

import collections
import contextlib
import dataclasses
import itertools
import math
import pathlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from synthjax import config as config_lib
from synthjax import files, multihost, progress, stopping
from synthjax.config import schema
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
  def read(self, indices: Sequence[int]) -> dict[str, np.ndarray]: ...


# Steps dispatched beyond the one the device works on: enough to keep it busy, few enough that a
# signal is followed within seconds of a step.
_AHEAD = 4


class TrainingStopped(Error, RuntimeError):
  """Training that cannot go on; the message says at which step, and what to do."""


@dataclasses.dataclass(frozen=True)
class Result:
  """What a finished training leaves."""

  steps: int  # updates done
  loss: float  # of the last step, nats a target token
  eval_loss: float | None  # on held-out documents, where there are some
  tokens: int  # target tokens trained on


class Earlier(NamedTuple):
  """A training with the same settings but for its schedule, which a longer one may go on from."""

  folder: pathlib.Path  # of checkpoints
  optimizer: schema.Optimizer
  steps: int


class Trunk(NamedTuple):
  """A checkpoint of another training that a training continues whole: parameters, optimizer state, step and data position.

  From there on the steps follow the continuing training's own schedule.
  """

  folder: pathlib.Path  # of checkpoints
  step: int | None = None  # None: the newest


def train(
  experiment: schema.Experiment,
  caches: Mapping[pathlib.Path, float],
  folder: files.Path,
  tokenizer: tuple[int, str],
  held_out: files.Path | None = None,
  say: Callable[[str], None] = progress.say,
  earlier: Sequence[Earlier] = (),
) -> Result:
  """Trains as the config says and leaves checkpoints and metrics in `folder`; goes on from the newest checkpoint there.

  Args:
    experiment: the resolved config.
    caches: folders of the training documents with their rates; a single one is read epoch by epoch.
    folder: of this training.
    tokenizer: (number of ids, fingerprint).
    held_out: folder of documents for the held-out loss.
    say: prints a line.
    earlier: trainings of which this one may be the continuation, where its own folder has no checkpoint.

  Raises:
    MeshError, CheckpointError, DataError: before anything is compiled.
    ValueError: a batch with an id outside the vocabulary, a negative weight or a token that nothing sees; it names the row and the value.
    TrainingStopped: a loss that is not a number, or one from which nothing is learned.
    stopping.Stopped: SIGTERM or Ctrl-C, after a checkpoint.
  """
  rows, steps = _rows(experiment, caches, tokenizer[1], say)
  return by_likelihood(
    experiment, rows, steps, folder, tokenizer, held_out, say, trunk_of(experiment, steps, earlier)
  )


def trunk_of(experiment: schema.Experiment, steps: int, earlier: Sequence[Earlier]) -> Trunk | None:
  """The latest checkpoint of earlier trainings up to which their updates are also those of this one; None where there is none."""
  found = []
  for training in earlier:
    common = optimizer.common_steps(
      (training.optimizer, training.steps), (experiment.train.optimizer, steps)
    )
    found += [
      Trunk(training.folder, step)
      for step in checkpoint.steps_in(training.folder)
      if 0 < step <= common
    ]
  return max(found, key=lambda trunk: trunk.step or 0, default=None)


def by_likelihood(
  experiment: schema.Experiment,
  rows: RowsLike,
  steps: int,
  folder: files.Path,
  tokenizer: tuple[int, str],
  held_out: files.Path | None = None,
  say: Callable[[str], None] = progress.say,
  trunk: Trunk | None = None,
) -> Result:
  """As `train`, over any rows of documents; `trunk` is what the training continues, see `Trunk`."""
  cfg, layout = experiment.train, make_layout(experiment.mesh)
  model = Transformer(sized(experiment.model, tokenizer[0]), layout.constrain)
  check_fit(layout, model.cfg, cfg.batch_size // cfg.accumulate, experiment.data.seq_len)
  trainer = Trainer(model, optimizer.make(cfg.optimizer, steps), layout, cfg)
  return run(experiment, trainer, rows, steps, folder, tokenizer, held_out, say, trunk)


def run(
  experiment: schema.Experiment,
  trainer: Trainer,
  rows: RowsLike,
  steps: int,
  folder: files.Path,
  tokenizer: tuple[int, str],
  held_out: files.Path | None = None,
  say: Callable[[str], None] = progress.say,
  trunk: Trunk | None = None,
) -> Result:
  """The loop itself, for any trainer over any rows."""
  cfg, model, layout = experiment.train, trainer.model, trainer.layout
  folder, trunk_end = pathlib.Path(folder), optimizer.trunk_steps(cfg.optimizer, steps)
  with checkpoint.Checkpoints(
    folder / "checkpoints", cfg.keep, folder.parent / "watch", say, trunk_end
  ) as checkpoints:
    if cfg.continue_from:
      trunk = Trunk(pathlib.Path(cfg.continue_from), cfg.continue_step or None)
    state, start, position = _begin(experiment, trainer, checkpoints, trunk, tokenizer, say)
    say(
      f"{count.describe(model)}; {steps:,} steps of {cfg.batch_size} rows x {experiment.data.seq_len} tokens; "
      f"rows are {100 * rows.fill:.1f} % full; mesh {dict(layout.mesh.shape)}"
    )
    going = _Run(experiment, trainer, checkpoints, rows, tokenizer, folder, steps, trunk_end, say)
    return going.go(state, start, position, held_out)


def _rows(experiment, caches, tokenizer, say) -> tuple[loader.Rows | loader.Mixture, int]:
  """(the global order of the training rows, number of steps)."""
  cfg = experiment.train
  parts = []
  for number, folder in enumerate(caches):
    documents = CachedDocuments(folder)
    same_tokenizer(documents.counts["tokenizer"], tokenizer, str(folder))
    parts.append(loader.Rows(documents, experiment.data.seq_len, experiment.seed + number))
  if len(parts) == 1:
    return parts[0], cfg.steps or math.ceil(parts[0].count(cfg.epochs) / cfg.batch_size)
  mixture = loader.Mixture(parts, list(caches.values()), cfg.steps * cfg.batch_size)
  for folder, share, part in zip(caches, mixture.token_shares(cfg.steps * cfg.batch_size), parts):
    epochs = share * mixture.fill / part.fill * cfg.steps * cfg.batch_size / part.count(1)
    say(f"{pathlib.Path(folder).name}: {100 * share:.2f} % of the tokens, {epochs:.2f} epochs")
  return mixture, cfg.steps


def _begin(experiment, trainer, checkpoints, trunk: Trunk | None, tokenizer, say):
  """(state, step, rows consumed): from the newest checkpoint, from a trunk, from `train.init`, or fresh."""
  found = checkpoints.restore(trainer.abstract())
  where = str(checkpoints.folder)
  if not found and trunk:
    found = checkpoint.load_state(trunk.folder, trainer.abstract(), trunk.step)
    where = str(trunk.folder)
  if found:
    step, state, about = found
    same_tokenizer(about["tokenizer"], tokenizer[1], f"checkpoint {step}")
    if about.get("order", 1) != loader.ORDER:
      raise files.DataError(
        f"{where}, step {step}: was trained on rows in the order of version {about.get('order', 1)}, and this is "
        f"version {loader.ORDER}: its position means other rows here; train anew in another --workdir, or begin "
        "from its parameters with config.train.init"
      )
    say(f"going on from step {step:,} of {where} ({about['position']:,} rows)")
    return state, step, about["position"]
  if not experiment.train.init:
    return trainer.init(jax.random.key(experiment.seed)), 0, 0
  init = experiment.train.init
  step, params, about = checkpoint.load_params(
    init, trainer.abstract()["params"], checkpoint.newest_step(init)
  )
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
  trunk_end: int  # a longer training can go on from its checkpoint
  say: Callable[[str], None]

  def go(self, state, start: int, position: int, held_out) -> Result:
    cfg, data = self.experiment.train, self.experiment.data
    share = self.trainer.layout.share(cfg.batch_size)
    reading = loader.Reading(data.threads, data.prefetch)
    batches = loader.batches(
      self.rows, cfg.batch_size, self.steps - start, position, share, reading
    )
    metrics = Metrics(self.folder, start, self.say) if multihost.is_first() else None
    log = _Log(self, metrics, start)
    if start >= self.steps:
      self.say(f"all {self.steps:,} steps are done already")
    else:
      state = self._train(state, start, position, batches, log, held_out)
    if not log.learned():
      raise TrainingStopped(
        f"{self.folder}: the gradient was 0 at each of {self.steps:,} steps, so nothing was learned: no target counts "
        "under this loss; look at the data, the weights of their steps, and the loss's threshold"
      )
    if metrics:
      metrics.close()
    eval_loss = self.eval_loss(state, held_out) if held_out else None
    return Result(
      self.steps, log.last.get("loss", 0.0), eval_loss, int(log.last.get("trained_tokens", 0))
    )

  def _train(self, state, start: int, position: int, batches: Iterator, log: "_Log", held_out):
    """The steps after `start`. Raises stopping.Stopped once the checkpoint is written that a signal asks for."""
    cfg = self.experiment.train
    first = next(batches)
    compiled = self._compile(self._placed(first))  # takes long, and a signal need not wait for it
    stops, in_flight = _Stops(start), collections.deque[dict[str, jax.Array]]()
    log.restart_clock()
    with (
      stopping.deferred(stops.agree),
      _profiling(cfg, self.folder, self.say) as profile,
      progress.bar("train", self.steps, "steps", start) as advance,
    ):
      for step, batch in enumerate(itertools.chain([first], batches), start + 1):
        if not stops.may_begin(step):
          self._stop(step - 1, start, state, position, log)
        placed = self._placed(batch)
        profile(step, state)
        with jax.transfer_guard("disallow"):
          state, measured = compiled(state, placed)
        in_flight.append(measured)
        if len(in_flight) > _AHEAD:
          jax.block_until_ready(in_flight.popleft())
        position += cfg.batch_size
        log.pending.append((step, measured))
        advance(1)
        saving = step % cfg.checkpoint_every == 0 or step in (self.trunk_end, self.steps)
        evaluating = bool(held_out and cfg.eval_every and step % cfg.eval_every == 0)
        if step % cfg.log_every == 0 or saving or evaluating:
          log.write(step, position)
        eval_loss = self.eval_loss(state, held_out) if evaluating else None
        if eval_loss is not None:
          log.write_eval_loss(step, eval_loss)
        if saving:
          self._save(step, state, position, eval_loss)
        if saving or evaluating:
          log.restart_clock()
    return state

  def _placed(self, batch):
    self.trainer.check(batch)
    return self.trainer.layout.put(batch, self.experiment.train.batch_size)

  def _stop(self, step: int, start: int, state, position: int, log: "_Log"):
    """Leaves after `step`, with its checkpoint."""
    what = f"after step {step}, whose checkpoint is written"
    if step > start:
      if log.pending:
        log.write(step, position)
      self._save(step, state, position, None)
      self.checkpoints.wait()
    else:
      what = f"before the first step after {start}"
    raise stopping.Stopped(stopping.asked(), what)

  def _compile(self, batch):
    began = time.monotonic()
    compiled = self.trainer.compile(batch)
    self.say(
      f"compiled the step in {time.monotonic() - began:.1f} s, {_temporary_gib(compiled):.2f} GiB of temporary memory"
    )
    return compiled

  def _save(self, step, state, position, eval_loss):
    about = {
      "step": step,
      "position": position,
      "tokenizer": self.tokenizer[1],
      "tokenizer_size": self.tokenizer[0],
      "order": loader.ORDER,
      "config": dataclasses.asdict(self.experiment),
    }
    self.checkpoints.save(
      step, state, about, None if eval_loss is None else {"eval_loss": eval_loss}
    )

  def speed(self, steps_a_second: float, step: int) -> dict[str, float]:
    """Tokens a second, model FLOPs utilisation (where the peak is known) and learning rate."""
    tokens = steps_a_second * self.experiment.train.batch_size * self.experiment.data.seq_len
    flops = tokens * count.training_flops(self.trainer.model.cfg, self.experiment.data.seq_len)
    peak = (
      count.peak_flops(self.trainer.layout.mesh.devices.flat[0]) * self.trainer.layout.mesh.size
    )
    rate = optimizer.schedule(self.experiment.train.optimizer, self.steps)(step - 1)
    found = {"learning_rate": float(rate), "tokens_a_second": tokens}
    return found | ({"mfu": flops / peak} if peak else {"gflops_a_second": flops / 1e9})

  def eval_loss(self, state, held_out) -> float:
    """Cross-entropy on held-out documents, nats a target token."""
    rows = loader.Rows(CachedDocuments(held_out), self.experiment.data.seq_len, None)
    size, total = self.experiment.train.batch_size, rows.count(1)
    share = self.trainer.layout.share(size)
    measure = jax.jit(self.trainer.held_out)
    sums = [0.0, 0.0]
    for k, batch in enumerate(loader.batches(rows, size, math.ceil(total / size), 0, share)):
      batch["weights"][k * size + share >= total] = 0  # rows of the second pass fill the last batch
      found = jax.device_get(measure(state["params"], self._placed(batch)))
      sums = [a + float(b) for a, b in zip(sums, found)]
    return sums[0] / max(sums[1], 1.0)


class _Stops:
  """When a training stops that was asked to. All of several processes stop after the same step, without a word in any step before.

  Once one of them is asked, each begins no further step and tells which one it began last; then all
  go on to the last of these. `agree` runs in a thread of its own, since the main thread may be
  waiting for a step that another process has yet to begin.
  """

  def __init__(self, start: int):
    self._begun, self._last_step = start, -1
    self._asked = False
    self._lock, self._agreed = threading.Lock(), threading.Event()
    self._name = f"last step of the training that begins after step {start}"

  def agree(self) -> None:
    with self._lock:
      self._asked, begun = True, self._begun
    self._last_step = max(multihost.gather(self._name, begun))
    self._agreed.set()

  def may_begin(self, step: int) -> bool:
    with self._lock:
      if not self._asked:
        self._begun = step
        return True
    self._agreed.wait()
    return step <= self._last_step


@contextlib.contextmanager
def _profiling(
  cfg: schema.Train, folder: pathlib.Path, say
) -> Iterator[Callable[[int, Any], None]]:
  """Yields what is called before every step; traces those that `cfg.profile` names, as far as this run has them."""
  first, last = config_lib.profile_steps(cfg) or (0, -1)
  tracing = False

  def before(step: int, state) -> None:
    nonlocal tracing
    wanted = first <= step <= last
    if wanted == tracing:
      return
    jax.block_until_ready(state)
    if wanted:
      jax.profiler.start_trace(str(folder / "profile"))
    else:
      end()
    tracing = wanted

  def end() -> None:
    jax.profiler.stop_trace()
    say(f"{folder / 'profile'}: xprof trace of steps {cfg.profile}")

  try:
    yield before
  finally:
    if tracing:
      end()


class _Log:
  """Fetches the metrics of the steps since the last line, and says and writes them; `last` is the newest row."""

  def __init__(self, run: _Run, metrics: Metrics | None, start: int):
    self.run, self.metrics = run, metrics
    self.pending: list[tuple[int, dict[str, jax.Array]]] = []
    self.last = dict(metrics.last) if metrics else {}
    self.written, self.timed, self.began = start, start, time.monotonic()
    self._learned = bool(metrics and metrics.learned)

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

  def write_eval_loss(self, step: int, eval_loss: float) -> None:
    if self.metrics:
      self.metrics.write(step, {"eval_loss": eval_loss})
    self.run.say(
      f"step {step:>6,}/{self.run.steps:,}  held-out loss {eval_loss:.4f} nats a target token"
    )

  def learned(self) -> bool:
    """Whether some gradient was not 0. All processes have the same gradients, but the first one alone keeps those of earlier runs."""
    return multihost.agree("learned", self._learned)

  def _fetch(self) -> dict[str, float]:
    fetched = [
      (step, {k: float(v) for k, v in values.items()})
      for step, values in jax.device_get(self.pending)
    ]
    self.pending.clear()
    self._learned |= any(values["grad_norm"] > 0 for _, values in fetched)
    for step, values in fetched:
      if not math.isfinite(values["loss"]) or not math.isfinite(values["grad_norm"]):
        checkpoints = self.run.checkpoints
        checkpoints.wait()
        good = max(checkpoints.steps(), default=None)
        raise TrainingStopped(
          f"step {step}: loss {values['loss']}, gradient norm {values['grad_norm']}. The last good checkpoint is "
          f"{'step ' + str(good) if good is not None else 'none'} in {checkpoints.folder}; lower the learning rate or the clip"
        )
    return fetched[-1][1] | {"target_tokens": sum(values["target_tokens"] for _, values in fetched)}


def same_tokenizer(found: str, expected: str, where: str) -> None:
  if found != expected:
    raise files.DataError(
      f"{where}: made with tokenizer {found[:12]}, but this run's tokenizer is {expected[:12]}; use the one it was "
      "made with, or cache and train again"
    )


def _temporary_gib(compiled) -> float:
  analysis = compiled.memory_analysis()
  return getattr(analysis, "temp_size_in_bytes", 0) / 2**30


def _line(step, steps, values, steps_a_second) -> str:
  used = f"  MFU {100 * values['mfu']:.1f} %" if "mfu" in values else ""
  left = (steps - step) / steps_a_second
  return (
    f"step {step:>6,}/{steps:,}  loss {values['loss']:.4f}  grad {values['grad_norm']:.3f}  lr {values['learning_rate']:.2e}  "
    f"{values['tokens_a_second']:,.0f} tokens/s{used}  {left / 60:.1f} min left"
  )
