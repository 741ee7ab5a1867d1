"""Metrics of a run: a line on the terminal, `metrics.jsonl`, and TensorBoard event files (without TensorFlow)."""

import pathlib
from collections.abc import Callable

from synthjax import files


class Metrics:
  """Writes scalars by step. On opening, rows later than `step` are removed: they will be measured again."""

  def __init__(self, folder: files.Path, step: int = 0, say: Callable[[str], None] = print):
    from tensorboardX import SummaryWriter

    folder = pathlib.Path(folder)
    path = folder / "metrics.jsonl"
    if path.exists():
      with files.Journal(path, say, locked=False) as journal:  # the folder has a lock: one training writes there
        rows = journal.rows
      if any(row["step"] > step for row in rows):
        files.write_jsonl(path, [row for row in rows if row["step"] <= step])
    self._journal = files.Journal(path, say, locked=False)
    self.last: dict[str, float] = next((row for row in reversed(self._journal.rows) if "loss" in row), {})  # newest row of training metrics
    self.learned = any(row.get("grad_norm", 0) > 0 for row in self._journal.rows)  # some gradient was not 0
    self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

  def write(self, step: int, values: dict[str, float]) -> None:
    """One row of scalars."""
    self._journal.append({"step": step, **values})
    for name, value in values.items():
      self._board.add_scalar(name, value, step)

  def close(self) -> None:
    self._journal.close()
    self._board.close()
