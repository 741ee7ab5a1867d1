"""Metrics of a run: a line on the terminal, `metrics.jsonl`, and TensorBoard event files (without TensorFlow)."""

import pathlib
import shutil
from collections.abc import Callable

from synthjax import files


class Metrics:
  """Writes scalars by step. On opening, rows later than `step` are removed: they will be measured again."""

  def __init__(self, folder: files.Path, step: int = 0, say: Callable[[str], None] = print):
    from tensorboardX import SummaryWriter

    folder = pathlib.Path(folder)
    path = folder / "metrics.jsonl"
    if path.exists():
      with files.Journal(
        path, say, locked=False
      ) as journal:  # the folder has a lock: one training writes there
        rows = journal.rows
      if any(row["step"] > step for row in rows):
        files.write_jsonl(path, [row for row in rows if row["step"] <= step])
    self._journal = files.Journal(path, say, locked=False)
    self.last: dict[str, float] = next(
      (row for row in reversed(self._journal.rows) if "loss" in row), {}
    )  # newest row of training metrics
    self.learned = any(
      row.get("grad_norm", 0) > 0 for row in self._journal.rows
    )  # some gradient was not 0
    # Made anew from the rows: what an interrupted run wrote beyond its last checkpoint is not there twice.
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
