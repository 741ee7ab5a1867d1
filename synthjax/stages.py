"""Stages: steps of a recipe that are skipped when finished with the same inputs and go on where they stopped."""

import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

from synthjax import __version__, files, multihost, progress


def finished(folder: files.Path, inputs: Any) -> bool:
  """Whether a stage was finished with these inputs, so that `run` would skip it where nothing forces it."""
  folder = pathlib.Path(folder)
  return (folder / "manifest.json").exists() and _read(folder / "begun.json", "inputs") == files.value_hash(inputs)


def run(folder: files.Path, inputs: Any, work: Callable[[pathlib.Path], dict], force: bool = False,
        say: Callable[[str], None] = progress.say, together: bool = False) -> dict:
  """Runs `work(folder)` unless the folder's manifest says that it finished with the same inputs. Returns what it returned.

  A stage that was begun with other inputs is redone from an empty folder, and what it held is kept beside it as `NAME.previous`; an
  unfinished one with the same inputs keeps its files, and the work decides how to go on from them. Several processes share the folder:
  the first of them works while the others wait, or all work `together`.

  Args:
    folder: of this stage alone; `manifest.json` in it is written last.
    inputs: JSON value that decides the outcome: config and hashes of what is read.
    work: does the stage and returns its counts and results as JSON.
    force: redo a finished stage.
    say: prints a line.
    together: all processes do the work.
  """
  folder = pathlib.Path(folder)
  manifest, begun = folder / "manifest.json", folder / "begun.json"
  multihost.meet(f"{folder} before")
  previous, key = _read(begun, "inputs"), files.value_hash(inputs)
  done = finished(folder, inputs) and not force
  multihost.meet(f"{folder} looked")
  if done:
    say(f"[{folder.name}] done before, skipped")
    return files.read_json(manifest)["result"]
  if multihost.is_first():
    _begin(folder, begun, previous, key, force, say)
  multihost.meet(f"{folder} begun")
  if multihost.is_first() or together:
    start = time.monotonic()
    result = work(folder)
    if multihost.is_first():
      seconds = round(time.monotonic() - start, 2)
      say(f"[{folder.name}] finished in {seconds:.1f} s")
      files.write_json(manifest, {"config": inputs, "inputs": key, "result": result, "seconds": seconds, "version": __version__})
  multihost.meet(f"{folder} finished")
  return files.read_json(manifest)["result"]


def _begin(folder, begun, previous, key, force, say) -> None:
  if previous is None and folder.exists() and any(not p.name.startswith(".") for p in folder.iterdir()):
    raise files.DataError(f"{folder}: holds files that no stage of synthjax made; choose another --workdir or remove it")
  if previous is not None and (previous != key or force):
    kept = folder.with_name(f"{folder.name}.previous")
    say(f"[{folder.name}] done again from the start: {'forced' if previous == key else 'its inputs changed'}; the old one is now {kept}")
    shutil.rmtree(kept, ignore_errors=True)
    folder.rename(kept)
  say(f"[{folder.name}] {'goes on' if begun.exists() else 'begins'}")
  files.write_json(begun, {"inputs": key})


def _read(path, name):
  return files.read_json(path)[name] if path.exists() else None
