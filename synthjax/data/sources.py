"""Sources of text, without TensorFlow (unless a TFDS name is asked for): shards of rows become examples.

Tasks: the embedded world, GSM8K, MATH, MATH-500, SVAMP, GSM-hard, AQuA, any JSONL of problems
{question, answer, solution} or of traces {inputs, targets}, any text corpus ({id, text} JSONL or a
document a line). A file, a glob or `tfds:NAME[#SPLIT]` says where the rows are.
"""

import collections
import dataclasses
import glob
import itertools
import os
import pathlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from synthjax import files
from synthjax.config import schema
from synthjax.config.worlds import World
from synthjax.records import Problem
from synthjax.worlds import shop

# Where a task's file lies below the data folder, where that is not TASK/SPLIT.jsonl; some have only a test split.
_PLACES = {
  "math500": "math/math500.jsonl",
  "svamp": "wordproblems/svamp_test.jsonl",
  "gsm_hard": "wordproblems/gsm_hard_test.jsonl",
  "aqua": "wordproblems/aqua_test.jsonl",
}
_TFDS = "tfds:"
_BETWEEN = "\n"  # the files of a shard
# By these fields a row is told to be of another task than the config says.
_FIELDS = {"traces": {"inputs", "targets"}, "problems": {"question", "solution"}, "text": {"text"}}


class Example(NamedTuple):
  """A document as text: a problem with its reference trace, or a text with nothing before it."""

  id: str
  inputs: str  # what the policy is shown, up to the point where it goes on; "" for a text
  targets: str  # what it shall write
  answer: str = ""  # the final answer
  drop: str = ""  # why this document cannot be used, "" where it can
  question: str = ""  # the bare problem, without a prompt's words around it
  group: str = ""  # subject and level, where the task has them


def of_split(data: schema.Data, split: str) -> list[schema.Source]:
  """The sources of `train` (the mixture's parts, or the task) or `test`."""
  if split == "train" and data.mixture:
    return list(data.mixture)
  path, count = (
    (data.train_path, data.train_problems)
    if split == "train"
    else (data.test_path, data.test_problems)
  )
  return [schema.Source(data.task, path, count, data.traces)]


def shards(source: schema.Source, data: schema.Data, split: str) -> list[str]:
  """Names of the parts that can be read apart: a file each; one where only the first `count` documents are wanted.

  Raises:
    DataError: no such file, with the config's key for it and where to get it.
  """
  if source.task == "world" or source.path.startswith(_TFDS):
    return [source.path or "world"]
  folder = pathlib.Path(data.folder or os.environ.get("SYNTHJAX_DATA") or "../shared/data")
  pattern = source.path or str(
    folder / _PLACES.get(source.task, f"{source.task}/{{split}}.jsonl").format(split=split)
  )
  found = sorted(glob.glob(pattern))
  if not found and source.path:
    raise files.DataError(
      f"{_key(source, data, split)} is {source.path!r}: no such file; give a path "
      f"from {os.getcwd()}, or a whole one"
    )
  if not found:
    raise files.DataError(
      f"{pattern}: no such file for the {split} split; {_where_to_get(source, data, split)}"
    )
  return [_BETWEEN.join(found)] if source.count else found


def check_there(experiment: schema.Experiment) -> None:
  """Raises DataError where a file of the config's data is missing, as `shards`; reads none and imports nothing heavy."""
  splits = ["test"] if experiment.recipe == "preference" else ["train", "test"]
  for split in splits:
    for source in of_split(experiment.data, split):
      shards(source, experiment.data, split)


def _where_to_get(source, data, split) -> str:
  key = f"{_key(source, data, split)}, "
  own = ""
  if split == "test" and source.task != data.task:  # asked by a protocol of another task
    key = ""
    own = (
      f"; it is config.evaluate.protocol that asks the problems of {source.task}: to ask your own test problems, those of "
      "config.data.test_path, leave it out and set config.evaluate.answer"
    )
  return f"see data/README.md for where to get {source.task}, then set {key}config.data.folder or SYNTHJAX_DATA{own}"


def _key(source, data, split) -> str:
  """The field of the config that says where a source lies."""
  if split != "test" and source in data.mixture:
    return f"config.data.mixture[{data.mixture.index(source)}].path"
  return f"config.data.{'test' if split == 'test' else 'train'}_path"


def read(source: schema.Source, world: World, split: str, shard: str) -> Iterator[Example]:
  """The examples of one shard.

  Raises:
    DataError: a row is malformed or lacks a field, named by file and row.
  """
  if source.task == "world":
    found = _world(source, world, split)
  else:
    found = itertools.chain.from_iterable(
      _read_file(source.task, name, split) for name in shard.split(_BETWEEN)
    )
  return itertools.islice(found, source.count or None)


