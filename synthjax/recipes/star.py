"""The star graph (Bachmann & Nagarajan 2024): SFT falls into a shortcut; what step values see of it, and what trains a policy out of it.

For every G(d, l, n): SFT from random parameters on whole paths. The shortcut is right with probability 1 / d: the first node is a guess,
each other one follows from the one before. On the first graph: Monte-Carlo values against the shortcut's exact ones, then attempts to break
it with exact advantages (`config.star.attempts`), each from the early or the late SFT policy.
"""

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from synthjax import files, progress, stats
from synthjax.config import schema
from synthjax.config.credit import Sampling, ValueConfig
from synthjax.config.worlds import Star
from synthjax.credit import values
from synthjax.credit.pairs import Samples, ValuedTrace
from synthjax.credit.traces import Judge, PromptedTrace, SampledTrace
from synthjax.data.formats import Example
from synthjax.data.tokenizers import Words
from synthjax.job import Job
from synthjax.math_study import preference_data
from synthjax.math_study.cell import Cell, Cost, Policy, Solution, engine_of
from synthjax.records import Ids, Verdict
from synthjax.rollout.requests import Request, Sample
from synthjax.verify import pool
from synthjax.verify.policy import POLICIES
from synthjax.worlds import star


class Lab(NamedTuple):
  """One graph shape and model."""

  cell: Cell  # holds the problems of SFT, then those that attempts explore
  graph: Star
  test: list[Example]

  @property
  def study(self) -> schema.StarStudy:
    return self.cell.experiment.star


def run(job: Job) -> dict:
  """Trains, values and tries; writes results.json and table.txt. Finished stages are skipped."""
  study = job.experiment.star
  files.write_json(job.workdir / "config.json", dataclasses.asdict(job.experiment))
  labs = [_open(job, graph) for graph in study.graphs]
  shortcut = [
    {
      "arms": lab.graph.arms,
      "length": lab.graph.length,
      "labels": lab.graph.labels,
      **_score(lab, _sft(lab, early=False)),
    }
    for lab in labs
  ]
  result = {
    "sft": shortcut,
    "early": _score(labs[0], _sft(labs[0], early=True)),
    "values": _values(labs[0]),
    "attempts": [_attempt(job, labs[0], attempt) for attempt in study.attempts],
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
    f"{job.workdir / name}: config.star.graphs has no graph of that folder; give the config that trained it"
  )


def _open(job: Job, graph: Star, d_model: int = 0) -> Lab:
  """The graph's problems and words; the model is the config's, or as wide as said."""
  experiment, folder = _placed(job, graph, d_model)
  study = experiment.star
  words, seeded = (
    Words(star.vocabulary(graph)),
    dataclasses.replace(graph, seed=graph.seed + experiment.seed),
  )
  training = _examples(seeded, "train", study.problems + study.explored)
  judge = Judge({p.id: p.answer for p in training}, "whole", words, pool.shared(POLICIES["strict"]))
  return Lab(
    Cell(experiment, folder, words, tuple(training), judge),
    graph,
    _examples(seeded, "test", study.test_problems),
  )


