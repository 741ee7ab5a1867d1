"""From responses to a report: extraction, verdicts, numbers with intervals, and every wrong answer kept with its reason."""

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

from synthjax import files, stats
from synthjax.evaluate.protocols import Protocol
from synthjax.records import Verdict
from synthjax.verify import extract, fast, pool
from synthjax.verify.policy import POLICIES
from synthjax.worlds import shop


class Response(NamedTuple):
  """What a policy wrote for a problem."""

  text: str
  ended: bool = True  # by itself; a response that did not is truncated


@dataclasses.dataclass(frozen=True)
class Answered:
  """A problem with its responses."""

  id: str
  question: str
  gold: str
  responses: tuple[Response, ...]
  group: str = ""


def score(
  answered: Sequence[Answered],
  protocol: Protocol,
  policy: str,
  pass_at: Sequence[int],
  out: files.Path,
  decoding: Mapping[str, Any] | None = None,
) -> dict:
  """Judges all responses; writes `results.json`, `responses.jsonl` and `wrong.jsonl` into `out`. Returns the results.

  Raises:
    ValueError: no problems, or a k above the number of samples.
  """
  if not answered:
    raise files.DataError(f"protocol {protocol.name}: no problems to score")
  flat = [(problem, response) for problem in answered for response in problem.responses]
  found = [extract.extract(response.text, protocol.mode) for _, response in flat]
  verdicts = pool.compare_many(
    [(problem.gold, answer) for (problem, _), answer in zip(flat, found)], POLICIES[policy]
  )
  judged = [
    _Judged(*row) for row in zip((p for p, _ in flat), (r for _, r in flat), found, verdicts)
  ]
  of_problem: dict[str, list[_Judged]] = collections.defaultdict(list)
  for row in judged:
    of_problem[row.problem.id].append(row)
  results = {
    **protocol.record(),
    "policy": policy,
    "decoding": dict(decoding or {}),
    "versions": _versions(),
    **_numbers(list(of_problem.values()), pass_at),
    **_groups(list(of_problem.values())),
  }
  if protocol.task == "world":
    results["steps"] = dict(
      collections.Counter(
        s for row in judged for s in shop.judge_steps(row.problem.question, row.response.text)
      )
    )
  out = pathlib.Path(out)
  files.write_jsonl(
    out / "responses.jsonl",
    (
      {
        "id": rows[0].problem.id,
        "gold": rows[0].problem.gold,
        "group": rows[0].problem.group,
        "responses": [row.to_json() for row in rows],
      }
      for rows in of_problem.values()
    ),
  )
  files.write_jsonl(
    out / "wrong.jsonl",
    (
      {
        "id": row.problem.id,
        "question": row.problem.question,
        "gold": row.problem.gold,
        **row.to_json(),
      }
      for row in judged
      if not row.verdict.correct
    ),
  )
  files.write_json(out / "results.json", results)
  return results


class _Judged(NamedTuple):
  problem: Answered
  response: Response
  answer: str | None
  verdict: Verdict

  def to_json(self) -> dict:
    return {
      "text": self.response.text,
      "ended": self.response.ended,
      "answer": self.answer,
      **self.verdict.to_json(),
    }


def _numbers(problems: list[list[_Judged]], pass_at) -> dict:
  shares = [sum(row.verdict.correct for row in rows) / len(rows) for rows in problems]
  rows = [row for problem in problems for row in problem]
  accuracy, error = stats.mean(shares)
  found = {
    "problems": len(problems),
    "samples": len(rows),
    "accuracy": accuracy,
    "standard_error": error,
    "interval": stats.mean_interval(shares),
    "undecided": dict(collections.Counter(r.verdict.reason for r in rows if r.verdict.reason)),
    "no_answer": sum(row.answer is None for row in rows),
    "truncated": sum(not row.response.ended for row in rows),
    "flexible_accuracy": _flexible(problems),
  }
  for k in pass_at:
    found[f"pass@{k}"], found[f"pass@{k}_standard_error"] = stats.mean(
      [
        stats.pass_at(len(problem), sum(row.verdict.correct for row in problem), k)
        for problem in problems
      ]
    )
    votes = [_majority(problem[:k]) for problem in problems]
    found[f"maj@{k}"], found[f"maj@{k}_standard_error"] = stats.mean([right for right, _ in votes])
    found[f"maj@{k}_ties"] = sum(tie for _, tie in votes)
  return found


def _flexible(problems) -> float:
  """Accuracy of the last number of each response, whatever the protocol asks for: apart from it, the form was wrong and not the answer."""
  pairs = [
    (row.problem.gold, extract.extract(row.response.text, "last_number"))
    for problem in problems
    for row in problem
  ]
  verdicts = [pool.settle(gold, prediction) for gold, prediction in pairs]
  right = iter([verdict is not None and verdict.correct for verdict in verdicts])
  return stats.mean([sum(next(right) for _ in problem) / len(problem) for problem in problems])[0]


