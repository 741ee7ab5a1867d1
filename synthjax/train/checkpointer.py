"""Writes the checkpoints of one training through Orbax v1, and reads them when it resumes.

Saving is asynchronous and atomic: Orbax renames a step once it is complete.
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

from orbax.checkpoint import v1 as ocp

from synthjax import files, multihost, progress
from synthjax.train.checkpoint import Loaded, set_aside
from synthjax.train.damage import CheckpointError, DamagedError, first_line
from synthjax.train.read_step import attempts

_policies = ocp.training.preservation_policies


class Checkpoints:
  """The checkpoints of one training.

  Args:
    folder: where the steps lie.
    keep: how many of the newest are kept, besides the one with the lowest held-out loss.
    watchers: folder of the watchers' folders (see `evaluate/watch.py`): a step that one of them has
      not scored is kept too.
    say: prints a line.
    pinned: a step that is kept whatever comes after it.
  """

  def __init__(
    self,
    folder: files.Path,
    keep: int = 2,
    watchers: files.Path = "",
    say: Callable[[str], None] = progress.say,
    pinned: int = 0,
  ):
    self.folder = pathlib.Path(folder).absolute()
    self._say = say
    # Orbax ranks the highest value first, and the lowest loss is the best.
    best = _policies.BestN(
      get_metric_fn=lambda metrics: -metrics["eval_loss"],
      n=1,
      keep_checkpoints_without_metrics=False,
    )
    kept = [_policies.LatestN(keep), best, _Unscored(watchers), _Pinned(pinned)]
    self._orbax = ocp.training.Checkpointer(
      self.folder,
      # The loop decides when to save; Orbax shall refuse none of it.
      save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
      preservation_policy=_policies.AnyPreservationPolicy(kept),
      # A killed run leaves half-written steps behind.
      cleanup_tmp_directories=True,
    )
    self._pending = None
    self._pending_step = 0
    self._intact: set[int] = set()  # steps that were read or written here

  def steps(self) -> list[int]:
    """Finished steps, oldest first."""
    return [checkpoint.step for checkpoint in self._orbax.checkpoints]

  def save(
    self, step: int, state: Any, about: dict, metrics: dict[str, float] | None = None
  ) -> None:
    """Begins to write the state of a step.

    The arrays are copied before it returns, so the state may be donated at once.

    Args:
      step: number of updates done.
      state: tree of arrays.
      about: JSON kept beside it: data position, config, tokenizer.
      metrics: `eval_loss` ranks the step among the best.

    Raises:
      CheckpointError: this or the previous write failed, for example on a full disk; earlier
        checkpoints are untouched.
    """
    self.wait()
    if step in self._intact:
      return
    if step in self.steps():  # it could not be read when this run began, or another run left it
      self._set_aside([step])
    try:
      self._pending = self._orbax.save_async(step, state, custom_metadata=about, metrics=metrics)
    except Exception as e:
      raise self._failed(step, e) from e
    self._pending_step = step

  def wait(self) -> None:
    """Waits until the write in flight is complete. Raises CheckpointError if it failed."""
    # Forgotten first: a write that failed is reported once, and not again by `close`.
    pending, self._pending = self._pending, None
    if pending is None:
      return
    try:
      pending.result()
    except Exception as e:
      raise self._failed(self._pending_step, e) from e
    self._intact.add(self._pending_step)

  def _failed(self, step: int, error: Exception) -> CheckpointError:
    return CheckpointError(
      f"{self.folder}: could not write the checkpoint of step {step}: {first_line(error)}. "
      f"The disk has {_free_gib(self.folder):.2f} GiB free; make room and run the same command "
      f"again: it goes on from step {max(self.steps(), default=0)}"
    )

  def restore(self, abstract: Any, step: int | None = None) -> Loaded | None:
    """The newest readable state, or that of `step`; None where there is none.

    A damaged step is reported and renamed to STEP.damaged, and the one before it is tried: training
    comes to that step again and saves it anew. All processes take the same step. A tree that does
    not fit raises at once: an older checkpoint of the same run would not fit either.

    Args:
      abstract: tree of ShapeDtypeStruct with shardings, on any mesh.
      step: this step, and no other.

    Raises:
      CheckpointError: the trees differ (the difference is printed), or no step can be read though
        there are some.
      Exception: as `read_step.attempts`.
    """
    candidates = self.steps()[::-1]
    if step is not None:
      candidates = [step]
    if not candidates:
      return None
    damaged: list[int] = []
    for number, stored in attempts(self.folder, candidates, abstract, only_params=False):
      if not isinstance(stored, DamagedError):
        self._set_aside(damaged)
        self._intact.add(number)
        return Loaded(number, stored.tree, stored.about)
      damaged.append(number)
      self._say(f"{stored}; trying the checkpoint before it")
    raise CheckpointError(
      f"{self.folder}: none of the checkpoints {sorted(damaged)} can be read; remove the folder "
      "to begin anew"
    )

  def _set_aside(self, steps: Sequence[int]) -> None:
    if not steps:
      return
    if multihost.is_first():
      for step in steps:
        set_aside(self.folder, step)
    multihost.barrier(f"{self.folder} set aside")
    self._orbax.reload()  # it keeps a list of the steps in memory

  def close(self) -> None:
    """Finishes the write in flight."""
    try:
      self.wait()
    finally:
      self._orbax.close()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_) -> None:
    self.close()


@dataclasses.dataclass(frozen=True)
class _Pinned:
  """Keeps one step."""

  step: int

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    del context
    return [checkpoint.step == self.step for checkpoint in checkpoints]


class _Unscored:
  """Keeps what a watcher has yet to score."""

  def __init__(self, watchers: files.Path):
    self._watchers = None
    if watchers:
      self._watchers = pathlib.Path(watchers)

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    del context
    scored = []
    if self._watchers:
      scored = [_scored_steps(journal) for journal in self._watchers.glob("*/results.jsonl")]
    kept = []
    for checkpoint in checkpoints:
      kept.append(any(checkpoint.step not in steps for steps in scored))
    return kept


def _scored_steps(journal: pathlib.Path) -> set[int]:
  """Steps of the complete rows; the last row may be half written at this moment."""
  return {json.loads(line)["step"] for line in journal.read_bytes().split(b"\n")[:-1]}


def _free_gib(folder: pathlib.Path) -> float:
  existing = next(path for path in (folder, *folder.parents) if path.exists())
  return shutil.disk_usage(existing).free / 2**30
