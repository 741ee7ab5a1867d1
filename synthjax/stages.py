"""Stages: steps of a recipe that are skipped when finished with the same inputs and go on where they stopped."""

import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

from synthjax import __version__, files


def run(folder: files.Path, inputs: Any, work: Callable[[pathlib.Path], dict], force: bool = False,
        say: Callable[[str], None] = print) -> dict:
  """Runs `work(folder)` unless the folder's manifest says that it finished with the same inputs. Returns what it returned.

  A finished stage with other inputs is redone from an empty folder; an unfinished one keeps its files, and the work decides how to go on
  from them. Its `work` must be able to do so.

  Args:
    folder: of this stage alone; `manifest.json` in it is written last.
    inputs: JSON value that decides the outcome: config and hashes of what is read.
    work: does the stage and returns its counts and results as JSON.
    force: redo a finished stage.
    say: prints a line.
  """
  folder = pathlib.Path(folder)
  manifest, begun = folder / "manifest.json", folder / "begun.json"
  key = files.value_hash(inputs)
  previous = files.read_json(begun)["inputs"] if begun.exists() else None
  if manifest.exists() and previous == key and not force:
    say(f"[{folder.name}] done before, skipped")
    return files.read_json(manifest)["result"]
  if folder.exists() and (previous != key or force):
    say(f"[{folder.name}] {'forced' if force and previous == key else 'inputs changed'}, done again from the start")
    shutil.rmtree(folder)
  say(f"[{folder.name}] {'goes on' if begun.exists() else 'begins'}")
  files.write_json(begun, {"inputs": key})
  start = time.monotonic()
  result = work(folder)
  seconds = round(time.monotonic() - start, 2)
  files.write_json(manifest, {"config": inputs, "inputs": key, "result": result, "seconds": seconds, "version": __version__})
  return result
