"""Where examples come from: the files of a source, their shards, and what is read of them.

A source is a task (the embedded world, or a format of `formats.py`) and a place: a file, a glob or
`tfds:NAME[#SPLIT]`. TensorFlow is imported for a TFDS name only.
"""

import collections
import dataclasses
import glob
import itertools
import os
import pathlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from synthjax import files
from synthjax.config import schema
from synthjax.config.worlds import World
from synthjax.data import formats
from synthjax.data.formats import Example
from synthjax.data.tokenizers import Tokenizer
from synthjax.records import Problem
from synthjax.worlds import shop

# Where a task's file lies below the data folder, if not at TASK/SPLIT.jsonl; some have only a test
# split.
_PLACES = {
  "math500": "math/math500.jsonl",
  "svamp": "wordproblems/svamp_test.jsonl",
  "gsm_hard": "wordproblems/gsm_hard_test.jsonl",
  "aqua": "wordproblems/aqua_test.jsonl",
}
_TFDS = "tfds:"
_SEPARATOR = "\n"  # between the files of a shard: seqio names a shard by one string


@dataclasses.dataclass(frozen=True)
class Corpus:
  """The documents of a source, and how they become tokens."""

  source: schema.Source
  data: schema.Data  # where files lie, and the length of a sequence
  world: World  # of the embedded world's task
  tokenizer: Tokenizer
  left_out: frozenset[str] = frozenset()  # ids of documents that are counted as dropped


def of_split(data: schema.Data, split: str) -> list[schema.Source]:
  """The sources of `train` (the mixture's parts, or the task) or `test`."""
  if split != "train":
    return [schema.Source(data.task, data.test_path, data.test_problems, data.traces)]
  if data.mixture:
    return list(data.mixture)
  return [schema.Source(data.task, data.train_path, data.train_problems, data.traces)]


def shards(source: schema.Source, data: schema.Data, split: str) -> list[str]:
  """Names of the parts that can be read independently: one per file.

  A source of which only the first `count` documents are wanted is one shard, however many files it
  has.

  Raises:
    DataError: no such file, with the config's key for it and where to get it.
  """
  if source.task == "world" or source.path.startswith(_TFDS):
    return [source.path or "world"]
  pattern = source.path or _default_path(source.task, data, split)
  paths = sorted(glob.glob(pattern))
  if not paths and source.path:
    raise files.DataError(
      f"{_key(source, data, split)} is {source.path!r}: no such file; give a path "
      f"from {os.getcwd()}, or a whole one"
    )
  if not paths:
    raise files.DataError(
      f"{pattern}: no such file for the {split} split; {_where_to_get(source, data, split)}"
    )
  if source.count:
    return [_SEPARATOR.join(paths)]
  return paths


def _default_path(task: str, data: schema.Data, split: str) -> str:
  folder = pathlib.Path(data.folder or os.environ.get("SYNTHJAX_DATA") or "../shared/data")
  return str(folder / _PLACES.get(task, f"{task}/{split}.jsonl"))


def check_there(experiment: schema.Experiment) -> None:
  """Raises DataError, as `shards`, where a file of the config's data is missing.

  It reads no file and imports nothing heavy.
  """
  splits = ["train", "test"]
  if experiment.recipe == "preference":
    splits = ["test"]  # it trains on a file of pairs
  for split in splits:
    for source in of_split(experiment.data, split):
      shards(source, experiment.data, split)


def _where_to_get(source: schema.Source, data: schema.Data, split: str) -> str:
  where = f"see data/README.md for where to get {source.task}, then set "
  if split == "test" and source.task != data.task:
    # The evaluation protocol, not `config.data`, asks for these problems.
    return (
      f"{where}config.data.folder or SYNTHJAX_DATA; it is config.evaluate.protocol that asks the "
      f"problems of {source.task}: to ask your own test problems, those of config.data.test_path, "
      "leave it out and set config.evaluate.answer"
    )
  return f"{where}{_key(source, data, split)}, config.data.folder or SYNTHJAX_DATA"


def _key(source: schema.Source, data: schema.Data, split: str) -> str:
  """The field of the config that says where a source lies."""
  if split == "test":
    return "config.data.test_path"
  if source in data.mixture:
    return f"config.data.mixture[{data.mixture.index(source)}].path"
  return "config.data.train_path"


def read(source: schema.Source, world: World, split: str, shard: str) -> Iterator[Example]:
  """The examples of one shard.

  Raises:
    DataError: a row is malformed or lacks a field, named by file and row.
  """
  everything: Iterator[Example]
  if source.task == "world":
    everything = _of_world(source, world, split)
  else:
    parts = (_read_file(source.task, name, split) for name in shard.split(_SEPARATOR))
    everything = itertools.chain.from_iterable(parts)
  return itertools.islice(everything, source.count or None)


def examples(data: schema.Data, world: World, split: str) -> Iterator[Example]:
  """All usable examples of a split, in order; `cache` counts those that it drops.

  Raises:
    DataError: as `of_sources`.
  """
  return of_sources(of_split(data, split), data, world, split)


