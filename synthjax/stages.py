"""Stages: steps of a recipe, skipped when finished with the same inputs, resumed when interrupted.

A stage's folder NAME holds the version in use. When the inputs change, the folder is renamed to
NAME.KEY, KEY being the first eight digits of the hash of its inputs, and comes back by another
renaming when those inputs do. Nothing that a stage made is ever deleted.

`begun.json` is written first and holds the inputs; `manifest.json` is written last.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import pathlib
import re
import shutil
import time
from collections.abc import Callable
from typing import Any

from synthjax import __version__, files, locks, multihost, progress, workfolder
from synthjax.errors import Error

_KEPT = r"\.[0-9a-f]{8}(-\d+)?"  # what is added to a stage's name


@dataclasses.dataclass(frozen=True)
class Version:
  """What a stage made, or began to make, of certain inputs.

  Attributes:
    folder: where it lies.
    key: hash of the inputs.
    inputs: the inputs, or None where an older synthjax recorded only their hash.
    result: what the work returned, or None where the version is not finished.
  """

  folder: pathlib.Path
  key: str
  inputs: Any
  result: dict | None


def version(folder: files.Path) -> Version | None:
  """The version in a folder, or None where no stage has begun there."""
  folder = pathlib.Path(folder)
  if not (folder / "begun.json").exists():
    return None
  begun = files.read_json(folder / "begun.json")
  result = None
  if (folder / "manifest.json").exists():
    result = files.read_json(folder / "manifest.json")["result"]
  return Version(folder=folder, key=begun["inputs"], inputs=begun.get("config"), result=result)


def versions(folder: files.Path) -> list[Version]:
  """All versions of a stage: the one in use, then those kept beside it, the newest first."""
  folder = pathlib.Path(folder)
  kept = []
  if folder.parent.is_dir():
    names = re.compile(rf"{re.escape(folder.name)}{_KEPT}")
    kept = [path for path in folder.parent.iterdir() if names.fullmatch(path.name)]
  kept = [path for path in kept if (path / "begun.json").exists()]
  kept.sort(key=_begun_at, reverse=True)
  all_versions = [version(path) for path in (folder, *kept)]
  return [one for one in all_versions if one is not None]


def is_kept(folder: files.Path) -> bool:
  """Whether a folder beside a stage's holds a version that made room, by its name."""
  return re.fullmatch(rf".+{_KEPT}", pathlib.Path(folder).name) is not None


def finished(
  folder: files.Path, inputs: Any, whole: Callable[[Version], bool] | None = None
) -> Version | None:
  """The finished version, in use or kept, that `run` would take instead of working.

  None where `run` would work, as it also does where it is forced.

  Args:
    folder, inputs, whole: as `run` takes them.
  """
  key = files.value_hash(inputs)
  same = [one for one in versions(folder) if one.key == key]
  # A version in use with these inputs is never exchanged for a kept one.
  if same and same[0].folder == pathlib.Path(folder):
    same = same[:1]
  for one in same:
    if _is_finished(one, whole):
      return one
  return None


def run(
  folder: files.Path,
  inputs: Any,
  work: Callable[[pathlib.Path], dict],
  force: bool = False,
  say: Callable[[str], None] = progress.say,
  together: bool = False,
  whole: Callable[[Version], bool] | None = None,
) -> dict:
  """Runs `work(folder)` unless a version of the stage finished with the same inputs.

  A version with other inputs is kept beside the folder (see `versions`), whether it is finished or
  not. A kept version with these inputs is taken back. An unfinished version with these inputs keeps
  its files, and the work decides how to resume from them. Work that is refused (an `Error`, such as
  a missing file) before it made anything leaves no folder.

  The processes of one start share the folder: the first works while the others wait, or all work
  `together`. Of several starts that reach one stage, one works while the others wait for it.

  Args:
    folder: of this stage alone; `manifest.json` in it is written last.
    inputs: JSON value that decides the outcome: config and hashes of what is read.
    work: does the stage and returns its counts and results as JSON.
    force: redo a finished stage; the version that was finished is kept.
    say: prints a line.
    together: all processes do the work.
    whole: whether a finished version still holds what it made; if not, it is resumed as an
      unfinished one.

  Returns:
    What the work returned, now or before.

  Raises:
    DataError: the folder holds files that no stage made.
  """
  folder = pathlib.Path(folder)
  manifest = folder / "manifest.json"
  multihost.barrier(f"{folder} before")
  with contextlib.ExitStack() as held:
    if multihost.is_first():
      held.enter_context(locks.empty_folders_removed(folder.parent))
      if force or not _is_in_place(folder, inputs, whole):
        held.enter_context(_alone(folder, say))
      _put_in_place(folder, inputs, force, say, whole)
    multihost.barrier(f"{folder} begun")
    if manifest.exists():
      return files.read_json(manifest)["result"]
    if multihost.is_first() or together:
      _work(folder, inputs, work, say)
    multihost.barrier(f"{folder} finished")
  return files.read_json(manifest)["result"]


