"""Examples and cached documents, without TensorFlow.

An example is {id, inputs, targets, answer}. A cached document is a little-endian int32 record, [prompt length, tokens...]: the tokens are
those of inputs, then of targets, then end-of-text, and the first `prompt length` of them carry no loss.
"""

import os
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from synthjax import files, schema
from synthjax.generate.worlds import shop


class Example(NamedTuple):
  """A problem with its reference trace, as text."""

  id: str
  inputs: str  # what the policy is shown, up to the point where it goes on
  targets: str  # what it shall write
  answer: str  # the final answer


def data_folder(data: schema.Data) -> pathlib.Path:
  """Where downloaded data lies: config.data.folder, $SYNTHJAX_DATA, or ../shared/data."""
  return pathlib.Path(data.folder or os.environ.get("SYNTHJAX_DATA") or "../shared/data")


def examples(data: schema.Data, world: shop.World, split: str) -> list[Example]:
  """The examples of a task's split (`train` or `test`), as many as the config asks for.

  Raises:
    DataError: a file is missing (where to get it is said), malformed, or lacks a field.
  """
  count = data.train_problems if split == "train" else data.test_problems
  if data.task == "world":
    return _world(data, world, split, count)
  path = data_folder(data) / data.task / f"{split}.jsonl"
  if not path.is_file():
    raise files.DataError(f"{path}: no such file; get {data.task} (see data/README.md) and set config.data.folder or SYNTHJAX_DATA "
                          "to the folder that holds it")
  rows = files.read_jsonl(path, count or None)
  make = _gsm8k if data.task == "gsm8k" else _math
  return [make(path, number, row) for number, row in enumerate(rows, 1)]


def _world(data, world, split, count):
  source = "base" if data.traces == "base" and split == "train" else split
  problems = shop.problems(world, source, count or 1000)
  trace = (lambda p: shop.teacher_trace(world, p)) if data.traces == "teacher" else shop.clean_trace
  return [Example(p.id, p.question, " " + trace(p).text, p.answer) for p in problems]


def _gsm8k(path, number, row):
  question, solution = _field(path, number, row, "question"), _field(path, number, row, "answer")
  marker = solution.rfind("#### ")
  if marker < 0:
    raise files.DataError(f"{path}, row {number}: the answer has no '#### ' line")
  # <<48/2=24>> marks a calculator call of the original; a policy without a calculator is not taught to write it.
  text = _drop_calculator(solution)
  return Example(f"gsm8k-{path.stem}-{number - 1}", f"Question: {question}\nAnswer:", " " + text, solution[marker + 5:].strip())


def _drop_calculator(text: str) -> str:
  return re.sub(r"<<[^<>]*>>", "", text)


def _math(path, number, row):
  problem, solution = _field(path, number, row, "problem"), _field(path, number, row, "solution")
  return Example(row.get("unique_id", f"math-{path.stem}-{number - 1}"), f"Problem: {problem}\nSolution:", " " + solution,
                 _field(path, number, row, "answer"))


def _field(path, number, row, name):
  if not isinstance(row.get(name), str):
    raise files.DataError(f"{path}, row {number}: field {name!r} is {row.get(name)!r}; expected text (found fields: {', '.join(row)})")
  return row[name]


class CachedDocuments:
  """A finished cache, read by index.

  Raises:
    DataError: the folder holds no finished cache, or files do not match the manifest.
  """

  def __init__(self, folder: files.Path):
    from array_record.python import array_record_data_source

    folder = pathlib.Path(folder)
    if not (folder / "manifest.json").is_file():
      raise files.DataError(f"{folder}: no finished cache here (manifest.json is missing); run `synthjax cache` first")
    self.manifest = files.read_json(folder / "manifest.json")
    self.lengths = np.load(folder / "lengths.npy")
    paths = sorted(str(p) for p in folder.glob("*.array_record"))
    self._source = array_record_data_source.ArrayRecordDataSource(paths)
    if len(self._source) != len(self.lengths):
      raise files.DataError(f"{folder}: {len(self._source)} records in {len(paths)} files, but {len(self.lengths)} lengths; "
                            "remove the folder and cache again")

  def __len__(self) -> int:
    return len(self.lengths)

  def read(self, indices: Sequence[int]) -> list[np.ndarray]:
    """Records [prompt length, tokens...] of the documents, in the order asked for."""
    return [np.frombuffer(r, "<i4") for r in self._source.__getitems__(list(indices))]
