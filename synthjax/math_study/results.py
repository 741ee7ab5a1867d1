"""What a study measured: marks of all its policies, the multiples they give, table and figure.

Shapes: P evaluation problems.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from synthjax import files, locks, progress, stats
from synthjax.config import schema
from synthjax.data.formats import Example
from synthjax.job import Job
from synthjax.math_study import arms, marking
from synthjax.math_study.cell import Cell, TrainedPolicy
from synthjax.math_study.marking import Marks
from synthjax.math_study.settings import Tuned
from synthjax.report import tables
from synthjax.scaling import bootstrap, multiples, noise, paired
from synthjax.scaling.bootstrap import Run
from synthjax.scaling.multiples import Efficiency
from synthjax.scaling.paired import Difference

_BASE = "base"  # the policy before any training, in tables
_UNTUNED = (
  "settings are those of the config: nothing was tuned, and arms may differ by how well their "
  "settings suit them"
)


class Measured(NamedTuple):
  """All arms at every N and seed."""

  efficiency: Efficiency  # of the marks: means over samples
  differences: list[Difference]  # between arms, paired by seed and problem
  greedy: list[Run]  # the same policies' greedy answers
  base_P: np.ndarray | None  # marks of the untrained policy; None: training is from scratch
  sft: list[Difference]  # of SFT and the base, at every N


class Measurements:
  """Collects the marks of a study's policies, cell by cell.

  Args:
    name: of the study, on screen.
    arms: those of the config.
  """

  def __init__(self, name: str, arms: Sequence[str]):
    self.name, self.arms = name, arms
    self.runs: list[Run] = []
    self.greedy: list[Run] = []
    self.base_P: np.ndarray | None = None
    self._notes: dict[str, None] = {}  # in the order of their first occurrence
    self._looks: dict[str, int] = {}

  def add_base(self, cell: Cell, problems: Sequence[Example]) -> None:
    """Marks the policy that all training begins with, once: it is the same in every cell."""
    if self.base_P is None and cell.experiment.train.init:
      study = cell.study
      self.base_P = marking.mark(cell, cell.base_policy(), problems, study.split, study.marked)

  def add(self, cell: Cell, arm: str, policy: TrainedPolicy, marks: Marks) -> None:
    """The marks of an arm's policy in a cell."""
    self._notes |= dict.fromkeys(policy.notes)
    self._looks[arm] = max(self._looks.get(arm, 1), marking.looks(cell, policy))
    run = Run(
      arm=arm,
      problems=len(cell.problems),
      seed=cell.number,
      accuracy_P=marks.sampled_P,
      tokens_trained=policy.cost.trained,
      tokens_sampled=policy.cost.sampled,
      flops=cell.flops(policy.cost),
    )
    self.runs.append(run)
    self.greedy.append(dataclasses.replace(run, accuracy_P=marks.greedy_P))
    progress.say(
      f"{self.name}, N={run.problems:,} seed {run.seed}: {arm:18} "
      f"{100 * marks.sampled_P.mean():5.1f} %, greedy {100 * marks.greedy_P.mean():5.1f} %"
    )

  def multiples(self, tuned: Mapping[str, Tuned], sft_alone: Sequence[int]) -> Measured:
    """What the marks say.

    Args:
      tuned: settings by arm; {} where nothing was tuned.
      sft_alone: sizes at which the other arms are not missing, but left out.
    """
    cells = bootstrap.resample(self.runs, noise.Bootstrap())
    efficiency = multiples.analyse(cells, tuning=_tuning_flops(tuned, self.runs))
    left_out = set()
    for arm in self.arms:
      left_out |= {str(bootstrap.Key(arm, problems)) for problems in sft_alone}
    efficiency = dataclasses.replace(
      efficiency,
      missing=tuple(cell for cell in efficiency.missing if cell not in left_out),
      notes=(*efficiency.notes, *self._all_notes(bool(tuned))),
    )
    return Measured(
      efficiency=efficiency,
      differences=_differences(self.runs, self.arms),
      greedy=self.greedy,
      base_P=self.base_P,
      sft=self._sft_less_base(),
    )

  def _all_notes(self, tuned: bool) -> dict[str, None]:
    """Of the policies, of repeated looks at the test problems, and of untuned arms."""
    notes = dict(self._notes)
    again = [f"{arm} ({count} times)" for arm, count in self._looks.items() if count > 1]
    if again:
      looked = (
        f"test problems were looked at more than once, with other settings: {', '.join(again)}; "
        "their numbers are not those of a first look"
      )
      notes[looked] = None
    if not tuned:
      notes[_UNTUNED] = None
    return notes

  def _sft_less_base(self) -> list[Difference]:
    """At every N; the base stands beside every run of SFT, as it is the same policy everywhere."""
    if self.base_P is None:
      return []
    base = []
    for run in self.runs:
      if run.arm == "sft":
        base.append(
          dataclasses.replace(
            run,
            arm=_BASE,
            accuracy_P=self.base_P,
            tokens_trained=0,
            tokens_sampled=0,
            flops=0.0,
          )
        )
    return paired.differences([*self.runs, *base], _BASE, "sft")


