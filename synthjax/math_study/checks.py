"""What a config of study A must not ask for, said before anything is trained."""

import jax

from synthjax.config import schema
from synthjax.errors import ConfigError
from synthjax.job import Job
from synthjax.math_study import arms


def check(job: Job) -> None:
  """Raises ConfigError where the study cannot be run as the config and command line ask."""
  experiment = job.experiment
  for name in experiment.study.arms:
    _check_arm(name, experiment)
  _check_sizes(experiment)
  if experiment.data.too_long not in ("error", "drop"):
    raise ConfigError(
      f"config.data.too_long is {experiment.data.too_long!r}: recipe 'math_rl' trains on whole "
      "solutions; set 'error', or 'drop'"
    )
  if jax.process_count() > 1:
    raise ConfigError(
      "recipe 'math_rl' runs in one process; give each process its own config.study.seeds and one "
      "WORKDIR, then run all once"
    )
  if job.force:
    raise ConfigError(
      "recipe 'math_rl' has a stage for every step of every arm; to redo one, remove its folder "
      "instead of giving --force"
    )


def _check_arm(name: str, experiment: schema.Experiment) -> None:
  task = experiment.data.task
  if arms.find(name).picks_by_leaps and task != "world":
    raise ConfigError(
      f"config.study.arms has {name!r}, which picks traces by their leaps; those are known in the "
      f"embedded world alone (data.task='world'), not in task {task!r}: leave the arm out"
    )


def _check_sizes(experiment: schema.Experiment) -> None:
  study, task = experiment.study, experiment.data.task
  if study.tune.problems and study.tune.seed in study.seeds:
    raise ConfigError(
      f"config.study.tune.seed is {study.tune.seed}, one of config.study.seeds: settings are "
      "chosen on other training problems than the study's; give another seed"
    )
  if len({*study.problems, *study.baseline_problems}) < 2:
    raise ConfigError(
      f"config.study.problems is {study.problems} and baseline_problems {study.baseline_problems}: "
      "a multiple is read off SFT at two sizes at least; name more in baseline_problems"
    )
  if study.control and (len(set(study.control)) == 1 or task != "world"):
    raise ConfigError(
      f"config.study.control is {study.control} and data.task {task!r}: two sizes at least, in the "
      "embedded world, or none"
    )
