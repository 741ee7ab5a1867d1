"""From responses to a report: extraction, verdicts, numbers with intervals, and every incorrect
answer kept with its reason.
"""

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

# A new version of any of them may give another verdict.
_JUDGES = ("math-verify", "latex2sympy2_extended", "sympy", "antlr4-python3-runtime")


class Response(NamedTuple):
  """A policy's text for a problem."""

  text: str
  # By a stop token or stop text; otherwise the response is truncated.
  ended: bool = True


@dataclasses.dataclass(frozen=True)
class Answered:
  """A problem with its responses."""

  id: str
  question: str
  gold: str
  responses: tuple[Response, ...]
  # Subject and level, joined by ", ", where the task has them.
  group: str = ""


class _JudgedResponse(NamedTuple):
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


def score(
  answered: Sequence[Answered],
  protocol: Protocol,
  policy: str,
  pass_at: Sequence[int],
  out: files.Path,
  decoding: Mapping[str, Any] | None = None,
) -> dict:
  """Judges all responses; writes `results.json`, `responses.jsonl` and `wrong.jsonl`.

  Args:
    answered: problems with at least one response each.
    protocol: how they were asked, and where the answer stands.
    policy: what counts as equal, a name of verify/policy.py.
    pass_at: every k of pass@k and maj@k.
    out: folder for the three files.
    decoding: JSON; stands beside the results.

  Returns:
    The results.

  Raises:
    DataError: no problems.
    ValueError: a k above the number of samples.
  """
  if not answered:
    raise files.DataError(f"protocol {protocol.name}: no problems to score")
  judged = _judge(answered, protocol, policy)
  by_problem: dict[str, list[_JudgedResponse]] = collections.defaultdict(list)
  for row in judged:
    by_problem[row.problem.id].append(row)
  problems = list(by_problem.values())
  results = {
    **protocol.record(),
    "policy": policy,
    "decoding": dict(decoding or {}),
    "versions": {name: metadata.version(name) for name in _JUDGES},
    **_numbers(problems, pass_at),
    **_groups(problems),
  }
  if protocol.task == "world":
    kinds: collections.Counter[str] = collections.Counter()
    for row in judged:
      kinds.update(shop.judge_steps(row.problem.question, row.response.text))
    results["steps"] = dict(kinds)
  out = pathlib.Path(out)
  files.write_jsonl(out / "responses.jsonl", map(_response_row, problems))
  incorrect = [row for row in judged if not row.verdict.correct]
  files.write_jsonl(out / "wrong.jsonl", map(_incorrect_row, incorrect))
  # Last: whoever finds it finds the other two.
  files.write_json(out / "results.json", results)
  return results


def _judge(answered: Sequence[Answered], protocol: Protocol, policy: str) -> list[_JudgedResponse]:
  asked, pairs = [], []
  for problem in answered:
    for response in problem.responses:
      asked.append((problem, response))
      pairs.append((problem.gold, extract.extract(response.text, protocol.mode)))
  verdicts = pool.compare_many(pairs, POLICIES[policy])
  judged = []
  for (problem, response), (_, answer), verdict in zip(asked, pairs, verdicts):
    judged.append(_JudgedResponse(problem, response, answer, verdict))
  return judged


def _response_row(rows: list[_JudgedResponse]) -> dict:
  problem = rows[0].problem
  return {
    "id": problem.id,
    "gold": problem.gold,
    "group": problem.group,
    "responses": [row.to_json() for row in rows],
  }


def _incorrect_row(row: _JudgedResponse) -> dict:
  return {
    "id": row.problem.id,
    "question": row.problem.question,
    "gold": row.problem.gold,
    **row.to_json(),
  }


def _numbers(problems: list[list[_JudgedResponse]], pass_at: Sequence[int]) -> dict:
  shares = [_share_correct(rows) for rows in problems]
  judged = [row for rows in problems for row in rows]
  accuracy, error = stats.mean(shares)
  reasons = collections.Counter(row.verdict.reason for row in judged if row.verdict.reason)
  numbers = {
    "problems": len(problems),
    "samples": len(judged),
    "accuracy": accuracy,
    "standard_error": error,
    "interval": stats.mean_interval(shares),
    "undecided": dict(reasons),
    "no_answer": sum(row.answer is None for row in judged),
    "truncated": sum(not row.response.ended for row in judged),
    "flexible_accuracy": _flexible_accuracy(problems),
  }
  for k in pass_at:
    passed = [stats.pass_at(len(rows), _count_correct(rows), k) for rows in problems]
    numbers[f"pass@{k}"], numbers[f"pass@{k}_standard_error"] = stats.mean(passed)
    votes = [_majority(rows[:k]) for rows in problems]
    majority = stats.mean([vote.correct for vote in votes])
    numbers[f"maj@{k}"], numbers[f"maj@{k}_standard_error"] = majority
    numbers[f"maj@{k}_ties"] = sum(vote.tie for vote in votes)
  return numbers


def _count_correct(rows: list[_JudgedResponse]) -> int:
  return sum(row.verdict.correct for row in rows)


def _share_correct(rows: list[_JudgedResponse]) -> float:
  return _count_correct(rows) / len(rows)


def _flexible_accuracy(problems: list[list[_JudgedResponse]]) -> float:
  """Accuracy of each response's last number, whatever the protocol asks for.

  Where it is above the accuracy, responses have a form that the protocol does not expect.
  """
  shares = []
  for rows in problems:
    correct = 0
    for row in rows:
      prediction = extract.extract(row.response.text, "last_number")
      verdict = pool.settle(row.problem.gold, prediction)
      correct += verdict is not None and verdict.correct
    shares.append(correct / len(rows))
  return stats.mean(shares)[0]


