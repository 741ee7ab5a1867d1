"""What a run says while it runs, on a terminal and in a file."""

import io
import os
import sys
import time

import pytest

from synthjax import progress


class _Clock:
  """A monotonic clock that is set by hand."""

  def __init__(self):
    self.now = 1000.0

  def __call__(self):
    return self.now


@pytest.fixture
def clock(monkeypatch):
  found = _Clock()
  monkeypatch.setattr(progress.time, "monotonic", found)
  monkeypatch.setattr(progress, "_said", found.now)
  return found


def _steps(clock, advance, count, seconds):
  for _ in range(count):
    clock.now += seconds
    advance(1)


def test_a_file_gets_a_line_a_minute_whose_time_left_knows_nothing_of_compiling(clock, capsys):
  with progress.bar("train", 1000, "steps") as advance:
    clock.now += 50  # compiling
    _steps(clock, advance, 100, 1.0)
  lines = capsys.readouterr().out.splitlines()
  # The first step starts the clock: 9 steps in 9 s, then a minute later.
  assert lines == [
    "[train] 10 of 1,000 steps, 1.0 a second, 16 minutes left",
    "[train] 70 of 1,000 steps, 1.0 a second, 16 minutes left",
  ]


def test_no_line_comes_within_a_minute_of_another_and_a_resumed_bar_counts_what_was_done(
  clock, capsys
):
  with progress.bar("train", 400, "steps", done=300) as advance:
    _steps(clock, advance, 50, 1.0)
    progress.say("step 350  loss 1.2")
    _steps(clock, advance, 50, 1.0)
  assert capsys.readouterr().out.splitlines() == ["step 350  loss 1.2"]
  with progress.bar("train", 400, "steps", done=300) as advance:
    _steps(clock, advance, 20, 1.0)
  assert capsys.readouterr().out.splitlines() == [
    "[train] 310 of 400 steps, 1.0 a second, 2 minutes left"
  ]


def test_a_study_says_its_cell_its_stage_and_the_time_left(clock, capsys, tmp_path):
  with progress.study([1, 2, 3, 2]) as begin:
    begin()  # all of its stages are finished: it takes no time and tells none
    begin()
    with progress.stage("sft"), progress.logged(tmp_path / "log.txt"):
      with progress.bar("train", 10, "steps") as advance:
        _steps(clock, advance, 2, 100.0)
      progress.say("for the stage's own log")
    begin()
    clock.now += 20
    with progress.stage("rft"), progress.bar("train", 10, "steps") as advance:
      _steps(clock, advance, 2, 50.0)
  assert capsys.readouterr().out.splitlines() == [
    "[cell 2 of 4, stage sft: train] 1 of 10 steps, no estimate yet",
    "[cell 2 of 4, stage sft: train] 2 of 10 steps, 0.0 a second, 13 minutes left",
    # Weight 2 took 200 s: 300 s for this cell, of which 50 s are over, and 200 s for the next one.
    "[cell 3 of 4, stage rft, about 8 minutes left: train] 1 of 10 steps, no estimate yet",
  ]
  assert (tmp_path / "log.txt").read_text() == "for the stage's own log\n"


def test_on_a_terminal_the_bar_of_a_stage_says_where_the_study_stands_and_moves(
  monkeypatch, tmp_path
):
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  terminal = Terminal()
  monkeypatch.setattr(sys, "stderr", terminal)
  with progress.study([1, 1]) as begin:
    begin()
    with (
      progress.stage("rft"),
      progress.logged(tmp_path / "log.txt"),
      progress.bar("train", 4, "steps") as advance,
    ):
      for _ in range(3):
        advance(1)
        time.sleep(0.11)  # tqdm draws ten times a second at most
  drawn = terminal.getvalue()
  assert "cell 1 of 2, stage rft: train:   0%" in drawn
  assert " 25%" in drawn or " 50%" in drawn or " 75%" in drawn


def test_what_libraries_write_to_the_error_stream_goes_to_a_file(tmp_path, capfd):
  with progress.foreign(tmp_path / "libraries.log"):
    os.write(2, b"E0000 cuInit: no CUDA device\n")
    progress.say("our own line")
  os.write(2, b"back\n")
  out, err = capfd.readouterr()
  assert (out, err) == ("our own line\n", "back\n")
  assert (tmp_path / "libraries.log").read_text() == "E0000 cuInit: no CUDA device\n"


def test_an_error_inside_gives_the_error_stream_back(tmp_path, capfd):
  with pytest.raises(ZeroDivisionError), progress.foreign(tmp_path / "libraries.log"):
    1 / 0  # noqa: B018
  os.write(2, b"back\n")
  assert capfd.readouterr().err == "back\n"
