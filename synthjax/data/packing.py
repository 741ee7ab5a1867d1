"""The packing plan: which documents share a row (a packed sequence), made from their lengths.

A plan depends on how many documents there are of each length, and on nothing else: which of the
documents of one length goes where is free, and that is what an epoch shuffles. So a plan is made
once for all epochs, from a histogram, in time that does not grow with the number of documents.

Shapes: N documents, R rows, L lengths, T tokens of a row.
"""

import dataclasses
import itertools
from typing import NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class PackingPlan:
  """Which documents each row holds; `len` is the number of rows."""

  starts_R1: np.ndarray  # of the packing's rows: boundaries into `ranks_N`
  ranks_N: np.ndarray  # of every slot, row by row: which of the documents by length it takes
  documents_N: np.ndarray  # by length, in the epoch's order within each length
  rows_R: np.ndarray  # the packing's rows in the epoch's order
  fill: float  # share of the rows' positions that holds a token

  def __len__(self) -> int:
    return len(self.rows_R)

  def row(self, r: int) -> np.ndarray:
    """The documents of row r, in order."""
    row = self.rows_R[r]
    slots = slice(self.starts_R1[row], self.starts_R1[row + 1])
    return self.documents_N[self.ranks_N[slots]]


class _AlikeRows(NamedTuple):
  """Rows that hold documents of the same lengths."""

  pieces: tuple[tuple[int, int], ...]  # (length, number of documents of it), longest first
  rows: int


def pack(lengths_N: np.ndarray, seq_len: int) -> PackingPlan:
  """Puts every document, longest first, into the fullest open row that still has room for it.

  This is best fit decreasing (Johnson 1974), done for all documents of one length at once. The
  documents of one length fill their slots in the order in which they are given.

  Args:
    lengths_N: tokens of every document, each from 1 to `seq_len`.
    seq_len: tokens of a row.

  Raises:
    ValueError: a document is empty or longer than a row.
  """
  return Packing(lengths_N, seq_len).plan(None)


class Packing:
  """The plans of all epochs: rows of the same lengths, filled with other documents of them.

  Args:
    lengths_N, seq_len: see `pack`.
  """

  def __init__(self, lengths_N: np.ndarray, seq_len: int):
    lengths_N = np.asarray(lengths_N)
    _check(lengths_N, seq_len)
    count = len(lengths_N)
    # NumPy sorts 16 bits by radix, and half the index is half the memory.
    length_type = np.uint16 if seq_len < 1 << 16 else np.uint32
    index_type = np.int32 if count < 1 << 31 else np.int64
    counts_L = np.bincount(lengths_N, minlength=1)
    # Without documents there is nothing to concatenate but these.
    slot_lengths: list[np.ndarray] = [np.zeros(0, int)]
    slots_per_row: list[np.ndarray] = [np.zeros(0, int)]
    for alike in _best_fit_decreasing(counts_L, seq_len):
      row = np.repeat([length for length, _ in alike.pieces], [n for _, n in alike.pieces])
      slot_lengths.append(np.tile(row, alike.rows))
      slots_per_row.append(np.full(alike.rows, len(row)))
    wanted_N = np.concatenate(slot_lengths).astype(length_type)
    starts_R1 = np.append(0, np.cumsum(np.concatenate(slots_per_row)))
    # The k-th slot of a length takes the k-th document of it.
    ranks_N = np.empty(count, index_type)
    ranks_N[np.argsort(wanted_N, kind="stable")] = np.arange(count, dtype=index_type)
    documents_N = np.argsort(lengths_N.astype(length_type), kind="stable").astype(index_type)
    rows, fill = len(starts_R1) - 1, 0.0
    if rows:
      fill = float(lengths_N.sum()) / (rows * seq_len)
    self._in_order = PackingPlan(starts_R1, ranks_N, documents_N, np.arange(rows), fill)
    self._ends_L = np.cumsum(counts_L)

  def __len__(self) -> int:
    return len(self._in_order)

  @property
  def fill(self) -> float:
    """Share of the rows' positions that holds a token."""
    return self._in_order.fill

  def plan(self, random: np.random.Generator | None) -> PackingPlan:
    """The plan of an epoch; without random numbers documents and rows keep their order."""
    if random is None:
      return self._in_order
    documents_N = self._in_order.documents_N.copy()
    for of_length in np.split(documents_N, self._ends_L[:-1]):
      random.shuffle(of_length)
    rows_R = random.permutation(len(self))
    return dataclasses.replace(self._in_order, documents_N=documents_N, rows_R=rows_R)


