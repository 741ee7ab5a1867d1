"""The loader: planned rows of a cache, in one global order that does not depend on who reads it.

A row is a packed sequence. The order is a function of (cache, seed, sequence length): epoch by
epoch, documents are permuted, packed and the rows permuted again. A position is one integer, the
number of rows consumed by all hosts together, so it survives a change of the number of hosts or of
the batch size. Grain reads ahead in threads.

Shapes: B rows of the global batch, T tokens of a row.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Protocol

import grain
import numpy as np

from synthjax.data import packing
from synthjax.data.documents import CachedDocuments, TokenDocuments

_KEPT_EPOCHS = 2  # plans in memory: the one being read and the one being read ahead
ORDER = 2  # version of the order: a checkpoint's position means nothing in another one


class SequenceSource(Protocol):
  """A global order of packed sequences: `PackedDocuments`, `Mixture` or `trees.PackedTrees`."""

  @property
  def fill(self) -> float: ...
  def read(self, indices: Sequence[int]) -> dict[str, np.ndarray]: ...


class PackedDocuments:
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

  def _plan(self, epoch: int) -> packing.PackingPlan:
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
    """Share of the positions that holds a token."""
    return self.packing.fill

  def ids(self, index: int) -> list[int]:
    """The documents of one row of the global order, as indices into the cache."""
    epoch, row = self.locate(index)
    return self.plan(epoch).row(row).tolist()

  def read(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """Rows of the global order as arrays [len(indices), T] (see `packing.layout`)."""
    ids = [self.ids(index) for index in indices]
    # All documents of the batch in one call, not one call for each.
    records = iter(self.documents.read([i for row in ids for i in row]))
    rows = []
    for row in ids:
      rows.append([next(records) for _ in row])
    return packing.layout(rows, self.seq_len)


class Mixture:
  """Several caches as one global order, of which every prefix holds the shares asked for.

  Each part's rows stay in their own order. The k-th row of a part with share r stands at time
  (k + 1/2) / r, and rows are sorted by time: so after n rows a part has given r * n of them, to
  within one, whatever n is.

  Args:
    parts: one `PackedDocuments` per cache, all of one sequence length.
    rates: relative rates, above 0, one per part.
    rows: length of the order.
  """

  def __init__(self, parts: Sequence[PackedDocuments], rates: Sequence[float], rows: int):
    self.parts = parts
    shares = np.asarray(rates, float) / np.sum(rates)
    # One more than its share: rounding may give a part a row more than r * n.
    counts = np.ceil(shares * rows).astype(int) + 1
    indices = [np.arange(count) for count in counts]
    times = [(index + 0.5) / share for index, share in zip(indices, shares)]
    # Stable, so that parts with the same time come in the order of the config.
    first = np.argsort(np.concatenate(times), kind="stable")[:rows]
    self._part = np.repeat(np.arange(len(parts)), counts)[first]
    self._index = np.concatenate(indices)[first]
    self.fill = float(np.dot(shares, [part.fill for part in parts]))

  def _locate(self, index: int) -> tuple[int, int]:
    """(part, row of the part) of a row of the global order."""
    return int(self._part[index]), int(self._index[index])

  def ids(self, index: int) -> list[str]:
    """The documents of one row of the global order, as `part:id`."""
    part, row = self._locate(index)
    return [f"{part}:{i}" for i in self.parts[part].ids(row)]

  def read(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """Rows of the global order as arrays [len(indices), T]."""
    rows = []
    for index in indices:
      part, row = self._locate(index)
      rows.append(self.parts[part].read([row]))
    arrays = {}
    for name in rows[0]:
      arrays[name] = np.concatenate([row[name] for row in rows])
    return arrays

  def token_shares(self, rows: int) -> list[float]:
    """The share of each part in the tokens of the first `rows` rows."""
    rows_of_part = np.bincount(self._part[:rows], minlength=len(self.parts))
    tokens = rows_of_part * [part.fill for part in self.parts]
    return (tokens / tokens.sum()).tolist()


class _Batches:
  """Batch k as this process reads it: what grain reads by index."""

  def __init__(
    self, rows: SequenceSource, batch_size: int, share: Sequence[int], position: int, batches: int
  ):
    self.rows, self.batch_size, self.share = rows, batch_size, share
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
  rows: SequenceSource,
  batch_size: int,
  count: int,
  position: int = 0,
  share: Sequence[int] | np.ndarray | None = None,
  reading: Reading | None = None,
) -> Iterator[dict[str, np.ndarray]]:
  """`count` batches from `position` on: this process's rows of each.

  Args:
    rows: the global order.
    batch_size: B, over all processes.
    count: number of batches.
    position: rows consumed so far by all processes together.
    share: which rows of a batch this process holds, ascending (`sharding.Layout.local_indices`);
      None: all.
    reading: threads and batches read ahead.
  """
  if share is None:
    share = range(batch_size)
  reading = reading or Reading()
  offsets = np.asarray(share).tolist()
  source = _Batches(rows, batch_size, offsets, position, count)
  options = grain.ReadOptions(num_threads=reading.threads, prefetch_buffer_size=reading.prefetch)
  yield from grain.MapDataset.source(source).to_iter_dataset(options)