def examples(data: schema.Data, world: World, split: str) -> Iterator[Example]:
  """All usable examples of a split, in order; those with a reason to be dropped are left out (`cache` counts them).

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
  for source in parts:
    for shard in shards(source, data, split):
      for example in read(source, world, split, shard):
        if example.drop:
          continue
        text = hash(asked(example))
        if texts.setdefault(example.id, text) != text:
          raise files.DataError(_two_problems(example, parts, data, split))
        yield example


def unusable(data: schema.Data, world: World, split: str) -> dict[str, int]:
  """How many documents of a split `examples` leaves out, by the reason."""
  counts: collections.Counter[str] = collections.Counter()
  for source in of_split(data, split):
    for shard in shards(source, data, split):
      counts.update(example.drop for example in read(source, world, split, shard) if example.drop)
  return dict(counts)


def asked(example: Example) -> str:
  """The text that tells a problem or a document from others: what the policy is shown, or all of it."""
  return example.inputs or example.targets


def places(
  names: Collection[str], parts: Sequence[schema.Source], data: schema.Data, split: str
) -> dict[str, str]:
  """Id -> the file and row of the first example that has it, for those of `names` that stand in files."""
  found: dict[str, str] = {}
  if not names:
    return found
  for example, place in _placed(parts, data, split):
    if example.id in names:
      found.setdefault(example.id, place)
  return found


def _placed(parts, data, split) -> Iterator[tuple[Example, str]]:
  """Every example of files with its place, also those that `count` leaves out."""
  for source in parts:
    if source.task == "world":
      continue
    for name in [name for shard in shards(source, data, split) for name in shard.split(_BETWEEN)]:
      for number, example in enumerate(_read_file(source.task, name, split), 1):
        yield example, f"{name}, row {number}"


def _two_problems(clashing: Example, parts, data, split) -> str:
  """What to say about two problems with one id."""
  first, second = "", ""
  for example, place in _placed(parts, data, split):
    if example.id == clashing.id and not first:
      first = place
    elif example.id == clashing.id and not second and asked(example) == asked(clashing):
      second = place
  return (
    f"id {clashing.id!r} stands for two problems, in {first} and in {second}; give the rows ids "
    "of their own, or rename one of two files whose rows have no ids and are named after the file"
  )


def fingerprint(source: schema.Source, data: schema.Data, world: World, split: str) -> list[Any]:
  """JSON that changes when the examples do: knobs, and the hashes of the files."""
  parts = shards(source, data, split)
  if source.task == "world":
    return ["world", dataclasses.asdict(world), source.count, source.traces, split]
  hashes = [
    name if name.startswith(_TFDS) else files.file_hash(name)
    for part in parts
    for name in part.split(_BETWEEN)
  ]
  return [source.task, source.count, split, hashes]


def world_problems(source: schema.Source, world: World, split: str) -> list[Problem]:
  """The problems of a source of the embedded world, without their traces."""
  base = source.traces == "base" and split == "train"
  return shop.problems(world, "base" if base else split, source.count or 1000)


def _world(source, world, split):
  for problem in world_problems(source, world, split):
    trace = (
      shop.teacher_trace(world, problem)
      if source.traces == "teacher"
      else shop.clean_trace(problem)
    )
    group = f"{problem.metadata['events']} events"
    yield Example(
      problem.id, problem.question, " " + trace.text, problem.answer, "", problem.question, group
    )


def _read_file(task, name, split):
  make = _MAKERS[task]
  for number, row in enumerate(_rows(task, name, split), 1):
    stem = pathlib.Path(name.removesuffix(".gz")).stem if not name.startswith(_TFDS) else split
    if split == "test" and split not in stem:
      stem = f"{stem}-test"  # rows of a training file of the same name are others
    example = make(_Row(row, name, number, f"{task}-{stem}-{number - 1}"))
    if split == "train" and not example.targets.strip() and not example.drop:
      example = example._replace(drop="nothing to train on")
    yield example


def _rows(task, name, split) -> Iterator[Mapping[str, Any]]:
  if name.startswith(_TFDS):
    from synthjax.data import tasks

    return tasks.tfds_rows(name.removeprefix(_TFDS), split)
  if task == "text" and name.removesuffix(".gz").endswith(".txt"):
    return _lines(name)
  return files.read_jsonl(name)


def _lines(name):
  with files.open_text(name) as f:
    yield from ({"text": line.rstrip("\n")} for line in f if line.strip())


class _Row(NamedTuple):
  """A raw row that says where it stands when a field is missing."""

  fields: Mapping[str, Any]
  file: str
  number: int
  default_id: str

  def text(self, name: str) -> str:
    value = self.fields.get(name)
    if not isinstance(value, str):
      raise files.DataError(
        f"{self.file}, row {self.number}: field {name!r} is {value!r}; expected text (found fields: "
        f"{', '.join(self.fields)}){self._other_task()}"
      )
    return value

  def _other_task(self) -> str:
    """The end of an error: the task whose rows have these fields, if they are rows of ours."""
    for task, names in _FIELDS.items():
      if names <= self.fields.keys():
        return f"; rows of {', '.join(sorted(names))} are task {task!r}: set config.data.task, or a mixture's part's"
    return ""

  def number_text(self, name: str) -> str:
    """A JSON number as text, whole ones without a decimal point."""
    value = self.fields.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
      raise files.DataError(
        f"{self.file}, row {self.number}: field {name!r} is {value!r}; expected "
        f"a number (found fields: {', '.join(self.fields)})"
      )
    return str(int(value)) if float(value).is_integer() else repr(value)

  def id(self, name: str = "id") -> str:
    return str(self.fields.get(name, self.default_id))


def _gsm8k(row: _Row) -> Example:
  solution = row.text("answer")
  before, marker, answer = solution.rpartition("#### ")
  if not marker:
    raise files.DataError(f"{row.file}, row {row.number}: the answer has no '#### ' line")
  # <<48/2=24>> marks a calculator call of the original; a policy without a calculator is not taught to write it.
  return _word_problem(
    row, row.default_id, row.text("question"), re.sub(r"<<[^<>]*>>", "", solution), answer.strip()
  )


def _word_problem(
  row: _Row, name: str, question: str, solution: str, answer: str, group: str = ""
) -> Example:
  return Example(
    name,
    f"Question: {question}\nAnswer:",
    " " + solution,
    answer,
    "" if answer else "no gold answer",
    question,
    group,
  )


def _math(row: _Row) -> Example:
  answer, problem = row.text("answer"), row.text("problem")
  group = f"{row.fields.get('subject', row.fields.get('type', '?'))}, level {row.fields.get('level') or '?'}"
  return Example(
    row.id("unique_id"),
    f"Problem: {problem}\nSolution:",
    " " + row.text("solution"),
    answer,
    "" if answer else "no gold answer",
    problem,
    group,
  )


def _svamp(row: _Row) -> Example:
  question, answer = (
    f"{row.text('Body').rstrip(' .')}. {row.text('Question')}",
    row.number_text("Answer"),
  )
  return _word_problem(
    row,
    row.id("ID"),
    question,
    f"{row.text('Equation')} = {answer}\n#### {answer}",
    answer,
    row.text("Type"),
  )


def _gsm_hard(row: _Row) -> Example:
  answer = row.number_text("target")
  return _word_problem(
    row, row.default_id, row.text("input"), f"{row.text('code')}\n#### {answer}", answer
  )


def _aqua(row: _Row) -> Example:
  options = row.fields.get("options")
  if not isinstance(options, list):
    raise files.DataError(
      f"{row.file}, row {row.number}: field 'options' is {options!r}; expected a list of five"
    )
  answer = row.text("correct")
  question = f"{row.text('question')}\nAnswer Choices: " + " ".join(
    f"({str(option).replace(')', ') ', 1)}" for option in options
  )
  return _word_problem(
    row, row.default_id, question, f"{row.text('rationale')}\n#### {answer}", answer
  )


def _own_problem(row: _Row) -> Example:
  """A user's problem; without a solution it is a test problem, and is not trained on."""
  answer = row.fields.get("answer")
  if not isinstance(answer, str):
    answer = row.number_text("answer")
  if not answer.strip():
    raise files.DataError(
      f"{row.file}, row {row.number}: field 'answer' is empty; give the final "
      "answer, or leave the row out"
    )
  solution = ""
  if row.fields.get("solution") is not None:
    solution = row.text("solution").strip()
  return _word_problem(row, row.id(), row.text("question"), solution, answer.strip())


def _trace(row: _Row) -> Example:
  return Example(
    row.id(), row.text("inputs"), row.text("targets"), str(row.fields.get("answer", ""))
  )


def _text(row: _Row) -> Example:
  text = row.text("text")
  return Example(row.id(), "", text, "", "" if text.strip() else "empty text")


_MAKERS: dict[str, Callable[[_Row], Example]] = {
  "gsm8k": _gsm8k,
  "math": _math,
  "math500": _math,
  "svamp": _svamp,
  "gsm_hard": _gsm_hard,
  "aqua": _aqua,
  "problems": _own_problem,
  "traces": _trace,
  "text": _text,
}
