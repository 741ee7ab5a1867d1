r"""Extraction of the final answer from a response. The mode belongs to the task, never guessed.

Modes:
  hash: the line after the last `####`.
  answer_is: the sentence after the last `The answer is`.
  final_line: the line after the last `Answer:`.
  a_line: the last line that begins with `A:` (the form of OpenAI's GSM8K samples).
  boxed: in the last `\boxed{}` or `\fbox{}` with balanced braces, as MATH takes its own; an
    unterminated last box is no answer.
  boxes: as boxed, and boxes side by side, parted by a comma, "and" or "or", are one answer: a list.
  minerva: after the last `The final answer is`, to `. I hope it is correct` or the line's end.
  stated: the sentence after the last "answer is", "answer:" or "answer =", in any case.
  last_math: the last formula between `$`, `$$`, `\(` and `\)`, or `\[` and `\]`.
  last_number: the last number anywhere; digits inside a word are none. Only ever a second,
    flexible metric.
  gsm8k_order, math_order: the first of the task's usual modes that finds an answer, see `ORDERS`.

A line's answer is taken out of the prose around it: Markdown's `**`, the words after a formula that
opens the line, and clauses such as `, because ...` are left out.
"""

import re

from synthjax.errors import ConfigError

_MARKERS = {
  "hash": "####",
  "answer_is": "The answer is",
  "final_line": "Answer:",
  "a_line": "\nA:",
}
# Tried in this order; a mode that finds nothing passes on.
ORDERS = {
  "gsm8k_order": ("hash", "boxed", "stated", "last_number"),
  "math_order": ("boxes", "stated", "last_math"),
}
MODES = (*_MARKERS, "boxed", "boxes", "minerva", "stated", "last_math", "last_number", *ORDERS)
_STATED = re.compile(r"answer\s{0,3}(?:\*\*|__)?\s{0,3}(?:is\b|:|=)", re.IGNORECASE)
# A number stands alone, not inside a word (AZYUK2A); letters right after it are a unit such as km.
_NUMBER = re.compile(
  r"(?<![A-Za-z0-9_.\\])(?:(?<![)\]}])-)?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?![0-9_])"
  r"(?!(?!(?:km|cm|mm|kg|mg|ml|ft|lbs?|oz|hrs?|"
  r"mins?|secs?|mph|am|pm|g|m|s|h|L)\b)[A-Za-z])|(?<![A-Za-z0-9_.\\])-?\$?\.\d+(?![0-9_A-Za-z])"
)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # or an escaped character, which is none
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(\{|(?=[0-9A-Za-z]))")
# What stands between boxes that are one answer: a comma, "and" or "or", and the name of the next.
_SPACE = r"(?:\s|\$|\\[,;:!()\[\] ]|~|\\q?quad|\*\*|&)*"
_AND = r"(?:\\text\s*\{\s*,?\s*(?:and|or)\s*,?\s*\}|and|or)"
_BETWEEN = re.compile(rf"{_SPACE}(?:[,;]{_SPACE}{_AND}?|{_AND}){_SPACE}(?:[A-Za-z]\s*=)?{_SPACE}")
_WIDEST_GAP = 60  # characters between boxes that are one answer
# Longer lines hold no answer that would be read; searches in them must not take long.
_LONGEST_LINE = 2_000
_SPAN = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$(.+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
# Clauses that follow an answer in its sentence.
_CLAUSE = re.compile(
  r"(?:,\s*|\s+|\s*\()(?:because|since|so|which|as|where|when|therefore|hence|thus|i\.e\.|that is|"
  r"obtained|found by|for a total)\b.*",
  re.IGNORECASE | re.DOTALL,
)

# And phrases that follow a number and its unit.
_PHRASE = re.compile(
  r"\s+(?:every|during|altogether|overall|in (?:total|all|the|her|his|their)|"
  r"(?:at|for|on|from|after|by|to) (?:the|her|his|their|this|that))"
  r"\b.*",
  re.DOTALL,
)


def extract(text: str, mode: str) -> str | None:
  """The final answer, or None where the response has none. The modes are listed above.

  Raises:
    ValueError: unknown mode.
  """
  if mode in ORDERS:
    for each in ORDERS[mode]:
      answer = extract(text, each)
      if answer is not None:
        return answer
    return None
  if mode in ("boxed", "boxes"):
    return _boxed(text, together=mode == "boxes")
  if mode == "last_number":
    numbers = _NUMBER.findall(text)
    if not numbers:
      return None
    return numbers[-1]
  if mode == "last_math":
    return _last_math(text)
  if mode == "minerva":
    _, marker, rest = text.rpartition("The final answer is")
    if not marker:
      return None
    line = re.split(r"\.\s*I hope|\n", rest.strip(), maxsplit=1)[0]
    return _of_line(line)
  if mode == "stated":
    return _stated(text)
  if mode not in _MARKERS:
    raise ConfigError(f"extraction mode {mode!r}: expected one of {', '.join(MODES)}")
  return _after_marker(text, mode)


def _after_marker(text: str, mode: str) -> str | None:
  if mode == "a_line":
    # The marker begins with the line's break, and the text may begin with the marker.
    text = "\n" + text
  _, marker, rest = text.rpartition(_MARKERS[mode])
  rest = _unmarked(rest)
  if not marker or not rest:
    return None
  line = rest.splitlines()[0]
  if mode == "answer_is":
    line = _sentence(line)
  return _of_line(line)


def _stated(text: str) -> str | None:
  marks = list(_STATED.finditer(text))
  if not marks:
    return None
  rest = _unmarked(text[marks[-1].end() :])
  if not rest:
    return None
  line = rest.splitlines()[0]
  return _of_line(_sentence(line))


def _sentence(line: str) -> str:
  return re.split(r"\.(?:\s|$)", line.lstrip(": "), maxsplit=1)[0]


def _unmarked(text: str) -> str:
  """Without Markdown's marks of emphasis and code."""
  return re.sub(r"\*\*|(?<![\w\\])__|__(?!\w)|`", "", text).strip()


def _of_line(line: str) -> str | None:
  """The answer in a line: without emphasis, the prose after it, and a final full stop."""
  line = _unmarked(line[:_LONGEST_LINE]).lstrip(": ").strip()
  if _BOX.search(line):
    return _boxed(line)
  span = _SPAN.match(line)
  if span:
    rest = line[span.end() :]
    is_prose = re.fullmatch(r"(?:\s|[,.(])*[A-Za-z].*", rest, re.DOTALL)
    if is_prose and not _continues(rest):
      return line[: span.end()].strip()
  line = _CLAUSE.sub("", line).strip()
  if re.match(r"[-+$\\\u00a3\u20ac]*\d", line):
    line = _PHRASE.sub("", line)
  return re.sub(r"(?<!\.)\.$", "", line).strip() or None


def _continues(rest: str) -> bool:
  """Whether a list goes on after a formula: `$2$ and $3$`, or a unit follows."""
  return _SPAN.search(rest) is not None or len(rest.split()) <= 2


def _boxed(text: str, together: bool = True) -> str | None:
  """The last box, or it and the boxes beside it; walked backwards, in time that grows linearly."""
  starts = list(_BOX.finditer(text))
  contents: list[str] = []
  following = len(text)
  for mark in reversed(starts):
    end = _end_of_box(text, mark, following)
    if end is None:
      break  # not terminated, or around the following box
    gap = text[end + 1 : following]
    if contents and (len(gap) > _WIDEST_GAP or not _BETWEEN.fullmatch(gap)):
      break
    content = text[end]
    if mark[1]:
      content = text[mark.end() : end].strip()
    if not content:
      break
    contents.insert(0, content)
    following = mark.start()
    if not together:
      break
  return ", ".join(dict.fromkeys(contents)) or None


def _end_of_box(text: str, mark: re.Match, limit: int) -> int | None:
  """Index of a box's closing brace, or of its one character (`\\boxed 5`, as TeX reads it)."""
  if mark[1]:
    return _end_of_group(text, mark.end(), limit)
  return mark.end()


def _end_of_group(text: str, start: int, limit: int) -> int | None:
  """Where the brace that opened before `start` closes."""
  depth = 1
  for mark in _BRACE.finditer(text, start, limit):
    if mark[0] == "{":
      depth += 1
    elif mark[0] == "}":
      depth -= 1
    if depth == 0:
      return mark.start()
  return None


def _last_math(text: str) -> str | None:
  spans = list(_SPAN.finditer(text[-_LONGEST_LINE:]))
  if not spans:
    return None
  content = next(group for group in spans[-1].groups() if group)
  if _BOX.search(content):
    return _boxed(content)
  return content.strip().rstrip(".,;") or None
