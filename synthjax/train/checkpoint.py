"""Checkpoints through Orbax v1: state, data position, config and tokenizer in one folder a step.

Saving is asynchronous and atomic (Orbax renames a finished step into place). Restoring compares the
stored tree with the wanted one first, so that a misfit is a readable difference and a type never
changes in silence. Each process reads for itself; then all of them agree on what was found, so that
they never go on from different steps.
"""

import dataclasses
import functools
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp_v0
from orbax.checkpoint import v1 as ocp

from synthjax import files, multihost, progress, stages
from synthjax.errors import Error

_policies = ocp.training.preservation_policies
_Outcome = Literal["read", "damaged", "misfit", "failed"]
_OUTCOMES: tuple[_Outcome, ...] = ("read", "damaged", "misfit", "failed")  # the worst last

# Status codes at the head of tensorstore's messages. Only these say that what is stored is not whole.
_DAMAGE = re.compile(r"\b(DATA_LOSS|NOT_FOUND|OUT_OF_RANGE|INVALID_ARGUMENT|FAILED_PRECONDITION): ")
_NO_DAMAGE = re.compile(
  r"\b(RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|"
  r"UNAUTHENTICATED|UNKNOWN|INTERNAL): "
)
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_UNDECODABLE = (json.JSONDecodeError, UnicodeDecodeError, EOFError)


class CheckpointError(Error, RuntimeError):
  """A checkpoint that cannot be written, read or used; the message says which, why and what to do."""


class DamagedError(CheckpointError):
  """A checkpoint some of whose files are missing, cut short or garbled."""


class _MisfitError(CheckpointError):
  """A whole checkpoint of another model or optimizer."""


class Checkpoints:
  """The checkpoints of one run.

  Args:
    folder: where the steps lie.
    keep: how many of the newest are kept; the one with the lowest held-out loss is kept besides.
    watchers: folder of the watchers' folders (see `evaluate/watch.py`): a step that one of them has not scored is kept too.
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
    self.folder, self._say = pathlib.Path(folder).absolute(), say
    best = _policies.BestN(
      get_metric_fn=lambda m: -m["eval_loss"], n=1, keep_checkpoints_without_metrics=False
    )
    self._orbax = ocp.training.Checkpointer(
      self.folder,
      save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
      preservation_policy=_policies.AnyPreservationPolicy(
        [_policies.LatestN(keep), best, _Unscored(watchers), _Pinned(pinned)]
      ),
      cleanup_tmp_directories=True,
    )
    self._pending = None
    self._whole: set[int] = set()  # steps that were read or written here

  def steps(self) -> list[int]:
    """Finished steps, oldest first."""
    return [c.step for c in self._orbax.checkpoints]

  def save(
    self, step: int, state: Any, about: dict, metrics: dict[str, float] | None = None
  ) -> None:
    """Begins to write the state of a step; the arrays are copied before it returns, so the state may be donated at once.

    Args:
      step: number of updates done.
      state: tree of arrays.
      about: JSON kept beside it: data position, config, tokenizer.
      metrics: `eval_loss` ranks the step among the best.

    Raises:
      CheckpointError: this or the previous write failed, for example on a full disk; earlier checkpoints are untouched.
    """
    self.wait()
    if step in self._whole:
      return
    if step in self.steps():  # it could not be read when this run began, or another run left it
      self._set_aside([step])
    try:
      self._pending = self._orbax.save_async(step, state, custom_metadata=about, metrics=metrics)
    except Exception as e:
      raise self._failed(step, e) from e
    self._pending_step = step

  def wait(self) -> None:
    """Waits until the write in flight has reached its place. Raises CheckpointError if it failed."""
    pending, self._pending = self._pending, None
    if pending is not None:
      try:
        pending.result()
      except Exception as e:
        raise self._failed(self._pending_step, e) from e
      self._whole.add(self._pending_step)

  def _failed(self, step, error):
    free = _free_gib(self.folder)
    return CheckpointError(
      f"{self.folder}: could not write the checkpoint of step {step}: {_first_line(error)}. The disk has {free:.2f} GiB free; make room "
      f"and run the same command again: it goes on from step {max(self.steps(), default=0)}"
    )

  def restore(self, abstract: Any, step: int | None = None) -> tuple[int, Any, dict] | None:
    """The newest readable state (or that of `step`) as (step, state, about); None where there is none.

    A damaged step is reported and renamed to STEP.damaged, and the one before it is tried: training
    comes to that step again and saves it anew. All processes take the same step. A tree that does not
    fit raises at once: an older checkpoint of the same run would not fit either.

    Args:
      abstract: tree of ShapeDtypeStruct with shardings, on any mesh.
      step: a certain step.

    Raises:
      CheckpointError: the trees differ (the difference is printed), or no step can be read though
        there are some.
      Exception: whatever else keeps a step from being read, such as too little memory or a file
        system that does not answer, as it was raised and with the step's folder in a note.
    """
    candidates = self.steps()[::-1] if step is None else [step]
    if not candidates:
      return None
    damaged: list[int] = []
    for number, found in _attempts(self.folder, candidates, abstract, parameters=False):
      if not isinstance(found, DamagedError):
        self._set_aside(damaged)
        self._whole.add(number)
        state, about = found
        return number, state, about
      damaged.append(number)
      self._say(f"{found}; trying the checkpoint before it")
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
    multihost.meet(f"{self.folder} set aside")
    self._orbax.reload()

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
    self._watchers = pathlib.Path(watchers) if watchers else None

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    del context
    journals = list(self._watchers.glob("*/results.jsonl")) if self._watchers else []
    scored = [_scored(journal) for journal in journals]
    return [any(checkpoint.step not in steps for steps in scored) for checkpoint in checkpoints]


def _scored(journal: pathlib.Path) -> set[int]:
  """Steps of the whole rows; the last row may be half written at this moment."""
  return {json.loads(line)["step"] for line in journal.read_bytes().split(b"\n")[:-1]}


def folder_of(given: files.Path) -> pathlib.Path:
  """The folder of checkpoints that a folder stands for: itself, or that of a stage or of a work folder's training."""
  for below in ("checkpoints", "train/checkpoints"):
    if (pathlib.Path(given) / below).is_dir():
      return pathlib.Path(given) / below
  return pathlib.Path(given)


