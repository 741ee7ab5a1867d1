"""Sets of correct and incorrect traces per problem, without repetitions.

Two traces of a problem are the same where one of three things agrees: their text after
normalisation; their list of equations (in arithmetic the words around them do not count); or their
word 5-grams, with a Jaccard similarity of 0.8 and more (MinHash).
"""

import collections
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from synthjax.records import Trace, Verdict

_PERMUTATIONS = 128  # of the MinHash: a standard error of 0.035 at a similarity of 0.8
_SIMILAR = 0.8
_WORDS = 5  # of a shingle


class Sets(NamedTuple):
  """A job's traces by verdict, without repetitions."""

  positive: list[Trace]
  negative: list[Trace]
  report: dict  # counts by rule, and which traces each rule took out


def build(
  traces: Sequence[Trace], verdicts: Sequence[Verdict], by_equations: bool = True, near: bool = True
) -> Sets:
  """Splits traces by their verdict and keeps the first of those that are the same.

  Undecided traces are dropped. The report counts everything that was taken out.

  Args:
    traces: of any problems, in order.
    verdicts: one a trace.
    by_equations: traces of a problem with the same list of equations are the same.
    near: so are those that share most of their 5-grams.
  """
  removed: dict[str, list[str]] = collections.defaultdict(list)
  kept: dict[str, list[Trace]] = {"equal": [], "different": []}
  kept_by_problem: dict[tuple[str, str], _Kept] = {}
  for number, (trace, verdict) in enumerate(zip(traces, verdicts, strict=True)):
    name = f"{trace.problem_id}:{number}"
    if verdict.value == "undecided":
      removed[f"undecided: {verdict.reason}"].append(name)
      continue
    of_problem = (trace.problem_id, verdict.value)
    if of_problem not in kept_by_problem:
      kept_by_problem[of_problem] = _Kept(by_equations, near)
    rule = kept_by_problem[of_problem].repeats(trace.text)
    if rule:
      # "right" and "wrong" are keys of reports that users have: they stay.
      side = "wrong"
      if verdict.correct:
        side = "right"
      removed[f"{rule}: {side}"].append(name)
    else:
      kept[verdict.value].append(trace)
  report = {
    "traces": len(traces),
    "positive": len(kept["equal"]),
    "negative": len(kept["different"]),
    "removed": {rule: len(names) for rule, names in removed.items()},
    "removed_ids": dict(removed),
  }
  return Sets(kept["equal"], kept["different"], report)


def normalised(text: str) -> str:
  """Lower case, one space between words, no space before punctuation, no calculator marks."""
  text = re.sub(r"<<[^<>]*>>", "", text.lower())
  return re.sub(r"\s+(?=[.,;:!?)])", "", " ".join(text.split()))


def equations(text: str) -> tuple[str, ...]:
  """The equations of an arithmetic trace in order.

  Without spaces, currency, thousands separators and the words around them.
  """
  plain = re.sub(r"<<[^<>]*>>|[$,%]", "", text)
  plain = plain.replace("\N{MULTIPLICATION SIGN}", "*").replace("\N{MINUS SIGN}", "-")
  plain = re.sub(r"(?<=\d)\s*x\s*(?=\d)", "*", plain)
  # A left side begins where nothing of its kind stands before it: one look at every character.
  candidates = re.findall(r"(?<![-+*/().\d \t])[-+*/().\d \t]+=[ \t]*-?\d[\d.]*", " ," + plain)
  kept = []
  for candidate in candidates:
    equation = re.sub(r"\s", "", candidate).strip(".*/)")
    if re.search(r"\d.*=", equation):
      kept.append(equation)
  return tuple(kept)


class _Kept:
  """The traces of one problem and verdict that were kept."""

  def __init__(self, by_equations: bool, near: bool):
    self._by_equations = by_equations
    self._texts: set[str] = set()
    self._equations: set[tuple[str, ...]] = set()
    self._similar: Any = None
    if near:
      self._similar = _similar_index()
    self._sketches: list = []

  def repeats(self, text: str) -> str:
    """The rule by which a text repeats a kept one, or "" where it is new (it is kept then)."""
    plain = normalised(text)
    steps = equations(text)
    if plain in self._texts:
      return "same text"
    if self._by_equations and steps and steps in self._equations:
      return "same equations"
    sketch = None
    if self._similar is not None:
      sketch = _sketch(plain)
    if sketch is not None and self._has_similar(sketch):
      return "near duplicate"
    self._texts.add(plain)
    self._equations.add(steps)
    if sketch is not None:
      self._similar.insert(len(self._sketches), sketch)
      self._sketches.append(sketch)
    return ""

  def _has_similar(self, sketch) -> bool:
    # The index proposes candidates; their similarity is estimated from all permutations.
    for key in self._similar.query(sketch):
      if self._sketches[key].jaccard(sketch) >= _SIMILAR:
        return True
    return False


def _similar_index():
  from datasketch import MinHashLSH

  return MinHashLSH(threshold=_SIMILAR, num_perm=_PERMUTATIONS)


def _sketch(text: str):
  """MinHash of the word 5-grams, or None where there are fewer than five words."""
  from datasketch import MinHash

  words = text.split()
  if len(words) < _WORDS:
    return None
  shingles = []
  for start in range(len(words) - _WORDS + 1):
    shingle = " ".join(words[start : start + _WORDS])
    shingles.append(shingle.encode())
  sketch = MinHash(num_perm=_PERMUTATIONS)
  sketch.update_batch(shingles)
  return sketch
