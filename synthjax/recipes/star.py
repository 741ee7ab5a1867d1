"""The star graph (Bachmann & Nagarajan 2024): a shortcut of SFT, and ways to train out of it.

For every G(d, l, n) SFT from random parameters learns whole paths. The shortcut is correct with
probability 1 / d: the first node is a guess, each other one follows from the one before. On the
first graph Monte-Carlo values are compared with the shortcut's exact ones, then attempts to break
it are trained with exact advantages (`config.star.attempts`), each from the early or the late SFT
policy. Policies are trained by study A's functions, arms are entries of its registry.
"""

import dataclasses
import functools
import itertools
import math
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from synthjax import files, progress, stats
from synthjax.config import schema
from synthjax.config.credit import Sampling, ValueConfig
from synthjax.config.worlds import Star
from synthjax.credit import values
from synthjax.credit.pairs import Samples, ValuedTrace
from synthjax.credit.traces import Judge, PromptedTrace, SampledTrace
from synthjax.data.formats import Example
from synthjax.data.tokenizers import Tokenizer, Words
from synthjax.job import Job
from synthjax.math_study import preference_data, training
from synthjax.math_study.arms import ARMS, TraceTrees
from synthjax.math_study.cell import Cell, Cost, Solution, TrainedPolicy
from synthjax.math_study.sampling import engine_of
from synthjax.math_study.training import PreferenceTraining
from synthjax.records import Ids, StepValue, Verdict
from synthjax.rollout.requests import Request, Sample
from synthjax.verify import pool
from synthjax.verify.policy import POLICIES
from synthjax.worlds import star

# Names of config.star.attempts as arms of study A.
_ARMS = {
  "step_dpo": ARMS["step_dpo.branch"],
  "weighted": ARMS["step_dpo.weighted"],
  "awr": ARMS["awr"],
  "filtered_sft": ARMS["filtered_sft"],
}


class Lab(NamedTuple):
  """One graph shape and model."""

  cell: Cell  # holds the problems of SFT, then those that attempts explore
  graph: Star
  test: list[Example]

  @property
  def study(self) -> schema.StarStudy:
    return self.cell.experiment.star

  @property
  def explored(self) -> tuple[Example, ...]:
    return self.cell.problems[self.study.problems :]


def run(job: Job) -> dict:
  """Trains, values and tries; writes results.json and table.txt. Finished stages are skipped."""
  study = job.experiment.star
  files.write_json(job.workdir / "config.json", dataclasses.asdict(job.experiment))
  labs = [_open(job, graph) for graph in study.graphs]
  first = labs[0]
  result = {
    "sft": [_sft_row(lab) for lab in labs],
    "early": _score(first, _sft(first, early=True)),
    "values": _values(first),
    "attempts": [_attempt(job, first, attempt) for attempt in study.attempts],
  }
  files.write_json(job.workdir / "results.json", result)
  text = _table(result)
  with files.replacing(job.workdir / "table.txt") as f:
    f.write(text + "\n")
  progress.say(f"{text}\neverything is in {job.workdir}: results.json, table.txt; a folder a graph")
  return result


def words_of(job: Job, name: str) -> tuple[schema.Experiment, Words]:
  """What the policies below a graph's folder need: the config with their model, and their words.

  Raises:
    DataError: the config has no graph of that folder.
  """
  study = job.experiment.star
  for graph in study.graphs:
    for d_model in sorted({0, *(attempt.d_model for attempt in study.attempts)}):
      experiment, folder = _placed(job, graph, d_model)
      if folder.name == name:
        return experiment, Words(star.vocabulary(graph))
  raise files.DataError(
    f"{job.workdir / name}: config.star.graphs has no graph of that folder; give the config that "
    "trained it"
  )


