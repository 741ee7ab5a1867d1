"""The one display of a run: lines that stay and, below them, a bar with a rate and the time left.

On a terminal the bar is tqdm's; in a log file it becomes a line every ten seconds. Silent on every process but the first.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

_SECONDS_BETWEEN_LINES = 10.0
_quiet = False
_log: TextIO | None = None


def quiet(yes: bool) -> None:
  """Nothing is shown from here on: for all processes but the first."""
  global _quiet
  _quiet = yes


@contextlib.contextmanager
def logged(path: str | os.PathLike) -> Iterator[None]:
  """Within the block lines go to a file, which they are added to, instead of the screen: for one stage among many."""
  global _log
  before = _log
  with open(path, "a", encoding="utf-8") as _log:
    try:
      yield
    finally:
      _log = before


def say(line: str) -> None:
  """Prints a line above the bar, or where `logged` says."""
  if _quiet:
    return
  if _log:
    print(line, file=_log, flush=True)
    return
  if sys.stderr.isatty():
    import tqdm

    tqdm.tqdm.write(line, file=sys.stdout)
  else:
    print(line, flush=True)


@contextlib.contextmanager
def bar(name: str, total: int, unit: str, done: int = 0, lines: bool = True) -> Iterator[Callable[[int], None]]:
  """Yields `advance(n)`. `done` of the `total` were done before; without `lines` a log file gets none: the caller prints its own."""
  if _quiet or not (lines or sys.stderr.isatty()):
    yield lambda n: None
  elif sys.stderr.isatty():
    import tqdm

    with tqdm.tqdm(desc=name, total=total, unit=f" {unit}", initial=done, leave=False, dynamic_ncols=True) as shown:
      yield lambda n: shown.update(n) and None
  else:
    yield _Lines(name, total, unit, done).advance


class _Lines:
  """A bar for a file: a line now and then."""

  def __init__(self, name, total, unit, done):
    self.name, self.total, self.unit, self.done, self.first = name, total, unit, done, done
    self.began = self.said = time.monotonic()

  def advance(self, n: int) -> None:
    self.done += n
    now = time.monotonic()
    if now - self.said < _SECONDS_BETWEEN_LINES:
      return
    self.said = now
    rate = (self.done - self.first) / (now - self.began)
    left = f"{(self.total - self.done) / rate:,.0f} s left" if rate else "no estimate yet"
    print(f"[{self.name}] {self.done:,} of {self.total:,} {self.unit}, {rate:,.1f} a second, {left}", flush=True)
