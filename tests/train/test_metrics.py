"""Scalars of a training, as they lie on disk."""

import struct

from tensorboardX.proto import event_pb2

from synthjax import files
from synthjax.train.metrics import Metrics

# A record of an event file: length (8 bytes), its checksum (4), the event, its checksum (4).
_BEFORE, _AFTER = 12, 4


def _board(folder):
  """(step, name, value) of every scalar in the event files."""
  scalars = []
  for path in sorted((folder / "tensorboard").glob("events*")):
    data = path.read_bytes()
    start = 0
    while start < len(data):
      (length,) = struct.unpack_from("<Q", data, start)
      end = start + _BEFORE + length
      # tensorboardX writes such files but does not read them.
      event = event_pb2.Event.FromString(data[start + _BEFORE : end])
      for value in event.summary.value:
        scalars.append((event.step, value.tag, value.simple_value))
      start = end + _AFTER
  return scalars


def _write(folder, start, steps):
  metrics = Metrics(folder, start, print)
  for step in steps:
    metrics.write(step, {"loss": step / 4})
  metrics.close()


def test_no_row_is_on_the_board_twice_after_a_resume(tmp_path):
  _write(tmp_path, 0, (1, 2, 3))  # killed before its first checkpoint
  _write(tmp_path, 0, (1, 2, 3, 4))  # killed after the checkpoint of step 2
  _write(tmp_path, 2, (3, 4, 5))
  steps = range(1, 6)
  assert _board(tmp_path) == [(step, "loss", step / 4) for step in steps]
  rows = files.read_jsonl(tmp_path / "metrics.jsonl")
  assert [(row["step"], row["loss"]) for row in rows] == [(step, step / 4) for step in steps]
