"""Study A: what N synthetic maths problems are worth under SFT, RFT, DPO, per-step DPO and advantage-weighted RL (Setlur et al. 2024).

problems, none of them of the evaluation, + teacher traces -> SFT -> its samples -> RFT, step values,
pairs -> preference arms -> evaluation -> multiples.

The arms are in `study_arms.py`. Every arm's settings are chosen alike on development problems
(`tuning.py`) before the first test problem is answered.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from synthjax import files, locks, progress, stats
from synthjax import job as jobs
from synthjax.config import schema
from synthjax.data.formats import Example
from synthjax.errors import ConfigError
from synthjax.job import Job
from synthjax.math_study import arms as study_arms
from synthjax.math_study import settings, splits, tuning
from synthjax.math_study.arms import Arms, Learn
from synthjax.math_study.cell import Cell, Cost, Policy, open_cell
from synthjax.math_study.settings import Tuned
from synthjax.recipes import finetune
from synthjax.report import tables as tables
from synthjax.scaling import bootstrap, multiples, noise, paired, power
from synthjax.scaling.multiples import Efficiency
from synthjax.scaling.paired import Difference

_BASE = "base"  # the policy before any training, in tables


class Measured(NamedTuple):
  """All arms at every N and seed."""

  efficiency: Efficiency  # of the marks: means over samples
  differences: list[Difference]  # between arms, paired by seed and problem
  greedy: list[bootstrap.Run]  # the same policies' greedy answers
  base_P: np.ndarray | None  # marks of the untrained policy; None: training is from scratch
  sft: list[Difference]  # of SFT and the base, at every N


def run(job: Job) -> dict:
  """Trains and evaluates every arm at every N and seed, and says what the problems were worth. Finished stages are skipped.

  Raises:
    ConfigError: an unknown arm. DataError, TooWeakError, TrainingStopped: see the rooms; running again goes on where it stopped.
  """
  study = job.experiment.study
  _check(job.experiment)
  if job.force:
    raise ConfigError(
      "recipe 'math_rl' has a stage for every step of every arm; to redo one, remove its folder instead of giving --force"
    )
  jobs.check_start(job.experiment)
  finetune.say_what_is_asked(job.experiment)
  splits.check(
    job.experiment, job.workdir, sorted({*study.problems, *study.baseline_problems, *study.control})
  )
  files.write_json(job.workdir / "config.json", dataclasses.asdict(job.experiment))
  progress.say(
    power.sentence(study.problems, len(study.seeds), len(splits.evaluated(job.experiment)))
  )
  tuned = tuning.tuned(job, jobs.tokenizer_of(job), study.arms)
  found = _measured(job, tuned, study.problems, study.baseline_problems)
  control = None
  if study.control:
    world = dataclasses.replace(job.experiment.world, leap=0.0, misread=0.0)
    experiment = dataclasses.replace(job.experiment, world=world)
    control = _measured(
      job._replace(experiment=experiment, workdir=job.workdir / "control"), tuned, study.control, ()
    )
  return report(job, found, control)


def _measured(
  job: Job, tuned: Mapping[str, Tuned], problems: Sequence[int], baseline: Sequence[int]
) -> Measured:
  study = job.experiment.study
  runs: list[bootstrap.Run] = []
  greedy: list[bootstrap.Run] = []
  notes: dict[str, None] = {}  # in order
  looks: dict[str, int] = {}
  tokenizer, test = jobs.tokenizer_of(job), splits.evaluated(job.experiment)
  plan = [
    (count, seed, study.arms if count in problems else ())
    for count in sorted({*problems, *baseline})
    for seed in study.seeds
  ]
  # An arm takes about as long as SFT on the same problems, and with its samples more (our choice: twice).
  weights = [count * (1 + 2 * len(set(arms) - {"sft"})) for count, _, arms in plan]
  base_P = None
  with progress.study(weights, f"{job.workdir.name}, cell") as begin:
    for count, seed, arms in plan:
      begin()
      cell = open_cell(job, tokenizer, count, seed)
      with _alone(cell):
        if base_P is None:
          base_P = _base(cell, test)
        for arm, policy in train_arms(cell, arms, tuned).items():
          marks_P = cell.mark(policy, test, study.split, study.marked)
          greedy_P = cell.mark(policy, test, study.split, 0)
          notes |= dict.fromkeys(policy.notes)
          looks[arm] = max(looks.get(arm, 1), cell.looks(policy))
          cost, flops = policy.cost, cell.flops(policy.cost)
          for kept, accuracy_P in ((runs, marks_P), (greedy, greedy_P)):
            kept.append(
              bootstrap.Run(arm, count, seed, accuracy_P, cost.trained, cost.sampled, flops=flops)
            )
          progress.say(
            f"{job.workdir.name}, N={count:,} seed {seed}: {arm:18} {100 * marks_P.mean():5.1f} %, "
            f"greedy {100 * greedy_P.mean():5.1f} %"
          )
  notes |= dict.fromkeys(_looked(looks))
  if not tuned:
    notes[
      "settings are those of the config: nothing was tuned, and arms may differ by how well their settings suit them"
    ] = None
  cells = bootstrap.resample(runs, noise.Bootstrap())
  found = multiples.analyse(cells, tuning=_compute(tuned, runs))
  on_purpose = {
    str(bootstrap.Key(arm, count)) for arm in study.arms for count in {*baseline} - {*problems}
  }
  missing = tuple(cell for cell in found.missing if cell not in on_purpose)
  found = dataclasses.replace(found, missing=missing, notes=(*found.notes, *notes))
  improved = (
    [] if base_P is None else paired.differences([*runs, *_as_runs(base_P, runs)], _BASE, "sft")
  )
  return Measured(found, _differences(runs, study.arms), greedy, base_P, improved)


def _differences(runs: Sequence[bootstrap.Run], arms: Sequence[str]) -> list[Difference]:
  """SFT against RFT, and every arm that knows the step against its controls."""
  measured = {run.arm for run in runs}
  pairs = [("sft", arm) for arm in arms if arm.partition("*")[0] in ("rft", "rft2", "dpo")]
  pairs += [("rft", arm) for arm in ("rft_many", *study_arms.PICKED)] + [study_arms.PICKED[::-1]]
  for arm in arms:
    if arm.partition("*")[0] in study_arms.CREDITED:
      pairs += [(other, arm) for other in _controls(arms)]
  return [
    each
    for one, other in pairs
    if {one, other} <= measured
    for each in paired.differences(runs, one, other)
  ]


def _controls(arms: Sequence[str]) -> list[str]:
  return [arm for arm in arms if arm.partition("*")[0] in study_arms.CONTROLS]


def _base(cell: Cell, test: Sequence[Example]) -> np.ndarray | None:
  """Marks of the policy that all training begins with."""
  init = cell.experiment.train.init
  if not init:
    return None
  return cell.mark(Policy(_BASE, init, Cost(), Cost()), test, cell.study.split, cell.study.marked)


def _as_runs(base_P: np.ndarray, runs: Sequence[bootstrap.Run]) -> list[bootstrap.Run]:
  """The base beside every run of SFT: it is the same policy at every N and seed."""
  return [
    dataclasses.replace(
      run, arm=_BASE, accuracy_P=base_P, tokens_trained=0, tokens_sampled=0, flops=0.0
    )
    for run in runs
    if run.arm == "sft"
  ]


def _looked(looks: Mapping[str, int]) -> list[str]:
  """A note where test problems were answered by an arm that was changed afterwards."""
  again = [f"{arm} ({count} times)" for arm, count in looks.items() if count > 1]
  if not again:
    return []
  return [
    f"test problems were looked at more than once, with other settings: {', '.join(again)}; "
    "their numbers are not those of a first look"
  ]


def _compute(tuned: Mapping[str, Tuned], runs: Sequence[bootstrap.Run]) -> dict[str, float]:
  """FLOPs of choosing the settings of every arm; {} where they are not known."""
  arms = dict.fromkeys(run.arm for run in runs)
  if any(study_arms.tuned_as(arm) not in tuned for arm in arms):
    return {}
  return {arm: tuned[study_arms.tuned_as(arm)].flops for arm in arms}


def _alone(cell: Cell) -> contextlib.AbstractContextManager[None]:
  """Of several starts that share the work folder one works on a cell."""
  remedy = "wait for it or stop it, or give this start other config.study.seeds"
  return locks.folder_lock(cell.folder, f"study A, cell {cell.folder.name},", remedy)


def _check(experiment: schema.Experiment) -> None:
  study = experiment.study
  for arm in study.arms:
    name, _, rounds = arm.partition("*")
    if name not in study_arms.ARMS or (
      rounds and not (rounds.isdigit() and int(rounds) > 1 and name in study_arms.ON_POLICY)
    ):
      raise ConfigError(
        f"config.study.arms has {arm!r}; expected one of {', '.join(study_arms.ARMS)}, or NAME*k (k of 2 and more) for "
        "rounds of rft2 or a preference arm"
      )
    if name in study_arms.PICKED and experiment.data.task != "world":
      raise ConfigError(
        f"config.study.arms has {arm!r}, which picks traces by their leaps; those are known in the embedded world "
        f"alone (data.task='world'), not in task {experiment.data.task!r}: leave the arm out"
      )
  if study.tune.problems and study.tune.seed in study.seeds:
    raise ConfigError(
      f"config.study.tune.seed is {study.tune.seed}, one of config.study.seeds: settings are chosen on other training "
      "problems than the study's; give another seed"
    )
  if len({*study.problems, *study.baseline_problems}) < 2:
    raise ConfigError(
      f"config.study.problems is {study.problems} and baseline_problems {study.baseline_problems}: a multiple is read off "
      "SFT at two sizes at least; name more in baseline_problems"
    )
  if study.control and (len(set(study.control)) == 1 or experiment.data.task != "world"):
    raise ConfigError(
      f"config.study.control is {study.control} and data.task {experiment.data.task!r}: two sizes at least, in the "
      "embedded world, or none"
    )
  if experiment.data.too_long not in ("error", "drop"):
    raise ConfigError(
      f"config.data.too_long is {experiment.data.too_long!r}: recipe 'math_rl' trains on whole solutions; set 'error', or "
      "'drop'"
    )
  if jax.process_count() > 1:
    raise ConfigError(
      "recipe 'math_rl' runs in one process; give each process its own config.study.seeds and one WORKDIR, then run all "
      "once"
    )


def train_arms(cell: Cell, arms: Sequence[str], tuned: Mapping[str, Tuned]) -> dict[str, Policy]:
  """The policies of one cell, by arm; `sft`, the unit of all multiples, is always there.

  Raises:
    ConfigError: settings were tuned, but not those of an arm.
  """

  def choose(arm: str, learn: Learn) -> Policy:
    known = study_arms.tuned_as(arm)
    if not tuned:
      return learn(arm, settings.of_config(cell.experiment, study_arms.kind_of(arm)))
    if known not in tuned:
      raise ConfigError(
        f"config.study.arms has {arm!r}, and the tuned settings know {', '.join(tuned)}; tune it too (config.study.tune), "
        "or leave the arm out"
      )
    return learn(arm, tuned[known].setting)

  made = Arms(cell, choose)
  return {arm: made.policy(arm) for arm in dict.fromkeys(["sft", *arms])}


def report(job: Job, found: Measured, control: Measured | None) -> dict:
  """Multiples with their intervals, paired differences, table and figure, in the work folder; one start at a time."""
  with locks.folder_lock(job.workdir, "study A, its table,", patience=60.0):
    return _report(job, found, control)


def _report(job: Job, found: Measured, control: Measured | None) -> dict:
  study = job.experiment.study
  greedy = _greedy(found.greedy)
  base = None if found.base_P is None else float(found.base_P.mean())
  result = {
    **found.efficiency.to_json(),
    "differences": [dataclasses.asdict(d) for d in found.differences],
    "greedy": greedy,
    "base": base,
    "sft_less_base": [dataclasses.asdict(d) for d in found.sft],
    "control": control and control.efficiency.to_json(),
  }
  files.write_json(job.workdir / "results.json", result)
  from synthjax.report import plots

  figures = plots.efficiency_figure(
    found.efficiency, job.workdir / "multiples", control and control.efficiency, base
  )
  credited = [arm for arm in study.arms if arm.partition("*")[0] in study_arms.CREDITED]
  lines = [*_first_lines(found), "", tables.table(found.efficiency), "", *_greedy_lines(greedy), ""]
  lines += [
    *tables.differences(found.differences),
    "",
    *tables.lower_bounds(found.efficiency, credited, _controls(study.arms)),
  ]
  if control:
    lines += [
      "",
      "negative control, a teacher that neither leaps nor misreads:",
      *_first_lines(control),
      tables.table(control.efficiency),
    ]
  lines.append(
    f"everything is in {job.workdir}: table.txt, results.json, {', '.join(path.name for path in figures)}; a folder a cell"
  )
  with files.replacing(job.workdir / "table.txt") as f:
    f.write("\n".join(lines) + "\n")
  progress.say("\n".join(lines))
  return result


def _first_lines(found: Measured) -> list[str]:
  """Whether SFT is better than the policy that it starts from: without that a multiple says how fast damage is undone."""
  if found.base_P is None:
    return ["every policy is trained from scratch: there is no base to improve on"]
  marks = found.base_P
  error = float(marks.std(ddof=1) / len(marks) ** 0.5)
  head = f"base policy, untrained: {stats.percent(float(marks.mean()), error, len(marks))} %"
  sizes = ", ".join(
    f"{each.problems:,} ({100 * each.value:+.1f} points, {100 * each.low:+.1f} to {100 * each.high:+.1f})"
    for each in found.sft
    if each.low <= 0
  )
  if not sizes:
    return [
      f"{head}; SFT improves on it at every N: "
      + ", ".join(f"{each.problems:,} {100 * each.value:+.1f}" for each in found.sft)
    ]
  if any(each.high < 0 for each in found.sft):
    return [
      f"SFT DOES NOT IMPROVE ON ITS BASE at N = {sizes}: there, multiples say how fast an arm undoes damage",
      head,
    ]
  return [f"SFT is not shown to improve on its base at N = {sizes}", head]


def _greedy(runs: Sequence[bootstrap.Run]) -> list[dict]:
  """Accuracy of greedy answers by arm and N."""
  cells = bootstrap.resample(runs, noise.Bootstrap())
  return [
    {
      "arm": cell.key.arm,
      "problems": cell.key.problems,
      "accuracy": 1 - cell.error,
      "standard_error": cell.standard_error,
      "test_problems": cell.test_problems,
    }
    for cell in cells.values()
  ]


def _greedy_lines(greedy: Sequence[dict]) -> list[str]:
  """A line an arm."""
  lines = ["greedy answers, accuracy %:"]
  for arm in dict.fromkeys(each["arm"] for each in greedy):
    shown = [
      f"N={each['problems']:,} {stats.percent(each['accuracy'], each['standard_error'], each['test_problems'])}"
      for each in greedy
      if each["arm"] == arm
    ]
    lines.append(f"  {arm:18} {', '.join(shown)}")
  return lines
