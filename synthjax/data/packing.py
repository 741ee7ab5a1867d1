"""The packing plan: which documents share a row, made once from their lengths.

Shapes: N documents, R rows.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Plan:
  """Row r holds the documents `order[starts[r]:starts[r + 1]]`, one after the other."""

  order_N: np.ndarray  # int64 document indices, grouped by row
  starts_R1: np.ndarray  # int64, R + 1 boundaries into `order_N`
  fill: float  # share of the rows' positions that hold a token

  def __len__(self) -> int:
    return len(self.starts_R1) - 1

  def row(self, r: int) -> np.ndarray:
    """The documents of row r, in order."""
    return self.order_N[self.starts_R1[r]:self.starts_R1[r + 1]]


def pack(lengths_N: np.ndarray, row_length: int) -> Plan:
  """Puts every document, longest first, into the fullest open row that still has room for it (best fit decreasing).

  Best fit needs one look at a bit set per document (rows are kept by the room they have left), so a plan costs about a
  microsecond a document where first fit would search. Documents of one length keep the order given, which a caller shuffles.

  Args:
    lengths_N: tokens of every document, each from 1 to `row_length`.
    row_length: tokens of a row.

  Raises:
    ValueError: a document is empty or longer than a row.
  """
  lengths_N = np.asarray(lengths_N)
  bad = np.flatnonzero((lengths_N < 1) | (lengths_N > row_length))
  if len(bad):
    raise ValueError(f"document {bad[0]} has {lengths_N[bad[0]]} tokens; a row takes 1 to {row_length} "
                     f"({len(bad)} such documents); cache with max_length={row_length} and a policy, or raise data.row_length")
  with_room: list[list[int]] = [[] for _ in range(row_length + 1)]  # rows by the room they have left
  present = 0  # bit k is set iff with_room[k] is not empty
  rows = 0
  row_of = np.empty(len(lengths_N), np.int64)
  longest_first = np.argsort(-lengths_N, kind="stable")
  for document, length in zip(longest_first.tolist(), lengths_N[longest_first].tolist()):
    fitting = present >> length
    if fitting:
      room = length + ((fitting & -fitting).bit_length() - 1)
      row = with_room[room].pop()
      if not with_room[room]:
        present ^= 1 << room
    else:
      room, row = row_length, rows
      rows += 1
    row_of[document] = row
    left = room - length
    if left:
      with_room[left].append(row)
      present |= 1 << left
  order_N = np.argsort(row_of, kind="stable")
  starts_R1 = np.searchsorted(row_of[order_N], np.arange(rows + 1))
  fill = float(lengths_N.sum()) / (rows * row_length) if rows else 0.0
  return Plan(order_N, starts_R1, fill)


def layout(rows: list[list[np.ndarray]], row_length: int) -> dict[str, np.ndarray]:
  """Rows of documents as the arrays that training reads. Inputs and targets never cross a document's end.

  Args:
    rows: for every row, the cache's records of its documents: [prompt length, tokens...]; a prompt carries no loss.
    row_length: T.

  Returns:
    Arrays [rows, T]: `tokens`, `targets` (the next token of the same document), `weights` (1 where the target counts),
    `positions` (restarting in every document), `until` (a token at j is visible to a query i iff j <= i < until[j]; filler sees
    itself alone).
  """
  flat = [record for records in rows for record in records]
  sizes_N = np.fromiter(map(len, flat), np.int32, len(flat)) - 1
  prompts_N = np.fromiter((record[0] for record in flat), np.int32, len(flat))
  row_N = np.repeat(np.arange(len(rows), dtype=np.int32), [len(records) for records in rows])
  ends_N = np.cumsum(sizes_N, dtype=np.int32)  # of the documents one after the other, without filler
  before_R = np.append(0, ends_N)[np.searchsorted(row_N, np.arange(len(rows)))]  # tokens of the rows before
  shift_N = row_N * np.int32(row_length) - before_R[row_N].astype(np.int32)  # from there to the place in the filled rows
  # Everything below is one number a token.
  index = np.arange(sizes_N.sum(dtype=np.int32), dtype=np.int32)
  place = index + np.repeat(shift_N, sizes_N)
  position = index - np.repeat(ends_N - sizes_N, sizes_N)
  token = np.concatenate([record[1:] for record in flat]) if flat else index
  target = np.append(token[1:], np.int32(0))
  target[ends_N - 1] = 0
  # The token at prompt - 1 predicts the first target; the last token predicts nothing.
  weight = position >= np.repeat(prompts_N - 1, sizes_N)
  weight[ends_N - 1] = False
  end = np.repeat(ends_N - before_R[row_N], sizes_N)

  def filled(values, filler=0, kind=np.int32):
    out = np.empty((len(rows), row_length), kind)
    out[:] = filler
    out.reshape(-1)[place] = values
    return out

  return {"tokens": filled(token), "targets": filled(target), "weights": filled(weight, kind=np.float32), "positions": filled(position),
          "until": filled(end, np.arange(1, row_length + 1))}