def check_there(given: files.Path, key: str) -> None:
  """Raises CheckpointError where a folder that the field `key` of the config names holds no checkpoint."""
  if not str(given) or newest_step(given) is not None:
    return
  below = sorted(str(path.parent) for path in pathlib.Path(given).glob("*/*/checkpoints"))
  instead = (
    f"below it there are {', '.join(below)}" if below else f"looked for from {pathlib.Path.cwd()}"
  )
  raise CheckpointError(
    f"{key} is {str(given)!r}, which holds no checkpoint; expected a folder of checkpoints, of one step in "
    f"it, or of the stage that wrote them ({instead})"
  )


def named_step(folder: files.Path) -> int | None:
  """The step that the manifest of a finished training names, for its `checkpoints` folder; None elsewhere."""
  folder = pathlib.Path(folder)
  stage = stages.version(folder.parent) if folder.name == "checkpoints" else None
  if stage is None or stage.result is None:
    return None
  return stage.result.get("steps")


def is_lost(folder: files.Path) -> bool:
  """Whether the step that a finished training's manifest names was damaged, and set aside by a reader."""
  folder, step = pathlib.Path(folder), named_step(folder)
  return (
    step is not None and not (folder / str(step)).exists() and (folder / f"{step}.damaged").exists()
  )


def newest_step(folder: files.Path) -> int | None:
  """The step that readers take from a folder of checkpoints: the manifest's, else the newest one there."""
  folder = folder_of(folder)
  if _is_step(folder):
    return int(folder.name)
  return named_step(folder) or max(_numbers(folder), default=None)


def steps_in(folder: files.Path) -> list[int]:
  """The steps that lie in a folder of checkpoints, oldest first."""
  return sorted(_numbers(pathlib.Path(folder)))


def load_params(
  folder: files.Path, abstract: Any, step: int | None = None
) -> tuple[int, Any, dict]:
  """The parameters alone of a run's checkpoint: (step, params, about).

  Of a finished training it is the step that the manifest names, and no other. Of an unfinished one, and
  of a folder that `export_params` wrote, it is the newest step that can be read; damaged ones are said.

  Args:
    folder: a run's `checkpoints` folder, the stage that holds it, one that `export_params` wrote, or one step in such a folder.
    abstract: tree of ShapeDtypeStruct with shardings.
    step: a certain step, and no other.

  Raises:
    CheckpointError: nothing there, or the parameters do not fit.
    DamagedError: the step that was asked for or that the manifest names is damaged; it is renamed to
      STEP.damaged where a training can make it anew.
    Exception: as `Checkpoints.restore`.
  """
  folder = folder_of(folder).absolute()
  if _is_step(folder):
    folder, step = folder.parent, int(folder.name)
  if not folder.is_dir():
    raise CheckpointError(
      f"{folder}: no such checkpoint folder; give the folder that holds the steps"
    )
  numbers = sorted(_numbers(folder), reverse=True)
  named = named_step(folder)
  wanted = named if step is None else step
  if wanted is not None and wanted not in numbers and wanted != named:
    raise CheckpointError(f"{folder}: no step {wanted}; there are {numbers}")
  for number, found in _attempts(
    folder, numbers if wanted is None else [wanted], abstract, parameters=True
  ):
    if not isinstance(found, DamagedError):
      params, about = found
      return number, params, about
    if wanted is None:
      progress.say(f"{found}; trying the checkpoint before it")
    else:
      raise DamagedError(f"{found}; {_way_out(folder, number, named)}") from found
  raise CheckpointError(
    f"{folder}: no readable checkpoint; its steps are {sorted(numbers) or 'none'}"
  )