def _open(job: Job, graph: Star, d_model: int = 0) -> Lab:
  """The graph's problems and words; the model is the config's, or `d_model` wide."""
  experiment, folder = _placed(job, graph, d_model)
  study = experiment.star
  words = Words(star.vocabulary(graph))
  seeded = dataclasses.replace(graph, seed=graph.seed + experiment.seed)
  problems = _examples(seeded, "train", study.problems + study.explored)
  answers = {problem.id: problem.answer for problem in problems}
  judge = Judge(answers, "whole", words, pool.shared(POLICIES["strict"]))
  cell = Cell(
    experiment=experiment,
    folder=folder,
    tokenizer=words,
    problems=tuple(problems),
    judge=judge,
  )
  return Lab(cell, graph, _examples(seeded, "test", study.test_problems))


def _placed(job: Job, graph: Star, d_model: int) -> tuple[schema.Experiment, pathlib.Path]:
  """The config with a model of this width (0: as it is), and the folder of the graph's policies."""
  experiment = job.experiment
  folder = job.workdir / f"d{graph.arms}_l{graph.length}_n{graph.labels}"
  if not d_model:
    return experiment, folder
  heads = max(1, d_model // experiment.model.head_dim)
  model = dataclasses.replace(
    experiment.model, d_model=d_model, mlp_dim=4 * d_model, heads=heads, kv_heads=heads
  )
  wide = dataclasses.replace(experiment, model=model)
  return wide, folder.with_name(f"{folder.name}_w{d_model}")


def _examples(graph: Star, split: str, count: int) -> list[Example]:
  examples = []
  for problem in star.problems(graph, split, count):
    examples.append(
      Example(
        id=problem.id,
        inputs=problem.question,
        targets=problem.answer,
        answer=problem.answer,
        question=problem.question,
      )
    )
  return examples


def _sft(lab: Lab, early: bool) -> TrainedPolicy:
  """On whole paths, from random parameters."""
  cfg, name = lab.cell.experiment.train, "sft"
  if early:
    cfg, name = dataclasses.replace(cfg, steps=lab.study.early_steps), "sft_early"
  solutions = []
  for problem in lab.cell.problems[: lab.study.problems]:
    solutions.append(Solution(problem.id, tuple(lab.cell.tokenizer.encode(problem.targets))))
  return training.by_likelihood(lab.cell, name, solutions, cfg, start=None, cost=Cost())


def _sample(
  lab: Lab, policy: TrainedPolicy, problems: Sequence[Example], n: int, temperature: float
) -> dict[str, tuple[Sample, ...]]:
  """Problem id -> n samples."""
  engine = engine_of(lab.cell.experiment, lab.cell.tokenizer, policy)
  requests = []
  for problem in problems:
    requests.append(
      Request(
        problem.id,
        prompt_ids=tuple(lab.cell.tokenizer.encode(problem.inputs)),
        sampling=_sampling(lab, temperature),
        n=n,
        seed=lab.cell.experiment.seed,
      )
    )
  samples = {}
  for result in engine.generate(requests):
    if result.error:
      raise files.DataError(f"problem {result.id!r} could not be sampled: {result.error}")
    samples[result.id] = result.samples
  return samples


def _sampling(lab: Lab, temperature: float) -> Sampling:
  # A path, end-of-text, and one more: a path that is too long must not look like a whole one.
  return Sampling(max_tokens=lab.graph.length + 2, temperature=temperature)


def _sft_row(lab: Lab) -> dict:
  graph = lab.graph
  shape = {"arms": graph.arms, "length": graph.length, "labels": graph.labels}
  return {**shape, **_score(lab, _sft(lab, early=False))}


def _score(lab: Lab, policy: TrainedPolicy) -> dict:
  """Greedy answers to test problems: whole paths, first nodes, and walks along any arm."""

  def work(folder: pathlib.Path) -> dict:
    answers = _sample(lab, policy, lab.test, 1, 0.0)
    rows, whole, first, walks = [], [], [], []
    for problem in lab.test:
      text = answers[problem.id][0].text
      rows.append({"id": problem.id, "question": problem.question, "text": text})
      whole.append(text == problem.answer)
      first.append(text.split()[:1] == problem.answer.split()[:1])
      walks.append(_walks(problem.question, text.split(), lab.graph.length))
    files.write_jsonl(folder / "responses.jsonl", rows)
    accuracy, error = stats.mean(whole)
    of_first, error_of_first = stats.mean(first)
    return {
      "accuracy": accuracy,
      "standard_error": error,
      "first": of_first,
      "first_standard_error": error_of_first,
      "walks": stats.mean(walks)[0],
    }

  inputs = [policy.identity, files.value_hash([[p.id, p.answer] for p in lab.test])]
  return lab.cell.stage(f"evaluate_{policy.name}", inputs, work)


def _walks(question: str, nodes: Sequence[str], length: int) -> bool:
  """Whether nodes are a walk along an arm from the centre to its end, whichever arm."""
  graph = star.parse(question)
  edges = set(itertools.pairwise([graph.centre, *nodes]))
  return len(nodes) == length and edges <= set(graph.edges)


class _Estimate(NamedTuple):
  """A Monte-Carlo value beside the exact one."""

  estimate: float
  exact: float
  covered: bool  # by the 95 % interval of the estimate


def _values(lab: Lab) -> dict:
  """Monte-Carlo and exact values of the late SFT policy's traces, by steps in the prefix."""
  policy, study = _sft(lab, early=False), lab.study
  inputs = [policy.identity, study.valued, study.rollouts]
  return lab.cell.stage("values", inputs, functools.partial(_compare_values, lab, policy))


def _compare_values(lab: Lab, policy: TrainedPolicy, folder: pathlib.Path) -> dict:
  problems = {problem.id: problem for problem in lab.explored[: lab.study.valued]}
  words = lab.cell.tokenizer

  def judge(name: str, given_ids: Ids, sample: Sample) -> Verdict:
    return _verdict(words.decode([*given_ids, *sample.ids]) == problems[name].answer)

  samples = _sample(lab, policy, list(problems.values()), 1, 1.0)
  traces = [_prompted(words, problems[name], given[0]) for name, given in samples.items()]
  cfg = ValueConfig(
    rollouts=lab.study.rollouts, block=lab.study.rollouts, sampling=_sampling(lab, 1.0)
  )
  engine = engine_of(lab.cell.experiment, words, policy)
  by_step: dict[int, list[_Estimate]] = {}
  for rows in values.estimate(traces, engine.generate, judge, cfg).values:
    for row in rows:
      if row.n:
        nodes = samples[row.problem_id][0].text.split()[: row.step]
        estimate = _beside_exact(problems[row.problem_id].question, nodes, row)
        by_step.setdefault(row.step, []).append(estimate)
  return {str(step): _mean_of(by_step[step]) for step in sorted(by_step)}


def _prompted(words: Tokenizer, problem: Example, sample: Sample) -> PromptedTrace:
  """A sampled path; every node is a step."""
  trace = SampledTrace(
    problem_id=problem.id,
    text=sample.text,
    steps=tuple((i,) for i in sample.ids),
    verdict=_verdict(sample.text == problem.answer),
    complete=sample.finish == "stop",
  )
  return PromptedTrace(tuple(words.encode(problem.inputs)), trace)


def _beside_exact(question: str, nodes: Sequence[str], row: StepValue) -> _Estimate:
  exact = star.exact_value(question, nodes, star.shortcut(question))
  estimate = row.c / row.n
  low, high = stats.wilson(estimate, row.n)
  # An exact 0 or 1 lies on the end of its interval, but for rounding.
  return _Estimate(estimate, exact, low - 1e-9 <= exact <= high + 1e-9)


def _mean_of(estimates: Sequence[_Estimate]) -> dict:
  count = len(estimates)
  return {
    "prefixes": count,
    "estimate": math.fsum(e.estimate for e in estimates) / count,
    "exact": math.fsum(e.exact for e in estimates) / count,
    "covered": math.fsum(e.covered for e in estimates) / count,
  }


def _verdict(correct: bool) -> Verdict:
  return Verdict("equal" if correct else "different")


def _attempt(job: Job, lab: Lab, attempt: schema.Attempt) -> dict:
  """Scores before and after training out of the shortcut."""
  if attempt.d_model:
    lab = _open(job, lab.graph, attempt.d_model)
  policy = _sft(lab, attempt.early)
  before = _score(lab, policy)
  for number in range(1, attempt.rounds + 1):
    name = f"{attempt.name}*{number}" if number > 1 else attempt.name
    policy = _round(lab, attempt, name, policy)
  return {**dataclasses.asdict(attempt), "before": before, "after": _score(lab, policy)}


def _round(lab: Lab, attempt: schema.Attempt, name: str, start: TrainedPolicy) -> TrainedPolicy:
  """Samples a policy and trains it on its samples by an arm of study A, with exact values."""
  cell, arm = lab.cell, _ARMS[attempt.arm]
  samples = _sample(lab, start, lab.explored, lab.study.samples, attempt.temperature)
  valued = [_valued(lab, problem, samples[problem.id]) for problem in lab.explored]
  task = PreferenceTraining(
    roots=preference_data.trees_of(cell, arm, name, valued, cell.study.pairs),
    objective=training.objective_of(arm, cell.experiment.objective),
    train=cell.study.preference,
    start=start,
    cost=Cost(),
    splittable=isinstance(arm.data, TraceTrees),
  )
  return training.by_preference(cell, name, task)


def _valued(lab: Lab, problem: Example, samples: Sequence[Sample]) -> Samples:
  """A problem's samples with the shortcut's exact values.

  From a prefix on the path, the rest of the path is the one correct continuation.
  """
  words, follow = lab.cell.tokenizer, star.shortcut(problem.question)
  path = problem.answer.split()
  traces = []
  for sample in samples:
    nodes = sample.text.split()
    correct = sample.text == problem.answer
    complete = sample.finish == "stop"
    q = [star.exact_value(problem.question, nodes[:i], follow) for i in range(len(nodes) + 1)]
    if complete:
      q[-1] = float(correct)
    rest = {}
    for i in range(len(nodes)):
      if nodes[:i] == path[:i] != path:
        rest[i] = (_walk(words, problem.id, path[i:]),)
    walk = _walk(words, problem.id, nodes)
    trace = dataclasses.replace(walk, verdict=_verdict(correct), complete=complete)
    traces.append(ValuedTrace(trace, tuple(q), continuations=rest))
  return Samples(problem.id, lab.cell.prompts[problem.id], tuple(traces))


def _walk(words: Tokenizer, problem_id: str, nodes: Sequence[str]) -> SampledTrace:
  """A correct walk to its end, each node a step."""
  text = " ".join(nodes)
  steps = tuple((i,) for i in words.encode(text))
  return SampledTrace(problem_id, text, steps, _verdict(True))


def _table(result: dict) -> str:
  lines = [
    f"{'SFT on':14} {'1 / d':>6} {'accuracy':>12} {'first node':>12} {'walks an arm':>13}   "
    "(percent)"
  ]
  for row in result["sft"]:
    graph = f"G({row['arms']}, {row['length']}, {row['labels']})"
    lines.append(
      f"{graph:14} {100 / row['arms']:6.1f} {_accuracy(row):>12} {_first_node(row):>12} "
      f"{100 * row['walks']:13.1f}"
    )
  lines += [
    "",
    "Monte-Carlo values of the late policy and the shortcut's exact ones, by steps in the prefix: "
    "estimate, exact, share of prefixes whose 95 % interval holds the exact value",
  ]
  for step, row in result["values"].items():
    lines.append(
      f"  {step}: {row['estimate']:.3f}  {row['exact']:.3f}  {100 * row['covered']:.1f} % of "
      f"{row['prefixes']}"
    )
  head = f"{'attempt':24} {'before':>12} {'after':>12} {'first node':>12} {'walks an arm':>13}"
  lines += ["", head]
  for row in result["attempts"]:
    before, after = row["before"], row["after"]
    lines.append(
      f"{row['name']:24} {_accuracy(before):>12} {_accuracy(after):>12} {_first_node(after):>12} "
      f"{100 * after['walks']:13.1f}"
    )
  return "\n".join(lines)


def _accuracy(score: dict) -> str:
  return f"{100 * score['accuracy']:.1f} ± {100 * score['standard_error']:.1f}"


def _first_node(score: dict) -> str:
  return f"{100 * score['first']:.1f} ± {100 * score['first_standard_error']:.1f}"
