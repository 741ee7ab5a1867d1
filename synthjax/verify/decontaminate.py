"""Decontamination: training problems that are, or contain, problems of an evaluation set.

A bare 13-gram rule does not fit mathematics: MATH's own training problems share a 13-gram with 12 %
of its test problems. So a shared 13-gram counts only where most of one problem lies in the other.
"""

import collections
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from synthjax import files

_N = 13  # words of a gram
_CONTAINED = 0.6  # share of the 13-grams of the one with fewer that the other has
RULES = ("exact", "contained", "short")
_EVALUATION_FIELDS = ("question", "problem", "input")

WordTuple = tuple[str, ...]


class Hit(NamedTuple):
  """A candidate, the evaluation problem it repeats, and by which rule."""

  candidate: str
  evaluation: str
  rule: str


class Contamination(NamedTuple):
  """Which candidates repeat evaluation problems."""

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
    self._short: dict[WordTuple, str] = {}
    self._templates: dict[str, str] = {}
    self._grams: dict[WordTuple, list[str]] = collections.defaultdict(list)
    self._sizes: dict[str, int] = {}
    self._longest = max(map(len, evaluation.values()), default=0)
    for name, text in evaluation.items():
      words = words_of(text)
      self._exact.setdefault(normalised(text), name)
      self._templates.setdefault(masked(text), name)
      if len(words) < _N:
        self._short.setdefault(_with_signs(text), name)
      grams = set(_grams(words))
      self._sizes[name] = len(grams)
      for gram in grams:
        self._grams[gram].append(name)

  def match(self, text: str) -> tuple[str, str] | None:
    """(evaluation problem, rule) that a text repeats, or None."""
    # A text ten times as long as the longest problem is not one of them: running text is read fast.
    if len(text) <= 10 * self._longest:
      name = self._exact.get(normalised(text))
      if name:
        return name, "exact"
    words = words_of(text)
    known = {gram for gram in _grams(words) if gram in self._grams}
    shared: collections.Counter[str] = collections.Counter()
    for gram in known:
      shared.update(self._grams[gram])
    for name, count in shared.most_common():
      smaller = min(len(set(_grams(words))), self._sizes[name])
      if count > _CONTAINED * smaller:
        return name, "contained"
    if len(words) < _N:
      name = self._short.get(_with_signs(text))
      if name:
        return name, "short"
    return None

  def template(self, text: str) -> str | None:
    """An evaluation problem that differs in its numbers alone."""
    return self._templates.get(masked(text))

  def search(self, candidates: Mapping[str, str]) -> Contamination:
    """All candidates (id -> text) that repeat an evaluation problem."""
    hits = []
    templates = []
    for name, text in candidates.items():
      if match := self.match(text):
        hits.append(Hit(name, *match))
      elif similar := self.template(text):
        templates.append(Hit(name, similar, "template"))
    removed_ids: dict[str, list[str]] = {rule: [] for rule in RULES}
    for hit in hits:
      removed_ids[hit.rule].append(hit.candidate)
    report = {
      "candidates": len(candidates),
      "clean": len(candidates) - len(hits),
      "removed": {rule: len(ids) for rule, ids in removed_ids.items()},
      "removed_ids": removed_ids,
      "template_overlap": len(templates),
      "template_ids": [hit.candidate for hit in templates],
    }
    return Contamination(hits, templates, report)


_WITHOUT_MEANING = re.compile(r"[\s$,:;!?~]|\.(?!\d)|\\[,!;: ]|\\left|\\right|(?<=\\)[dt](?=frac)")


def normalised(text: str) -> str:
  """Lower case, without spacing, dollar signs, sentence marks and styles of LaTeX.

  Variants of fractions and brackets become one; signs and numbers stay.
  """
  return _WITHOUT_MEANING.sub("", text.lower())


def words_of(text: str) -> WordTuple:
  """Lower-case words and numbers; punctuation and LaTeX marks do not count."""
  return tuple(re.findall(r"[a-z]+|\d+", text.lower()))


def _with_signs(text: str) -> WordTuple:
  """WordTuple, numbers and the signs between them.

  In a short text `3 + 4` is another problem than `3 - 4`.
  """
  return tuple(re.findall(r"[a-z]+|\d+|[+*/^=<>]|-(?=\s*\d)", text.lower()))


def masked(text: str) -> str:
  """The text's words with every number replaced, so that problems of one template are equal."""
  joined = re.sub(r"(?<=\d)[.,](?=\d)", "", text)
  return " ".join(re.sub(r"^\d+$", "0", word) for word in words_of(joined))


def _grams(words: WordTuple) -> Iterator[WordTuple]:
  return zip(*(words[i:] for i in range(_N)))


def clean_file(
  candidates: files.Path, evaluation: Sequence[files.Path], field: str, out: files.Path
) -> dict:
  """Writes the rows of a JSONL file that repeat no evaluation problem to `out/clean.jsonl`.

  What was taken out goes to `out/report.json`; returns the report.

  Args:
    candidates: JSONL; each row has the problem's text in `field`.
    evaluation: JSONL files of evaluation problems, with the text in `question`, `problem` or
      `input`.
    field: of the candidates.
    out: folder.

  Raises:
    DataError: a row without the text.
  """
  evaluation_texts = {}
  for path in evaluation:
    for number, row in enumerate(files.read_jsonl(path), 1):
      evaluation_texts[f"{path}:{number}"] = _text(path, number, row, _EVALUATION_FIELDS)
  index = Index(evaluation_texts)

  rows = {}
  for number, row in enumerate(files.read_jsonl(candidates), 1):
    identity = row.get("id", row.get("unique_id", number))
    rows[f"{number}:{identity}"] = row
  texts = {name: _text(candidates, name, row, (field,)) for name, row in rows.items()}
  contamination = index.search(texts)
  removed = {hit.candidate for hit in contamination.hits}
  clean = [row for name, row in rows.items() if name not in removed]
  report = {
    **contamination.report,
    "hits": [hit._asdict() for hit in contamination.hits],
    "templates": [hit._asdict() for hit in contamination.templates],
  }
  out = pathlib.Path(out)
  files.write_jsonl(out / "clean.jsonl", clean)
  files.write_json(out / "report.json", report)
  return contamination.report


def _text(path, number, row, fields) -> str:
  """The text of the first field that holds one."""
  for field in fields:
    value = row.get(field)
    if isinstance(value, str):
      return value
  raise files.DataError(
    f"{path}, row {number}: none of the fields {', '.join(fields)} holds text "
    f"(found fields: {', '.join(row)})"
  )
