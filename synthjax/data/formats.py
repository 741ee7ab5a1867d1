"""What the rows of every task look like: a row of a file becomes an example.

The formats are those of GSM8K, MATH, MATH-500, SVAMP, GSM-hard and AQuA as their authors publish
them, and three of our own: problems {question, answer, solution}, traces {inputs, targets} and
texts {text}.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from synthjax import files

# A row with all these fields belongs to the task, whatever the config says its task is.
_FIELDS = {"traces": {"inputs", "targets"}, "problems": {"question", "solution"}, "text": {"text"}}


class Example(NamedTuple):
  """A document as text: a problem with its reference trace, or a text with nothing before it."""

  id: str
  inputs: str  # what the policy is shown, up to the point where it goes on; "" for a text
  targets: str  # what it is to write
  answer: str = ""  # the final answer
  drop: str = ""  # why this document cannot be used, "" where it can
  question: str = ""  # the bare problem, without a prompt's words around it
  group: str = ""  # subject and level, where the task has them


class RawRow(NamedTuple):
  """A row as the file has it, which says where it stands when a field is missing.

  Its methods raise DataError, with file, row and field, for a value that is not as described.
  """

  fields: Mapping[str, Any]
  file: str
  number: int  # from 1
  default_id: str

  def text(self, name: str) -> str:
    value = self.fields.get(name)
    if not isinstance(value, str):
      raise self.error(
        f"field {name!r} is {value!r}; expected text (found fields: {', '.join(self.fields)})"
        f"{self._other_task()}"
      )
    return value

  def number_text(self, name: str) -> str:
    """A JSON number as text, whole ones without a decimal point."""
    value = self.fields.get(name)
    # A bool is an int to Python, but not to whoever wrote the file.
    if not isinstance(value, int | float) or isinstance(value, bool):
      raise self.error(
        f"field {name!r} is {value!r}; expected a number (found fields: {', '.join(self.fields)})"
      )
    if float(value).is_integer():
      return str(int(value))
    return repr(value)

  def id(self, name: str = "id") -> str:
    return str(self.fields.get(name, self.default_id))

  def error(self, problem: str) -> files.DataError:
    return files.DataError(f"{self.file}, row {self.number}: {problem}")

  def _other_task(self) -> str:
    """The end of an error: the task of ours whose rows have these fields, if there is one."""
    for task, names in _FIELDS.items():
      if names <= self.fields.keys():
        return (
          f"; rows of {', '.join(sorted(names))} are task {task!r}: "
          "set config.data.task, or a mixture's part's"
        )
    return ""


def parse(task: str, row: RawRow) -> Example:
  """The example that a task makes of a row.

  Raises:
    DataError: the row lacks a field or has a malformed one; it names file, row and field.
  """
  return _FORMATS[task](row)


def _word_problem(name: str, question: str, solution: str, answer: str, group: str = "") -> Example:
  return Example(
    id=name,
    inputs=f"Question: {question}\nAnswer:",
    targets=" " + solution,
    answer=answer,
    drop=_why_unusable(answer),
    question=question,
    group=group,
  )


def _why_unusable(answer: str) -> str:
  if answer:
    return ""
  return "no gold answer"


def _gsm8k(row: RawRow) -> Example:
  solution = row.text("answer")
  _, marker, answer = solution.rpartition("#### ")
  if not marker:
    raise row.error("the answer has no '#### ' line")
  # <<48/2=24>> marks a calculator call of the original; a policy without a calculator is not
  # taught to write it.
  plain = re.sub(r"<<[^<>]*>>", "", solution)
  return _word_problem(row.default_id, row.text("question"), plain, answer.strip())


def _math(row: RawRow) -> Example:
  answer, problem = row.text("answer"), row.text("problem")
  # The original files call the subject `type`, MATH-500 calls it `subject`.
  subject = row.fields.get("subject", row.fields.get("type", "?"))
  return Example(
    id=row.id("unique_id"),
    inputs=f"Problem: {problem}\nSolution:",
    targets=" " + row.text("solution"),
    answer=answer,
    drop=_why_unusable(answer),
    question=problem,
    group=f"{subject}, level {row.fields.get('level') or '?'}",
  )


def _svamp(row: RawRow) -> Example:
  question = f"{row.text('Body').rstrip(' .')}. {row.text('Question')}"
  answer = row.number_text("Answer")
  return _word_problem(
    row.id("ID"),
    question=question,
    solution=f"{row.text('Equation')} = {answer}\n#### {answer}",
    answer=answer,
    group=row.text("Type"),
  )


def _gsm_hard(row: RawRow) -> Example:
  answer = row.number_text("target")
  solution = f"{row.text('code')}\n#### {answer}"
  return _word_problem(row.default_id, row.text("input"), solution, answer)


def _aqua(row: RawRow) -> Example:
  options = row.fields.get("options")
  if not isinstance(options, list):
    raise row.error(f"field 'options' is {options!r}; expected a list of five")
  answer = row.text("correct")
  # "A)21" becomes "(A) 21".
  choices = " ".join(f"({str(option).replace(')', ') ', 1)}" for option in options)
  return _word_problem(
    row.default_id,
    question=f"{row.text('question')}\nAnswer Choices: {choices}",
    solution=f"{row.text('rationale')}\n#### {answer}",
    answer=answer,
  )


def _own_problem(row: RawRow) -> Example:
  """A user's problem; without a solution it is a test problem, and is not trained on."""
  answer = row.fields.get("answer")
  if not isinstance(answer, str):
    answer = row.number_text("answer")
  if not answer.strip():
    raise row.error("field 'answer' is empty; give the final answer, or leave the row out")
  solution = ""
  if row.fields.get("solution") is not None:
    solution = row.text("solution").strip()
  return _word_problem(row.id(), row.text("question"), solution, answer.strip())


def _trace(row: RawRow) -> Example:
  return Example(
    id=row.id(),
    inputs=row.text("inputs"),
    targets=row.text("targets"),
    answer=str(row.fields.get("answer", "")),
  )


def _text(row: RawRow) -> Example:
  text, drop = row.text("text"), ""
  if not text.strip():
    drop = "empty text"
  return Example(id=row.id(), inputs="", targets=text, drop=drop)


_FORMATS: dict[str, Callable[[RawRow], Example]] = {
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
