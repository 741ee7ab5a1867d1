"""Extraction of the final answer from a response. The mode belongs to the task and is never guessed."""

import re

from synthjax.errors import ConfigError

_MARKERS = {"hash": "####", "answer_is": "The answer is", "final_line": "Answer:", "a_line": "\nA:"}
MODES = (*_MARKERS, "boxed", "minerva", "last_number")
_NUMBER = re.compile(r"-?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|-?\$?\.\d+")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(\{|(?=[0-9A-Za-z]))")


def extract(text: str, mode: str) -> str | None:
  """The final answer, or None where the response has none.

  Modes:
    hash: the line after the last `####`.
    answer_is: the line after the last `The answer is`, up to its full stop.
    final_line: the line after the last `Answer:`.
    a_line: the last line that begins with `A:` (the form of OpenAI's GSM8K samples).
    boxed: in the last `\\boxed{}` or `\\fbox{}` with balanced braces; an unterminated last box is no answer.
    minerva: after the last `The final answer is`, up to `. I hope it is correct` or the end of the line.
    last_number: the last number anywhere; only ever a second, flexible metric.

  Raises:
    ValueError: unknown mode.
  """
  if mode == "boxed":
    return _boxed(text)
  if mode == "last_number":
    found = _NUMBER.findall(text)
    return found[-1] if found else None
  if mode == "minerva":
    _, marker, rest = text.rpartition("The final answer is")
    answer = re.split(r"\.\s*I hope|\n", rest.strip(), maxsplit=1)[0].strip().rstrip(".")
    return answer or None if marker else None
  if mode not in _MARKERS:
    raise ConfigError(f"extraction mode {mode!r}: expected one of {', '.join(MODES)}")
  _, marker, rest = ("\n" + text if mode == "a_line" else text).rpartition(_MARKERS[mode])
  answer = rest.strip().splitlines()[0].strip() if marker and rest.strip() else ""
  if mode == "answer_is":
    answer = re.split(r"\.(?:\s|$)", answer.lstrip(": "), maxsplit=1)[0].strip()
  return answer or None


def _boxed(text: str) -> str | None:
  starts = list(_BOX.finditer(text))
  if not starts:
    return None
  start = starts[-1].end()
  if not starts[-1][1]:  # \boxed 5: one character, as TeX reads it
    return text[start]
  depth = 1
  for mark in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
    depth += {"{": 1, "}": -1}.get(mark[0], 0)
    if depth == 0:
      return text[start:mark.start()].strip() or None
  return None