def _way_out(folder: pathlib.Path, step: int, named: int | None) -> str:
  """What to do about a damaged step; sets it aside where its training can make it anew."""
  older = [number for number in sorted(_numbers(folder)) if number != step]
  instead = f"the other steps there are {older or 'none'}; name one as {folder}/STEP"
  if step != named:
    return instead
  if multihost.is_first():
    set_aside(folder, step)
  return (
    f"train again with the same settings, which goes on from the checkpoint before it and writes step {step} "
    f"anew; {instead}"
  )


def set_aside(folder: files.Path, step: int) -> None:
  """Renames a damaged step to STEP.damaged, which takes the place of an earlier one of that name."""
  source = pathlib.Path(folder) / str(step)
  target = source.with_name(f"{step}.damaged")
  if source.is_dir():
    shutil.rmtree(target, ignore_errors=True)
    source.rename(target)


def load_state(folder: files.Path, abstract: Any, step: int | None = None) -> tuple[int, Any, dict]:
  """The whole state of another run's checkpoint (the newest, or that of `step`): (step, state, about).

  Args:
    folder: of the steps, or of the stage that holds it.
    abstract: tree of ShapeDtypeStruct with shardings, on any mesh.

  Raises:
    CheckpointError: nothing there, or the trees differ.
  """
  folder = folder_of(folder).absolute()
  numbers = sorted(_numbers(folder), reverse=True) if folder.is_dir() else []
  if not numbers or (step is not None and step not in numbers):
    raise CheckpointError(
      f"{folder}: no step {step or ''} to continue from; there are {numbers or 'none'}; see config.train.continue_from"
    )
  for number, found in _attempts(
    folder, numbers if step is None else [step], abstract, parameters=False
  ):
    if not isinstance(found, DamagedError):
      return number, *found
    progress.say(str(found))
  raise CheckpointError(
    f"{folder}: no readable checkpoint to continue from; its steps are {numbers}"
  )


def export_params(folder: files.Path, to: files.Path, abstract: Any) -> int:
  """Writes the parameters alone of a run as a folder that `train.init` can name. Returns their step, see `load_params`.

  Raises:
    CheckpointError: nothing readable there, the parameters do not fit, or `to` holds something already.
  """
  to = pathlib.Path(to).absolute()
  if to.exists() and any(to.iterdir()):
    raise CheckpointError(f"{to}: holds something already; export into a new folder")
  # Whoever trained may have had other devices: without shardings Orbax would ask for those.
  everywhere = _a_device_a_process()
  placed = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), abstract
  )
  step, params, about = load_params(folder, placed)
  ocp.save(to / str(step), {"params": params}, custom_metadata=about)
  return step


def _a_device_a_process() -> jax.sharding.NamedSharding:
  """Whole arrays on the first device of every process."""
  first = {device.process_index: device for device in reversed(jax.devices())}
  mesh = jax.sharding.Mesh(np.array([first[process] for process in sorted(first)]), ("process",))
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def _is_step(folder: pathlib.Path) -> bool:
  return folder.name.isdigit() and (folder / "_CHECKPOINT_METADATA").exists()


def _numbers(folder: pathlib.Path) -> list[int]:
  """Numbers of the steps that lie in a folder, whole or not."""
  if not folder.is_dir():
    return []
  return [int(path.name) for path in folder.iterdir() if path.name.isdigit()]


def _attempts(
  folder: pathlib.Path, numbers: Sequence[int], abstract: Any, parameters: bool
) -> Iterator[tuple[int, tuple[Any, dict] | DamagedError]]:
  """For each step what was read of it, or its damage. All processes yield the same.

  Raises:
    CheckpointError: it does not fit, or another process could not read it.
    Exception: as `Checkpoints.restore`.
  """
  # A shared file system may show other processes older steps than the first one.
  for number in multihost.agree(f"{folder} steps", list(numbers)):
    path = folder / str(number)
    try:
      # All load or none: Orbax counts loads, and compares the counts when all save together.
      wanted, about = _together(path, functools.partial(_describe, path, abstract, parameters))
      found = _together(path, functools.partial(_load, path, wanted))
    except DamagedError as damage:
      yield number, damage
    else:
      yield number, (found["params"] if parameters else found, about)


