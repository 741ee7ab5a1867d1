"""What lies where in the work folder of study A: names of cells and stages, and readers of both.

A cell is a folder `n00512_s0` (N problems, seed). Its stages are `draw8_sft` (samples of a policy),
`values_sft` and `values_sft_all` (step values of its incorrect traces, or of all), and
`evaluate_test_sft` (answers to a split). These names are written and read here alone.
"""

import collections
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from synthjax import files, records, stages
from synthjax.credit.traces import SampledTrace
from synthjax.records import StepValue

_SPLITS = ("test", "dev")


class CellKey(NamedTuple):
  """Which cell a folder is."""

  problems: int
  seed: int


class CellFolder(NamedTuple):
  """The folder of a cell."""

  key: CellKey
  path: pathlib.Path


class Draw(NamedTuple):
  """A finished stage of sampled traces."""

  per_problem: int
  policy: str
  path: pathlib.Path

  def traces(self) -> list[SampledTrace]:
    return list(records.read(SampledTrace, self.path / "drawn.jsonl"))


class Values(NamedTuple):
  """A finished stage of step values."""

  policy: str
  every: bool  # of correct traces too
  path: pathlib.Path

  def valued(self) -> int:
    """How many traces have values."""
    return files.read_json(self.path / "manifest.json")["result"]["traces"]


class Answers(NamedTuple):
  """A finished stage of answers to evaluation problems."""

  split: str
  policy: str
  path: pathlib.Path

  def texts(self) -> Iterator[tuple[str, str]]:
    """(problem id, text) of every answer."""
    for row in files.read_jsonl(self.path / "responses.jsonl"):
      for answer in row["responses"]:
        yield row["id"], answer["text"]


def cell_name(problems: int, seed: int) -> str:
  """The folder of a cell."""
  return f"n{problems:05}_s{seed}"


def cell_key(name: str) -> CellKey | None:
  """The cell that a folder's name says; None where it names none."""
  problems, separator, seed = name.removeprefix("n").partition("_s")
  if not name.startswith("n") or not separator:
    return None
  if not (problems.isdecimal() and seed.isdecimal()):
    return None
  return CellKey(int(problems), int(seed))


def cells(workdir: pathlib.Path) -> list[CellFolder]:
  """The cells of a study, by name."""
  found = []
  for path in sorted(workdir.glob("n*_s*")):
    key = cell_key(path.name)
    if key:
      found.append(CellFolder(key, path))
  return found


def draw_name(per_problem: int, policy: str) -> str:
  """The stage of a policy's samples."""
  return f"draw{per_problem}_{policy}"


def values_name(policy: str, every: bool) -> str:
  """The stage of step values of a policy's traces."""
  return f"values_{policy}_all" if every else f"values_{policy}"


def answers_name(split: str, policy: str, greedy: bool = False) -> str:
  """The stage of a policy's answers to the problems of a split."""
  kind = "greedy" if greedy else "evaluate"
  return f"{kind}_{split}_{policy}"


def draw_of(cell: CellFolder, per_problem: int, policy: str) -> Draw:
  """The stage of a policy's samples, finished or not."""
  return Draw(per_problem, policy, cell.path / draw_name(per_problem, policy))


def draws(cell: CellFolder) -> Iterator[Draw]:
  """Finished stages of samples, by name."""
  for path in _finished(cell):
    per_problem, _, policy = path.name.removeprefix("draw").partition("_")
    if path.name.startswith("draw") and per_problem.isdecimal() and policy:
      yield Draw(int(per_problem), policy, path)


def values(cell: CellFolder) -> Iterator[Values]:
  """Finished stages of step values, by name."""
  for path in _finished(cell):
    policy = path.name.removeprefix("values_")
    if path.name.startswith("values_") and policy:
      every = policy.endswith("_all")
      yield Values(policy.removesuffix("_all"), every, path)


def answers(cell: CellFolder) -> Iterator[Answers]:
  """Finished stages of sampled answers, by name."""
  for path in _finished(cell):
    kind, _, rest = path.name.partition("_")
    split, _, policy = rest.partition("_")
    if kind == "evaluate" and split in _SPLITS and policy:
      yield Answers(split, policy, path)


def step_values(
  folder: pathlib.Path, traces: Sequence[SampledTrace]
) -> list[list[StepValue | None]]:
  """For every valued trace a value for each prefix, from none to all of its steps.

  Args:
    folder: of a stage that valued these traces.
    traces: in the order of the stage.

  Returns:
    None stands for a prefix that the schedule did not visit.
  """
  rows: dict[int, dict[int, StepValue]] = collections.defaultdict(dict)
  for row in records.read(StepValue, folder / "values.jsonl"):
    rows[row.trace][row.step] = row
  found = []
  for number, trace in enumerate(traces):
    found.append([rows[number].get(step) for step in range(len(trace.steps) + 1)])
  return found


def _finished(cell: CellFolder) -> Iterator[pathlib.Path]:
  """Stages in order; one that is still at work or was replaced is left out."""
  for path in sorted(cell.path.iterdir()):
    if not stages.is_kept(path) and (path / "manifest.json").exists():
      yield path
