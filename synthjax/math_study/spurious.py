"""Spurious steps in a finished study A on the embedded world, where every line is known to be right, a leap or wrong.

Who writes leaps: the teacher, the samples of every policy, the positives that RFT keeps, the answers to evaluation problems. What step
values say about them: the mean advantage of each kind of step, and which kind the pits are. A line with several operations is a leap where
it is right; the columns of attempts have it either way, because a policy that tries a leap does not know how it ends. Standard errors take
the traces of a problem as one cluster; cells of one N are pooled over seeds, whose problems differ.
"""

import collections
import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from synthjax import files, progress, records, stages
from synthjax.config import schema
from synthjax.credit import values
from synthjax.credit.pits import first_pit
from synthjax.credit.traces import SampledTrace, distinct_correct, traces_to_value
from synthjax.data import sources
from synthjax.records import StepValue
from synthjax.worlds import shop

KINDS = ("right", "leap", "wrong")  # of steps, see shop.judge_steps
_OPERATION = re.compile(r" [+-] \d")
_WRONG_ONLY = (
  "wrong traces"  # whose values a policy's step arms need; advantage-weighted arms value all
)


class Judged(NamedTuple):
  """A trace with the kinds of its steps."""

  cluster: tuple[int, str]  # seed, problem id
  kinds: list[str]
  attempts: list[bool]  # several operations in the line, right or wrong


class Estimate(NamedTuple):
  """A share or a mean, with its standard error over problems; both None where nothing was counted."""

  value: float | None
  standard_error: float | None
  counted: int  # what it is a share or mean of


