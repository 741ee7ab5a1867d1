"""Decontamination: training problems that are, or contain, problems of an evaluation set.

A bare 13-gram rule is wrong for mathematics: MATH's own training problems share a 13-gram with 12 % of its test problems. So a shared
13-gram counts only where most of one problem lies in the other.

Shapes: N words of a gram.
"""

import collections
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from synthjax import files

_N = 13
_CONTAINED = 0.6  # share of the 13-grams of the one with fewer that the other has
RULES = ("exact", "contained", "short")


class Hit(NamedTuple):
  """A candidate, the evaluation problem it repeats, and by which rule."""

  candidate: str
  evaluation: str
  rule: str


class Found(NamedTuple):
  """What a search found."""

  hits: list[Hit]  # to be deleted: one a candidate, by the first rule that holds
  templates: list[Hit]  # equal but for their numbers: reported, not deleted
  report: dict  # counts and ids by rule, and the size of the clean subset


class Index:
  """The problems of the evaluation sets, ready to be compared with.

  Args:
    evaluation: id -> text.
  """

  def __init__(self, evaluation: Mapping[str, str]):
    self._exact: dict[str, str] = {}
    self._short: dict[tuple[str, ...], str] = {}
    self._templates: dict[str, str] = {}
    self._grams: dict[tuple[str, ...], list[str]] = collections.defaultdict(list)
    self._sizes: dict[str, int] = {}
    self._longest = max(map(len, evaluation.values()), default=0)
    for name, text in evaluation.items():
      words = words_of(text)
      self._exact.setdefault(normalised(text), name)
      self._templates.setdefault(masked(text), name)
      if len(words) < _N:
        self._short.setdefault(_with_signs(text), name)
      grams = _grams(words)
      self._sizes[name] = len(grams)
      for gram in grams:
        self._grams[gram].append(name)

  def match(self, text: str) -> tuple[str, str] | None:
    """(evaluation problem, rule) that a text repeats, or None."""
    # A text ten times as long as the longest problem is not one of them: running text is read fast.
    name = self._exact.get(normalised(text)) if len(text) <= 10 * self._longest else None
    if name:
      return name, "exact"
    words = words_of(text)
    known = {gram for gram in zip(*(words[i:] for i in range(_N))) if gram in self._grams}
    shared = collections.Counter(name for gram in known for name in self._grams[gram])
    for name, count in shared.most_common():
      if count > _CONTAINED * min(len(_grams(words)), self._sizes[name]):
        return name, "contained"
    if len(words) < _N and (name := self._short.get(_with_signs(text))):
      return name, "short"
    return None

  def template(self, text: str) -> str | None:
    """An evaluation problem that differs in its numbers alone."""
    return self._templates.get(masked(text))

  def search(self, candidates: Mapping[str, str]) -> Found:
    """All candidates (id -> text) that repeat an evaluation problem."""
    matches = {name: self.match(text) for name, text in candidates.items()}
    hits = [Hit(name, *match) for name, match in matches.items() if match]
    templates = [
      Hit(name, other, "template")
      for name, text in candidates.items()
      if not matches[name] and (other := self.template(text))
    ]
    ids = {rule: [hit.candidate for hit in hits if hit.rule == rule] for rule in RULES}
    report = {
      "candidates": len(candidates),
      "clean": len(candidates) - len(hits),
      "removed": {r: len(found) for r, found in ids.items()},
      "removed_ids": ids,
      "template_overlap": len(templates),
      "template_ids": [hit.candidate for hit in templates],
    }
    return Found(hits, templates, report)


def normalised(text: str) -> str:
  """Lower case, without spacing, dollar signs, sentence marks and variants of LaTeX's fractions and brackets; signs and numbers stay."""
  return re.sub(
    r"[\s$,:;!?~]|\.(?!\d)|\\[,!;: ]|\\left|\\right|(?<=\\)[dt](?=frac)", "", text.lower()
  )


def words_of(text: str) -> tuple[str, ...]:
  """Lower-case words and numbers; punctuation and LaTeX marks do not count."""
  return tuple(re.findall(r"[a-z]+|\d+", text.lower()))


def _with_signs(text: str) -> tuple[str, ...]:
  """Words, numbers and the signs between them: in a short text `3 + 4` is another problem than `3 - 4`."""
  return tuple(re.findall(r"[a-z]+|\d+|[+*/^=<>]|-(?=\s*\d)", text.lower()))


def masked(text: str) -> str:
  """The text's words with every number replaced, so that problems of one template are equal."""
  return " ".join(
    "0" if word.isdigit() else word for word in words_of(re.sub(r"(?<=\d)[.,](?=\d)", "", text))
  )


def _grams(words: Sequence[str]) -> set[tuple[str, ...]]:
  return set(zip(*(words[i:] for i in range(_N))))


def clean_file(
  candidates: files.Path, evaluation: Sequence[files.Path], field: str, out: files.Path
) -> dict:
  """Writes the rows of a JSONL file that repeat no evaluation problem to `out/clean.jsonl`, and what was taken out to `out/report.json`.

  Args:
    candidates: JSONL; each row has the problem's text in `field`.
    evaluation: JSONL files of evaluation problems, with the text in `question`, `problem` or `input`.
    field: of the candidates.
    out: folder.

  Raises:
    DataError: a row without the text.
  """
  index = Index(
    {
      f"{path}:{number}": _text(path, number, row, ("question", "problem", "input"))
      for path in evaluation
      for number, row in enumerate(files.read_jsonl(path), 1)
    }
  )
  rows = {
    f"{number}:{row.get('id', row.get('unique_id', number))}": row
    for number, row in enumerate(files.read_jsonl(candidates), 1)
  }
  found = index.search({name: _text(candidates, name, row, (field,)) for name, row in rows.items()})
  gone = {hit.candidate for hit in found.hits}
  out = pathlib.Path(out)
  files.write_jsonl(out / "clean.jsonl", (row for name, row in rows.items() if name not in gone))
  files.write_json(
    out / "report.json",
    {
      **found.report,
      "hits": [hit._asdict() for hit in found.hits],
      "templates": [hit._asdict() for hit in found.templates],
    },
  )
  return found.report


def _text(path, number, row, fields) -> str:
  value = next((row[field] for field in fields if isinstance(row.get(field), str)), None)
  if value is None:
    raise files.DataError(
      f"{path}, row {number}: none of the fields {', '.join(fields)} holds text (found fields: {', '.join(row)})"
    )
  return value
