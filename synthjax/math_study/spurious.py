"""Spurious steps in a finished study A on the embedded world, which knows the kind of every line.

Counted are the steps of the teacher, of the samples of every policy, of the positives that RFT
keeps and of the answers to evaluation problems. Step values say the mean advantage of each kind of
step, and of which kind the pits are. A correct line with several operations is a leap; the columns
of attempts have such lines whether correct or not, because a policy that tries a leap does not know
how it ends. Standard errors take the traces of a problem as one cluster; cells of one N are pooled
over seeds, whose problems differ.
"""

import collections
import math
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from synthjax import files, progress
from synthjax.config import schema
from synthjax.credit import values
from synthjax.credit.pits import first_pit
from synthjax.credit.traces import distinct_correct, traces_to_value
from synthjax.data import sources
from synthjax.math_study import splits, study_folder
from synthjax.math_study.arms import ARMS
from synthjax.math_study.cell import of_seed
from synthjax.math_study.study_folder import CellFolder
from synthjax.records import StepValue
from synthjax.worlds import shop

KINDS = ("right", "leap", "wrong")  # of steps, see shop.judge_steps
_OPERATION = re.compile(r" [+-] \d")
# Whose values a policy's step arms need; advantage-weighted arms value all traces.
_INCORRECT_ONLY = "wrong traces"

ClusterId = tuple[int, str]  # seed, problem id


class JudgedTrace(NamedTuple):
  """A trace with the kinds of its steps."""

  cluster: ClusterId
  kinds: list[str]
  attempts: list[bool]  # several operations in the line, correct or not


class JudgedValues(NamedTuple):
  """A trace with the values of its steps."""

  judged: JudgedTrace
  advantages: list[float | None]  # of its steps
  pit: int | None  # its number, from 1; None for a correct trace, or without a pit


class Estimate(NamedTuple):
  """A share or a mean with its standard error over problems; None where nothing was counted."""

  value: float | None
  standard_error: float | None
  counted: int  # what it is a share or mean of


class Term(NamedTuple):
  """What one trace adds to a ratio."""

  cluster: ClusterId
  above: float
  below: float


