"""Prompts laid out so that what they share is there once: a row of prefix trees, depth first, under the one mask.

A sequence that goes on from the prompt that ends at place e sees place t iff t <= e < until[t].

Shapes: T places of a page.
"""

from collections.abc import Sequence

import numpy as np


class Page:
  """One row that takes prompts, in lexicographic order, until it is full."""

  def __init__(self, length: int):
    self.length = length
    self.tokens_T, self.positions_T = np.zeros(length, np.int32), np.zeros(length, np.int32)
    self.until_T = np.arange(1, length + 1, dtype=np.int32)  # filler sees itself
    self.filled = 0
    self._ids: Sequence[int] = ()  # of the last prompt
    self._path: list[int] = []  # the places of its tokens

  def add(self, ids: Sequence[int]) -> int | None:
    """Lays out what of a prompt is not there yet. Returns the place of its last token; None where the page has no room for it."""
    shared = common(self._ids, ids)
    if self.filled + len(ids) - shared > self.length:
      return None
    places = range(self.filled, self.filled + len(ids) - shared)
    self.tokens_T[places.start : places.stop], self.positions_T[places.start : places.stop] = (
      ids[shared:],
      np.arange(shared, len(ids)),
    )
    self._path[shared:] = places
    self._ids, self.filled = ids, places.stop
    self.until_T[self._path] = self.filled  # everything on the path is seen up to here
    return self._path[len(ids) - 1]


def common(one: Sequence[int], other: Sequence[int]) -> int:
  """Length of the common prefix."""
  for n, (a, b) in enumerate(zip(one, other)):
    if a != b:
      return n
  return min(len(one), len(other))