def of_sources(
  parts: Sequence[schema.Source], data: schema.Data, world: World, split: str
) -> Iterator[Example]:
  """All usable examples of some sources, in order.

  An id stands for one problem, whatever files and parts of a mixture it comes from; rows that give
  a problem again, with another solution, may have its id.

  Raises:
    DataError: two problems have one id, with both places; or as `shards` and `read`.
  """
  texts: dict[str, int] = {}
  for example in _read_all(parts, data, world, split):
    if example.drop:
      continue
    # Hashes, not texts: of a large corpus all are kept until the end.
    text = hash(asked(example))
    if texts.setdefault(example.id, text) != text:
      raise files.DataError(_two_problems(example, parts, data, split))
    yield example


def _read_all(
  parts: Sequence[schema.Source], data: schema.Data, world: World, split: str
) -> Iterator[Example]:
  for source in parts:
    for shard in shards(source, data, split):
      yield from read(source, world, split, shard)


def unusable(data: schema.Data, world: World, split: str) -> dict[str, int]:
  """How many documents of a split `examples` leaves out, by the reason."""
  everything = _read_all(of_split(data, split), data, world, split)
  return dict(collections.Counter(example.drop for example in everything if example.drop))


def asked(example: Example) -> str:
  """The text that identifies a problem or a document: what the policy is shown, or all of it."""
  return example.inputs or example.targets


class _Placed(NamedTuple):
  """An example and the file and row that it comes from."""

  example: Example
  place: str


def places(
  ids: Collection[str], parts: Sequence[schema.Source], data: schema.Data, split: str
) -> dict[str, str]:
  """Id -> the file and row of the first example that has it, for those of `ids` found in files."""
  first: dict[str, str] = {}
  if not ids:
    return first
  for example, place in _placed(parts, data, split):
    if example.id in ids:
      first.setdefault(example.id, place)
  return first


def _placed(parts: Iterable[schema.Source], data: schema.Data, split: str) -> Iterator[_Placed]:
  """Every example of files with its place, also those that `count` leaves out."""
  for source in parts:
    if source.task == "world":
      continue
    for name in _file_names(shards(source, data, split)):
      for number, example in enumerate(_read_file(source.task, name, split), 1):
        yield _Placed(example, f"{name}, row {number}")


def _file_names(shards: Iterable[str]) -> list[str]:
  return [name for shard in shards for name in shard.split(_SEPARATOR)]


def _two_problems(
  clashing: Example, parts: Sequence[schema.Source], data: schema.Data, split: str
) -> str:
  """The message about two problems with one id."""
  first, second = "", ""
  for example, place in _placed(parts, data, split):
    if example.id != clashing.id:
      continue
    if not first:
      first = place
    elif not second and asked(example) == asked(clashing):
      second = place
  return (
    f"id {clashing.id!r} stands for two problems, in {first} and in {second}; give the rows ids "
    "of their own, or rename one of two files whose rows have no ids and are named after the file"
  )


def fingerprint(source: schema.Source, data: schema.Data, world: World, split: str) -> list[Any]:
  """JSON that changes when the examples do: the settings, and the hashes of the files."""
  parts = shards(source, data, split)
  if source.task == "world":
    return ["world", dataclasses.asdict(world), source.count, source.traces, split]
  hashes = []
  for name in _file_names(parts):
    # A TFDS data set is known by its name: its files may not be here yet.
    hashes.append(name if name.startswith(_TFDS) else files.file_hash(name))
  return [source.task, source.count, split, hashes]


def world_problems(source: schema.Source, world: World, split: str) -> list[Problem]:
  """The problems of a source of the embedded world, without their traces."""
  if source.traces == "base" and split == "train":
    split = "base"
  return shop.problems(world, split, source.count or 1000)


def _of_world(source: schema.Source, world: World, split: str) -> Iterator[Example]:
  for problem in world_problems(source, world, split):
    if source.traces == "teacher":
      trace = shop.teacher_trace(world, problem)
    else:
      trace = shop.clean_trace(problem)
    yield Example(
      id=problem.id,
      inputs=problem.question,
      targets=" " + trace.text,
      answer=problem.answer,
      question=problem.question,
      group=f"{problem.metadata['events']} events",
    )


def _read_file(task: str, name: str, split: str) -> Iterator[Example]:
  stem = _stem(name, split)
  for number, fields in enumerate(_rows(task, name, split), 1):
    row = formats.RawRow(fields, name, number, default_id=f"{task}-{stem}-{number - 1}")
    example = formats.parse(task, row)
    if split == "train" and not example.targets.strip() and not example.drop:
      example = example._replace(drop="nothing to train on")
    yield example


def _stem(name: str, split: str) -> str:
  """What the default ids of a file's rows are made of."""
  stem = split
  if not name.startswith(_TFDS):
    stem = pathlib.Path(name.removesuffix(".gz")).stem
  if split == "test" and split not in stem:
    # The rows of a training file of the same name are others.
    return f"{stem}-test"
  return stem


def _rows(task: str, name: str, split: str) -> Iterator[Mapping[str, Any]]:
  if name.startswith(_TFDS):
    from synthjax.data import tfds

    return tfds.rows(name.removeprefix(_TFDS), split)
  if task == "text" and name.removesuffix(".gz").endswith(".txt"):
    return _lines(name)
  return files.read_jsonl(name)


def _lines(name: str) -> Iterator[dict[str, str]]:
  with files.open_text(name) as f:
    for line in f:
      if line.strip():
        yield {"text": line.rstrip("\n")}