def _differences(runs: Sequence[Run], names: Sequence[str]) -> list[Difference]:
  """SFT against RFT, and every arm that knows the step against its controls."""
  compared = []
  for name in names:
    if arms.find(name).method in ("rft", "rft2", "dpo"):
      compared.append(("sft", name))
  for name in ("rft_many", "rft_clean", "rft_spurious"):
    compared.append(("rft", name))
  compared.append(("rft_spurious", "rft_clean"))
  for name in arms.of_role(names, "credited"):
    compared += [(control, name) for control in arms.of_role(names, "control")]
  measured = {run.arm for run in runs}
  found = []
  for arm, other in compared:
    if arm in measured and other in measured:
      found += paired.differences(runs, arm, other)
  return found


def _tuning_flops(tuned: Mapping[str, Tuned], runs: Sequence[Run]) -> dict[str, float]:
  """Of choosing the settings of every arm; {} where they are not known of all."""
  flops = {}
  for name in dict.fromkeys(run.arm for run in runs):
    tuned_as = arms.find(name).tuned_as
    if tuned_as not in tuned:
      return {}
    flops[name] = tuned[tuned_as].flops
  return flops


def report(job: Job, measured: Measured, control: Measured | None) -> dict:
  """Writes results.json, table.txt and the figure into the work folder; one start at a time.

  Args:
    job: of the study.
    measured: of its arms.
    control: of the negative control, if the study has one.
  """
  with locks.folder_lock(job.workdir, "study A, its table,", patience=60.0):
    return _report(job, measured, control)


def _report(job: Job, measured: Measured, control: Measured | None) -> dict:
  # matplotlib takes a second to import
  from synthjax.report import plots

  greedy = _greedy(measured.greedy)
  base = None
  if measured.base_P is not None:
    base = float(measured.base_P.mean())
  of_control = control.efficiency if control else None
  result = {
    **measured.efficiency.to_json(),
    "differences": [dataclasses.asdict(d) for d in measured.differences],
    "greedy": greedy,
    "base": base,
    "sft_less_base": [dataclasses.asdict(d) for d in measured.sft],
    "control": of_control and of_control.to_json(),
  }
  files.write_json(job.workdir / "results.json", result)
  figures = plots.efficiency_figure(
    measured.efficiency, job.workdir / "multiples", of_control, base
  )
  lines = _table_lines(job.experiment.study, measured, greedy)
  if control:
    lines += [
      "",
      "negative control, a teacher that neither leaps nor misreads:",
      *_base_lines(control),
      tables.table(control.efficiency),
    ]
  names = ", ".join(path.name for path in figures)
  lines.append(f"everything is in {job.workdir}: table.txt, results.json, {names}; a folder a cell")
  text = "\n".join(lines)
  with files.replacing(job.workdir / "table.txt") as f:
    f.write(text + "\n")
  progress.say(text)
  return result


def _table_lines(study: schema.Study, measured: Measured, greedy: Sequence[dict]) -> list[str]:
  credited, controls = (arms.of_role(study.arms, role) for role in ("credited", "control"))
  return [
    *_base_lines(measured),
    "",
    tables.table(measured.efficiency),
    "",
    *_greedy_lines(greedy),
    "",
    *tables.differences(measured.differences),
    "",
    *tables.lower_bounds(measured.efficiency, credited, controls),
  ]


def _base_lines(measured: Measured) -> list[str]:
  """Whether SFT is better than the policy that it starts from.

  Without that a multiple says how fast damage is undone.
  """
  if measured.base_P is None:
    return ["every policy is trained from scratch: there is no base to improve on"]
  marks_P = measured.base_P
  error = float(marks_P.std(ddof=1) / len(marks_P) ** 0.5)
  accuracy = stats.percent(float(marks_P.mean()), error, len(marks_P))
  base = f"base policy, untrained: {accuracy} %"
  doubtful = []
  for gain in measured.sft:
    if gain.low <= 0:
      low, value, high = (100 * share for share in (gain.low, gain.value, gain.high))
      doubtful.append(f"{gain.problems:,} ({value:+.1f} points, {low:+.1f} to {high:+.1f})")
  if not doubtful:
    gains = [f"{gain.problems:,} {100 * gain.value:+.1f}" for gain in measured.sft]
    return [f"{base}; SFT improves on it at every N: {', '.join(gains)}"]
  sizes = ", ".join(doubtful)
  if any(gain.high < 0 for gain in measured.sft):
    return [
      f"SFT DOES NOT IMPROVE ON ITS BASE at N = {sizes}: there, multiples say how fast an arm "
      "undoes damage",
      base,
    ]
  return [f"SFT is not shown to improve on its base at N = {sizes}", base]


def _greedy(runs: Sequence[Run]) -> list[dict]:
  """Accuracy of greedy answers by arm and N."""
  rows = []
  for cell in bootstrap.resample(runs, noise.Bootstrap()).values():
    rows.append(
      {
        "arm": cell.key.arm,
        "problems": cell.key.problems,
        "accuracy": 1 - cell.error,
        "standard_error": cell.standard_error,
        "test_problems": cell.test_problems,
      }
    )
  return rows


def _greedy_lines(greedy: Sequence[dict]) -> list[str]:
  """A line an arm."""
  by_arm: dict[str, list[str]] = {}
  for row in greedy:
    accuracy = stats.percent(row["accuracy"], row["standard_error"], row["test_problems"])
    by_arm.setdefault(row["arm"], []).append(f"N={row['problems']:,} {accuracy}")
  lines = ["greedy answers, accuracy %:"]
  for arm, shown in by_arm.items():
    lines.append(f"  {arm:18} {', '.join(shown)}")
  return lines
