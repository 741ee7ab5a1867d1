"""Documents, read by index: cached on disk, or tokens in memory.

A document is a little-endian int32 record, [prompt length, tokens...]: the tokens are those of
inputs, then of targets, then end-of-text, and the first `prompt length` of them carry no loss.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from synthjax import files


class CachedDocuments:
  """A finished cache (made by `cache.py`).

  Raises:
    DataError: the folder holds no finished cache, or its files do not match the manifest.
  """

  def __init__(self, folder: files.Path):
    from array_record.python import array_record_data_source

    folder = pathlib.Path(folder)
    if not (folder / "manifest.json").is_file():
      raise files.DataError(
        f"{folder}: no finished cache here (manifest.json is missing); run `synthjax cache` first"
      )
    self.folder = folder
    self.counts = files.read_json(folder / "manifest.json")["result"]
    self.lengths = np.load(folder / "lengths.npy")
    paths = sorted(str(path) for path in folder.glob("*.array_record"))
    self._source = array_record_data_source.ArrayRecordDataSource(paths)
    if len(self._source) != len(self.lengths):
      raise files.DataError(
        f"{folder}: {len(self._source)} records in {len(paths)} files, but {len(self.lengths)} "
        "lengths; remove the folder and cache again"
      )

  def __len__(self) -> int:
    return len(self.lengths)

  def read(self, indices: Sequence[int]) -> list[np.ndarray]:
    """Records [prompt length, tokens...] of the documents, in the order asked for."""
    # `__getitems__` reads many records in one call, and only takes a list.
    records = self._source.__getitems__(list(indices))
    return [np.frombuffer(record, "<i4") for record in records]

  def ids(self) -> list[str]:
    """The documents' ids, by index; the pieces of a split document are `ID#0`, `ID#1`, ..."""
    return (self.folder / "ids.txt").read_text(encoding="utf-8").splitlines()


class TokenDocuments:
  """Documents in memory: what a recipe makes and trains on at once.

  Args:
    documents: (prompt, response) ids; the response ends with end-of-text where the document ends.
  """

  def __init__(self, documents: Sequence[tuple[Sequence[int], Sequence[int]]]):
    self._records: list[np.ndarray] = []
    for prompt, response in documents:
      self._records.append(np.array([len(prompt), *prompt, *response], np.int32))
    # The first number of a record is no token.
    self.lengths = np.array([len(record) - 1 for record in self._records], np.int64)

  def __len__(self) -> int:
    return len(self.lengths)

  def read(self, indices: Sequence[int]) -> list[np.ndarray]:
    """As `CachedDocuments.read`."""
    return [self._records[i] for i in indices]
