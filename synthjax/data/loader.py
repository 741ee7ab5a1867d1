"""The loader: planned rows of a cache, in one global order that does not depend on who reads it.

The order is a function of (cache, seed, row length): epoch by epoch, documents are permuted, packed
and the rows permuted again. A position is one integer, the number of rows consumed by all hosts
together, so it survives a change of the number of hosts or of the batch size. Grain reads ahead in
threads.

Shapes: B rows of the global batch, T tokens of a row.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from synthjax.data import packing
from synthjax.data.documents import CachedDocuments, TokenDocuments

_KEPT_EPOCHS = 2  # plans in memory: the one being read and the one being read ahead
ORDER = 2  # version of the order: a checkpoint's position means nothing in another one


class Rows:
  """The global order of a cache's rows, over as many epochs as asked for.

  Every epoch has equally many rows, and its plan needs none of the others.

  Args:
    documents: an open cache, or documents in memory.
    seq_len: T; no document may be longer.
    seed: of both permutations; None keeps the cache's order (for evaluation).
  """

  def __init__(self, documents: CachedDocuments | TokenDocuments, seq_len: int, seed: int | None):
    self.documents, self.seq_len, self.seed = documents, seq_len, seed
    self.packing = packing.Packing(documents.lengths, seq_len)
    self.plan = functools.lru_cache(_KEPT_EPOCHS)(self._plan)

  def _plan(self, epoch: int) -> packing.Plan:
    """The rows of one epoch."""
    if self.seed is None:
      return self.packing.plan(None)
    return self.packing.plan(np.random.default_rng([self.seed, epoch]))

  def locate(self, index: int) -> tuple[int, int]:
    """(epoch, row of the epoch) of a row of the global order."""
    return divmod(index, len(self.packing))

  def count(self, epochs: float) -> int:
    """Rows of that many epochs; the last one may be a part."""
    return round(epochs * len(self.packing))

  @property
  def fill(self) -> float:
    """Share of the positions that hold a token."""
    return self.packing.fill

  def ids(self, index: int) -> list[int]:
    """The documents of one row of the global order, as indices into the cache."""
    epoch, row = self.locate(index)
    return self.plan(epoch).row(row).tolist()

  def read(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """Rows of the global order as arrays [len(indices), T]; every document is read once, in one call."""
    ids = [self.ids(i) for i in indices]
    records = iter(self.documents.read([i for row in ids for i in row]))
    return packing.layout([[next(records) for _ in row] for row in ids], self.seq_len)


class Mixture:
  """Several caches as one global order: each part's rows in its own order, interleaved so that every prefix holds the shares asked for.

  The k-th row of a part with share r stands at time (k + 1/2) / r; rows are sorted by time. So after n rows a part has given r * n of them,
  to within one, whatever n is.

  Args:
    parts: one `Rows` a cache, of one row length.
    rates: relative rates, above 0, one a part.
    rows: length of the order.
  """

  def __init__(self, parts: Sequence[Rows], rates: Sequence[float], rows: int):
    self.parts, shares = parts, np.asarray(rates, float) / np.sum(rates)
    counts = np.ceil(shares * rows).astype(int) + 1
    times = np.concatenate([(np.arange(n) + 0.5) / share for n, share in zip(counts, shares)])
    first = np.argsort(times, kind="stable")[:rows]
    self._part = np.repeat(np.arange(len(parts)), counts)[first]
    self._index = np.concatenate([np.arange(n) for n in counts])[first]
    self.fill = float(np.dot(shares, [part.fill for part in parts]))

  def ids(self, index: int) -> list[str]:
    """The documents of one row of the global order, as `part:id`."""
    part = self._part[index]
    return [f"{part}:{i}" for i in self.parts[part].ids(int(self._index[index]))]

  def read(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """Rows of the global order as arrays [len(indices), T]."""
    found = [self.parts[self._part[i]].read([int(self._index[i])]) for i in indices]
    return {name: np.concatenate([row[name] for row in found]) for name in found[0]}

  def token_shares(self, rows: int) -> list[float]:
    """What each part gives of the tokens of the first `rows` rows."""
    given = np.bincount(self._part[:rows], minlength=len(self.parts)) * [
      part.fill for part in self.parts
    ]
    return (given / given.sum()).tolist()


class _Batches:
  """Batch k as this process reads it: what grain reads by index."""

  def __init__(
    self, rows: Any, batch_size: int, share: Sequence[int] | np.ndarray, position: int, batches: int
  ):
    self.rows, self.batch_size, self.share = rows, batch_size, np.asarray(share).tolist()
    self.position, self.batches = position, batches

  def __len__(self) -> int:
    return self.batches

  def __getitem__(self, k: int) -> dict[str, np.ndarray]:
    first = self.position + k * self.batch_size
    return self.rows.read([first + offset for offset in self.share])


@dataclasses.dataclass(frozen=True)
class Reading:
  """How a loader reads ahead."""

  threads: int = 2
  prefetch: int = 4  # batches


def batches(
  rows: Any,
  batch_size: int,
  count: int,
  position: int = 0,
  share: Sequence[int] | np.ndarray | None = None,
  reading: Reading | None = None,
) -> Iterator[dict[str, np.ndarray]]:
  """`count` batches from `position` on: this process's rows of each.

  Args:
    rows: the global order: something with `read(indices)`, such as `Rows` or `Mixture`.
    batch_size: B, over all processes.
    count: number of batches.
    position: rows consumed so far by all processes together.
    share: which rows of a batch this process holds, ascending (`sharding.Layout.local_indices`);
      default: all.
    reading: threads and batches read ahead.
  """
  share, reading = range(batch_size) if share is None else share, reading or Reading()
  source = _Batches(rows, batch_size, share, position, count)
  options = grain.ReadOptions(num_threads=reading.threads, prefetch_buffer_size=reading.prefetch)
  yield from grain.MapDataset.source(source).to_iter_dataset(options)
