"""What preference arms learn from: step values of drawn traces, and the pairs and trees made of them. Each is a stage of a cell."""

import collections
import dataclasses
import pathlib
from collections.abc import Sequence

from synthjax import files, records
from synthjax.config.credit import PairConfig
from synthjax.credit import pairs, steps, values
from synthjax.credit.pairs import Samples, ValuedTrace
from synthjax.credit.traces import PromptedTrace, SampledTrace, traces_to_value
from synthjax.data import trees
from synthjax.data.pair_trees import tree_of
from synthjax.math_study.cell import Cell, Cost, Policy
from synthjax.records import StepValue, Verdict


def unvalued(cell: Cell, drawn: Sequence[SampledTrace]) -> list[Samples]:
  """Sampled traces by problem."""
  return _by_problem(cell, [ValuedTrace(trace) for trace in drawn])


def valued(
  cell: Cell, policy: Policy, drawn: Sequence[SampledTrace], correct_too: bool
) -> tuple[list[Samples], Cost]:
  """(sampled traces by problem, the incorrect ones with step values, and the correct ones where asked; what the rollouts took).

  With the correct ones every step of a trace is needed, whatever schedule looks for pits.
  """
  cfg = (
    dataclasses.replace(cell.study.values, schedule="full") if correct_too else cell.study.values
  )
  wanted = traces_to_value(drawn, cell.study.incorrect, correct_too)
  cfg = dataclasses.replace(cfg, seed=cell.seed("values", policy.name))
  traces = prompted(cell, wanted)
  name = f"values_{policy.name}" + ("_all" if correct_too else "")

  def work(folder: pathlib.Path) -> dict:
    found = values.estimate(traces, cell.sampler(policy, folder), cell.judge, cfg)
    records.write(folder / "values.jsonl", [row for rows in found.values for row in rows])
    continuations = [
      {
        "trace": i,
        "step": step,
        "samples": [{"ids": list(s.ids), "complete": s.finish == "stop"} for s in kept],
      }
      for i, right in enumerate(found.correct)
      for step, kept in right.items()
    ]
    files.write_jsonl(folder / "continuations.jsonl", continuations)
    read = sum(
      _prefix(traces[row.trace], row.step) for rows in found.values for row in rows if row.n
    )
    pits = dict(collections.Counter(str(pit) for pit in found.pits))
    return {**dataclasses.asdict(found.spent), "read": read, "traces": len(wanted), "pits": pits}

  how = {name: value for name, value in records.to_json(cfg).items() if name != "threads"}
  spent = cell.stage(
    name,
    [cell.sampled_by(policy), how, files.value_hash([t.to_json() for t in traces]), cell.judging],
    work,
  )
  return _by_problem(cell, _with_values(cell, drawn, wanted, cell.folder / name)), Cost(
    sampled=spent["tokens"], read=spent["read"]
  )


def _prefix(prompted: PromptedTrace, step: int) -> int:
  """Tokens that are read before a rollout after so many steps."""
  return len(prompted.prompt_ids) + sum(map(len, prompted.trace.steps[:step]))


def prompted(cell: Cell, traces: Sequence[SampledTrace]) -> list[PromptedTrace]:
  """Sampled traces with the ids of their problems."""
  return [PromptedTrace(cell.prompts[trace.problem_id], trace) for trace in traces]


def _with_values(
  cell: Cell, drawn: Sequence[SampledTrace], wanted: Sequence[SampledTrace], folder: pathlib.Path
) -> list[ValuedTrace]:
  """Sampled traces with what `folder` holds about the wanted ones."""
  rows: dict[int, dict[int, StepValue]] = collections.defaultdict(dict)
  for row in records.read(StepValue, folder / "values.jsonl"):
    rows[row.trace][row.step] = row
  after: dict[int, dict[int, list[SampledTrace]]] = collections.defaultdict(dict)
  for row in files.read_jsonl(folder / "continuations.jsonl"):
    problem_id = wanted[row["trace"]].problem_id
    after[row["trace"]][row["step"]] = [
      _continuation(cell, problem_id, sample) for sample in row["samples"]
    ]
  number = {id(d): i for i, d in enumerate(wanted)}
  found = []
  for d in drawn:
    i = number.get(id(d), -1)
    own = [rows[i].get(step) for step in range(len(d.steps) + 1)] if i in rows else []
    q, counts = values.evidence(own, cell.study.values.best_of)
    found.append(ValuedTrace(d, q, counts, after.get(i, {})))
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


def paired(
  cell: Cell, name: str, samples: Sequence[Samples], pairing: PairConfig
) -> list[trees.Node]:
  """Pairs of one mode, as trees; what was dropped is in the stage's manifest."""
  built = pairs.build(
    samples, dataclasses.replace(pairing, seed=cell.experiment.seed), cell.tokenizer
  )

  def work(folder: pathlib.Path) -> dict:
    records.write(folder / "pairs.jsonl", built.records)
    return built.report

  cell.stage(
    f"pairs_{name}",
    [
      dataclasses.asdict(pairing),
      built.report,
      files.value_hash([record.to_json() for record in built.records]),
    ],
    work,
  )
  return [tree_of(pair) for pair in built.pairs]


def merged(cell: Cell, name: str, samples: Sequence[Samples]) -> list[trees.Node]:
  """The traces of every problem as one tree; those with a step that has no value are left out and counted in the stage's manifest."""
  known = [
    (of, [t for t in of.traces if t.trace.steps and t.advantages() is not None]) for of in samples
  ]
  counts = {
    "problems": len(samples),
    "trees": sum(bool(traces) for _, traces in known),
    "traces": sum(len(traces) for _, traces in known),
    "dropped": {
      "trace: a step without a value": sum(len(of.traces) - len(traces) for of, traces in known)
    },
  }
  cell.stage(f"trees_{name}", [counts], lambda _: counts)
  return [
    pairs.tree(of.prompt_ids, traces, cell.tokenizer.eos_id) for of, traces in known if traces
  ]
