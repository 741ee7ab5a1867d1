"""Sets of right and wrong traces per problem, without repetitions.

Three ways in which two traces of a problem are the same: their text after normalisation, their list of equations (arithmetic traces: the
words around them do not count), and word 5-grams with a Jaccard similarity of 0.8 and more (MinHash).
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
  """What became of a job's traces."""

  positive: list[Trace]
  negative: list[Trace]
  report: dict  # counts by rule, and which traces each rule took out


def build(
  traces: Sequence[Trace], verdicts: Sequence[Verdict], by_equations: bool = True, near: bool = True
) -> Sets:
  """Splits traces by their verdict and keeps one of those that are the same; undecided ones are dropped. All is counted.

  Args:
    traces: of any problems, in order; of traces that are the same the first one stays.
    verdicts: one a trace.
    by_equations: traces of a problem with the same list of equations are the same.
    near: so are those that share most of their 5-grams.
  """
  removed: dict[str, list[str]] = collections.defaultdict(list)
  kept: dict[str, list[Trace]] = {"equal": [], "different": []}
  seen: dict[tuple[str, str], _Seen] = {}
  for number, (trace, verdict) in enumerate(zip(traces, verdicts, strict=True)):
    name = f"{trace.problem_id}:{number}"
    if verdict.value == "undecided":
      removed[f"undecided: {verdict.reason}"].append(name)
      continue
    of_problem = seen.setdefault((trace.problem_id, verdict.value), _Seen(by_equations, near))
    rule = of_problem.repeats(trace.text)
    if rule:
      removed[f"{rule}: {'right' if verdict.correct else 'wrong'}"].append(name)
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
  """The equations of an arithmetic trace in order, without spaces, currency, thousands separators and the words around them."""
  plain = (
    re.sub(r"<<[^<>]*>>|[$,%]", "", text)
    .replace("\N{MULTIPLICATION SIGN}", "*")
    .replace("\N{MINUS SIGN}", "-")
  )
  plain = re.sub(r"(?<=\d)\s*x\s*(?=\d)", "*", plain)
  # A left side begins where nothing of its kind stands before it: one look at every character.
  found = re.findall(r"(?<![-+*/().\d \t])[-+*/().\d \t]+=[ \t]*-?\d[\d.]*", " ," + plain)
  bare = (re.sub(r"\s", "", equation).strip(".*/)") for equation in found)
  return tuple(equation for equation in bare if re.search(r"\d.*=", equation))


class _Seen:
  """The traces of one problem and verdict that were kept."""

  def __init__(self, by_equations: bool, near: bool):
    self.texts: set[str] = set()
    self.equations: set[tuple[str, ...]] | None = set() if by_equations else None
    self.similar: Any = _similar_index() if near else None
    self.sketches: list = []

  def repeats(self, text: str) -> str:
    """The rule by which a text repeats one that was kept, or "" where it is new (it is kept then)."""
    plain, steps = normalised(text), equations(text)
    if plain in self.texts:
      return "same text"
    if self.equations is not None and steps and steps in self.equations:
      return "same equations"
    sketch = _sketch(plain) if self.similar is not None else None
    if sketch is not None and any(
      self.sketches[key].jaccard(sketch) >= _SIMILAR for key in self.similar.query(sketch)
    ):
      return "near duplicate"
    self.texts.add(plain)
    if self.equations is not None:
      self.equations.add(steps)
    if sketch is not None:
      self.similar.insert(len(self.sketches), sketch)
      self.sketches.append(sketch)
    return ""


def _similar_index():
  from datasketch import MinHashLSH

  return MinHashLSH(threshold=_SIMILAR, num_perm=_PERMUTATIONS)


def _sketch(text: str):
  """MinHash of the word 5-grams, or None where there are fewer than five words."""
  from datasketch import MinHash

  words = text.split()
  if len(words) < _WORDS:
    return None
  sketch = MinHash(num_perm=_PERMUTATIONS)
  sketch.update_batch(
    [" ".join(words[i : i + _WORDS]).encode() for i in range(len(words) - _WORDS + 1)]
  )
  return sketch
