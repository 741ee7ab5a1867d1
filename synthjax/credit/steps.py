"""Steps of a solution: where they end in its text, and which of the sampled tokens belong to each.

The rules, by name:
- `world`: a step is a line with the ` ; ` after it, as in the teacher's traces.
- `gsm8k`: a step is a line with its line break; the final `#### x` line is a step of its own, as
  `Answer: x` is in the world: writing down another number than the one computed is a mistake of
  its own.
- `math`: a step is a sentence or a line, never cut inside LaTeX. A display goes with the words
  that lead to it, a step does not begin in the middle of a sentence, and a fragment shorter than
  12 characters (our choice) joins what follows, at the very end what came before.

Steps are found from left to right: the steps of a text that is cut after one of them are the same
steps, so traces that share a prefix share its steps, and a continuation can be split without it.
For the same reason the last step takes what is beyond the limit.
"""

import bisect
import collections
import itertools
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from synthjax import files
from synthjax.config import schema
from synthjax.data.tokenizers import Tokenizer

_LINE = re.compile(r"\n(?:[ \t]*\n)*")
_MARKS = re.compile(
  r"\\[\\${}%]"  # escaped: no delimiter
  r"|(?P<delimiter>\\[\[\]()]|\$\$?|[{}]|\\(?:begin|end)\{\w+\*?\}|\[/?asy\])"
  r"|(?P<line>\n(?:[ \t]*\n)*)"
  r"|(?P<sentence>[.!?][\"')\]*]*(?=[ \t]+\S))"
)
_OPENS = {r"\]": r"\[", r"\)": r"\(", "}": "{", "[/asy]": "[asy]"}
_ABBREVIATION = re.compile(
  r"\b(?:e\.g|i\.e|etc|cf|vs|Mrs?|Ms|Dr|Eqs?|Figs?|Thm|resp|approx)\.$", re.IGNORECASE
)
# No step begins like this: a sentence or a formula goes on.
_GOES_ON = re.compile(r"\s*(?:[a-z]{2}|[=+<>/,;:.)\]}|&%^_])")
_DISPLAY = re.compile(r"\s*(?:\\\[|\$\$|\\begin\b|\[asy\])")
# A sentence or a display has ended.
_ENDED = re.compile(r"(?:[.!?][\"')\]*]*|\\\]|\$\$|\\end\{\w+\*?\}|\[/asy\])\s*$")


# Of the tasks whose steps are not lines.
_OF_TASK = {"world": "world", "math": "math", "math500": "math"}


class Rule(NamedTuple):
  """How the responses of a task fall into steps."""

  cuts: Callable[[str], Iterable[int]]  # where a step may begin, in order
  shortest: int  # characters of a step, but for white space at its ends


def rule_of(data: schema.Data) -> str:
  """Name of the rule that `data.steps` asks for: that of the task where it says "task"."""
  if data.steps != "task":
    return data.steps
  return _OF_TASK.get(data.task, "gsm8k")


def spans(text: str, rule: str, limit: int) -> list[tuple[int, int]]:
  """Steps as character spans that tile the text.

  Every character is in one of them, and none is white space alone, unless the text is.

  Args:
    text: a response; the empty text has no steps.
    rule: name in RULES.
    limit: most steps; the last one takes the rest of the text.

  Raises:
    ValueError: unknown rule, or a limit below 1.
  """
  if rule not in RULES:
    raise ValueError(f"steps: rule {rule!r}; expected one of {', '.join(RULES)}")
  if limit < 1:
    raise ValueError(f"steps: at most {limit} steps; expected 1 and more")
  starts = [0]
  long_enough = lambda end: len(text[starts[-1] : end].strip()) >= RULES[rule].shortest
  for cut in RULES[rule].cuts(text):
    if len(starts) < limit and long_enough(cut):
      starts.append(cut)
  if len(starts) > 1 and not long_enough(len(text)):
    starts.pop()
  return list(itertools.pairwise([*starts, len(text)])) if text else []


