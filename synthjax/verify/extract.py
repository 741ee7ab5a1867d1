"""Extraction of the final answer from a response. The mode belongs to the task and is never guessed."""

import re

MODES = ("hash", "final_line", "boxed")


def extract(text: str, mode: str) -> str | None:
  """The final answer, or None where the response has none.

  Modes: `hash` (after the last `####`), `final_line` (after the last `Answer:`), `boxed` (in the last `\\boxed{}` or `\\fbox{}`; an
  unterminated last box is no answer).

  Raises:
    ValueError: unknown mode.
  """
  if mode == "boxed":
    return _boxed(text)
  markers = {"hash": "####", "final_line": "Answer:"}
  if mode not in markers:
    raise ValueError(f"extraction mode {mode!r}: expected one of {', '.join(MODES)}")
  _, found, rest = text.rpartition(markers[mode])
  answer = rest.strip().splitlines()[0].strip() if found and rest.strip() else ""
  return answer or None


def _boxed(text: str) -> str | None:
  starts = list(re.finditer(r"\\(?:boxed|fbox)\s*\{", text))
  if not starts:
    return None
  depth, start = 1, starts[-1].end()
  for index in range(start, len(text)):
    depth += {"{": 1, "}": -1}.get(text[index], 0) if text[index - 1] != "\\" else 0
    if depth == 0:
      return text[start:index].strip() or None
  return None
