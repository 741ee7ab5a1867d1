"""The project's records: problems, traces, verdicts, step values, pairs.

Each is a frozen dataclass that is written as one row of a JSONL file. A trace is a solution as a
list of steps; a verdict says whether its answer is correct; a step value is estimated from n
rollouts after a prefix of a trace; a pair is what preference training learns from.
"""

import dataclasses
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self, TypeVar

from synthjax import files

T = TypeVar("T")

Ids = tuple[int, ...]  # token ids

VERDICTS = ("equal", "different", "undecided")
NO_ANSWER = "no-answer"  # reason of the verdict on a response in which no final answer was found


def to_json(record: Any) -> dict:
  """A JSON object of a dataclass with JSON-like fields; fields at their default are left out."""
  row = {}
  for field in dataclasses.fields(record):
    value = getattr(record, field.name)
    if not _is_default(field, value):
      row[field.name] = _encode(value)
  return row


def from_json(cls: type[T], row: Mapping[str, Any]) -> T:
  """The dataclass that `to_json` wrote.

  Raises:
    DataError: names the record, the field and what was found.
  """
  fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
  hints = typing.get_type_hints(cls)
  unknown = sorted(set(row) - set(fields))
  if unknown:
    raise files.DataError(
      f"{cls.__name__}: unknown field {unknown[0]!r}; its fields are {', '.join(fields)}"
    )
  for name, field in fields.items():
    required = field.default is field.default_factory is dataclasses.MISSING
    if required and name not in row:
      raise files.DataError(
        f"{cls.__name__}: field {name!r} is missing; found {', '.join(row) or 'nothing'}"
      )
  values = {}
  for name, value in row.items():
    values[name] = _decode(hints[name], value, f"{cls.__name__}.{name}")
  return cls(**values)


@dataclasses.dataclass(frozen=True)
class Record:
  """Base of all records: frozen dataclasses with JSON-like fields."""

  def to_json(self) -> dict:
    """As the function `to_json`."""
    return to_json(self)

  @classmethod
  def from_json(cls, row: Mapping[str, Any]) -> Self:
    """As the function `from_json`."""
    return from_json(cls, row)


@dataclasses.dataclass(frozen=True)
class Problem(Record):
  """A question with its known final answer."""

  id: str  # unique within its source
  question: str  # what the policy is shown
  answer: str  # the final answer in canonical text, "" when unknown
  source: str = ""  # where it comes from: "world", "gsm8k", a file's name
  # subject, level, number of operations: JSON values
  metadata: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Step(Record):
  """One step of a trace: characters [start, end) of the trace's text."""

  start: int
  end: int
  leap: bool | None = None  # fuses several operations into one line; None where nobody knows


@dataclasses.dataclass(frozen=True)
class Trace(Record):
  """A solution: text, its steps as character spans, and its final answer."""

  problem_id: str
  text: str
  steps: tuple[Step, ...] = ()  # in order, not overlapping
  answer: str | None = None  # the final answer extracted from the text; None when it has none
  source: str = ""  # teacher or policy that wrote it
  # temperature, top_p, ... of a sampled trace
  sampler: dict = dataclasses.field(default_factory=dict)
  seed: int | None = None  # of a sampled trace
  metadata: dict = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    previous = 0
    for number, step in enumerate(self.steps):
      if not previous <= step.start < step.end <= len(self.text):
        raise files.DataError(
          f"Trace of {self.problem_id!r}: step {number} spans [{step.start}, {step.end}); "
          f"expected a non-empty span from {previous} on within the {len(self.text)} characters "
          "of the text"
        )
      previous = step.end


@dataclasses.dataclass(frozen=True)
class Verdict(Record):
  """How an answer compares with the gold one: `equal`, `different`, `undecided` with a reason."""

  value: str  # one of VERDICTS
  # why it is undecided, see docs/verify.md: timeout, memory, no-answer, too-long, error: NAME,
  # words-in-prediction, ...
  reason: str = ""

  def __post_init__(self):
    if self.value not in VERDICTS:
      raise files.DataError(
        f"Verdict.value is {self.value!r}; expected one of {', '.join(VERDICTS)}"
      )
    if (self.value == "undecided") != bool(self.reason):
      raise files.DataError(
        f"Verdict {self.value!r} with reason {self.reason!r}: exactly an undecided one has a reason"
      )

  @property
  def correct(self) -> bool:
    """Whether the answer is known to be correct; what evaluation counts."""
    return self.value == "equal"

  @property
  def reward(self) -> int | None:
    """What training learns from: 1 for correct, 0 for incorrect, None for undecided.

    A response without an answer is incorrect: nothing about it is in doubt.
    """
    if self.value == "undecided" and self.reason != NO_ANSWER:
      return None
    return int(self.correct)


