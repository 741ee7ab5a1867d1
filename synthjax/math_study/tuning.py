"""Every arm of study A tuned alike: the same grid for arms of a kind, on development problems alone.

Settings are tried on one cell, whose training problems no cell of the study has. Arms are tuned in
the order in which they stand on one another: what RFT samples from is the tuned SFT. A trial is a
training and an evaluation, both of them stages: tuning goes on where it was stopped.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from synthjax import files, locks, progress
from synthjax.data.formats import Example
from synthjax.job import Job
from synthjax.math_study import arms as study_arms
from synthjax.math_study import settings, splits
from synthjax.math_study.arms import Arms, Learn
from synthjax.math_study.cell import Cell, Policy, open_cell
from synthjax.math_study.settings import Setting, Tuned

FILE = "tuned.json"  # in the work folder


class _Trial(NamedTuple):
  setting: Setting
  policy: Policy
  accuracy: float  # on development problems


def tuned(job: Job, tokenizer, arms: Sequence[str]) -> dict[str, Tuned]:
  """The settings of every arm, from `config.study.tuned`, or by tuning into `WORKDIR/tuned.json`; {} where neither is asked for.

  Raises:
    ConfigError: as `settings.load`.
  """
  study = job.experiment.study
  if study.tuned:
    return settings.load(study.tuned)
  if not study.tune.problems:
    return {}
  wanted = dict.fromkeys(["sft", *map(study_arms.tuned_as, arms)])
  with progress.study([1.0] * len(wanted), f"{job.workdir.name}, tuning, arm") as begin:
    return _all(job, tokenizer, list(wanted), begin)


def _all(job: Job, tokenizer, wanted, begin) -> dict[str, Tuned]:
  study = job.experiment.study
  cell = open_cell(
    job._replace(workdir=job.workdir / "tune"), tokenizer, study.tune.problems, study.tune.seed
  )
  problems = splits.development(job.experiment, study.tune.dev_problems)
  chooser = _Chooser(cell, problems, wanted, begin)
  arms = Arms(cell, chooser.choose)
  for arm in wanted:
    arms.policy(arm)
  # Starts with other arms may share the work folder: each adds its own.
  with locks.folder_lock(job.workdir / "tune", "study A, its tuned settings,", patience=60.0):
    path = job.workdir / FILE
    found = settings.load(path) if path.is_file() else {}
    found |= chooser.found
    settings.save(path, found, chooser.provenance(job))
    _write_table(job, chooser.trials)
  return found


class _Chooser:
  """Tries all settings of an arm and keeps the best."""

  def __init__(self, cell: Cell, problems: Sequence[Example], wanted: Sequence[str], begin):
    self.cell, self.problems, self.begin = cell, problems, begin
    self.wanted = wanted
    self.found: dict[str, Tuned] = {}
    self.trials: dict[str, list[_Trial]] = {}

  def choose(self, arm: str, learn: Learn) -> Policy:
    """The policy of the arm's best setting.

    The best mean accuracy on development problems wins; of equal ones the first of the grid.
    """
    if arm in self.wanted:
      self.begin()
    tune = self.cell.study.tune
    tried = settings.grid(tune, study_arms.kind_of(arm), study_arms.anchored(arm))
    trials = []
    for number, setting in enumerate(tried):
      policy = learn(f"{arm}_trial{number:02}", setting)
      marks = self.cell.mark(policy, self.problems, "dev", tune.samples)
      trials.append(_Trial(setting, policy, float(marks.mean())))
    best = max(trials, key=lambda trial: trial.accuracy)
    edges = settings.edges(best.setting, tried)
    flops = sum(self.cell.flops(trial.policy.own) for trial in trials)
    self.trials[arm] = trials
    self.found[arm] = Tuned(best.setting, best.accuracy, len(trials), edges, flops)
    note = f" (at the edge of the grid: {', '.join(edges)})" if edges else ""
    progress.say(
      f"tuned {arm:18} {best.setting}: {100 * best.accuracy:.1f} % of the development problems{note}"
    )
    return best.policy

  def provenance(self, job: Job) -> dict:
    """What the settings were chosen by."""
    return {
      "config": job.experiment.name,
      "cell": self.cell.folder.name,
      "tune": dataclasses.asdict(self.cell.study.tune),
      "start": self.cell.study.start,
      "world": files.value_hash(str(job.experiment.world)),
      "base": self.cell.base_identity,
      "rule": "best mean accuracy on development problems, first of the grid of equal ones",
    }


def _write_table(job: Job, trials: dict[str, list[_Trial]]) -> None:
  """All trials as a table, the best one of an arm marked."""
  rows = ["arm                 rate     epochs  beta   anchor  accuracy % (development problems)"]
  for arm, of_arm in trials.items():
    best = max(of_arm, key=lambda trial: trial.accuracy)
    for trial in of_arm:
      how = trial.setting
      mark = " <- chosen" if trial is best else ""
      rows.append(
        f"{arm:18}  {how.learning_rate:<7g}  {how.epochs:<6g}  {how.beta:<5g}  {how.nll:<6g}  {100 * trial.accuracy:5.1f}{mark}"
      )
  with files.replacing(job.workdir / "tune" / "table.txt") as f:
    f.write("\n".join(rows) + "\n")