def _majority(rows: list[_Judged]) -> tuple[float, bool]:
  """(1 where the majority's answer is right, whether there was a tie); answers with one canonical form are one."""
  index, tie = stats.majority(
    [None if row.answer is None else fast.key(row.answer) for row in rows]
  )
  return (0.0 if index is None else float(rows[index].verdict.correct)), tie


def _groups(problems) -> dict:
  """Accuracy by subject and level, where the task has them."""
  members: dict[str, list[float]] = collections.defaultdict(list)
  for rows in problems:
    for group in filter(None, rows[0].problem.group.split(", ")):
      members[group].append(sum(row.verdict.correct for row in rows) / len(rows))
  return (
    {
      "groups": {
        name: dict(zip(("accuracy", "standard_error"), stats.mean(values)), problems=len(values))
        for name, values in sorted(members.items())
      }
    }
    if members
    else {}
  )


def _versions() -> dict[str, str]:
  return {
    name: metadata.version(name)
    for name in ("math-verify", "latex2sympy2_extended", "sympy", "antlr4-python3-runtime")
  }


def compare(one: files.Path, other: files.Path) -> dict:
  """Paired difference in accuracy of two `responses.jsonl` files: other - one, over the problems that both have.

  Raises:
    DataError: they share no problem.
  """
  of = [shares(one), shares(other)]
  both = [name for name in of[0] if name in of[1]]
  if not both:
    raise files.DataError(f"{one} and {other} have no problem in common")
  difference, error = stats.paired(*[[share[name] for name in both] for share in of])
  return {
    "problems": len(both),
    "left_out": len(of[0]) + len(of[1]) - 2 * len(both),
    "difference": difference,
    "standard_error": error,
    "interval": (difference - 1.96 * error, difference + 1.96 * error),
  }


def shares(path: files.Path) -> dict[str, float]:
  """Problem id -> share of right responses, from a `responses.jsonl`."""
  return {
    row["id"]: sum(r["value"] == "equal" for r in row["responses"]) / len(row["responses"])
    for row in files.read_jsonl(path)
  }


def table(results: dict) -> str:
  """The results as a person reads them."""
  low, high = results["interval"]
  undecided = ", ".join(f"{n} {reason}" for reason, n in results["undecided"].items()) or "none"
  lines = [
    f"{results['protocol']}: {results['problems']:,} problems, {results['samples']:,} responses, policy {results['policy']}, "
    f"prompt {results['prompt_hash'][:12]}",
    f"  accuracy {_percent(results, 'accuracy')}, 95 % interval {100 * low:.1f} to {100 * high:.1f} %; "
    f"last number {100 * results['flexible_accuracy']:.1f} %",
    f"  without an answer {results['no_answer']:,}, truncated {results['truncated']:,}, undecided (counted as wrong): {undecided}",
  ]
  for name in results:
    if name.startswith(("pass@", "maj@")) and f"{name}_standard_error" in results:
      ties = f", {results[f'{name}_ties']} ties" if f"{name}_ties" in results else ""
      lines.append(f"  {name} {_percent(results, name)}{ties}")
  for name, group in results.get("groups", {}).items():
    shown = stats.percent(group["accuracy"], group["standard_error"], group["problems"])
    lines.append(f"  {name:28} {shown:>20} % of {group['problems']:,}")
  return "\n".join(lines)


def _percent(results, name) -> str:
  error = results["standard_error" if name == "accuracy" else f"{name}_standard_error"]
  return f"{100 * results[name]:.2f} ± {100 * error:.2f} %"


def read_generations(
  path: files.Path, golds: Callable[[], Mapping[str, Answered]]
) -> list[Answered]:
  """Somebody else's generations: JSONL of {id, responses: [text, ...]} or {id, response}; `gold` in the row, or found by id in the task.

  Raises:
    DataError: a row has neither text nor a known gold answer.
  """
  known: Mapping[str, Answered] = {}
  answered = []
  for number, row in enumerate(files.read_jsonl(path), 1):
    texts = row.get("responses", [row["response"]] if "response" in row else None)
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
      raise files.DataError(
        f"{path}, row {number}: expected `responses` (a list of texts) or `response` (a text), found {', '.join(row)}"
      )
    name = str(row.get("id", number - 1))
    if not isinstance(row.get("gold"), str):
      known = known or golds()
      if name not in known:
        raise files.DataError(
          f"{path}, row {number}: no `gold` in the row, and the task has no problem {name!r}"
        )
    gold = row["gold"] if isinstance(row.get("gold"), str) else known[name].gold
    question, group = str(row.get("question", "")), str(row.get("group", ""))
    answered.append(Answered(name, question, gold, tuple(Response(text) for text in texts), group))
  return answered
