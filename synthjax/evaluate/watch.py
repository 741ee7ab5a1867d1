"""Continuous evaluation: follows a checkpoint folder while training writes to it, and scores every
step exactly once.

Its folder holds `results.jsonl`, a row a scored step. That file is also what keeps the trainer from
deleting a step before it is scored (see `train/checkpointer.py`). A watcher that is killed goes on
where it was: a step counts as scored once its row is there.
"""

import dataclasses
import pathlib
import shutil
import time
from collections.abc import Callable

from synthjax import files, progress

_POLL_SECONDS = 0.5


def watch(
  checkpoints: files.Path,
  out: files.Path,
  settings: dict,
  evaluate: Callable[[int, pathlib.Path], dict],
  finished: Callable[[], bool],
  say: Callable[[str], None] = progress.say,
) -> list[dict]:
  """Scores each step in `checkpoints`, oldest first, until `finished()` and none is left.

  Args:
    checkpoints: folder of a run's steps; it may not exist yet.
    out: folder of this watcher alone.
    settings: JSON; what the scores depend on besides the step.
    evaluate: (step, folder) -> results; writes its files into the folder.
    finished: no more steps will come.
    say: prints a line.

  Returns:
    A row a step: `step`, and the results that are numbers.

  Raises:
    DataError: `out` was made with other settings.
  """
  checkpoints, out = pathlib.Path(checkpoints), pathlib.Path(out)
  _check_settings(out / "settings.json", settings)
  with files.Journal(out / "results.jsonl", say) as journal, _Board(out, journal.rows) as board:
    while True:
      # Asked before looking: what is written before the end is seen after it.
      last_look = finished()
      scored = {row["step"] for row in journal.rows}
      left = [step for step in _steps(checkpoints) if step not in scored]
      if left:
        # One step a look, since the trainer may delete the others meanwhile.
        step = left[0]
        row = _numbers(step, evaluate(step, out / f"step_{step}"))
        journal.append(row)
        journal.sync()
        board.add(row)
        say(f"step {step:,}: {100 * row['accuracy']:.2f} ± {100 * row['standard_error']:.2f} %")
      elif last_look:
        return journal.rows
      else:
        time.sleep(_POLL_SECONDS)


def _numbers(step: int, results: dict) -> dict:
  row: dict[str, float] = {"step": step}
  for name, value in results.items():
    if isinstance(value, int | float):
      row[name] = value
  return row


def _steps(folder: pathlib.Path) -> list[int]:
  if not folder.is_dir():
    return []
  return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def _check_settings(path: pathlib.Path, settings: dict) -> None:
  if path.exists() and files.read_json(path) != settings:
    raise files.DataError(
      f"{path.parent}: this watcher scored with other settings; give another --name, or remove the "
      "folder"
    )
  files.write_json(path, settings)


@dataclasses.dataclass
class _Board:
  """TensorBoard events, made anew from the journal at every start: no step is in them twice."""

  folder: pathlib.Path
  rows: list[dict]

  def __enter__(self):
    from tensorboardX import SummaryWriter

    shutil.rmtree(self.folder / "tensorboard", ignore_errors=True)
    self._writer = SummaryWriter(str(self.folder / "tensorboard"))
    for row in self.rows:
      self.add(row)
    return self

  def add(self, row: dict) -> None:
    for name, value in row.items():
      if name != "step":
        self._writer.add_scalar(f"evaluate/{name}", value, row["step"])
    self._writer.flush()

  def __exit__(self, *_):
    self._writer.close()
