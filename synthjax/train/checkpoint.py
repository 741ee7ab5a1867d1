"""Checkpoints through Orbax v1: state, data position, config and tokenizer in one folder a step.

Saving is asynchronous and atomic (Orbax renames a finished step into place). Restoring compares the stored tree with the wanted
one first, so that a misfit is a readable difference and a type never changes in silence.
"""

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from synthjax import files, progress
from synthjax.errors import Error

_policies = ocp.training.preservation_policies


class CheckpointError(Error, RuntimeError):
  """A checkpoint that cannot be written, read or used; the message says which, why and what to do."""


class Checkpoints:
  """The checkpoints of one run.

  Args:
    folder: where the steps lie.
    keep: how many of the newest are kept; the one with the lowest held-out loss is kept besides.
    watchers: folder of the watchers' folders (see `evaluate/watch.py`): a step that one of them has not scored is kept too.
    say: prints a line.
  """

  def __init__(self, folder: files.Path, keep: int = 2, watchers: files.Path = "", say: Callable[[str], None] = progress.say):
    self.folder, self._say = pathlib.Path(folder).absolute(), say
    best = _policies.BestN(get_metric_fn=lambda m: -m["eval_loss"], n=1, keep_checkpoints_without_metrics=False)
    self._orbax = ocp.training.Checkpointer(
      self.folder, save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
      preservation_policy=_policies.AnyPreservationPolicy([_policies.LatestN(keep), best, _Unscored(watchers)]),
      cleanup_tmp_directories=True)
    self._pending = None

  def steps(self) -> list[int]:
    """Finished steps, oldest first."""
    return [c.step for c in self._orbax.checkpoints]

  def save(self, step: int, state: Any, about: dict, metrics: dict[str, float] | None = None) -> None:
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
    if step in self.steps():
      return
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

  def _failed(self, step, error):
    free = _free_gib(self.folder)
    return CheckpointError(
      f"{self.folder}: could not write the checkpoint of step {step}: {_first_line(error)}. The disk has {free:.2f} GiB free; make room "
      f"and run the same command again: it goes on from step {max(self.steps(), default=0)}")

  def restore(self, abstract: Any, step: int | None = None) -> tuple[int, Any, dict] | None:
    """The newest readable state (or that of `step`) as (step, state, about); None where there is none at all.

    A step that cannot be read is said and left; the one before it is tried. A tree that does not fit raises at once: an older
    checkpoint of the same run would not fit either.

    Args:
      abstract: tree of ShapeDtypeStruct with shardings, on any mesh.
      step: a certain step.

    Raises:
      CheckpointError: the trees differ (the difference is printed), or no step can be read though there are some.
    """
    candidates = self.steps()[::-1] if step is None else [step]
    for candidate in candidates:
      try:
        stored = self._orbax.metadata(candidate)
        difference = tree_difference(_tree_of(stored), abstract)
      except Exception as e:  # whatever is wrong inside a damaged folder
        self._say(f"{self.folder / str(candidate)}: damaged ({_first_line(e)}); trying the checkpoint before it")
        continue
      if difference:
        raise CheckpointError(f"{self.folder / str(candidate)} does not fit this run:\n{difference}")
      try:
        return candidate, self._orbax.load(candidate, abstract), stored.custom_metadata
      except Exception as e:
        self._say(f"{self.folder / str(candidate)}: damaged ({_first_line(e)}); trying the checkpoint before it")
    if candidates:
      raise CheckpointError(f"{self.folder}: none of the checkpoints {sorted(candidates)} can be read; remove it to begin anew")
    return None

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


def load_params(folder: files.Path, abstract: Any, step: int | None = None) -> tuple[int, Any, dict]:
  """The parameters alone of a run's newest readable checkpoint (or of `step`): (step, params, about).

  `folder` is a run's `checkpoints` folder or one that `export_params` wrote.

  Raises:
    CheckpointError: nothing there, or the parameters do not fit.
  """
  folder = pathlib.Path(folder).absolute()
  if not folder.is_dir():
    raise CheckpointError(f"{folder}: no such checkpoint folder; give the folder that holds the steps")
  numbers = sorted((int(p.name) for p in folder.iterdir() if p.name.isdigit()), reverse=True)
  if step is not None and step not in numbers:
    raise CheckpointError(f"{folder}: no step {step}; there are {numbers}")
  for number in numbers if step is None else [step]:
    try:
      stored = ocp.metadata(folder / str(number))
      tree = _tree_of(stored)
      difference = tree_difference(tree["params"], abstract)
    except Exception as e:
      print(f"{folder / str(number)}: damaged ({_first_line(e)}); trying the checkpoint before it")
      continue
    if difference:
      raise CheckpointError(f"{folder / str(number)}: the parameters do not fit this model:\n{difference}")
    # Leaves that are not wanted are not read.
    wanted = {k: (abstract if k == "params" else jax.tree.map(lambda _: ocp.PLACEHOLDER, v)) for k, v in tree.items()}
    return number, ocp.load(folder / str(number), wanted)["params"], stored.custom_metadata
  raise CheckpointError(f"{folder}: no readable checkpoint; its steps are {sorted(numbers) or 'none'}")


def export_params(folder: files.Path, to: files.Path, abstract: Any) -> int:
  """Writes the parameters alone of the newest checkpoint in `folder` as a folder that `train.init` can name. Returns their step.

  Raises:
    CheckpointError: nothing readable there, the parameters do not fit, or `to` holds something already.
  """
  to = pathlib.Path(to).absolute()
  if to.exists() and any(to.iterdir()):
    raise CheckpointError(f"{to}: holds something already; export into a new folder")
  step, params, about = load_params(folder, abstract)
  ocp.save(to / str(step), {"params": params}, custom_metadata=about)
  return step


def tree_difference(stored: Any, wanted: Any, lines: int = 12) -> str:
  """Where two trees of arrays differ in names, shapes or types, one line each; "" where they agree."""
  have, want = _described(stored), _described(wanted)
  found = []
  for name in sorted(have.keys() | want.keys()):
    if have.get(name) != want.get(name):
      found.append(f"  {name}: the checkpoint has {have.get(name, 'nothing')}, this run wants {want.get(name, 'nothing')}")
  more = [f"  ... and {len(found) - lines} more"] if len(found) > lines else []
  return "\n".join(found[:lines] + more)


def _described(tree) -> dict[str, str]:
  flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
  return {_name(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in flat}


def _name(path) -> str:
  """A leaf's dotted name; keys, fields and indices read alike because Orbax stores tuples and named tuples as it likes."""
  return ".".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def _tree_of(metadata) -> Any:
  tree = metadata.metadata
  tree = getattr(tree, "pytree", tree)
  if not _described(tree):
    raise ValueError("its arrays cannot be read")
  return tree


def _first_line(error: BaseException) -> str:
  return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else 'no message'}"


def _free_gib(folder: pathlib.Path) -> float:
  return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free / 2**30
