"""`synthjax verify`: labels a file of traces and builds the sets of correct and incorrect ones."""

import collections
import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from synthjax import files, progress, records
from synthjax.records import Trace, Verdict
from synthjax.verify import extract, pool, sets
from synthjax.verify.policy import POLICIES


class _Unlabelled(NamedTuple):
  """A trace, with the answer that its text states, and the gold answer of its problem."""

  trace: Trace
  gold: str


def label(
  traces: files.Path, out: files.Path, mode: str, problems: files.Path = "", policy: str = "strict"
) -> dict:
  """Judges every trace of a JSONL file and returns the report.

  Writes `verdicts.jsonl`, `positive.jsonl`, `negative.jsonl` and `report.json` into `out`.

  Args:
    traces: rows of `records.Trace` (`problem_id`, `text`), with `gold` in the row or in `problems`.
    out: folder.
    mode: where the final answer stands, see `extract`.
    problems: JSONL of `records.Problem` (`id`, `question`, `answer`).
    policy: `strict` or `lm_eval`.

  Raises:
    DataError: a malformed row, or a trace whose gold answer is not known.
  """
  golds: dict[str, str] = {}
  if problems:
    golds = {problem.id: problem.answer for problem in records.read(records.Problem, problems)}
  rows = list(_rows(traces, golds, mode))
  pairs = [(row.gold, row.trace.answer) for row in rows]
  verdicts = pool.compare_many(pairs, POLICIES[policy])
  labelled = sets.build([row.trace for row in rows], verdicts)

  out = pathlib.Path(out)
  files.write_jsonl(out / "verdicts.jsonl", _verdict_rows(rows, verdicts))
  records.write(out / "positive.jsonl", labelled.positive)
  records.write(out / "negative.jsonl", labelled.negative)
  counts = collections.Counter(verdict.value for verdict in verdicts)
  reasons = collections.Counter(verdict.reason for verdict in verdicts if verdict.reason)
  report = {
    "file": str(traces),
    "mode": mode,
    "policy": policy,
    **{name: counts[name] for name in records.VERDICTS},
    "reasons": dict(reasons),
    "sets": labelled.report,
  }
  files.write_json(out / "report.json", report)
  progress.say(table(report, out))
  return report


def _rows(traces: files.Path, golds: Mapping[str, str], mode: str) -> Iterator[_Unlabelled]:
  for number, row in enumerate(files.read_jsonl(traces), 1):
    gold = row.pop("gold", None)
    row.pop("verdict", None)  # of an earlier run
    try:
      trace = Trace.from_json(row)
    except files.DataError as e:
      raise files.DataError(f"{traces}, row {number}: {e}") from e
    if gold is None:
      gold = golds.get(trace.problem_id)
    if not isinstance(gold, str):
      raise files.DataError(
        f"{traces}, row {number}: the gold answer of problem {trace.problem_id!r} is not known; "
        "put it into the row as `gold`, or give --problems FILE"
      )
    # The answer is what the text says, whatever the row claims.
    answer = extract.extract(trace.text, mode)
    yield _Unlabelled(Trace.from_json({**trace.to_json(), "answer": answer}), gold)


def _verdict_rows(rows: list[_Unlabelled], verdicts: list[Verdict]) -> Iterator[dict]:
  for row, verdict in zip(rows, verdicts):
    yield {**row.trace.to_json(), "gold": row.gold, "verdict": verdict.to_json()}


def table(report: Mapping, out: pathlib.Path) -> str:
  """The report as text: counts, and where the files lie."""
  total = sum(report[name] for name in records.VERDICTS)
  of_sets = report["sets"]
  removed = _listed(of_sets["removed"]) or " nothing"
  lines = (
    f"{report['file']}: {total:,} traces, answers by {report['mode']}, policy {report['policy']}",
    f"  equal {report['equal']:,}",
    f"  different {report['different']:,}",
    f"  undecided {report['undecided']:,}{_listed(report['reasons'])}",
    f"  sets: {of_sets['positive']:,} correct, {of_sets['negative']:,} incorrect; "
    f"taken out:{removed}",
    f"  in {out}: verdicts.jsonl, positive.jsonl, negative.jsonl, report.json",
  )
  return "\n".join(lines)


def _listed(counts: Mapping[str, int]) -> str:
  return "".join(f"\n    {name} {count:,}" for name, count in sorted(counts.items()))