def _work(
  folder: pathlib.Path,
  inputs: Any,
  work: Callable[[pathlib.Path], dict],
  say: Callable[[str], None],
) -> None:
  """Does the work; the first process writes the manifest."""
  start = time.monotonic()
  try:
    result = work(folder)
  except Error:
    if multihost.is_first() and not _made_in(folder):
      shutil.rmtree(folder)
    raise
  if not multihost.is_first():
    return
  seconds = round(time.monotonic() - start, 2)
  say(f"[{folder.name}] finished in {seconds:.1f} s")
  manifest = {
    "config": inputs,
    "inputs": files.value_hash(inputs),
    "result": result,
    "seconds": seconds,
    "version": __version__,
  }
  files.write_json(folder / "manifest.json", manifest)


def _is_in_place(
  folder: pathlib.Path, inputs: Any, whole: Callable[[Version], bool] | None
) -> bool:
  existing = finished(folder, inputs, whole)
  return existing is not None and existing.folder == folder


def _is_finished(one: Version, whole: Callable[[Version], bool] | None) -> bool:
  return one.result is not None and (whole is None or whole(one))


def _alone(
  folder: pathlib.Path, say: Callable[[str], None]
) -> contextlib.AbstractContextManager[None]:
  """The lock of a stage. It lies beside the folder, which is renamed when its inputs change."""
  return locks.lock(
    locks.beside(folder),
    f"stage {folder.name}",
    str(folder),
    patience=math.inf,
    waiting=functools.partial(_say_waiting, folder.name, say),
  )


def _say_waiting(name: str, say: Callable[[str], None], holder: locks.Holder) -> None:
  say(f"[{name}] waits for {holder}")


def _put_in_place(
  folder: pathlib.Path,
  inputs: Any,
  force: bool,
  say: Callable[[str], None],
  whole: Callable[[Version], bool] | None,
) -> None:
  """Leaves in `folder` the version with these inputs: the present one, a kept one, or a new one.

  Each change is one renaming, and whatever lies in the folder or beside it is found again by its
  inputs. So a kill at any moment loses nothing, and the next run does the rest.
  """
  key, current = files.value_hash(inputs), version(folder)
  if current is None:
    _check_empty(folder)
  elif current.key == key and not (force and current.result is not None):
    _go_on(current, say, whole)
    return
  back = None
  if not force:
    back = _kept_version(folder, key)
  moved = ""
  if current:
    moved = _make_room(folder, current)
  if back is not None:
    back.folder.rename(folder)
    state = "finished"
    if back.result is None:
      state = "was begun"
    say(
      f"[{folder.name}] taken back from {back.folder.name}, which {state} with these inputs{moved}"
    )
    _reopen(folder, say, whole)
    return
  reason = ""
  if current and current.key == key:
    reason = " anew: forced"
  elif current:
    reason = f" anew: its inputs changed ({workfolder.difference(current.inputs, inputs)})"
  say(f"[{folder.name}] begins{reason}{moved}")
  files.write_json(folder / "begun.json", {"inputs": key, "config": inputs})


def _kept_version(folder: pathlib.Path, key: str) -> Version | None:
  """The newest version with these inputs, a finished one first."""
  same = [one for one in versions(folder) if one.key == key]
  for one in same:
    if one.result is not None:
      return one
  if same:
    return same[0]
  return None


def _go_on(
  current: Version, say: Callable[[str], None], whole: Callable[[Version], bool] | None
) -> None:
  name = current.folder.name
  if current.result is None:
    say(f"[{name}] goes on")
  elif not _reopen(current.folder, say, whole):
    say(f"[{name}] done before, skipped")


def _reopen(
  folder: pathlib.Path, say: Callable[[str], None], whole: Callable[[Version], bool] | None
) -> bool:
  """Whether a finished version lost something that it made, and is unfinished from here on."""
  current = version(folder)
  if current is None or current.result is None or _is_finished(current, whole):
    return False
  (folder / "manifest.json").rename(folder / "manifest.before.json")
  say(f"[{folder.name}] was finished, but part of what it made is damaged: it goes on")
  return True


def _check_empty(folder: pathlib.Path) -> None:
  if not folder.exists():
    return
  if any(not path.name.startswith(".") for path in folder.iterdir()):
    raise files.DataError(
      f"{folder}: holds files that no stage of synthjax made; choose another --workdir or remove it"
    )
  # Left by a run that was killed while it began.
  for scratch in folder.glob(".begun.json.*"):
    scratch.unlink()


def _made_in(folder: pathlib.Path) -> bool:
  """Whether the work of a stage left anything in its folder."""
  names = [path.name for path in folder.iterdir()]
  return any(name != "begun.json" and not name.startswith(".") for name in names)


def _make_room(folder: pathlib.Path, current: Version) -> str:
  """Renames the version in use and returns where it went, as the end of a message.

  A version that made nothing yet is removed.
  """
  if current.result is None and not _made_in(folder):
    shutil.rmtree(folder)
    return ""
  kept = folder.with_name(f"{folder.name}.{current.key[:8]}")
  for number in itertools.count(2):
    if not kept.exists():
      break
    kept = folder.with_name(f"{folder.name}.{current.key[:8]}-{number}")
  folder.rename(kept)
  state = "finished"
  if current.result is None:
    state = "unfinished"
  return f"; the {state} version that was here is kept as {kept}"


def _begun_at(folder: pathlib.Path) -> float:
  return (folder / "begun.json").stat().st_mtime