def _placed(job: Job, graph: Star, d_model: int) -> tuple[schema.Experiment, pathlib.Path]:
  """The config with its model as wide as said (0: as it is), and the folder of the graph's policies."""
  experiment = job.experiment
  folder = job.workdir / f"d{graph.arms}_l{graph.length}_n{graph.labels}"
  if d_model:
    folder = folder.with_name(f"{folder.name}_w{d_model}")
    heads = max(1, d_model // experiment.model.head_dim)
    experiment = dataclasses.replace(
      experiment,
      model=dataclasses.replace(
        experiment.model, d_model=d_model, mlp_dim=4 * d_model, heads=heads, kv_heads=heads
      ),
    )
  return experiment, folder


def _examples(graph: Star, split: str, count: int) -> list[Example]:
  return [
    Example(p.id, p.question, p.answer, p.answer, "", p.question)
    for p in star.problems(graph, split, count)
  ]


def _sft(lab: Lab, early: bool) -> Policy:
  """On whole paths, from random parameters."""
  cfg, words = lab.cell.experiment.train, lab.cell.tokenizer
  solutions = [
    Solution(p.id, tuple(words.encode(p.targets))) for p in lab.cell.problems[: lab.study.problems]
  ]
  cfg = dataclasses.replace(cfg, steps=lab.study.early_steps) if early else cfg
  return lab.cell.by_likelihood("sft_early" if early else "sft", solutions, cfg, None, Cost())


def _sampled(
  lab: Lab, policy: Policy, problems: Sequence[Example], n: int, temperature: float
) -> dict[str, tuple[Sample, ...]]:
  """Problem id -> n samples."""
  engine = engine_of(lab.cell.experiment, lab.cell.tokenizer, policy.checkpoints, policy.identity)
  how = Sampling(max_tokens=lab.graph.length + 2, temperature=temperature)
  requests = [
    Request(
      p.id,
      prompt_ids=tuple(lab.cell.tokenizer.encode(p.inputs)),
      sampling=how,
      n=n,
      seed=lab.cell.experiment.seed,
    )
    for p in problems
  ]
  found = {result.id: result for result in engine.generate(requests)}
  if errors := [result for result in found.values() if result.error]:
    raise files.DataError(f"problem {errors[0].id!r} could not be sampled: {errors[0].error}")
  return {name: result.samples for name, result in found.items()}


def _score(lab: Lab, policy: Policy) -> dict:
  """Greedy answers to test problems: whole paths, first nodes, and walks along an arm from the centre to its end, whichever arm."""

  def work(folder: pathlib.Path) -> dict:
    answers = _sampled(lab, policy, lab.test, 1, 0.0)
    texts = {p.id: (p, answers[p.id][0].text) for p in lab.test}
    files.write_jsonl(
      folder / "responses.jsonl",
      ({"id": name, "question": p.question, "text": text} for name, (p, text) in texts.items()),
    )
    right, error = stats.mean([text == p.answer for p, text in texts.values()])
    first, first_error = stats.mean(
      [text.split()[:1] == p.answer.split()[:1] for p, text in texts.values()]
    )
    walks = stats.mean(
      [_walks(p.question, text.split(), lab.graph.length) for p, text in texts.values()]
    )[0]
    return {
      "accuracy": right,
      "standard_error": error,
      "first": first,
      "first_standard_error": first_error,
      "walks": walks,
    }

  inputs = [policy.identity, files.value_hash([[p.id, p.answer] for p in lab.test])]
  return lab.cell.stage(f"evaluate_{policy.name}", inputs, work)


def _walks(question: str, nodes: Sequence[str], length: int) -> bool:
  graph = star.parse(question)
  return len(nodes) == length and set(itertools.pairwise([graph.centre, *nodes])) <= set(
    graph.edges
  )


def _values(lab: Lab) -> dict:
  """Monte-Carlo values of the late SFT policy's traces beside the exact values of the shortcut, by number of steps in the prefix."""
  policy, study = _sft(lab, early=False), lab.study
  problems = {p.id: p for p in lab.cell.problems[study.problems :][: study.valued]}
  words = lab.cell.tokenizer

  def judge(name: str, given_ids: Ids, sample: Sample) -> Verdict:
    return _verdict(words.decode([*given_ids, *sample.ids]) == problems[name].answer)

  def work(folder: pathlib.Path) -> dict:
    drawn = {
      name: samples[0]
      for name, samples in _sampled(lab, policy, list(problems.values()), 1, 1.0).items()
    }
    traces = []
    for name, sample in drawn.items():
      trace = SampledTrace(
        problem_id=name,
        text=sample.text,
        steps=tuple((i,) for i in sample.ids),
        verdict=_verdict(sample.text == problems[name].answer),
        complete=sample.finish == "stop",
      )
      traces.append(PromptedTrace(tuple(words.encode(problems[name].inputs)), trace))
    engine = engine_of(lab.cell.experiment, words, policy.checkpoints, policy.identity)
    cfg = ValueConfig(
      rollouts=study.rollouts,
      block=study.rollouts,
      sampling=Sampling(max_tokens=lab.graph.length + 2, temperature=1.0),
    )
    rows = [
      row
      for of_trace in values.estimate(traces, engine.generate, judge, cfg).values
      for row in of_trace
      if row.n
    ]
    found: dict[int, list[tuple[float, float, bool]]] = {}
    for row in rows:
      p = problems[row.problem_id]
      exact = star.exact_value(
        p.question, drawn[p.id].text.split()[: row.step], star.shortcut(p.question)
      )
      low, high = stats.wilson(row.c / row.n, row.n)
      found.setdefault(row.step, []).append(
        (row.c / row.n, exact, low - 1e-9 <= exact <= high + 1e-9)
      )
    means = {
      step: [math.fsum(column) / len(of_step) for column in zip(*of_step)]
      for step, of_step in found.items()
    }
    return {
      str(step): {
        "prefixes": len(found[step]),
        "estimate": means[step][0],
        "exact": means[step][1],
        "covered": means[step][2],
      }
      for step in sorted(found)
    }

  return lab.cell.stage("values", [policy.identity, study.valued, study.rollouts], work)


def _verdict(right: bool) -> Verdict:
  return Verdict("equal" if right else "different")


def _attempt(job: Job, lab: Lab, attempt: schema.Attempt) -> dict:
  """Scores before and after training out of the shortcut."""
  if attempt.d_model:
    lab = _open(job, lab.graph, attempt.d_model)
  policy = _sft(lab, attempt.early)
  before = _score(lab, policy)
  for number in range(1, attempt.rounds + 1):
    explored = lab.cell.problems[lab.study.problems :]
    sampled = _sampled(lab, policy, explored, lab.study.samples, attempt.temperature)
    samples = [_valued(lab, p, sampled[p.id]) for p in explored]
    policy = _trained(
      lab, attempt.arm, f"{attempt.name}*{number}" if number > 1 else attempt.name, policy, samples
    )
  return {**dataclasses.asdict(attempt), "before": before, "after": _score(lab, policy)}


def _valued(lab: Lab, problem: Example, sampled: Sequence[Sample]) -> Samples:
  """A problem's samples with the shortcut's exact values; from a prefix on the path its rest is the one right continuation."""
  words, follow = lab.cell.tokenizer, star.shortcut(problem.question)
  path, traces = problem.answer.split(), []
  for sample in sampled:
    nodes, right, complete = (
      sample.text.split(),
      sample.text == problem.answer,
      sample.finish == "stop",
    )
    q = [star.exact_value(problem.question, nodes[:i], follow) for i in range(len(nodes) + 1)]
    if complete:
      q[-1] = float(right)
    rest = {
      i: (_trace(words, problem.id, path[i:], True, True),)
      for i in range(len(nodes))
      if nodes[:i] == path[:i] != path
    }
    trace = _trace(words, problem.id, nodes, right, complete)
    traces.append(ValuedTrace(trace, tuple(q), continuations=rest))
  return Samples(problem.id, lab.cell.prompts[problem.id], tuple(traces))


def _trace(
  words: Any, problem_id: str, nodes: Sequence[str], right: bool, complete: bool
) -> SampledTrace:
  """A walk, each node a step."""
  text = " ".join(nodes)
  steps = tuple((i,) for i in words.encode(text))
  return SampledTrace(problem_id, text, steps, _verdict(right), complete)


def _trained(lab: Lab, arm: str, name: str, start: Policy, samples: list[Samples]) -> Policy:
  """One round of an arm."""
  cell, pairing, on_trees = lab.cell, lab.cell.study.pairs, arm in ("awr", "filtered_sft")
  if on_trees:
    roots = preference_data.merged(cell, name, samples)
  elif arm == "weighted":
    roots = preference_data.paired(
      cell, name, samples, dataclasses.replace(pairing, mode="random", weighted=True)
    )
  else:
    roots = preference_data.paired(cell, name, samples, dataclasses.replace(pairing, mode="branch"))
  loss: Any = arm if on_trees else "step_dpo"
  objective = dataclasses.replace(cell.experiment.objective, loss=loss)
  return cell.by_preference(
    name, roots, objective, cell.study.preference, start, Cost(), splittable=on_trees
  )


def _table(result: dict) -> str:
  shown = lambda share, error: f"{100 * share:.1f} ± {100 * error:.1f}"
  accuracy = lambda score: shown(score["accuracy"], score["standard_error"])
  first = lambda score: shown(score["first"], score["first_standard_error"])
  lines = [
    f"{'SFT on':14} {'1 / d':>6} {'accuracy':>12} {'first node':>12} {'walks an arm':>13}   (percent)"
  ]
  for row in result["sft"]:
    graph = f"G({row['arms']}, {row['length']}, {row['labels']})"
    lines.append(
      f"{graph:14} {100 / row['arms']:6.1f} {accuracy(row):>12} {first(row):>12} {100 * row['walks']:13.1f}"
    )
  lines += [
    "",
    "Monte-Carlo values of the late policy and the shortcut's exact ones, by steps in the prefix: estimate, exact, share of "
    "prefixes whose 95 % interval holds the exact value",
  ]
  lines += [
    f"  {step}: {row['estimate']:.3f}  {row['exact']:.3f}  {100 * row['covered']:.1f} % of {row['prefixes']}"
    for step, row in result["values"].items()
  ]
  lines += [
    "",
    f"{'attempt':24} {'before':>12} {'after':>12} {'first node':>12} {'walks an arm':>13}",
  ]
  for row in result["attempts"]:
    lines.append(
      f"{row['name']:24} {accuracy(row['before']):>12} {accuracy(row['after']):>12} {first(row['after']):>12} "
      f"{100 * row['after']['walks']:13.1f}"
    )
  return "\n".join(lines)