def _check(lengths_N, seq_len) -> None:
  bad = np.flatnonzero((lengths_N < 1) | (lengths_N > seq_len))
  if len(bad):
    raise ValueError(
      f"document {bad[0]} has {lengths_N[bad[0]]} tokens; a row takes 1 to {seq_len} "
      f"({len(bad)} such documents); cache with max_length={seq_len} and a policy, or raise "
      "data.seq_len"
    )


def _best_fit_decreasing(counts_L: np.ndarray, seq_len: int) -> list[_AlikeRows]:
  """Rows for so many documents of each length.

  A row that has taken a document is the fullest one with room for another of that length, as long
  as it has room for one: rows are filled one after the other, and alike rows stay alike.
  """
  with_room: list[list[_AlikeRows]] = [[] for _ in range(seq_len + 1)]
  present = 0  # bit k is set iff with_room[k] is not empty

  def put_back(room: int, pieces: tuple[tuple[int, int], ...], rows: int) -> None:
    nonlocal present
    if rows:
      with_room[room].append(_AlikeRows(pieces, rows))
      present |= 1 << room

  for length in np.flatnonzero(counts_L)[::-1].tolist():
    left = int(counts_L[length])
    while left:
      fitting = present >> length
      if fitting:
        room = length + ((fitting & -fitting).bit_length() - 1)
        pieces, rows = with_room[room].pop()
        if not with_room[room]:
          present ^= 1 << room
      else:
        room, pieces, rows = seq_len, (), left  # as many new rows as could be needed
      per_row = room // length
      filled = min(rows, left // per_row)
      left -= filled * per_row
      put_back(room - per_row * length, (*pieces, (length, per_row)), filled)
      rows -= filled
      if rows and left:  # one more row takes what is left
        put_back(room - left * length, (*pieces, (length, left)), 1)
        left, rows = 0, rows - 1
      if pieces:
        put_back(room, pieces, rows)
  return list(itertools.chain.from_iterable(with_room))


def layout(rows: list[list[np.ndarray]], seq_len: int) -> dict[str, np.ndarray]:
  """Rows of documents as the arrays that training reads.

  Inputs and targets never cross a document's end.

  Args:
    rows: for every row, the cache's records of its documents: [prompt length, tokens...]; a prompt
      carries no loss.
    seq_len: T.

  Returns:
    Arrays [R, T]: `tokens`, `targets` (the next token of the same document), `weights` (1 where the
    target counts), `positions` (restarting in every document), `until` (a token at j is visible to
    a query i iff j <= i < until[j]; padding sees itself alone).
  """
  records = list(itertools.chain.from_iterable(rows))
  sizes_N = np.fromiter(map(len, records), np.int32, len(records)) - 1
  prompts_N = np.fromiter((record[0] for record in records), np.int32, len(records))
  row_N = np.repeat(np.arange(len(rows), dtype=np.int32), [len(members) for members in rows])
  # Ends of the documents one after the other, without padding, and the tokens before each row.
  ends_N = np.cumsum(sizes_N, dtype=np.int32)
  before_R = np.append(0, ends_N)[np.searchsorted(row_N, np.arange(len(rows)))]
  # From a token's index without padding to its index in the padded rows.
  shift_N = row_N * np.int32(seq_len) - before_R[row_N].astype(np.int32)
  # Everything below is one number per token.
  index = np.arange(sizes_N.sum(dtype=np.int32), dtype=np.int32)
  padded_index = index + np.repeat(shift_N, sizes_N)
  position = index - np.repeat(ends_N - sizes_N, sizes_N)
  token: np.ndarray = index
  if records:
    token = np.concatenate([record[1:] for record in records])
  target = np.append(token[1:], np.int32(0))
  target[ends_N - 1] = 0
  # The token at prompt - 1 predicts the first target; the last token predicts nothing.
  weight = position >= np.repeat(prompts_N - 1, sizes_N)
  weight[ends_N - 1] = False
  end = np.repeat(ends_N - before_R[row_N], sizes_N)

  def padded(values, padding=0, dtype=np.int32):
    out = np.empty((len(rows), seq_len), dtype)
    out[:] = padding
    out.reshape(-1)[padded_index] = values
    return out

  return {
    "tokens": padded(token),
    "targets": padded(target),
    "weights": padded(weight, dtype=np.float32),
    "positions": padded(position),
    "until": padded(end, np.arange(1, seq_len + 1)),
  }
