"""A cell's traces: the teacher's, and those sampled from its policies. Each call is a stage."""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from synthjax import files, records
from synthjax import job as jobs
from synthjax.config import schema
from synthjax.credit.traces import SampledTrace, distinct_correct, sample_traces
from synthjax.data.tokenizers import Tokenizer
from synthjax.errors import Error
from synthjax.math_study import served, study_folder
from synthjax.math_study.cell import Cell, Cost, Solution, TrainedPolicy
from synthjax.records import Verdict
from synthjax.rollout import journal, requests
from synthjax.rollout.engine import JaxEngine
from synthjax.verify import extract


class TooWeakError(Error, RuntimeError):
  """A policy whose samples are correct too seldom for step values to mean anything."""


class PolicySamples(NamedTuple):
  """Traces of every problem of a cell."""

  traces: list[SampledTrace]
  cost: Cost  # of sampling them


def teacher(cell: Cell) -> list[Solution]:
  """The teacher's solutions whose answers are correct; the others are counted.

  Raises:
    DataError: none is correct, or one is longer than a sequence and `data.too_long` is "error".
  """

  def work(folder: pathlib.Path) -> dict:
    answers = [(p.answer, extract.extract(p.targets, cell.judge.mode)) for p in cell.problems]
    verdicts = cell.judge.pool.compare_many(answers)
    rows = []
    for problem, verdict in zip(cell.problems, verdicts):
      rows.append({"id": problem.id, "verdict": verdict.to_json()})
    files.write_jsonl(folder / "verdicts.jsonl", rows)
    counts = collections.Counter(verdict.value for verdict in verdicts)
    return {"problems": len(cell.problems), **counts}

  targets = files.value_hash([p.targets for p in cell.problems])
  cell.stage("teacher", [cell.judging, targets], work)
  correct = set()
  for row in files.read_jsonl(cell.folder / "teacher/verdicts.jsonl"):
    if Verdict.from_json(row["verdict"]).correct:
      correct.add(row["id"])
  solutions = []
  for problem in cell.problems:
    if problem.id in correct:
      solutions.append(Solution(problem.id, tuple(cell.tokenizer.encode(problem.targets))))
  _check_teacher(cell, solutions)
  return solutions


def _check_teacher(cell: Cell, solutions: Sequence[Solution]) -> None:
  name = cell.folder.name
  if not solutions:
    raise files.DataError(
      f"{name}: none of the teacher's {len(cell.problems)} traces ends with its problem's answer "
      f"(looked for as {cell.judge.mode!r}); see {cell.folder / 'teacher/verdicts.jsonl'}, and "
      "config.evaluate.answer"
    )
  too_long = [solution.problem_id for solution in solutions if not fits(cell, solution)]
  if too_long and cell.experiment.data.too_long == "error":
    raise files.DataError(
      f"{name}: {len(too_long)} of the teacher's {len(solutions)} correct traces are longer than "
      f"data.seq_len={cell.experiment.data.seq_len}, the first of them that of {too_long[0]!r}; "
      "raise data.seq_len, or set data.too_long='drop'"
    )


def fits(cell: Cell, solution: Solution) -> bool:
  """Whether a solution with its prompt and end-of-text fits a sequence."""
  length = len(cell.prompts[solution.problem_id]) + len(solution.ids) + 1
  return length <= cell.experiment.data.seq_len


def sample(cell: Cell, policy: TrainedPolicy, n: int) -> PolicySamples:
  """n traces of every problem. The first of more are those of fewer."""
  name = study_folder.draw_name(n, policy.name)
  sampling = cell.study.sampling
  seed = cell.seed("draw", policy.name)

  def work(folder: pathlib.Path) -> dict:
    generate = sampler(cell, policy, folder)
    drawn = list(
      sample_traces(cell.problems, generate, cell.judge, sampling, n, seed, cell.splitting)
    )
    order = {p.id: i for i, p in enumerate(cell.problems)}
    drawn.sort(key=lambda d: order[d.problem_id])
    records.write(folder / "drawn.jsonl", drawn)
    return _counts(drawn)

  inputs = [
    sampled_by(cell, policy),
    records.to_json(sampling),
    n,
    dataclasses.asdict(cell.splitting),
    cell.judging,
    seed,
  ]
  made = cell.stage(name, inputs, work)
  read = sum(len(prompt) for prompt in cell.prompts.values())
  traces = list(records.read(SampledTrace, cell.folder / name / "drawn.jsonl"))
  return PolicySamples(traces, Cost(sampled=made["tokens"], read=read))


