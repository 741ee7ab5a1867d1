"""What preference arms learn from: step values of sampled traces, pairs and trees made of them.

Each is a stage of a cell.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from synthjax import files, records
from synthjax.config.credit import PairConfig, ValueConfig
from synthjax.credit import pairs, steps, values
from synthjax.credit.pairs import Samples, ValuedTrace
from synthjax.credit.traces import PromptedTrace, SampledTrace, traces_to_value
from synthjax.data import trees
from synthjax.data.pair_trees import tree_of
from synthjax.math_study import sampling, study_folder
from synthjax.math_study.arms import Arm, TracePairs
from synthjax.math_study.cell import Cell, Cost, TrainedPolicy
from synthjax.records import StepValue, Verdict


class ValuedSamples(NamedTuple):
  """Sampled traces of every problem, some with step values."""

  problems: list[Samples]
  cost: Cost  # of the rollouts


def unvalued(cell: Cell, drawn: Sequence[SampledTrace]) -> ValuedSamples:
  """SampledTrace traces by problem, without values."""
  return ValuedSamples(_by_problem(cell, [ValuedTrace(trace) for trace in drawn]), Cost())


def valued(
  cell: Cell, policy: TrainedPolicy, drawn: Sequence[SampledTrace], every: bool
) -> ValuedSamples:
  """SampledTrace traces by problem, the incorrect ones with step values; where asked every one.

  Args:
    cell: of the problems.
    policy: that drew the traces and rolls out their prefixes.
    drawn: its samples.
    every: correct traces get values too, and every step of a trace, whatever schedule the config
      has for finding pits.
  """
  cfg = dataclasses.replace(cell.study.values, seed=cell.seed("values", policy.name))
  if every:
    cfg = dataclasses.replace(cfg, schedule="full")
  wanted = traces_to_value(drawn, cell.study.incorrect, every)
  traces = prompted(cell, wanted)
  name = study_folder.values_name(policy.name, every)

  def work(folder: pathlib.Path) -> dict:
    found = values.estimate(traces, sampling.sampler(cell, policy, folder), cell.judge, cfg)
    records.write(folder / "values.jsonl", [row for rows in found.values for row in rows])
    files.write_jsonl(folder / "continuations.jsonl", _continuations(found.correct))
    pits = dict(collections.Counter(str(pit) for pit in found.pits))
    return {
      **dataclasses.asdict(found.spent),
      "read": _read(traces, found.values),
      "traces": len(wanted),
      "pits": pits,
    }

  inputs = [
    sampling.sampled_by(cell, policy),
    settings_of(cfg),
    hash_of(traces),
    cell.judging,
  ]
  made = cell.stage(name, inputs, work)
  cost = Cost(sampled=made["tokens"], read=made["read"])
  return ValuedSamples(_by_problem(cell, _with_values(cell, drawn, wanted, name)), cost)


def prompted(cell: Cell, traces: Sequence[SampledTrace]) -> list[PromptedTrace]:
  """Sampled traces with the ids of their problems."""
  return [PromptedTrace(cell.prompts[trace.problem_id], trace) for trace in traces]


def settings_of(cfg: ValueConfig) -> dict:
  """The config of step values as JSON, without what changes no result."""
  return {name: value for name, value in records.to_json(cfg).items() if name != "threads"}


def hash_of(traces: Sequence[PromptedTrace]) -> str:
  """What the values of traces depend on."""
  return files.value_hash([trace.to_json() for trace in traces])


def _read(traces: Sequence[PromptedTrace], valued: Sequence[Sequence[StepValue]]) -> int:
  """Tokens of the prefixes that something was sampled after."""
  read = 0
  for rows in valued:
    for row in rows:
      if row.n:
        prompt_ids, trace = traces[row.trace]
        read += len(prompt_ids) + sum(map(len, trace.steps[: row.step]))
  return read


def _continuations(correct: Sequence[Mapping]) -> list[dict]:
  """Correct rollouts by trace and step, as JSON."""
  rows = []
  for i, by_step in enumerate(correct):
    for step, kept in by_step.items():
      samples = [{"ids": list(s.ids), "complete": s.finish == "stop"} for s in kept]
      rows.append({"trace": i, "step": step, "samples": samples})
  return rows


def _with_values(
  cell: Cell, drawn: Sequence[SampledTrace], wanted: Sequence[SampledTrace], stage: str
) -> list[ValuedTrace]:
  """Sampled traces with what a stage knows about the wanted ones."""
  folder = cell.folder / stage
  after: dict[int, dict[int, list[SampledTrace]]] = collections.defaultdict(dict)
  for row in files.read_jsonl(folder / "continuations.jsonl"):
    problem_id = wanted[row["trace"]].problem_id
    correct = [_continuation(cell, problem_id, sample) for sample in row["samples"]]
    after[row["trace"]][row["step"]] = correct
  rows = study_folder.step_values(folder, wanted)
  # By identity: two samples may be equal, and each has values of its own.
  number = {id(trace): i for i, trace in enumerate(wanted)}
  found = []
  for trace in drawn:
    i = number.get(id(trace), -1)
    own: list[StepValue | None] = []
    # A trace whose values are all unknown has none, like one that was not wanted.
    if i >= 0 and any(row is not None for row in rows[i]):
      own = rows[i]
    q, counts = values.evidence(own, cell.study.values.best_of)
    found.append(ValuedTrace(trace, q, counts, after.get(i, {})))
  return found


def _by_problem(cell: Cell, traces: Sequence[ValuedTrace]) -> list[Samples]:
  grouped: dict[str, list[ValuedTrace]] = collections.defaultdict(list)
  for valued_trace in traces:
    grouped[valued_trace.trace.problem_id].append(valued_trace)
  return [Samples(name, cell.prompts[name], tuple(traces)) for name, traces in grouped.items()]


def _continuation(cell: Cell, problem_id: str, sample: dict) -> SampledTrace:
  """A correct rollout."""
  ids = sample["ids"]
  text = cell.tokenizer.decode(ids)
  spans = steps.spans(text, cell.splitting.rule, cell.splitting.limit)
  return SampledTrace(
    problem_id=problem_id,
    text=text,
    steps=tuple(tuple(step) for step in steps.token_spans(ids, spans, cell.tokenizer)),
    verdict=Verdict("equal"),
    complete=sample["complete"],
  )


def trees_of(
  cell: Cell, arm: Arm, name: str, problems: Sequence[Samples], pairing: PairConfig
) -> list[trees.Node]:
  """What an arm is trained on, as trees: pairs, or all traces of a problem together.

  Args:
    cell: of the problems.
    arm: says which.
    name: of the policy to be trained, of the stage.
    problems: sampled traces, with values where the arm needs them.
    pairing: caps and thresholds; mode and weights are the arm's.
  """
  if not isinstance(arm.data, TracePairs):
    return _merged(cell, name, problems)
  pairing = dataclasses.replace(pairing, mode=arm.data.mode, weighted=arm.data.weighted)
  roots = paired(cell, name, problems, pairing)
  if arm.data.chosen_only:
    return [trees.chosen_alone(root) for root in roots]
  return roots


def paired(
  cell: Cell, name: str, samples: Sequence[Samples], pairing: PairConfig
) -> list[trees.Node]:
  """Pairs of one mode, as trees; the stage's manifest counts what was dropped."""
  seeded = dataclasses.replace(pairing, seed=cell.experiment.seed)
  built = pairs.build(samples, seeded, cell.tokenizer)

  def work(folder: pathlib.Path) -> dict:
    records.write(folder / "pairs.jsonl", built.records)
    return built.report

  content = files.value_hash([record.to_json() for record in built.records])
  cell.stage(f"pairs_{name}", [dataclasses.asdict(pairing), built.report, content], work)
  return [tree_of(pair) for pair in built.pairs]


def _merged(cell: Cell, name: str, samples: Sequence[Samples]) -> list[trees.Node]:
  """The traces of every problem as one tree.

  Those with a step that has no value are left out and counted in the stage's manifest.
  """
  roots = []
  kept = 0
  dropped = 0
  for problem in samples:
    known = [t for t in problem.traces if t.trace.steps and t.advantages() is not None]
    kept += len(known)
    dropped += len(problem.traces) - len(known)
    if known:
      roots.append(pairs.tree(problem.prompt_ids, known, cell.tokenizer.eos_id))
  counts = {
    "problems": len(samples),
    "trees": len(roots),
    "traces": kept,
    "dropped": {"trace: a step without a value": dropped},
  }
  cell.stage(f"trees_{name}", [counts], lambda _: counts)
  return roots