def ratio(terms: Iterable[tuple[ClusterId, float, float]]) -> Estimate:
  """Sum above over sum below with the linearised error of a ratio, terms of a cluster together."""
  sums: dict[ClusterId, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
  for cluster, above, below in terms:
    sums[cluster][0] += above
    sums[cluster][1] += below
  total = math.fsum(below for _, below in sums.values())
  if not total:
    return Estimate(None, None, 0)
  value, count = math.fsum(above for above, _ in sums.values()) / total, len(sums)
  spread = math.fsum((above - value * below) ** 2 for above, below in sums.values())
  return Estimate(value, math.sqrt(spread * count / max(count - 1, 1)) / total, round(total))


def report(experiment: schema.Experiment, workdir: files.Path) -> dict:
  """Counts the steps of every finished cell below `workdir`.

  Prints the tables and writes spurious.json and spurious.txt there.

  Raises:
    DataError: there is no cell, or it was made with another config.
  """
  workdir = pathlib.Path(workdir)
  if experiment.data.task != "world":
    progress.say(
      f"task {experiment.data.task!r}: nobody knows which of its steps are leaps; they are counted "
      "in the embedded world alone"
    )
    return {}
  cells = [_Cell(experiment, folder) for folder in study_folder.cells(workdir)]
  if not cells:
    raise files.DataError(
      f"{workdir}: no cells of a study (n00512_s0, ...) here; give the --workdir of a run of "
      "recipe 'math_rl'"
    )
  judged: dict[tuple[int, str], list[JudgedTrace]] = {}
  valued: dict[tuple[int, str, str], list[JudgedValues]] = {}
  for cell in cells:
    for of, traces in cell.judged():
      judged.setdefault((cell.problems, of), []).extend(traces)
    for policy, which, traces_with_values in cell.valued():
      valued.setdefault((cell.problems, policy, which), []).extend(traces_with_values)
  result = {
    "cells": [cell.folder.path.name for cell in cells],
    "steps": _step_rows(judged),
    "values": _value_rows(valued),
  }
  text = _text(result)
  files.write_json(workdir / "spurious.json", result)
  with files.replacing(workdir / "spurious.txt") as f:
    f.write(text + "\n")
  progress.say(f"{text}\nin {workdir}: spurious.json, spurious.txt")
  return result


def _step_rows(judged: Mapping[tuple[int, str], list[JudgedTrace]]) -> list[dict]:
  """By N; within it in the order of the cells."""
  rows = []
  for problems, of in sorted(judged, key=lambda key: key[0]):
    rows.append({"problems": problems, "of": of, **_shares(judged[problems, of])})
  return rows


def _value_rows(valued: Mapping[tuple[int, str, str], list[JudgedValues]]) -> list[dict]:
  rows = []
  for key in sorted(valued, key=lambda key: key[0]):
    problems, policy, which = key
    row = {"problems": problems, "policy": policy, "traces": which}
    rows.append({**row, **_advantages(valued[key])})
  return rows


class _Cell:
  """The finished stages of N problems and a seed."""

  def __init__(self, experiment: schema.Experiment, folder: CellFolder):
    self.experiment, self.folder = experiment, folder
    self.problems, self.seed = folder.key
    training = splits.training(of_seed(experiment, self.seed), self.problems)
    self.training = {example.id: example for example in training}
    self.questions = {name: example.question for name, example in self.training.items()}

  def judged(self) -> Iterator[tuple[str, list[JudgedTrace]]]:
    """(what they are, traces): of the teacher, all samples, RFT's positives, and answers."""
    targets = [(name, example.targets) for name, example in self.training.items()]
    yield "teacher", self._judge(self.questions, targets)
    for draw in study_folder.draws(self.folder):
      drawn = draw.traces()
      texts = [(d.problem_id, d.text) for d in drawn]
      yield f"samples of {draw.policy}", self._judge(self.questions, texts)
      for name in ("rft", "rft_many"):
        if draw.policy == "sft" and draw.per_problem == self._drawn_for(name):
          kept = distinct_correct(drawn, ARMS[name].kept(self.experiment.study))
          texts = [(d.problem_id, d.text) for d in kept]
          yield f"positives of {name}", self._judge(self.questions, texts)
    for answers in study_folder.answers(self.folder):
      data, world = self.experiment.data, self.experiment.world
      asked = {p.id: p.question for p in sources.examples(data, world, answers.split)}
      yield f"{answers.split} answers of {answers.policy}", self._judge(asked, answers.texts())

  def valued(self) -> Iterator[tuple[str, str, list[JudgedValues]]]:
    """(policy, which traces, traces) of all step values."""
    study = self.experiment.study
    for stage in study_folder.values(self.folder):
      draw = study_folder.draw_of(self.folder, study.samples, stage.policy)
      drawn = traces_to_value(draw.traces(), study.incorrect, stage.every)
      if len(drawn) != stage.valued():
        raise files.DataError(
          f"{stage.path}: made of other traces than the config chooses; give the config that the "
          "work folder was made with"
        )
      judged = self._judge(self.questions, [(d.problem_id, d.text) for d in drawn])
      rows = study_folder.step_values(stage.path, drawn)
      traces = []
      for d, trace, own in zip(drawn, judged, rows, strict=True):
        advantages = [row.advantage if row else None for row in own[1:]]
        pit = None
        if d.reward == 0:
          pit = _pit(own, study)
        traces.append(JudgedValues(trace, advantages, pit))
      yield stage.policy, "all traces" if stage.every else _INCORRECT_ONLY, traces

  def _drawn_for(self, name: str) -> int:
    study = self.experiment.study
    return study.samples_many if ARMS[name].samples == "many" else study.samples

  def _judge(
    self, questions: Mapping[str, str], texts: Iterable[tuple[str, str]]
  ) -> list[JudgedTrace]:
    """Traces with a text, given as (problem id, text)."""
    judged = []
    for name, text in texts:
      if not text:
        continue
      if name not in questions:
        raise files.DataError(
          f"{self.folder.path}: problem {name!r} is not of the config's world; give the config "
          "that the work folder was made with"
        )
      # A trace that was cut off after a line has no line after it.
      text = text.strip().removesuffix(";")
      attempts = [len(_OPERATION.findall(line)) > 1 for line in text.split(";")]
      kinds = shop.judge_steps(questions[name], text)
      judged.append(JudgedTrace((self.seed, name), kinds, attempts))
    return judged


def _pit(rows: Sequence[StepValue | None], study: schema.Study) -> int | None:
  q, counts = values.evidence(rows, study.values.best_of)
  return first_pit(q, study.pairs.thresholds, counts)


def _shares(traces: Sequence[JudgedTrace]) -> dict:
  """Shares of steps by kind, of attempts, and of traces that hold a leap or a wrong line."""
  shares = {}
  for kind in KINDS:
    shares[kind] = ratio(Term(t.cluster, t.kinds.count(kind), len(t.kinds)) for t in traces)
  shares["attempt"] = ratio(Term(t.cluster, sum(t.attempts), len(t.kinds)) for t in traces)
  failed = []
  for t in traces:
    wrong = sum(attempt and kind == "wrong" for attempt, kind in zip(t.attempts, t.kinds))
    failed.append(Term(t.cluster, wrong, sum(t.attempts)))
  shares["attempt_wrong"] = ratio(failed)
  for kind in ("leap", "wrong"):
    shares[f"traces_with_{kind}"] = ratio(Term(t.cluster, kind in t.kinds, 1) for t in traces)
  return {name: estimate._asdict() for name, estimate in shares.items()}


def _advantages(valued: Sequence[JudgedValues]) -> dict:
  """Mean advantage by kind of step, and shares of the pits by kind."""
  by_kind: dict[str, list[Term]] = {kind: [] for kind in (*KINDS, "attempt")}
  for v in valued:
    cluster, kinds, attempts = v.judged
    for kind, attempt, advantage in zip(kinds, attempts, v.advantages):
      if advantage is not None:
        by_kind[kind].append(Term(cluster, advantage, 1))
        if attempt:
          by_kind["attempt"].append(Term(cluster, advantage, 1))
  means = {kind: ratio(terms) for kind, terms in by_kind.items()}
  pits = [(v.judged.cluster, v.judged.kinds[v.pit - 1]) for v in valued if v.pit is not None]
  shares = {}
  for kind in KINDS:
    shares[kind] = ratio(Term(cluster, of_pit == kind, 1) for cluster, of_pit in pits)
  return {
    "advantage": {kind: estimate._asdict() for kind, estimate in means.items()},
    "pits": {kind: estimate._asdict() for kind, estimate in shares.items()},
  }


def _text(result: dict) -> str:
  """Both tables as a person reads them."""
  notes = [
    f"over {_INCORRECT_ONLY}: a right step or a leap there is one that a failure followed, so its "
    "advantage is low by selection",
    "pits: of wrong traces, within the thresholds of config.study.pairs",
  ]
  cells = "cells: " + ", ".join(result["cells"])
  steps, valued = _steps_table(result["steps"]), _values_table(result["values"])
  return "\n".join([cells, *steps, "", *valued, *notes])


def _steps_table(rows: Sequence[dict]) -> list[str]:
  shares = (*KINDS, "attempt", "attempt_wrong", "traces_with_leap", "traces_with_wrong")
  head = ["N", "steps of", "steps"]
  head += [f"{kind} %" for kind in KINDS]
  head += ["attempts %", "of them wrong %", "traces with a leap %", "with a wrong line %"]
  lines = [head]
  for row in rows:
    line = [f"{row['problems']:,}", row["of"], f"{row['right']['counted']:,}"]
    lines.append(line + [_percent(row[name]) for name in shares])
  return _aligned(lines)


def _values_table(rows: Sequence[dict]) -> list[str]:
  head = ["N", "values of", "over"]
  head += [f"advantage {kind} (steps)" for kind in (*KINDS, "attempt")]
  head += ["pits", *(f"{kind} %" for kind in KINDS)]
  lines = [head]
  for row in rows:
    line = [f"{row['problems']:,}", row["policy"], row["traces"]]
    line += [_mean(estimate) for estimate in row["advantage"].values()]
    line.append(f"{row['pits']['right']['counted']:,}")
    lines.append(line + [_percent(row["pits"][kind]) for kind in KINDS])
  return _aligned(lines)


def _percent(estimate: dict) -> str:
  if estimate["value"] is None:
    return "-"
  return f"{100 * estimate['value']:.1f} ± {100 * estimate['standard_error']:.1f}"


def _mean(estimate: dict) -> str:
  if estimate["value"] is None:
    return "-"
  value, error = estimate["value"], estimate["standard_error"]
  return f"{value:+.3f} ± {error:.3f} ({estimate['counted']:,})"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
  """Columns of one width: names to the left, numbers to the right."""
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = []
  for row in rows:
    cells = []
    for i, (text, width) in enumerate(zip(row, widths)):
      cells.append(text.ljust(width) if i in (1, 2) else text.rjust(width))
    lines.append("  ".join(cells).rstrip())
  return lines
