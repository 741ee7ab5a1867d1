"""Which problems a study trains on and which it is evaluated on: no problem is in both."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from synthjax import files, overlap, progress, stages
from synthjax.config import schema
from synthjax.data import sources
from synthjax.data.formats import Example
from synthjax.errors import ConfigError
from synthjax.evaluate import run as evaluate_lib
from synthjax.math_study import study_folder
from synthjax.overlap import Overlap
from synthjax.verify import decontaminate


class Divided(NamedTuple):
  """The distinct problems of a task in files."""

  training: list[Example]
  development: list[Example]
  rows: int  # that the files have; some repeat a problem

  @property
  def repeated(self) -> int:
    """Rows that repeat another one."""
    return self.rows - len(self.training) - len(self.development)


class Cleaned(NamedTuple):
  """Training problems, without those that repeat an evaluation problem."""

  problems: list[Example]
  overlap: Overlap


def training(experiment: schema.Experiment, count: int) -> list[Example]:
  """The first `count` distinct problems of the seed's order.

  Fewer are the first of more, and another seed has others.

  Raises:
    ConfigError: there are fewer. DataError: as `cleaned`.
  """
  data = experiment.data
  if data.task == "world":
    data = dataclasses.replace(data, train_problems=count)
    return list(sources.examples(data, experiment.world, "train"))
  clean = cleaned(experiment)
  _check_enough(experiment, count, clean)
  order = np.random.default_rng(experiment.seed).permutation(len(clean.problems))
  return [clean.problems[i] for i in order[:count]]


def evaluated(experiment: schema.Experiment) -> list[Example]:
  """The problems that arms are evaluated on.

  They are those of the test split, or development problems that no arm is trained on.
  """
  data = experiment.data
  if experiment.study.split == "test":
    return evaluate_lib.problems(experiment)
  if data.task == "world":
    return list(sources.examples(data, experiment.world, "dev"))
  return divided(experiment).development[: data.test_problems or None]


def development(experiment: schema.Experiment, count: int) -> list[Example]:
  """The first `count` development problems, on which settings are chosen."""
  study = dataclasses.replace(experiment.study, split="dev")
  data = dataclasses.replace(experiment.data, test_problems=count)
  return evaluated(dataclasses.replace(experiment, study=study, data=data))


def divided(experiment: schema.Experiment) -> Divided:
  """Problems of a task in files: a tenth, by the hash of the problem, is for development.

  Rows whose problems differ in case, spacing or punctuation alone are one problem, the first one.
  """
  distinct: dict[str, Example] = {}
  rows = 0
  for example in sources.examples(experiment.data, experiment.world, "train"):
    rows += 1
    distinct.setdefault(decontaminate.normalised(_problem(example)), example)
  divided = Divided([], [], rows)
  for example in distinct.values():
    number = int(files.value_hash(_problem(example))[:8], 16)
    if number % 10 == 0:
      divided.development.append(example)
    else:
      divided.training.append(example)
  return divided


def cleaned(experiment: schema.Experiment) -> Cleaned:
  """The training problems that a study may use.

  Raises:
    DataError: training problems repeat evaluation problems, and `config.data.overlap` is "error".
  """
  data, problems = experiment.data, divided(experiment).training
  evaluation: list[Example] = []
  if data.overlap != "allow":
    evaluation = evaluated(experiment)
  repeats = overlap.search(map(overlap.document, problems), evaluation)
  rows = functools.partial(overlap.places, experiment)
  overlap.refuse(repeats, data.overlap, "config.data.train_path", rows)
  repeating = {hit.candidate for hit in repeats.hits}
  kept = [example for example in problems if example.id not in repeating]
  return Cleaned(kept, repeats)


def check(experiment: schema.Experiment, workdir: pathlib.Path, counts: Sequence[int]) -> None:
  """Stage `decontaminate` of a study: problems are there and clean before anything is trained.

  Raises:
    ConfigError: fewer problems than the largest of `counts`. DataError: as `cleaned`.
  """
  data, world, study = experiment.data, experiment.world, experiment.study
  if data.task == "world":
    inputs = [dataclasses.asdict(world), list(study.seeds), data.test_problems]
    work = _in_the_world
  else:
    parts = sources.of_split(data, "train")
    inputs = [sources.fingerprint(source, data, world, "train") for source in parts]
    inputs += [evaluate_lib.fingerprint(experiment)[0], data.overlap]
    work = _in_files
  stages.run(
    workdir / "decontaminate",
    [study.split, list(counts), *inputs],
    lambda folder: work(experiment, counts),
    say=overlap.quiet,
  )


def _in_files(experiment: schema.Experiment, counts: Sequence[int]) -> dict:
  """Counts of the rows, by what they are used for."""
  parts = divided(experiment)
  clean = cleaned(experiment)
  _check_enough(experiment, max(counts), clean)
  if clean.overlap.hits:
    described = clean.overlap.describe(overlap.places(experiment, clean.overlap))
    progress.say(f"{described}; they are left out")
  return {
    "rows": parts.rows,
    "distinct": len(parts.training) + len(parts.development),
    "development": len(parts.development),
    "training": len(clean.problems),
    "unusable": sources.unusable(experiment.data, experiment.world, "train"),
    **clean.overlap.report(),
  }


def _in_the_world(experiment: schema.Experiment, counts: Sequence[int]) -> dict:
  """What of the evaluation is computed in training, by N and seed."""
  evaluation = evaluated(experiment)
  report = {}
  for seed in experiment.study.seeds:
    world = dataclasses.replace(experiment.world, seed=experiment.world.seed + seed)
    problems = training(dataclasses.replace(experiment, world=world), max(counts))
    for count in sorted(counts):
      questions = [problem.question for problem in problems[:count]]
      same = overlap.of_the_world(questions, evaluation)
      report[study_folder.cell_name(count, seed)] = same.report()
    # Of the largest count, the last one.
    progress.say(
      f"seed {seed}: {same.same_computation:,} of {same.evaluated:,} evaluation "
      "problems share start and amounts, in other words, with one of "
      f"{max(counts):,} training problems"
    )
  return report


def _check_enough(experiment: schema.Experiment, count: int, clean: Cleaned) -> None:
  """Raises ConfigError where a task has fewer than `count` problems for training."""
  if count <= len(clean.problems):
    return
  parts = divided(experiment)
  unusable = sources.unusable(experiment.data, experiment.world, "train")
  raise ConfigError(
    f"config.study.problems or baseline_problems asks for {count:,} problems; task "
    f"{experiment.data.task!r} has {len(clean.problems):,} for training: of {parts.rows:,} rows "
    f"{parts.repeated:,} repeat another row, {len(parts.development):,} problems (a tenth, by "
    f"hash) are kept for development, and {len(clean.overlap.hits):,} repeat an evaluation "
    f"problem{_in_words(unusable)}; ask for fewer, or add rows to config.data.train_path"
  )


def _in_words(unusable: Mapping[str, int]) -> str:
  """Rows that no problem could be made of."""
  if not unusable:
    return ""
  reasons = [f"{count:,} ({reason})" for reason, count in unusable.items()]
  return f"; further rows could not be used: {', '.join(reasons)}"


def _problem(example: Example) -> str:
  return example.question or example.inputs
