"""Stages: steps of a recipe that are skipped when finished with the same inputs and go on where they stopped.

A stage's folder NAME holds the version in use. When the inputs change, the folder is renamed to NAME.KEY, KEY being the first eight
digits of the hash of its inputs, and comes back by another renaming when those inputs do. Nothing that a stage made is ever deleted.
"""

import dataclasses
import itertools
import pathlib
import re
import shutil
import time
from collections.abc import Callable
from typing import Any

from synthjax import __version__, files, multihost, progress

_KEPT = r"\.[0-9a-f]{8}(-\d+)?"  # what is added to a stage's name


@dataclasses.dataclass(frozen=True)
class Version:
  """What a stage made, or began to make, of certain inputs.

  Attributes:
    folder: where it lies.
    key: hash of the inputs.
    inputs: the inputs, or None where an older synthjax wrote down their hash alone.
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
  """All versions of the stage `folder`: the one in use, then those that are kept beside it, the newest first."""
  folder = pathlib.Path(folder)
  kept = []
  if folder.parent.is_dir():
    names = re.compile(rf"{re.escape(folder.name)}{_KEPT}")
    kept = [path for path in folder.parent.iterdir() if names.fullmatch(path.name) and (path / "begun.json").exists()]
  kept.sort(key=_begun_at, reverse=True)
  found = [version(path) for path in (folder, *kept)]
  return [each for each in found if each]


def is_kept(folder: files.Path) -> bool:
  """Whether a folder beside a stage's holds a version that made room, by its name."""
  return re.fullmatch(rf".+{_KEPT}", pathlib.Path(folder).name) is not None


def finished(folder: files.Path, inputs: Any) -> Version | None:
  """The finished version that `run` would take instead of working, where nothing forces it: in use or kept."""
  key = files.value_hash(inputs)
  same = [each for each in versions(folder) if each.key == key]
  if same and same[0].folder == pathlib.Path(folder):
    same = same[:1]
  return next((each for each in same if each.result is not None), None)


def run(folder: files.Path, inputs: Any, work: Callable[[pathlib.Path], dict], force: bool = False,
        say: Callable[[str], None] = progress.say, together: bool = False) -> dict:
  """Runs `work(folder)` unless a version of the stage finished with the same inputs. Returns what it returned.

  A version with other inputs makes room: it is kept beside the folder (see `versions`), whether it is finished or not. A kept version
  with these inputs is taken back. An unfinished version with these inputs keeps its files, and the work decides how to go on from them.
  Several processes share the folder: the first of them works while the others wait, or all work `together`.

  Args:
    folder: of this stage alone; `manifest.json` in it is written last.
    inputs: JSON value that decides the outcome: config and hashes of what is read.
    work: does the stage and returns its counts and results as JSON.
    force: redo a finished stage; the version that was finished is kept.
    say: prints a line.
    together: all processes do the work.

  Raises:
    DataError: the folder holds files that no stage made.
  """
  folder = pathlib.Path(folder)
  manifest = folder / "manifest.json"
  multihost.meet(f"{folder} before")
  if multihost.is_first():
    _put_in_place(folder, inputs, force, say)
  multihost.meet(f"{folder} begun")
  if manifest.exists():
    return files.read_json(manifest)["result"]
  if multihost.is_first() or together:
    start = time.monotonic()
    result = work(folder)
    if multihost.is_first():
      seconds = round(time.monotonic() - start, 2)
      say(f"[{folder.name}] finished in {seconds:.1f} s")
      files.write_json(manifest, {"config": inputs, "inputs": files.value_hash(inputs), "result": result, "seconds": seconds,
                                  "version": __version__})
  multihost.meet(f"{folder} finished")
  return files.read_json(manifest)["result"]


def difference(before: Any, after: Any, most: int = 3) -> str:
  """Where two JSON values differ, as "train.steps 10 -> 20"; "" where they do not."""
  one, other = dict(_leaves(before)), dict(_leaves(after))
  names = [name for name in {**one, **other} if one.get(name, "nothing") != other.get(name, "nothing")]
  shown = []
  for name in names[:most]:
    before, after = (_short(leaves.get(name, "nothing")) for leaves in (one, other))
    shown.append(f"{name or 'inputs'} {before} -> {after}")
  if len(names) > most:
    shown.append(f"{len(names) - most} more")
  return ", ".join(shown)


def _leaves(value: Any, name: str = "") -> list[tuple[str, Any]]:
  if isinstance(value, dict):
    items = list(value.items())
  elif isinstance(value, list | tuple):
    items = list(enumerate(value))
  else:
    return [(name, value)]
  found = []
  for key, inner in items:
    found += _leaves(inner, f"{name}.{key}" if name else str(key))
  return found


def _short(value: Any) -> str:
  text = str(value)
  return text if len(text) <= 40 else f"{text[:12]}..."


def _put_in_place(folder: pathlib.Path, inputs: Any, force: bool, say: Callable[[str], None]) -> None:
  """Leaves in `folder` the version with these inputs: the one that is there, a kept one, or a new one.

  Each change is one renaming, and whatever lies in the folder or beside it is found again by its inputs, so a kill at any moment loses
  nothing: the next run does what is left.
  """
  key, current = files.value_hash(inputs), version(folder)
  if current is None:
    _check_empty(folder)
  elif current.key == key and not (force and current.result is not None):
    say(f"[{folder.name}] {'goes on' if current.result is None else 'done before, skipped'}")
    return
  back = None
  if not force:
    same = [each for each in versions(folder) if each.key == key]
    back = next((each for each in same if each.result is not None), same[0] if same else None)
  moved = _make_room(folder, current) if current else ""
  if back is not None:
    back.folder.rename(folder)
    state = "finished" if back.result is not None else "was begun"
    say(f"[{folder.name}] taken back from {back.folder.name}, which {state} with these inputs{moved}")
    return
  reason = ""
  if current:
    changed = difference(current.inputs, inputs) if current.inputs is not None else "in a way that is not known"
    reason = "forced" if current.key == key else f"its inputs changed ({changed})"
  say(f"[{folder.name}] begins{' anew: ' if reason else ''}{reason}{moved}")
  files.write_json(folder / "begun.json", {"inputs": key, "config": inputs})


def _check_empty(folder: pathlib.Path) -> None:
  if not folder.exists():
    return
  if any(not path.name.startswith(".") for path in folder.iterdir()):
    raise files.DataError(f"{folder}: holds files that no stage of synthjax made; choose another --workdir or remove it")
  for scratch in folder.glob(".begun.json.*"):  # of a run that was killed while it began
    scratch.unlink()


def _make_room(folder: pathlib.Path, current: Version) -> str:
  """Renames the version in use; says where it lies. One that made nothing yet is removed."""
  if current.result is None and all(path.name == "begun.json" or path.name.startswith(".") for path in folder.iterdir()):
    shutil.rmtree(folder)
    return ""
  kept = folder.with_name(f"{folder.name}.{current.key[:8]}")
  for number in itertools.count(2):
    if not kept.exists():
      break
    kept = folder.with_name(f"{folder.name}.{current.key[:8]}-{number}")
  folder.rename(kept)
  return f"; the {'finished' if current.result is not None else 'unfinished'} version that was here is kept as {kept}"


def _begun_at(folder: pathlib.Path) -> float:
  return (folder / "begun.json").stat().st_mtime
