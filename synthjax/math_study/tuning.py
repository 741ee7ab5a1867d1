"""Every arm of study A tuned alike: one grid for arms of a kind, on development problems alone.

Settings are tried on one cell, whose training problems no cell of the study has. Arms are tuned in
the order in which they stand on one another: what RFT samples from is the tuned SFT. A trial is a
training and an evaluation, both of them stages: tuning goes on where it was stopped.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from synthjax import files, locks, progress
from synthjax.data.formats import Example
from synthjax.data.tokenizers import Tokenizer
from synthjax.errors import ConfigError
from synthjax.job import Job
from synthjax.math_study import arms, marking, settings, splits
from synthjax.math_study.arm_trainer import ArmTrainer, Choose, Learn, TrainArm
from synthjax.math_study.arms import Arm
from synthjax.math_study.cell import Cell, TrainedPolicy, open_cell
from synthjax.math_study.settings import ArmSetting, Tuned

FILE = "tuned.json"  # in the work folder


class _Trial(NamedTuple):
  setting: ArmSetting
  policy: TrainedPolicy
  accuracy: float  # on development problems


def tuned(
  job: Job, tokenizer: Tokenizer, names: Sequence[str], train_arm: TrainArm
) -> dict[str, Tuned]:
  """The settings of every arm: from `config.study.tuned`, or by tuning into `WORKDIR/tuned.json`.

  Returns {} where the config asks for neither.

  Args:
    job: of the study.
    tokenizer: of every policy.
    names: the arms.
    train_arm: see `ArmTrainer`.

  Raises:
    ConfigError: as `settings.load`.
  """
  study = job.experiment.study
  if study.tuned:
    return settings.load(study.tuned)
  if not study.tune.problems:
    return {}
  wanted = list(dict.fromkeys(["sft", *(arms.find(name).tuned_as for name in names)]))
  with progress.study([1.0] * len(wanted), f"{job.workdir.name}, tuning, arm") as begin:
    return _tune(job, tokenizer, wanted, train_arm, begin)


def chosen(cell: Cell, known: Mapping[str, Tuned]) -> Choose:
  """Trains each arm with its tuned settings, or those of the config where nothing was tuned.

  What is returned raises ConfigError for an arm that was not tuned while others were.
  """

  def choose(arm: Arm, learn: Learn) -> TrainedPolicy:
    if not known:
      return learn(arm.name, settings.of_config(cell.experiment, arm))
    if arm.tuned_as not in known:
      raise ConfigError(
        f"config.study.arms has {arm.name!r}, and the tuned settings know {', '.join(known)}; tune "
        "it too (config.study.tune), or leave the arm out"
      )
    return learn(arm.name, known[arm.tuned_as].setting)

  return choose


def _tune(job: Job, tokenizer, wanted: Sequence[str], train_arm, begin) -> dict[str, Tuned]:
  tune = job.experiment.study.tune
  folder = job.workdir / "tune"
  cell = open_cell(job._replace(workdir=folder), tokenizer, tune.problems, tune.seed)
  problems = splits.development(job.experiment, tune.dev_problems)
  search = _Search(cell, problems, wanted, begin)
  trainer = ArmTrainer(cell, train_arm, search.choose)
  for name in wanted:
    trainer.policy(name)
  # Starts with other arms may share the work folder: each adds its own.
  with locks.folder_lock(folder, "study A, its tuned settings,", patience=60.0):
    path = job.workdir / FILE
    known = {}
    if path.is_file():
      known = settings.load(path)
    known |= search.best
    settings.save(path, known, search.provenance(job))
    _write_table(job, search.trials)
  return known


class _Search:
  """Tries all settings of an arm and keeps the best.

  Args:
    cell: that is tuned on.
    problems: of the development split.
    wanted: arms that progress counts.
    begin: is called as each of them begins.
  """

  def __init__(
    self,
    cell: Cell,
    problems: Sequence[Example],
    wanted: Sequence[str],
    begin: Callable[[], None],
  ):
    self.cell, self.problems, self.wanted, self.begin = cell, problems, wanted, begin
    self.best: dict[str, Tuned] = {}
    self.trials: dict[str, list[_Trial]] = {}

  def choose(self, arm: Arm, learn: Learn) -> TrainedPolicy:
    """The policy of the arm's best setting.

    The best mean accuracy on development problems wins; of equal ones the first of the grid.
    """
    if arm.name in self.wanted:
      self.begin()
    tune = self.cell.study.tune
    tried = settings.grid(tune, arm)
    trials = []
    for number, setting in enumerate(tried):
      policy = learn(f"{arm.name}_trial{number:02}", setting)
      mark_P = marking.mark(self.cell, policy, self.problems, "dev", tune.samples)
      trials.append(_Trial(setting, policy, float(mark_P.mean())))
    best = max(trials, key=lambda trial: trial.accuracy)
    edges = settings.edges(best.setting, tried)
    self.trials[arm.name] = trials
    self.best[arm.name] = Tuned(
      setting=best.setting,
      accuracy=best.accuracy,
      trials=len(trials),
      at_edge=edges,
      flops=sum(self.cell.flops(trial.policy.own) for trial in trials),
    )
    note = f" (at the edge of the grid: {', '.join(edges)})" if edges else ""
    progress.say(
      f"tuned {arm.name:18} {best.setting}: {100 * best.accuracy:.1f} % of the development "
      f"problems{note}"
    )
    return best.policy

  def provenance(self, job: Job) -> dict:
    """How the settings were chosen."""
    return {
      "config": job.experiment.name,
      "cell": self.cell.folder.name,
      "tune": dataclasses.asdict(self.cell.study.tune),
      "start": self.cell.study.start,
      "world": files.value_hash(str(job.experiment.world)),
      "base": self.cell.base_identity,
      "rule": "best mean accuracy on development problems, first of the grid of equal ones",
    }


def _write_table(job: Job, trials: Mapping[str, Sequence[_Trial]]) -> None:
  """All trials as a table, the best one of an arm marked."""
  rows = ["arm                 rate     epochs  beta   anchor  accuracy % (development problems)"]
  for name, of_arm in trials.items():
    best = max(of_arm, key=lambda trial: trial.accuracy)
    for trial in of_arm:
      setting = trial.setting
      cells = [
        f"{name:18}",
        f"{setting.learning_rate:<7g}",
        f"{setting.epochs:<6g}",
        f"{setting.beta:<5g}",
        f"{setting.nll:<6g}",
        f"{100 * trial.accuracy:5.1f}",
      ]
      row = "  ".join(cells)
      if trial is best:
        row += " <- chosen"
      rows.append(row)
  with files.replacing(job.workdir / "tune" / "table.txt") as f:
    f.write("\n".join(rows) + "\n")
