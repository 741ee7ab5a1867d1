"""The one display of a run: lines that stay and, below them, a bar with a rate and the time left.

On a terminal the bar is tqdm's. In a log file it is a line a minute, unless other lines were
printed meanwhile. Silent on every process but the first. In a study both say how far it has come:
`cell 3 of 9, stage rft, about 6 minutes left`.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

_SECONDS_BETWEEN_LINES = 60.0
_quiet = False
_log: TextIO | None = None
_screen: TextIO | None = None  # where bars go while the standard error stream belongs to others
_said = time.monotonic()  # when the screen last got a line
_study: "_Study | None" = None
_stage = ""  # of the study's cell


def quiet(yes: bool) -> None:
  """Nothing is shown from here on: for all processes but the first."""
  global _quiet
  _quiet = yes


@contextlib.contextmanager
def logged(path: str | os.PathLike) -> Iterator[None]:
  """Within the block lines are added to a file instead of the screen: for one stage among many."""
  global _log
  before = _log
  with open(path, "a", encoding="utf-8") as _log:
    try:
      yield
    finally:
      _log = before


def error(line: str) -> None:
  """Prints a line on the screen's standard error stream, on every process.

  Within `foreign` that is the stream from before.
  """
  print(line, file=_screen or sys.stderr, flush=True)


@contextlib.contextmanager
def foreign(path: str | os.PathLike) -> Iterator[None]:
  """Within the block the libraries' standard error stream goes to a file; bars stay on the screen.

  TensorFlow, CUDA and Beam print warnings that do not concern the user, some of them from C++.
  """
  global _screen
  sys.stderr.flush()
  screen = os.dup(2)
  with open(path, "ab") as log, os.fdopen(screen, "w", encoding="utf-8") as stream:
    os.dup2(log.fileno(), 2)
    before, _screen = _screen, stream
    try:
      yield
    finally:
      _screen = before
      sys.stderr.flush()
      os.dup2(screen, 2)


def say(line: str) -> None:
  """Prints a line above the bar, or where `logged` says."""
  global _said
  if _quiet:
    return
  if _log:
    print(line, file=_log, flush=True)
    return
  _said = time.monotonic()
  if _terminal():
    import tqdm

    tqdm.tqdm.write(line, file=sys.stdout)
  else:
    print(line, flush=True)


@contextlib.contextmanager
def study(weights: Sequence[float], name: str = "cell") -> Iterator[Callable[[], None]]:
  """Yields `begin()`, to be called as each cell begins; the weights say how much work cells are."""
  global _study
  before = _study
  _study = _Study(weights, name)
  try:
    yield _study.begin
  finally:
    _study = before


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
  """A stage of the current cell is at work, and was not skipped."""
  global _stage
  before, _stage = _stage, name
  if _study:
    _study.works()
  try:
    yield
  finally:
    _stage = before


@contextlib.contextmanager
def bar(name: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[[int], None]]:
  """Yields `advance(n)`; `done` of the `total` were done before."""
  if _quiet:
    yield lambda n: None
  elif _terminal():
    import tqdm

    with tqdm.tqdm(
      desc=_title(name),
      total=total,
      unit=f" {unit}",
      initial=done,
      leave=False,
      dynamic_ncols=True,
      file=_screen or sys.stderr,
    ) as shown:
      yield lambda n: shown.update(n) and None
  else:
    yield _Lines(name, total, unit, done).advance


def _terminal() -> bool:
  return (_screen or sys.stderr).isatty()


def _title(name: str) -> str:
  """A bar's name, after where the study stands."""
  parts = []
  if _study:
    parts.append(_study.describe())
  if _stage:
    parts.append(f"stage {_stage}")
  if _study and _study.left():
    parts.append(_study.left())
  if not parts:
    return name
  return f"{', '.join(parts)}: {name}"


class _Lines:
  """A bar for a file: a line now and then."""

  def __init__(self, name: str, total: int, unit: str, done: int):
    self.name, self.total, self.unit, self.done = name, total, unit, done
    self.first = 0  # done when the clock was started
    self.began: float | None = None

  def advance(self, n: int) -> None:
    global _said
    self.done += n
    now = time.monotonic()
    # What came before the first piece of work was compiling.
    if self.began is None:
      self.first, self.began = self.done, now
    if now - _said < _SECONDS_BETWEEN_LINES:
      return
    _said = now
    print(
      f"[{_title(self.name)}] {self.done:,} of {self.total:,} {self.unit}{self._speed(now)}",
      flush=True,
    )

  def _speed(self, now: float) -> str:
    assert self.began is not None
    if self.done == self.first or now == self.began:
      return ", no estimate yet"
    rate = (self.done - self.first) / (now - self.began)
    seconds_left = (self.total - self.done) / rate
    return f", {rate:,.1f} a second, {_duration(seconds_left)} left"


class _Study:
  """How far a study's cells have come, and how long the others may take."""

  def __init__(self, weights: Sequence[float], name: str):
    self._weights, self._name = weights, name
    self._number = 0  # of the cell at work, from 1
    self._began = 0.0  # when the cell's work began
    self._working = False  # a cell whose stages are all skipped takes no time and tells none
    self._weight, self._seconds = 0.0, 0.0  # of finished cells that worked

  def begin(self) -> None:
    """The next cell begins."""
    if self._working:
      self._weight += self._weights[self._number - 1]
      self._seconds += time.monotonic() - self._began
    self._number += 1
    self._working = False

  def works(self) -> None:
    """A stage of the cell was not skipped."""
    if not self._working:
      self._working, self._began = True, time.monotonic()

  def describe(self) -> str:
    return f"{self._name} {self._number} of {len(self._weights)}"

  def left(self) -> str:
    """About how long this cell and the rest take, by those before; "" before one has finished."""
    if not self._weight:
      return ""
    pace = self._seconds / self._weight
    current = pace * self._weights[self._number - 1]
    if self._working:
      current = max(0.0, current - (time.monotonic() - self._began))
    return f"about {_duration(current + pace * sum(self._weights[self._number :]))} left"


def _duration(seconds: float) -> str:
  if seconds < 90:
    return f"{seconds:.0f} seconds"
  if seconds < 5400:
    return f"{seconds / 60:.0f} minutes"
  return f"{seconds / 3600:.1f} hours"
