"""Study A: what N synthetic maths problems are worth under each arm (Setlur et al. 2024).

`train_arm` is the paper, a line a step: SFT on the teacher's traces, samples of it, RFT on the
correct ones, step values by rollouts, the first pit of every incorrect trace, pairs, per-step DPO.
`measure` does this at every N and seed, evaluates, and reads the multiples off SFT's curve.

The arms are entries of `math_study/arms.py`. The settings of all of them are chosen alike on
development problems (`math_study/tuning.py`) before the first test problem is answered.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from synthjax import files, progress
from synthjax import job as jobs
from synthjax.job import Job
from synthjax.math_study import checks, marking, results, splits, tuning
from synthjax.math_study.arm_trainer import ArmTrainer
from synthjax.math_study.arms import Arm
from synthjax.math_study.cell import TrainedPolicy, open_cell
from synthjax.math_study.results import Measured, Measurements
from synthjax.math_study.settings import Tuned
from synthjax.recipes import finetune
from synthjax.scaling import power


class Sizes(NamedTuple):
  """Numbers of training problems, N."""

  every_arm: tuple[int, ...]
  sft_alone: tuple[int, ...]  # further points of SFT's curve

  def all(self) -> list[int]:
    return sorted({*self.every_arm, *self.sft_alone})


class Plan(NamedTuple):
  """A cell to come."""

  problems: int
  seed: int
  arms: tuple[str, ...]  # beside sft


def run(job: Job) -> dict:
  """Trains and evaluates every arm at every N and seed; reports what the problems were worth.

  Finished stages are skipped.

  Raises:
    ConfigError: the config asks for what cannot be, as an unknown arm.
    DataError, TooWeakError, TrainingStopped: see the rooms; running again goes on where it stopped.
  """
  study = job.experiment.study
  sizes = Sizes(study.problems, study.baseline_problems)
  _begin(job, sizes)
  tuned = tuning.tuned(job, jobs.tokenizer_of(job), study.arms, train_arm)
  measured = measure(job, tuned, sizes)
  control = None
  if study.control:
    control = measure(_negative_control(job), tuned, Sizes(study.control, ()))
  return results.report(job, measured, control)


def train_arm(trainer: ArmTrainer, arm: Arm) -> TrainedPolicy:
  """One arm of one cell; the trainer makes what arms share once."""
  start = trainer.sample(arm)  # of sft, the start policy or the round before
  if arm.loss == "likelihood":
    return trainer.sft_or_rft(arm, start)
  values = trainer.step_values(arm, start)
  pairs = trainer.pairs(arm, start, values)  # up to the first pit
  return trainer.per_step_dpo(arm, pairs)


def measure(job: Job, tuned: Mapping[str, Tuned], sizes: Sizes) -> Measured:
  """Trains and evaluates the arms of every cell; the multiples of all of them."""
  study = job.experiment.study
  tokenizer, problems = jobs.tokenizer_of(job), splits.evaluated(job.experiment)
  measurements = Measurements(job.workdir.name, study.arms)
  plans = _plans(study, sizes)
  with progress.study(_weights(plans), f"{job.workdir.name}, cell") as begin:
    for plan in plans:
      begin()
      cell = open_cell(job, tokenizer, plan.problems, plan.seed)
      with cell.lock():
        measurements.add_base(cell, problems)
        trainer = ArmTrainer(cell, train_arm, tuning.chosen(cell, tuned))
        # All are trained before the first test problem of the cell is answered.
        policies = {name: trainer.policy(name) for name in ("sft", *plan.arms)}
        for name, policy in policies.items():
          marks = marking.evaluate(cell, policy, problems)
          measurements.add(cell, name, policy, marks)
  return measurements.multiples(tuned, [n for n in sizes.all() if n not in sizes.every_arm])


def _begin(job: Job, sizes: Sizes) -> None:
  """Refuses what cannot be before anything is trained, and writes down the config."""
  study = job.experiment.study
  checks.check(job)
  jobs.check_start(job.experiment)
  finetune.say_what_is_asked(job.experiment)
  splits.check(job.experiment, job.workdir, sorted({*sizes.all(), *study.control}))
  files.write_json(job.workdir / "config.json", dataclasses.asdict(job.experiment))
  evaluated = len(splits.evaluated(job.experiment))
  progress.say(power.sentence(study.problems, len(study.seeds), evaluated))


def _negative_control(job: Job) -> Job:
  """The same with a teacher that neither leaps nor misreads."""
  world = dataclasses.replace(job.experiment.world, leap=0.0, misread=0.0)
  experiment = dataclasses.replace(job.experiment, world=world)
  return job._replace(experiment=experiment, workdir=job.workdir / "control")


def _plans(study, sizes: Sizes) -> list[Plan]:
  plans = []
  for problems in sizes.all():
    arms = study.arms if problems in sizes.every_arm else ()
    plans += [Plan(problems, seed, arms) for seed in study.seeds]
  return plans


def _weights(plans: Sequence[Plan]) -> list[float]:
  """How long each cell takes, relatively, for the time left.

  An arm takes about as long as SFT on the same problems, and with its samples twice that (our
  choice).
  """
  weights: list[float] = []
  for plan in plans:
    weights.append(plan.problems * (1 + 2 * len(set(plan.arms) - {"sft"})))
  return weights