class _Vote(NamedTuple):
  # 1 where the majority's answer is correct, else 0.
  correct: float
  tie: bool


def _majority(rows: list[_JudgedResponse]) -> _Vote:
  """The vote of a problem's responses; answers that share a canonical form count as one."""
  keys = [None if row.answer is None else fast.key(row.answer) for row in rows]
  index, tie = stats.majority(keys)
  if index is None:
    return _Vote(0.0, tie)
  return _Vote(float(rows[index].verdict.correct), tie)


def _groups(problems: list[list[_JudgedResponse]]) -> dict:
  """Accuracy by subject and level, where the task has them."""
  shares: dict[str, list[float]] = collections.defaultdict(list)
  for rows in problems:
    for group in filter(None, rows[0].problem.group.split(", ")):
      shares[group].append(_share_correct(rows))
  groups = {}
  for name, values in sorted(shares.items()):
    accuracy, error = stats.mean(values)
    groups[name] = {"accuracy": accuracy, "standard_error": error, "problems": len(values)}
  return {"groups": groups} if groups else {}


def compare(one: files.Path, other: files.Path) -> dict:
  """Paired difference in accuracy of two `responses.jsonl` files.

  Returns:
    JSON of `other` - `one` over the problems that both have, with its standard error and 95 %
    interval, as shares.

  Raises:
    DataError: they share no problem.
  """
  shares_one, shares_other = shares(one), shares(other)
  both = [id for id in shares_one if id in shares_other]
  if not both:
    raise files.DataError(f"{one} and {other} have no problem in common")
  difference, error = stats.paired(
    [shares_one[id] for id in both], [shares_other[id] for id in both]
  )
  return {
    "problems": len(both),
    "left_out": len(shares_one) + len(shares_other) - 2 * len(both),
    "difference": difference,
    "standard_error": error,
    "interval": (difference - 1.96 * error, difference + 1.96 * error),
  }


def shares(path: files.Path) -> dict[str, float]:
  """Problem id -> share of correct responses, from a `responses.jsonl`."""
  found = {}
  for row in files.read_jsonl(path):
    correct = sum(response["value"] == "equal" for response in row["responses"])
    found[row["id"]] = correct / len(row["responses"])
  return found


def table(results: dict) -> str:
  """The results as a person reads them."""
  low, high = results["interval"]
  counts = [f"{n} {reason}" for reason, n in results["undecided"].items()]
  undecided = ", ".join(counts) or "none"
  lines = [
    f"{results['protocol']}: {results['problems']:,} problems, {results['samples']:,} responses, "
    f"policy {results['policy']}, prompt {results['prompt_hash'][:12]}",
    f"  accuracy {_percent(results, 'accuracy', 'standard_error')}, "
    f"95 % interval {100 * low:.1f} to {100 * high:.1f} %; "
    f"last number {100 * results['flexible_accuracy']:.1f} %",
    f"  without an answer {results['no_answer']:,}, truncated {results['truncated']:,}, "
    f"undecided (counted as incorrect): {undecided}",
  ]
  for name in results:
    error = f"{name}_standard_error"
    if name.startswith(("pass@", "maj@")) and error in results:
      line = f"  {name} {_percent(results, name, error)}"
      if f"{name}_ties" in results:
        line += f", {results[f'{name}_ties']} ties"
      lines.append(line)
  for name, group in results.get("groups", {}).items():
    accuracy = stats.percent(group["accuracy"], group["standard_error"], group["problems"])
    lines.append(f"  {name:28} {accuracy:>20} % of {group['problems']:,}")
  return "\n".join(lines)


def _percent(results: dict, name: str, error: str) -> str:
  return f"{100 * results[name]:.2f} ± {100 * results[error]:.2f} %"


def read_generations(
  path: files.Path, golds: Callable[[], Mapping[str, Answered]]
) -> list[Answered]:
  """Completions that were sampled elsewhere, with their problems.

  Args:
    path: JSONL of {id, responses: [text, ...]} or {id, response: text}, optionally `gold`,
      `question` and `group`. A row without an id is called by its number, from 0.
    golds: problem id -> problem of the task; called only where a row has no `gold`.

  Raises:
    DataError: a row has no text, or no known gold answer.
  """
  known: Mapping[str, Answered] = {}
  answered = []
  for number, row in enumerate(files.read_jsonl(path), 1):
    texts = _texts(row)
    if not texts:
      raise files.DataError(
        f"{path}, row {number}: expected `responses` (a list of texts) or `response` (a text), "
        f"found {', '.join(row)}"
      )
    id, gold = str(row.get("id", number - 1)), row.get("gold")
    if not isinstance(gold, str):
      known = known or golds()
      if id not in known:
        raise files.DataError(
          f"{path}, row {number}: no `gold` in the row, and the task has no problem {id!r}"
        )
      gold = known[id].gold
    problem = Answered(
      id=id,
      question=str(row.get("question", "")),
      gold=gold,
      responses=tuple(Response(text) for text in texts),
      group=str(row.get("group", "")),
    )
    answered.append(problem)
  return answered


def _texts(row: dict) -> list[str]:
  """A row's texts; none where they are not there or of another type."""
  texts = [row["response"]] if "response" in row else []
  texts = row.get("responses", texts)
  if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
    return texts
  return []