def _together(path: pathlib.Path, read: Callable[[], Any]) -> Any:
  """What this process reads of a step, once all processes have read theirs; the worst outcome of all is that of each.

  Raises:
    DamagedError, CheckpointError, Exception: as `_attempts`.
  """
  value: Any = None
  error: Exception | None = None
  outcome: _Outcome = "read"
  try:
    value = read()
  except Exception as e:  # sorted here, and raised below where all know of it
    error, outcome = e, _outcome(e)
  outcomes = multihost.gather(f"{path} read", outcome)
  agreed = max(outcomes, key=_OUTCOMES.index)
  process = outcomes.index(agreed)
  if agreed == "read":
    return value
  if agreed == "damaged":
    reason = _first_line(error) if error else f"process {process} cannot read it"
    raise DamagedError(f"{path}: damaged ({reason})") from error
  if error is not None and agreed == outcome:
    error.add_note(f"while reading the checkpoint {path}")
    raise error
  raise CheckpointError(
    f"{path}: process {process} could not use it; its own message says why"
  ) from error


def _outcome(error: Exception) -> _Outcome:
  if isinstance(error, _MisfitError):
    return "misfit"
  return "damaged" if is_damage(error) else "failed"


def _describe(path: pathlib.Path, abstract: Any, parameters: bool) -> tuple[Any, dict]:
  """(tree of what is to be loaded of a step, about). Raises _MisfitError where the stored tree is another."""
  about = json.loads((path / "_CHECKPOINT_METADATA").read_text(encoding="utf-8"))
  if not isinstance(about, dict) or "custom_metadata" not in about:
    raise DamagedError("_CHECKPOINT_METADATA holds nothing about the run")
  # Orbax v1 hides the error where it cannot describe the arrays.
  stored = ocp_v0.PyTreeCheckpointHandler().metadata(path.absolute() / "state").tree
  difference = tree_difference(stored["params"] if parameters else stored, abstract)
  if difference:
    what = "the parameters do not fit this model" if parameters else "does not fit this run"
    raise _MisfitError(f"{path}: {what}:\n{difference}")
  wanted = abstract
  if parameters:  # leaves that are not wanted are not read
    wanted = {name: jax.tree.map(lambda _: ocp.PLACEHOLDER, part) for name, part in stored.items()}
    wanted["params"] = abstract
  return wanted, about["custom_metadata"]


def _load(path: pathlib.Path, wanted: Any) -> Any:
  """The arrays of one step, read by this process without waiting for others, which may fail to read theirs."""
  alone, me = ocp.Context(), jax.process_index()
  alone.multiprocessing.primary_host = me
  alone.multiprocessing.active_processes = {me}
  alone.multiprocessing.barrier_sync_key_prefix = f"read{me}"
  with alone:
    return ocp.load(path, wanted)


def is_damage(error: BaseException) -> bool:
  """Whether an error says that a checkpoint's files are missing, cut short or garbled.

  Too little memory, no permission, a file system that does not answer and whatever is not known to be
  damage is none: the same step may well be readable a minute later.
  """
  found = False
  for each in _chain(error):
    text = str(each)
    if isinstance(each, MemoryError) or (
      isinstance(each, OSError) and not isinstance(each, _MISSING)
    ):
      return False
    if _NO_DAMAGE.search(text[:200]):
      return False
    garbled = isinstance(each, ValueError) and _DAMAGE.search(text[:200]) is not None
    found |= garbled or isinstance(each, (DamagedError, *_MISSING, *_UNDECODABLE))
  return found


def _chain(error: BaseException | None) -> Iterator[BaseException]:
  """An error, the members of groups and what each was raised from."""
  if error is None:
    return
  yield error
  for member in getattr(error, "exceptions", ()):
    yield from _chain(member)
  yield from _chain(error.__cause__ or (None if error.__suppress_context__ else error.__context__))


def tree_difference(stored: Any, wanted: Any, lines: int = 12) -> str:
  """Where two trees of arrays differ in names, shapes or types, one line each; "" where they agree."""
  have, want = _described(stored), _described(wanted)
  found = []
  for name in sorted(have.keys() | want.keys()):
    if have.get(name) != want.get(name):
      found.append(
        f"  {name}: the checkpoint has {have.get(name, 'nothing')}, this run wants {want.get(name, 'nothing')}"
      )
  more = [f"  ... and {len(found) - lines} more"] if len(found) > lines else []
  return "\n".join(found[:lines] + more)


def _described(tree) -> dict[str, str]:
  flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
  return {_name(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in flat}


def _name(path) -> str:
  """A leaf's dotted name; keys, fields and indices read alike because Orbax stores tuples and named tuples as it likes."""
  return ".".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def _first_line(error: BaseException) -> str:
  return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else 'no message'}"


def _free_gib(folder: pathlib.Path) -> float:
  return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free / 2**30
