"""Sequences that wait for a page: sorted by prompt for a batch, by turns for a server."""

import collections
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol


class Waits(Protocol):
  """What the queues here hold: a sample of a request."""

  @property
  def asked(self) -> Any: ...  # the request, with its prompt


class Lane(Protocol):
  """A queue of sequences that a page is filled from."""

  def __len__(self) -> int: ...
  @property
  def head(self) -> Any: ...
  def pop(self) -> Any: ...


class Batch:
  """One lane, sorted by prompt among those that came together: equal beginnings share pages."""

  def __init__(self) -> None:
    self._sequences: collections.deque = collections.deque()

  def extend(self, new: Sequence[Waits]) -> None:
    self._sequences.extend(sorted(new, key=lambda s: s.asked.prompt))

  def remove(self, gone: set) -> None:
    """Forgets the sequences of these requests."""
    self._sequences = collections.deque(s for s in self._sequences if s.asked not in gone)

  def lane(self, busy: bool) -> Lane | None:
    """What the next page is filled from, whether or not its block is busy."""
    del busy
    return self

  @property
  def head(self) -> Any:
    return self._sequences[0]

  def pop(self) -> Any:
    return self._sequences.popleft()

  def __len__(self) -> int:
    return len(self._sequences)

  def __iter__(self) -> Iterator:
    return iter(self._sequences)


class Turns:
  """Two lanes: the first turn of every request, and the further turns of those with many samples.

  The lanes take turns, so neither starves; in the second one requests take turns. Further turns are
  for blocks that are not busy, so that a new request finds a page free and few sequences before it,
  or none.

  Args:
    first: samples of a request's first turn.
    turn: samples of each further one.
  """

  def __init__(self, first: int, turn: int) -> None:
    self._first = _First()
    self._further = _Further(turn)
    self._size = first
    self._first_was_last = False

  def extend(self, new: Sequence[Waits]) -> None:
    for asked, group in itertools.groupby(new, key=lambda s: s.asked):
      sequences = list(group)
      self._first.extend(sequences[: self._size])
      if len(sequences) > self._size:
        self._further.append(asked, sequences[self._size :])

  def remove(self, gone: set) -> None:
    self._first.remove(gone)
    self._further.remove(gone)

  def lane(self, busy: bool) -> Lane | None:
    """What the next page is filled from; None where nothing that waits is for a busy block."""
    further = bool(self._further) and not busy
    if self._first and not (further and self._first_was_last):
      self._first_was_last = True
      return self._first
    self._first_was_last = False
    return self._further if further else None

  def __len__(self) -> int:
    return len(self._first) + len(self._further)

  def __iter__(self) -> Iterator:
    yield from self._first
    yield from self._further


class _First(Batch):
  """In the order in which the requests came."""

  def extend(self, new: Sequence[Waits]) -> None:
    self._sequences.extend(new)


class _Turn(NamedTuple):
  """A request in the circle."""

  asked: Any
  sequences: collections.deque


class _Further:
  """Requests in a circle: the one at the head gives `turn` sequences and goes to the end."""

  def __init__(self, turn: int) -> None:
    self._turn = turn
    self._given = 0  # in this turn
    self._count = 0
    self._requests: collections.deque[_Turn] = collections.deque()

  def append(self, asked: Any, sequences: Sequence[Waits]) -> None:
    self._requests.append(_Turn(asked, collections.deque(sequences)))
    self._count += len(sequences)

  def remove(self, gone: set) -> None:
    if self._requests and self._requests[0].asked in gone:
      self._given = 0
    self._requests = collections.deque(turn for turn in self._requests if turn.asked not in gone)
    self._count = sum(len(turn.sequences) for turn in self._requests)

  @property
  def head(self) -> Any:
    return self._requests[0].sequences[0]

  def pop(self) -> Any:
    asked, sequences = self._requests[0]
    first = sequences.popleft()
    self._count -= 1
    self._given += 1
    if self._given == self._turn or not sequences:
      self._given = 0
      self._requests.popleft()
      if sequences:
        self._requests.append(_Turn(asked, sequences))
    return first

  def __len__(self) -> int:
    return self._count

  def __iter__(self) -> Iterator:
    for turn in self._requests:
      yield from turn.sequences
