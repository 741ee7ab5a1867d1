"""Finds and reads checkpoints: one folder a step, with state, data position, config and tokenizer.

`checkpointer.py` writes them. Of a finished training readers take the step that its manifest names.
"""

import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from synthjax import files, multihost, progress, stages
from synthjax.train.damage import CheckpointError, DamagedError
from synthjax.train.read_step import attempts


class Loaded(NamedTuple):
  """A step that was read."""

  step: int
  tree: Any  # the state, or the parameters alone
  about: dict  # data position, config, tokenizer


def folder_of(given: files.Path) -> pathlib.Path:
  """The folder of checkpoints that a folder stands for.

  It is the folder itself, or that of a stage, or of the training of a work folder.
  """
  # A stage holds `checkpoints`, a work folder holds the stage `train`.
  for below in ("checkpoints", "train/checkpoints"):
    if (pathlib.Path(given) / below).is_dir():
      return pathlib.Path(given) / below
  return pathlib.Path(given)


def check_there(given: files.Path, key: str) -> None:
  """Raises CheckpointError where a folder named in the config holds no checkpoint.

  Args:
    given: the folder; "" is none, and no error.
    key: the field of the config that names it.
  """
  if not str(given) or newest_step(given) is not None:
    return
  below = sorted(str(path.parent) for path in pathlib.Path(given).glob("*/*/checkpoints"))
  hint = f"looked for from {pathlib.Path.cwd()}"
  if below:
    hint = f"below it there are {', '.join(below)}"
  raise CheckpointError(
    f"{key} is {str(given)!r}, which holds no checkpoint; expected a folder of checkpoints, of one "
    f"step in it, or of the stage that wrote them ({hint})"
  )


def named_step(folder: files.Path) -> int | None:
  """The step that the manifest of a finished training names, given its `checkpoints` folder.

  None for any other folder.
  """
  folder = pathlib.Path(folder)
  if folder.name != "checkpoints":
    return None
  stage = stages.version(folder.parent)
  if stage is None or stage.result is None:
    return None
  return stage.result.get("steps")


def is_lost(folder: files.Path) -> bool:
  """Whether the step that a finished training's manifest names was damaged and set aside."""
  folder = pathlib.Path(folder)
  step = named_step(folder)
  if step is None or (folder / str(step)).exists():
    return False
  return (folder / f"{step}.damaged").exists()


def newest_step(folder: files.Path) -> int | None:
  """The step that readers take from a folder: the manifest's, else the newest one there."""
  folder = folder_of(folder)
  if _is_step(folder):
    return int(folder.name)
  return named_step(folder) or max(steps_in(folder), default=None)


def steps_in(folder: files.Path) -> list[int]:
  """The steps that lie in a folder of checkpoints, intact or damaged, oldest first."""
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    return []
  return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def _is_step(folder: pathlib.Path) -> bool:
  return folder.name.isdigit() and (folder / "_CHECKPOINT_METADATA").exists()


def load_params(folder: files.Path, abstract: Any, step: int | None = None) -> Loaded:
  """The parameters alone of a training's checkpoint.

  Of a finished training it is the step that the manifest names, and no other. Of an unfinished one,
  and of a folder that `export_params` wrote, it is the newest step that can be read; damaged ones
  are reported.

  Args:
    folder: a training's `checkpoints` folder, the stage that holds it, one that `export_params`
      wrote, or one step in such a folder.
    abstract: tree of ShapeDtypeStruct with shardings.
    step: this step, and no other.

  Raises:
    CheckpointError: nothing there, or the parameters do not fit.
    DamagedError: the step that was asked for or that the manifest names is damaged; it is renamed
      to STEP.damaged where a training can write it again.
    Exception: as `read_step.attempts`.
  """
  folder = folder_of(folder).absolute()
  if _is_step(folder):
    step = int(folder.name)
    folder = folder.parent
  if not folder.is_dir():
    raise CheckpointError(
      f"{folder}: no such checkpoint folder; give the folder that holds the steps"
    )
  there = steps_in(folder)
  named = named_step(folder)
  wanted = step
  if step is None:
    wanted = named
  # The manifest's own step may be missing because a reader set it aside: `attempts` says so.
  if wanted is not None and wanted not in there and wanted != named:
    raise CheckpointError(f"{folder}: no step {wanted}; there are {there[::-1]}")
  candidates = there[::-1]
  if wanted is not None:
    candidates = [wanted]
  for number, stored in attempts(folder, candidates, abstract, only_params=True):
    if not isinstance(stored, DamagedError):
      return Loaded(number, stored.tree, stored.about)
    if wanted is not None:
      raise DamagedError(f"{stored}; {_way_out(folder, number, named)}") from stored
    progress.say(f"{stored}; trying the checkpoint before it")
  raise CheckpointError(f"{folder}: no readable checkpoint; its steps are {there or 'none'}")