@dataclasses.dataclass(frozen=True)
class StepValue(Record):
  """The value of the prefix of a trace that ends with a step, from n rollouts after it."""

  problem_id: str
  trace: int  # index of the trace among those of the job
  step: int  # number of steps in the prefix; 0 is the bare problem
  n: int  # rollouts with a decided verdict
  c: int  # correct ones among them
  # estimated success probability after the prefix; None where too few rollouts were decided
  q: float | None
  # q minus the q of the prefix one step shorter; None where one of them is unknown, as at step 0
  advantage: float | None = None
  undecided: int = 0  # rollouts left out of n
  standard_error: float | None = None  # of q; 0 for the reward of a trace that has ended

  def __post_init__(self):
    if not 0 <= self.c <= self.n:
      raise files.DataError(
        f"StepValue of {self.problem_id!r}: c={self.c} correct out of n={self.n} rollouts"
      )


@dataclasses.dataclass(frozen=True)
class Pair(Record):
  """A preference as text: after `prefix`, `chosen` is better than `rejected`."""

  problem_id: str
  prefix: str
  chosen: str
  rejected: str
  mode: str  # paper | branch | step | random | distant
  chosen_complete: bool = True  # ends with the end-of-text token
  rejected_complete: bool = True
  # the sampled tokens with their weights and advantages, see data/pair_trees.py
  metadata: dict = dataclasses.field(default_factory=dict)


def read(cls: type[Record], path: files.Path, limit: int | None = None) -> Iterator[Any]:
  """Yields the records of a JSONL file. Raises DataError with file and row number."""
  yield from parse(cls, files.read_jsonl(path, limit), path)


def parse(cls: type[Record], rows: Iterable[dict], path: files.Path) -> Iterator[Any]:
  """Yields the records of rows that were read from `path`.

  Raises:
    DataError: a malformed row, with file and row number.
  """
  for number, row in enumerate(rows, 1):
    try:
      yield cls.from_json(row)
    except files.DataError as e:
      raise files.DataError(f"{path}, row {number}: {e}") from e


def write(path: files.Path, records: Iterable[Record]) -> int:
  """Writes records as JSONL, atomically. Returns their number."""
  return files.write_jsonl(path, (record.to_json() for record in records))


def _is_default(field, value):
  if field.default is not dataclasses.MISSING:
    return value == field.default and type(value) is type(field.default)
  if field.default_factory is not dataclasses.MISSING:
    return value == field.default_factory()
  return False


def _encode(value):
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    return to_json(value)
  if isinstance(value, tuple):
    return [_encode(v) for v in value]
  return value


def _decode(hint, value, name):
  """`value` as the type `hint` asks for: a record, a tuple, or a plain JSON value of that type."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is types.UnionType:
    if value is None:
      return None
    return _decode(args[0], value, name)
  if origin is tuple:
    if not isinstance(value, list):
      raise files.DataError(f"{name} is {value!r}; expected a list")
    # A short cut for the many ids and log-probs of a sample.
    if set(map(type, value)) == {args[0]}:
      return tuple(value)
    return tuple(_decode(args[0], v, f"{name}[{i}]") for i, v in enumerate(value))
  if isinstance(hint, type) and dataclasses.is_dataclass(hint):
    if not isinstance(value, dict):
      raise files.DataError(f"{name} is {value!r}; expected an object")
    return from_json(hint, value)
  if origin is typing.Literal:
    if value not in args:
      raise files.DataError(f"{name} is {value!r}; expected one of {', '.join(map(repr, args))}")
    return value
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
    raise files.DataError(f"{name} is {value!r}; expected {hint.__name__}")
  return value
