"""Scalars of a run, as they lie on disk."""

import struct

from tensorboardX.proto import event_pb2

from synthjax import files
from synthjax.train.metrics import Metrics


def _board(folder):
  """(step, name, value) of every scalar in the event files."""
  found = []
  for path in sorted((folder / "tensorboard").glob("events*")):
    data, at = path.read_bytes(), 0
    while at < len(data):
      (length,) = struct.unpack_from("<Q", data, at)
      event = event_pb2.Event.FromString(
        data[at + 12 : at + 12 + length]
      )  # after the length and its check sum
      found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
      at += 12 + length + 4
  return found


def test_no_row_is_on_the_board_twice_after_a_resume(tmp_path):
  for start, steps in (
    (0, (1, 2, 3)),
    (0, (1, 2, 3, 4)),
    (2, (3, 4, 5)),
  ):  # killed before its first checkpoint, then after step 2's
    metrics = Metrics(tmp_path, start, print)
    for step in steps:
      metrics.write(step, {"loss": step / 4})
    metrics.close()
  expected = [(step, "loss", step / 4) for step in range(1, 6)]
  assert _board(tmp_path) == expected
  assert [(row["step"], row["loss"]) for row in files.read_jsonl(tmp_path / "metrics.jsonl")] == [
    (s, v) for s, _, v in expected
  ]
