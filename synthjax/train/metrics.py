"""Scalars of a training on disk: `metrics.jsonl` and TensorBoard event files (no TensorFlow)."""

import pathlib
import shutil
from collections.abc import Callable

from synthjax import files


class Metrics:
  """Writes scalars by step.

  Args:
    folder: of the training.
    step: updates done; rows of later steps are removed, because they will be measured again.
    say: prints a line.
  """

  def __init__(self, folder: files.Path, step: int = 0, say: Callable[[str], None] = print):
    # Heavy; a verb that trains nothing need not wait for it.
    from tensorboardX import SummaryWriter

    folder = pathlib.Path(folder)
    path = folder / "metrics.jsonl"
    if path.exists():
      _drop_later_rows(path, step, say)
    # The training's folder has a lock already: only one training writes there.
    self._journal = files.Journal(path, say, locked=False)
    self.last: dict[str, float] = {}  # the newest row of training metrics
    self.learned = False  # some gradient was not 0
    for row in self._journal.rows:
      if "loss" in row:
        self.last = row
      if row.get("grad_norm", 0) > 0:
        self.learned = True
    # Written anew from the rows: what an interrupted run wrote after its last checkpoint must not
    # be there twice.
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    self._board = SummaryWriter(str(folder / "tensorboard"))
    for row in self._journal.rows:
      self._show(row)

  def write(self, step: int, values: dict[str, float]) -> None:
    """One row of scalars."""
    row = {"step": step, **values}
    self._journal.append(row)
    self._show(row)

  def _show(self, row: dict[str, float]) -> None:
    for name, value in row.items():
      if name != "step":
        self._board.add_scalar(name, value, row["step"])

  def close(self) -> None:
    self._journal.close()
    self._board.close()


def _drop_later_rows(path: pathlib.Path, step: int, say: Callable[[str], None]) -> None:
  with files.Journal(path, say, locked=False) as journal:
    rows = journal.rows
  kept = [row for row in rows if row["step"] <= step]
  if len(kept) < len(rows):
    files.write_jsonl(path, kept)
