"""Prompts laid out so that a shared beginning is there once: prefix trees, depth first.

A sequence that continues the prompt ending at position e sees position t iff t <= e < until[t].

Shapes: T positions of a page.
"""

from collections.abc import Sequence

import numpy as np


class Page:
  """Takes prompts, in lexicographic order, until it is full."""

  def __init__(self, length: int):
    self.length = length
    self.tokens_T = np.zeros(length, np.int32)
    self.positions_T = np.zeros(length, np.int32)
    # Padding sees itself, so that no softmax is over nothing.
    self.until_T = np.arange(1, length + 1, dtype=np.int32)
    self.filled = 0
    self._ids: Sequence[int] = ()  # of the last prompt
    self._path: list[int] = []  # where its tokens stand on the page

  def add(self, ids: Sequence[int]) -> int | None:
    """Lays out the part of a prompt that is not there yet.

    Returns:
      Where its last token stands; None where the page has no room for it.
    """
    shared = common(self._ids, ids)
    start, stop = self.filled, self.filled + len(ids) - shared
    if stop > self.length:
      return None
    self.tokens_T[start:stop] = ids[shared:]
    self.positions_T[start:stop] = np.arange(shared, len(ids))
    self._path[shared:] = range(start, stop)
    self._ids = ids
    self.filled = stop
    self.until_T[self._path] = stop  # everything on the path is seen up to here
    return self._path[len(ids) - 1]


def common(one: Sequence[int], other: Sequence[int]) -> int:
  """Length of the common prefix."""
  for n, (a, b) in enumerate(zip(one, other)):
    if a != b:
      return n
  return min(len(one), len(other))