def token_spans(
  ids: Sequence[int], text_spans: Sequence[tuple[int, int]], tokenizer: Tokenizer
) -> list[list[int]]:
  """Steps as lists of the ids that were sampled; nothing is tokenised again.

  A token belongs to the step in which its text begins, a space before a word set aside: ` Thus`
  begins the next sentence whichever side of the space the step ends on. A step in which no token
  begins joins the one before it.

  Args:
    ids: of the response, without end-of-text.
    text_spans: steps of `tokenizer.decode(ids)`, see `spans`.
    tokenizer: that of the ids.

  Raises:
    DataError: the spans are not those of the text that the ids decode to.
  """
  text = tokenizer.decode(ids)
  covered = text_spans[-1][1] if text_spans else 0
  if covered != len(text):
    raise files.DataError(
      f"steps cover {covered} characters, the {len(ids)} ids decode to {len(text)}: {text[:80]!r}; "
      "split the text that tokenizer.decode(ids) gives"
    )
  edges = [0]
  begins = lambda count: _begins(text, tokenizer.decode(ids[:count]))
  for start, _ in text_spans[1:]:
    edges.append(bisect.bisect_left(range(len(ids)), start, lo=edges[-1], key=begins))
  return [
    list(ids[first:last]) for first, last in itertools.pairwise([*edges, len(ids)]) if first < last
  ]


def _begins(text: str, before: str) -> int:
  """Where in the text the token after the decoded prefix `before` begins.

  A prefix that ends inside a character decodes to something else there, so what it has in common
  with the text counts.
  """
  at = len(before) if text.startswith(before) else len(os.path.commonprefix([text, before]))
  while at < len(text) and text[at] == " ":
    at += 1
  return at


def _world(text: str) -> Iterable[int]:
  return (mark.end() for mark in re.finditer(r"; ?", text))


def _lines(text: str) -> Iterable[int]:
  return (mark.end() for mark in _LINE.finditer(text))


def _sentences(text: str) -> list[int]:
  """Ends of sentences and lines outside LaTeX.

  One pass: closing a delimiter takes back the cuts made since it was opened.
  """
  cuts: list[int] = []
  scopes = _Scopes()
  for mark in _MARKS.finditer(text):
    start, end = mark.span()
    is_cut = False
    if mark["line"]:
      if mark[0].count("\n") > 1:
        scopes.drop("$")  # as TeX does at a blank line
      is_cut = _ends_line(text, start, end)
    elif mark["sentence"]:
      is_cut = not _ABBREVIATION.search(text[max(0, start - 9) : start + 1])
    elif mark["delimiter"] and scopes.closes(mark[0], cuts):
      is_cut = _ends_sentence_within(text, start, end)
    if is_cut and not _GOES_ON.match(text, end):
      cuts.append(end)
  return cuts


def _ends_line(text: str, start: int, end: int) -> bool:
  """Whether a step may end at a line break: a display goes with the words that lead to it."""
  if not _DISPLAY.match(text, end):
    return True
  return bool(_ENDED.search(text[max(0, start - 40) : start]))


def _ends_sentence_within(text: str, start: int, end: int) -> bool:
  """Whether a sentence ends inside a formula that closes here, and the line goes on."""
  within = text[max(0, start - 9) : start].rstrip("} \t\n")
  return within.endswith((".", "!", "?")) and text[end : end + 1] not in ("", "\n", ")")


class _Scopes:
  """Delimiters that are open, each with the number of cuts made before it.

  What is never closed was no delimiter: its cuts stay.
  """

  def __init__(self) -> None:
    self._open: list[tuple[str, int]] = []
    # How many of each kind are open, so that nothing is searched for in vain.
    self._count: collections.Counter[str] = collections.Counter()

  def closes(self, delimiter: str, cuts: list[int]) -> bool:
    """Takes a delimiter in; whether it closed one, with the cuts inside taken back."""
    name = _OPENS.get(delimiter, delimiter.replace(r"\end", r"\begin"))
    opening = name == delimiter and not (name[0] == "$" and self._count[name])
    if opening:
      self._open.append((name, len(cuts)))
      self._count[name] += 1
    elif self._count[name]:
      del cuts[self.drop(name) :]
    return not opening

  def drop(self, name: str) -> int | None:
    """Forgets the innermost delimiter of a name and all within it.

    Returns:
      The number of cuts before it; None where none is open.
    """
    while self._count[name]:
      kind, cuts = self._open.pop()
      self._count[kind] -= 1
      if kind == name:
        return cuts
    return None


RULES = {"world": Rule(_world, 1), "gsm8k": Rule(_lines, 1), "math": Rule(_sentences, 12)}