def ratio(rows: Iterable[tuple[tuple[int, str], float, float]]) -> Estimate:
  """Sum of the second numbers over that of the third, rows of one cluster together; the error is the linearised one of a ratio."""
  sums: dict[tuple[int, str], list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
  for cluster, above, below in rows:
    sums[cluster][0] += above
    sums[cluster][1] += below
  total = math.fsum(below for _, below in sums.values())
  if not total:
    return Estimate(None, None, 0)
  value, count = math.fsum(above for above, _ in sums.values()) / total, len(sums)
  spread = math.fsum((above - value * below) ** 2 for above, below in sums.values())
  return Estimate(value, math.sqrt(spread * count / max(count - 1, 1)) / total, round(total))


def report(experiment: schema.Experiment, workdir: files.Path) -> dict:
  """Counts the steps of every finished cell below `workdir`; prints the tables and writes spurious.json and spurious.txt there.

  Raises:
    DataError: there is no cell, or it was made with another config.
  """
  workdir = pathlib.Path(workdir)
  if experiment.data.task != "world":
    progress.say(
      f"task {experiment.data.task!r}: nobody knows which of its steps are leaps; they are counted in the embedded world alone"
    )
    return {}
  cells = [
    _Cell(experiment, folder)
    for folder in sorted(workdir.glob("n*_s*"))
    if re.fullmatch(r"n\d+_s\d+", folder.name)
  ]
  if not cells:
    raise files.DataError(
      f"{workdir}: no cells of a study (n00512_s0, ...) here; give the --workdir of a run of recipe 'math_rl'"
    )
  found: dict[str, dict[tuple, list]] = {"steps": {}, "values": {}}
  for cell in cells:
    for name, traces in cell.judged():
      found["steps"].setdefault((cell.problems, name), []).extend(traces)
    for policy_and_traces, valued in cell.valued():
      found["values"].setdefault((cell.problems, *policy_and_traces), []).extend(valued)
  by_size = lambda rows: sorted(rows.items(), key=lambda row: row[0][0])
  result = {
    "cells": [cell.folder.name for cell in cells],
    "steps": [
      {"problems": n, "of": name, **_shares(traces)}
      for (n, name), traces in by_size(found["steps"])
    ],
    "values": [
      {"problems": n, "policy": policy, "traces": which, **_advantages(valued)}
      for (n, policy, which), valued in by_size(found["values"])
    ],
  }
  text = _text(result)
  files.write_json(workdir / "spurious.json", result)
  with files.replacing(workdir / "spurious.txt") as f:
    f.write(text + "\n")
  progress.say(f"{text}\nin {workdir}: spurious.json, spurious.txt")
  return result


class _Valued(NamedTuple):
  """A trace with the values of its steps."""

  judged: Judged
  advantages: list[float | None]  # of its steps
  pit: int | None


class _Cell:
  """The finished stages of N problems and a seed."""

  def __init__(self, experiment: schema.Experiment, folder: pathlib.Path):
    self.experiment, self.folder = experiment, folder
    self.problems, self.seed = (int(number) for number in re.findall(r"\d+", folder.name))
    world = dataclasses.replace(
      experiment.world, seed=experiment.world.seed + self.seed
    )  # as math_study/cell.py opens it
    data = dataclasses.replace(experiment.data, train_problems=self.problems)
    self.training = {example.id: example for example in sources.examples(data, world, "train")}

  def judged(self) -> Iterator[tuple[str, list[Judged]]]:
    """(what they are, traces) of the teacher, of all samples, of RFT's positives and of the answers to evaluation problems."""
    questions = {name: example.question for name, example in self.training.items()}
    yield (
      "teacher",
      [self._judge(questions, name, example.targets) for name, example in self.training.items()],
    )
    study = self.experiment.study
    for folder, (count, policy) in self._finished(r"draw(\d+)_(.+)"):
      drawn = self._drawn(folder)
      yield (
        f"samples of {policy}",
        [self._judge(questions, d.problem_id, d.text) for d in drawn if d.text],
      )
      for arm, samples, kept in (
        ("rft", study.samples, study.kept),
        ("rft_many", study.samples_many, study.kept_many),
      ):
        if policy == "sft" and int(count) == samples:
          yield (
            f"positives of {arm}",
            [self._judge(questions, d.problem_id, d.text) for d in distinct_correct(drawn, kept)],
          )
    for folder, (split, policy) in self._finished(r"evaluate_(test|dev)_(.+)"):
      asked = {
        example.id: example.question
        for example in sources.examples(self.experiment.data, self.experiment.world, split)
      }
      texts = [
        (row["id"], answer["text"])
        for row in files.read_jsonl(folder / "responses.jsonl")
        for answer in row["responses"]
      ]
      yield (
        f"{split} answers of {policy}",
        [self._judge(asked, name, text) for name, text in texts if text],
      )

  def valued(self) -> Iterator[tuple[tuple[str, str], list[_Valued]]]:
    """((policy, which traces), traces) of all step values."""
    study, questions = (
      self.experiment.study,
      {name: example.question for name, example in self.training.items()},
    )
    for folder, (name,) in self._finished(r"values_(.+)"):
      policy, every = name.removesuffix("_all"), name.endswith("_all")
      drawn = traces_to_value(
        self._drawn(self.folder / f"draw{study.samples}_{policy}"), study.incorrect, every
      )
      rows: dict[int, dict[int, StepValue]] = collections.defaultdict(dict)
      for row in records.read(StepValue, folder / "values.jsonl"):
        rows[row.trace][row.step] = row
      if len(drawn) != files.read_json(folder / "manifest.json")["result"]["traces"]:
        raise files.DataError(
          f"{folder}: made of other traces than the config chooses; give the config that the work folder was made with"
        )
      kinds = [self._judge(questions, d.problem_id, d.text) for d in drawn]
      own_rows = [
        [rows[i].get(step) for step in range(len(d.steps) + 1)] for i, d in enumerate(drawn)
      ]
      yield (
        (policy, "all traces" if every else _WRONG_ONLY),
        [
          _Valued(
            judged,
            [row.advantage if row else None for row in own[1:]],
            _pit(own, study) if d.reward == 0 else None,
          )
          for d, judged, own in zip(drawn, kinds, own_rows)
        ],
      )

  def _finished(self, pattern: str) -> Iterator[tuple[pathlib.Path, Sequence[str]]]:
    """Stages whose names are like that, in order; one that is still at work is left out."""
    for folder in sorted(self.folder.iterdir()):
      match = re.fullmatch(pattern, folder.name)
      if match and not stages.is_kept(folder) and (folder / "manifest.json").exists():
        yield folder, match.groups()

  def _drawn(self, folder: pathlib.Path) -> list[SampledTrace]:
    return list(records.read(SampledTrace, folder / "drawn.jsonl"))

  def _judge(self, questions, name: str, text: str) -> Judged:
    if name not in questions:
      raise files.DataError(
        f"{self.folder}: problem {name!r} is not of the config's world; give the config that the work folder was made "
        "with"
      )
    text = text.strip().removesuffix(
      ";"
    )  # a trace that was cut off after a line has no line after it
    attempts = [len(_OPERATION.findall(line)) > 1 for line in text.split(";")]
    return Judged((self.seed, name), shop.judge_steps(questions[name], text), attempts)


def _pit(rows: Sequence[StepValue | None], study: schema.Study) -> int | None:
  q, counts = values.evidence(rows, study.values.best_of)
  return first_pit(q, study.pairs.thresholds, counts)


def _shares(traces: Sequence[Judged]) -> dict:
  """Of steps by kind, of attempts at leaps and those that went wrong, and of traces that hold a leap or a wrong line."""
  steps = {
    kind: ratio((t.cluster, t.kinds.count(kind), len(t.kinds)) for t in traces) for kind in KINDS
  }
  steps["attempt"] = ratio((t.cluster, sum(t.attempts), len(t.kinds)) for t in traces)
  steps["attempt_wrong"] = ratio(
    (t.cluster, sum(a and k == "wrong" for a, k in zip(t.attempts, t.kinds)), sum(t.attempts))
    for t in traces
  )
  holding = {
    f"traces_with_{kind}": ratio((t.cluster, kind in t.kinds, 1) for t in traces)
    for kind in ("leap", "wrong")
  }
  return {name: estimate._asdict() for name, estimate in (steps | holding).items()}


def _advantages(valued: Sequence[_Valued]) -> dict:
  """Mean advantage by kind of step, and shares of the pits by kind."""
  means = {
    kind: ratio(
      (v.judged.cluster, advantage, 1)
      for v in valued
      for step, advantage in zip(v.judged.kinds, v.advantages)
      if step == kind and advantage is not None
    )
    for kind in KINDS
  }
  means["attempt"] = ratio(
    (v.judged.cluster, advantage, 1)
    for v in valued
    for tried, advantage in zip(v.judged.attempts, v.advantages)
    if tried and advantage is not None
  )
  pits = [(v.judged.cluster, v.judged.kinds[v.pit - 1]) for v in valued if v.pit is not None]
  shares = {kind: ratio((cluster, found == kind, 1) for cluster, found in pits) for kind in KINDS}
  return {
    "advantage": {kind: e._asdict() for kind, e in means.items()},
    "pits": {kind: e._asdict() for kind, e in shares.items()},
  }


def _text(result: dict) -> str:
  """Both tables as a person reads them."""
  percent = lambda e: (
    "-" if e["value"] is None else f"{100 * e['value']:.1f} ± {100 * e['standard_error']:.1f}"
  )
  plain = lambda e: (
    "-"
    if e["value"] is None
    else f"{e['value']:+.3f} ± {e['standard_error']:.3f} ({e['counted']:,})"
  )
  steps = [
    [
      "N",
      "steps of",
      "steps",
      *(f"{kind} %" for kind in KINDS),
      "attempts %",
      "of them wrong %",
      "traces with a leap %",
      "with a wrong line %",
    ]
  ]
  columns = (*KINDS, "attempt", "attempt_wrong", "traces_with_leap", "traces_with_wrong")
  steps += [
    [
      f"{row['problems']:,}",
      row["of"],
      f"{row['right']['counted']:,}",
      *(percent(row[name]) for name in columns),
    ]
    for row in result["steps"]
  ]
  valued = [
    [
      "N",
      "values of",
      "over",
      *(f"advantage {kind} (steps)" for kind in (*KINDS, "attempt")),
      "pits",
      *(f"{kind} %" for kind in KINDS),
    ]
  ]
  valued += [
    [
      f"{row['problems']:,}",
      row["policy"],
      row["traces"],
      *(plain(e) for e in row["advantage"].values()),
      f"{row['pits']['right']['counted']:,}",
      *(percent(row["pits"][kind]) for kind in KINDS),
    ]
    for row in result["values"]
  ]
  notes = [
    f"over {_WRONG_ONLY}: a right step or a leap there is one that a failure followed, so its advantage is low by selection",
    "pits: of wrong traces, within the thresholds of config.study.pairs",
  ]
  return "\n".join(
    ["cells: " + ", ".join(result["cells"]), *_aligned(steps), "", *_aligned(valued), *notes]
  )


def _aligned(rows: list[list[str]]) -> list[str]:
  widths = [max(map(len, column)) for column in zip(*rows)]
  place: Callable[[int, str], str] = lambda i, text: (
    text.ljust(widths[i]) if i in (1, 2) else text.rjust(widths[i])
  )
  return ["  ".join(place(i, text) for i, text in enumerate(row)).rstrip() for row in rows]
