"""`synthjax verify`: labels a file of traces and builds the sets of right and wrong ones."""

import collections
import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from synthjax import files, progress, records
from synthjax.records import Trace, Verdict
from synthjax.verify import extract, pool, sets
from synthjax.verify.policy import POLICIES


class Labelled(NamedTuple):
  """A trace with its gold answer and its verdict."""

  trace: Trace
  gold: str
  verdict: Verdict


def label(
  traces: files.Path, out: files.Path, mode: str, problems: files.Path = "", policy: str = "strict"
) -> dict:
  """Judges every trace of a JSONL file; writes `verdicts.jsonl`, `positive.jsonl`, `negative.jsonl` and `report.json` into `out`.

  Args:
    traces: rows of `records.Trace` (`problem_id`, `text`), with `gold` in the row or in `problems`.
    out: folder.
    mode: where the final answer stands, see `extract`.
    problems: JSONL of `records.Problem` (`id`, `question`, `answer`).
    policy: `strict` or `lm_eval`.

  Raises:
    DataError: a malformed row, or a trace whose gold answer is not known.
  """
  golds = {p.id: p.answer for p in records.read(records.Problem, problems)} if problems else {}
  rows = list(_rows(traces, golds, mode))
  verdicts = pool.compare_many([(gold, trace.answer) for trace, gold in rows], POLICIES[policy])
  labelled = [Labelled(trace, gold, verdict) for (trace, gold), verdict in zip(rows, verdicts)]
  found = sets.build([row.trace for row in labelled], verdicts)
  out = pathlib.Path(out)
  files.write_jsonl(
    out / "verdicts.jsonl",
    (
      {**row.trace.to_json(), "gold": row.gold, "verdict": row.verdict.to_json()}
      for row in labelled
    ),
  )
  records.write(out / "positive.jsonl", found.positive)
  records.write(out / "negative.jsonl", found.negative)
  counts = collections.Counter(verdict.value for verdict in verdicts)
  undecided = collections.Counter(verdict.reason for verdict in verdicts if verdict.reason)
  report = {
    "file": str(traces),
    "mode": mode,
    "policy": policy,
    **{name: counts[name] for name in records.VERDICTS},
    "reasons": dict(undecided),
    "sets": found.report,
  }
  files.write_json(out / "report.json", report)
  progress.say(table(report, out))
  return report


def _rows(traces: files.Path, golds: Mapping[str, str], mode: str) -> Iterator[tuple[Trace, str]]:
  for number, row in enumerate(files.read_jsonl(traces), 1):
    gold = row.pop("gold", None)
    row.pop("verdict", None)  # of an earlier run
    try:
      trace = Trace.from_json(row)
    except files.DataError as e:
      raise files.DataError(f"{traces}, row {number}: {e}") from e
    gold = golds.get(trace.problem_id) if gold is None else gold
    if not isinstance(gold, str):
      raise files.DataError(
        f"{traces}, row {number}: the gold answer of problem {trace.problem_id!r} is not known; put it into the row as "
        "`gold`, or give --problems FILE"
      )
    # The answer is what the text says, whatever the row claims.
    yield Trace.from_json({**trace.to_json(), "answer": extract.extract(trace.text, mode)}), gold


def table(report: Mapping, out: pathlib.Path) -> str:
  """What was found and where it lies."""
  total = sum(report[name] for name in records.VERDICTS)
  reasons = "".join(f"\n    {reason} {n:,}" for reason, n in sorted(report["reasons"].items()))
  removed = "".join(f"\n    {rule} {n:,}" for rule, n in sorted(report["sets"]["removed"].items()))
  return (
    f"{report['file']}: {total:,} traces, answers by {report['mode']}, policy {report['policy']}\n"
    f"  equal {report['equal']:,}\n  different {report['different']:,}\n  undecided {report['undecided']:,}{reasons}\n"
    f"  sets: {report['sets']['positive']:,} right, {report['sets']['negative']:,} wrong; taken out:{removed or ' nothing'}\n"
    f"  in {out}: verdicts.jsonl, positive.jsonl, negative.jsonl, report.json"
  )
