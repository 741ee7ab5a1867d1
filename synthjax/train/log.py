"""The lines of a training: metrics of the steps since the last line, said and written."""

import math
import time

import jax

from synthjax import multihost
from synthjax.model import count
from synthjax.train import optimizer
from synthjax.train.checkpointer import Checkpoints
from synthjax.train.metrics import Metrics
from synthjax.train.step import Trainer
from synthjax.train.training import Training, TrainingStopped


class TrainingLog:
  """Fetches metrics from the device when a line is due, and not before.

  Args:
    trainer: of the training.
    training: says the lines.
    checkpoints: name the last good one when a loss is not finite.
    metrics: writes them; None on all processes but the first.
    start: updates done before this run.
  """

  def __init__(
    self,
    trainer: Trainer,
    training: Training,
    checkpoints: Checkpoints,
    metrics: Metrics | None,
    start: int,
  ):
    self.last: dict[str, float] = {}  # the newest row
    self.pending: list[tuple[int, dict[str, jax.Array]]] = []
    self._trainer = trainer
    self._training = training
    self._checkpoints = checkpoints
    self._metrics = metrics
    self._learned = False
    if metrics:
      self.last = dict(metrics.last)
      self._learned = metrics.learned
    self._written = self._timed = start
    self._began = time.monotonic()

  def add(self, step: int, measured: dict[str, jax.Array]) -> None:
    """The metrics of one step, still on the device."""
    self.pending.append((step, measured))

  def restart_clock(self) -> None:
    """Leaves compiling, evaluating and saving out of the speed."""
    self._began = time.monotonic()
    self._timed = self._written

  def write(self, step: int, position: int) -> None:
    """One row for the steps since the last one.

    Raises:
      TrainingStopped: the first loss or gradient that is not finite.
    """
    trained_before = self.last.get("trained_tokens", 0)
    row = self._fetch()
    row["trained_tokens"] = trained_before + row.pop("target_tokens")
    steps_per_second = (step - self._timed) / (time.monotonic() - self._began)
    row |= self._speed(steps_per_second, step)
    row["position"] = position
    self.last = row
    if self._metrics:
      self._metrics.write(step, row)
    self._training.say(_line(step, self._training.steps, row, steps_per_second))
    self._written = step
    self.restart_clock()

  def write_eval_loss(self, step: int, eval_loss: float) -> None:
    """A row of its own for the held-out loss."""
    if self._metrics:
      self._metrics.write(step, {"eval_loss": eval_loss})
    steps = self._training.steps
    self._training.say(
      f"step {step:>6,}/{steps:,}  held-out loss {eval_loss:.4f} nats a target token"
    )

  def learned(self) -> bool:
    """Whether some gradient was not 0.

    All processes have the same gradients, but the first one alone keeps those of earlier runs.
    """
    return multihost.agree("learned", self._learned)

  def _speed(self, steps_per_second: float, step: int) -> dict[str, float]:
    """Learning rate, tokens per second and model FLOPs utilisation (where the peak is known)."""
    experiment = self._training.experiment
    seq_len = experiment.data.seq_len
    tokens = steps_per_second * experiment.train.batch_size * seq_len
    flops = tokens * count.training_flops(self._trainer.model.cfg, seq_len)
    mesh = self._trainer.layout.mesh
    peak = count.peak_flops(mesh.devices.flat[0]) * mesh.size
    rate = optimizer.schedule(experiment.train.optimizer, self._training.steps)(step - 1)
    # The names below are those of `metrics.jsonl`, which other versions have written too.
    speed = {"learning_rate": float(rate), "tokens_a_second": tokens}
    if peak:
      speed["mfu"] = flops / peak
    else:
      speed["gflops_a_second"] = flops / 1e9
    return speed

  def _fetch(self) -> dict[str, float]:
    """The metrics of the last pending step, with the target tokens of all of them."""
    target_tokens = 0.0
    values: dict[str, float] = {}
    # One transfer for all steps: each would wait for the device.
    fetched = jax.device_get(self.pending)
    self.pending.clear()
    # Every step is checked, so that the message names the first bad one.
    for step, arrays in fetched:
      values = {name: float(value) for name, value in arrays.items()}
      self._check_finite(step, values["loss"], values["grad_norm"])
      self._learned |= values["grad_norm"] > 0
      target_tokens += values["target_tokens"]
    return values | {"target_tokens": target_tokens}

  def _check_finite(self, step: int, loss: float, grad_norm: float) -> None:
    if math.isfinite(loss) and math.isfinite(grad_norm):
      return
    # The newest checkpoint may still be on its way to the disk.
    self._checkpoints.wait()
    steps = self._checkpoints.steps()
    last_good = "none"
    if steps:
      last_good = f"step {max(steps)}"
    raise TrainingStopped(
      f"step {step}: loss {loss}, gradient norm {grad_norm}. The last good checkpoint is "
      f"{last_good} in {self._checkpoints.folder}; lower the learning rate or the clip"
    )


def _line(step: int, steps: int, row: dict[str, float], steps_per_second: float) -> str:
  utilisation = ""
  if "mfu" in row:
    utilisation = f"  MFU {100 * row['mfu']:.1f} %"
  minutes_left = (steps - step) / steps_per_second / 60
  return (
    f"step {step:>6,}/{steps:,}  loss {row['loss']:.4f}  grad {row['grad_norm']:.3f}  "
    f"lr {row['learning_rate']:.2e}  {row['tokens_a_second']:,.0f} tokens/s{utilisation}  "
    f"{minutes_left:.1f} min left"
  )