def _counts(drawn: Sequence[SampledTrace]) -> dict:
  """What the manifest says of sampled traces."""
  counts = collections.Counter(d.verdict.value for d in drawn)
  reasons = collections.Counter(d.verdict.reason for d in drawn if d.verdict.reason)
  tokens = 0
  for d in drawn:
    # End-of-text of a complete trace was sampled too.
    tokens += sum(map(len, d.steps)) + d.complete
  return {
    "traces": len(drawn),
    **counts,
    "reasons": dict(reasons),
    "truncated": sum(not d.complete for d in drawn),
    "distinct": len({(d.problem_id, d.text) for d in drawn}),
    "tokens": tokens,
    "accuracy": counts["equal"] / len(drawn),
  }


def sampler(cell: Cell, policy: TrainedPolicy, folder: pathlib.Path):
  """Samples of a policy, kept in a journal: a killed stage goes on where it was."""
  engine: requests.Engine
  held = held_by_server(cell, policy)
  if held:
    engine = served.ServedEngine(cell.study.server, held, cell.tokenizer)
  else:
    engine = engine_of(cell.experiment, cell.tokenizer, policy)
  return functools.partial(journal.generate, engine, path=folder / "journal.jsonl")


def held_by_server(cell: Cell, policy: TrainedPolicy) -> served.Held | None:
  """The policy as `config.study.server` holds it; None where it is sampled here."""
  server = cell.study.server
  if not server.url or policy.name != cell.study.start:
    return None
  name = cell.folder.name
  if cell.folder.parent.name == "control":
    name = f"control/{name}"
  name = server.model.replace("{cell}", name).replace("{policy}", policy.name)

  def load():
    return jobs.load_policy(cell.experiment, cell.tokenizer, policy.checkpoints)[:2]

  return served.Held(name, policy.checkpoints, policy.identity, load)


def sampled_by(cell: Cell, policy: TrainedPolicy) -> str:
  """What samples of a policy depend on: itself, and its name where a server holds it."""
  held = held_by_server(cell, policy)
  return held.fingerprint if held else policy.identity


def correct(cell: Cell, name: str, drawn: Sequence[SampledTrace], most: int) -> list[Solution]:
  """Distinct correct traces, at most so many a problem.

  The manifest of stage `right_NAME` counts the others by the reason that they were dropped for.
  """
  kept = distinct_correct(drawn, most)
  distinct = distinct_correct(drawn, len(drawn))
  rewarded = [d for d in drawn if d.verdict.correct]
  ended = sum(d.complete for d in rewarded)
  # Keys of manifests are persisted: they keep their wording.
  counts = {
    "traces": len(drawn),
    "right": len(rewarded),
    "problems": len({d.problem_id for d in kept}),
    "kept": len(kept),
    "dropped": {
      "did not end": len(rewarded) - ended,
      "the same as another": ended - len(distinct),
      "beyond the most of a problem": len(distinct) - len(kept),
    },
  }
  cell.stage(f"right_{name}", [counts], lambda _: counts)
  return [Solution(d.problem_id, sum(d.steps, ())) for d in kept]


def check_accuracy(cell: Cell, drawn: Sequence[SampledTrace], policy: TrainedPolicy) -> None:
  """Raises TooWeakError where pits would be noise."""
  accuracy = sum(d.verdict.correct for d in drawn) / len(drawn)
  if accuracy < cell.study.least_accuracy:
    raise TooWeakError(
      f"{cell.folder.name}: {100 * accuracy:.1f} % of the samples of {policy.name!r} are correct; "
      f"below {100 * cell.study.least_accuracy:.0f} % pits are noise. Train {policy.name!r} on "
      "more problems or for longer, or lower config.study.least_accuracy and expect nothing of the "
      "arms that learn from steps"
    )


_engines: dict[str, JaxEngine] = {}


def engine_of(
  experiment: schema.Experiment, tokenizer: Tokenizer, policy: TrainedPolicy
) -> JaxEngine:
  """One engine for all policies of a study: as their shapes agree, it is compiled once."""
  model, params, _ = jobs.load_policy(experiment, tokenizer, policy.checkpoints)
  slots = experiment.evaluate.slots
  key = files.value_hash([dataclasses.asdict(model.cfg), tokenizer.fingerprint, slots])
  if key not in _engines:
    _engines[key] = JaxEngine(model, params, tokenizer, slots=slots)
  _engines[key].load(params, policy.identity)
  return _engines[key]
