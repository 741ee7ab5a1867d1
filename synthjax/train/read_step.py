"""Reads one step of a checkpoint folder through Orbax v1.

The stored tree is compared with the wanted one first, so that a misfit is a readable difference and
a type never changes silently. Each process reads for itself; then all of them agree on the outcome,
so that they never continue from different steps.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import orbax.checkpoint as ocp_v0
from orbax.checkpoint import v1 as ocp

from synthjax import multihost
from synthjax.train.damage import (
  CheckpointError,
  DamagedError,
  MisfitError,
  first_line,
  is_damage,
)

_Outcome = Literal["read", "damaged", "misfit", "failed"]
_OUTCOMES: tuple[_Outcome, ...] = ("read", "damaged", "misfit", "failed")  # the worst last


class Stored(NamedTuple):
  """What a step holds."""

  tree: Any  # of arrays: the state, or its parameters
  about: dict  # JSON that was saved beside it


def attempts(
  folder: pathlib.Path, steps: Sequence[int], abstract: Any, only_params: bool
) -> Iterator[tuple[int, Stored | DamagedError]]:
  """For each step what it holds, or its damage. All processes yield the same.

  Args:
    folder: of the steps.
    steps: in the order in which they are tried.
    abstract: tree of ShapeDtypeStruct with shardings.
    only_params: `abstract` is of the parameters, and nothing else is read.

  Raises:
    CheckpointError: a step does not fit, or another process could not read it.
    Exception: whatever else keeps a step from being read, such as too little memory or a file
      system that does not answer, as it was raised and with the step's folder in a note.
  """
  # A shared file system may show other processes older steps than the first one.
  for step in multihost.agree(f"{folder} steps", list(steps)):
    path = folder / str(step)
    try:
      # All load or none: Orbax counts loads, and compares the counts when all save together.
      describe = functools.partial(_describe, path, abstract, only_params)
      wanted, about = _together(path, describe)
      tree = _together(path, functools.partial(_load, path, wanted))
    except DamagedError as damage:
      yield step, damage
      continue
    if only_params:
      tree = tree["params"]
    yield step, Stored(tree, about)


def _together(path: pathlib.Path, read: Callable[[], Any]) -> Any:
  """What this process reads of a step, once all processes have read theirs.

  The worst outcome of all processes is the outcome of each.

  Raises:
    DamagedError, CheckpointError, Exception: as `attempts`.
  """
  value: Any = None
  error: Exception | None = None
  outcome: _Outcome = "read"
  try:
    value = read()
  except Exception as e:  # classified here, and raised below where all know of it
    error = e
    outcome = _outcome(e)
  outcomes = multihost.gather(f"{path} read", outcome)
  worst = max(outcomes, key=_OUTCOMES.index)
  process = outcomes.index(worst)
  if worst == "read":
    return value
  if worst == "damaged":
    reason = f"process {process} cannot read it"
    if error:
      reason = first_line(error)
    raise DamagedError(f"{path}: damaged ({reason})") from error
  if error is not None and worst == outcome:
    error.add_note(f"while reading the checkpoint {path}")
    raise error
  raise CheckpointError(
    f"{path}: process {process} could not use it; its own message says why"
  ) from error


def _outcome(error: Exception) -> _Outcome:
  if isinstance(error, MisfitError):
    return "misfit"
  if is_damage(error):
    return "damaged"
  return "failed"


def _describe(path: pathlib.Path, abstract: Any, only_params: bool) -> tuple[Any, dict]:
  """(tree of what is to be loaded of a step, about).

  Raises:
    MisfitError: the stored tree differs.
    DamagedError: nothing about the run is stored.
  """
  about = json.loads((path / "_CHECKPOINT_METADATA").read_text(encoding="utf-8"))
  if not isinstance(about, dict) or "custom_metadata" not in about:
    raise DamagedError("_CHECKPOINT_METADATA holds nothing about the run")
  # Orbax v1 hides the error where it cannot describe the arrays.
  stored = ocp_v0.PyTreeCheckpointHandler().metadata(path.absolute() / "state").tree
  if not only_params:
    _check_fits(f"{path}: does not fit this run", stored, abstract)
    return abstract, about["custom_metadata"]
  _check_fits(f"{path}: the parameters do not fit this model", stored["params"], abstract)
  # Leaves that are not wanted are not read.
  wanted = {}
  for name, part in stored.items():
    wanted[name] = jax.tree.map(lambda _: ocp.PLACEHOLDER, part)
  wanted["params"] = abstract
  return wanted, about["custom_metadata"]


def _check_fits(message: str, stored: Any, wanted: Any) -> None:
  difference = tree_difference(stored, wanted)
  if difference:
    raise MisfitError(f"{message}:\n{difference}")


def _load(path: pathlib.Path, wanted: Any) -> Any:
  """The arrays of one step.

  This process reads without waiting for the others, which may fail to read theirs.
  """
  # Orbax's barriers span `active_processes`, by default all of them.
  alone = ocp.Context()
  process = jax.process_index()
  alone.multiprocessing.primary_host = process
  alone.multiprocessing.active_processes = {process}
  alone.multiprocessing.barrier_sync_key_prefix = f"read{process}"
  with alone:
    return ocp.load(path, wanted)


def tree_difference(stored: Any, wanted: Any, lines: int = 12) -> str:
  """Where two trees of arrays differ in names, shapes or types, one line each; "" if they agree."""
  # By name, not by structure: Orbax gives back dicts where a NamedTuple was stored.
  have, want = _leaf_types(stored), _leaf_types(wanted)
  differences = []
  for name in sorted(have.keys() | want.keys()):
    had, wants = have.get(name, "nothing"), want.get(name, "nothing")
    if had != wants:
      differences.append(f"  {name}: the checkpoint has {had}, this run wants {wants}")
  shown = differences[:lines]
  if len(differences) > lines:
    shown.append(f"  ... and {len(differences) - lines} more")
  return "\n".join(shown)


def _leaf_types(tree: Any) -> dict[str, str]:
  """Dotted name -> type and shape."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
  types = {}
  for path, leaf in leaves:
    name = ".".join(_key_name(key) for key in path)
    types[name] = f"{leaf.dtype}{list(leaf.shape)}"
  return types


def _key_name(key: Any) -> str:
  """Keys, fields and indices read alike: Orbax stores tuples and named tuples as it likes."""
  for attribute in ("key", "name", "idx"):
    if hasattr(key, attribute):
      return str(getattr(key, attribute))
  return str(key)