def _way_out(folder: pathlib.Path, step: int, named: int | None) -> str:
  """What to do about a damaged step; sets it aside where its training can write it again."""
  others = [number for number in steps_in(folder) if number != step]
  instead = f"the other steps there are {others or 'none'}; name one as {folder}/STEP"
  if step != named:
    return instead
  # Only here: of a folder without a training, nobody would write the step again.
  if multihost.is_first():
    set_aside(folder, step)
  return (
    f"train again with the same settings, which goes on from the checkpoint before it and writes "
    f"step {step} anew; {instead}"
  )


def set_aside(folder: files.Path, step: int) -> None:
  """Renames a damaged step to STEP.damaged, which replaces an earlier one of that name."""
  source = pathlib.Path(folder) / str(step)
  target = source.with_name(f"{step}.damaged")
  if source.is_dir():
    shutil.rmtree(target, ignore_errors=True)
    source.rename(target)


def load_state(folder: files.Path, abstract: Any, step: int | None = None) -> Loaded:
  """The whole state of another training's checkpoint: the newest, or that of `step`.

  Args:
    folder: of the steps, or of the stage that holds it.
    abstract: tree of ShapeDtypeStruct with shardings, on any mesh.
    step: this step, and no other.

  Raises:
    CheckpointError: nothing there, or the trees differ.
    Exception: as `read_step.attempts`.
  """
  folder = folder_of(folder).absolute()
  candidates = steps_in(folder)[::-1]
  if not candidates or (step is not None and step not in candidates):
    raise CheckpointError(
      f"{folder}: no step {step or ''} to continue from; there are {candidates or 'none'}; "
      "see config.train.continue_from"
    )
  tried = candidates
  if step is not None:
    tried = [step]
  for number, stored in attempts(folder, tried, abstract, only_params=False):
    if not isinstance(stored, DamagedError):
      return Loaded(number, stored.tree, stored.about)
    progress.say(str(stored))
  raise CheckpointError(
    f"{folder}: no readable checkpoint to continue from; its steps are {candidates}"
  )


def export_params(folder: files.Path, to: files.Path, abstract: Any) -> int:
  """Writes a training's parameters alone to a folder that `train.init` can name.

  Returns:
    Their step, see `load_params`.

  Raises:
    CheckpointError: nothing readable there, the parameters do not fit, or `to` is not empty.
  """
  to = pathlib.Path(to).absolute()
  if to.exists() and any(to.iterdir()):
    raise CheckpointError(f"{to}: holds something already; export into a new folder")
  # The training may have had other devices, and without shardings Orbax would ask for those.
  sharding = _one_device_per_process()

  def place(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  loaded = load_params(folder, jax.tree.map(place, abstract))
  ocp.save(to / str(loaded.step), {"params": loaded.tree}, custom_metadata=loaded.about)
  return loaded.step


def _one_device_per_process() -> jax.sharding.NamedSharding:
  """Whole arrays on the first device of every process."""
  first = {device.process_index: device for device in reversed(jax.devices())}
  devices = np.array([first[process] for process in sorted(first)])
  mesh = jax.sharding.Mesh(devices, ("process",))
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
