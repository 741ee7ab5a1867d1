"""Which problems a study trains on and which it is evaluated on: no problem is in both."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from synthjax import files, overlap, progress, stages
from synthjax.config import schema
from synthjax.data import sources
from synthjax.data.formats import Example
from synthjax.errors import ConfigError
from synthjax.evaluate import run as evaluate_lib
from synthjax.verify import decontaminate


class Divided(NamedTuple):
  """The distinct problems of a task in files."""

  training: list[Example]
  development: list[Example]
  rows: int  # that the files have; some repeat a problem


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
  found, searched = cleaned(experiment)
  _enough(experiment, count, len(found), searched)
  return [found[i] for i in np.random.default_rng(experiment.seed).permutation(len(found))[:count]]


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
  parts: tuple[list[Example], list[Example]] = ([], [])
  for example in distinct.values():
    parts[int(files.value_hash(_problem(example))[:8], 16) % 10 == 0].append(example)
  return Divided(*parts, rows)


def cleaned(experiment: schema.Experiment) -> tuple[list[Example], overlap.Found]:
  """(training problems without those that repeat an evaluation problem, what the search found).

  Raises:
    DataError: training problems repeat evaluation problems, and `config.data.overlap` is "error".
  """
  data, problems = experiment.data, divided(experiment).training
  evaluation = evaluated(experiment) if data.overlap != "allow" else []
  found = overlap.search(map(overlap.document, problems), evaluation)
  overlap.refuse(
    found, data.overlap, "config.data.train_path", functools.partial(overlap.places, experiment)
  )
  gone = {hit.candidate for hit in found.hits}
  return [example for example in problems if example.id not in gone], found


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


def _in_files(experiment, counts) -> dict:
  """Counts of the rows, and of what became of them."""
  parts = divided(experiment)
  found, searched = cleaned(experiment)
  _enough(experiment, max(counts), len(found), searched)
  if searched.hits:
    described = searched.describe(overlap.places(experiment, searched))
    progress.say(f"{described}; they are left out")
  return {
    "rows": parts.rows,
    "distinct": len(parts.training) + len(parts.development),
    "development": len(parts.development),
    "training": len(found),
    "unusable": sources.unusable(experiment.data, experiment.world, "train"),
    **searched.report(),
  }


def _in_the_world(experiment, counts) -> dict:
  """What of the evaluation is computed in training, by N and seed."""
  evaluation = evaluated(experiment)
  report = {}
  for seed in experiment.study.seeds:
    world = dataclasses.replace(experiment.world, seed=experiment.world.seed + seed)
    problems = training(dataclasses.replace(experiment, world=world), max(counts))
    for count in sorted(counts):
      found = overlap.of_the_world([problem.question for problem in problems[:count]], evaluation)
      report[f"n{count:05}_s{seed}"] = found.report()
    progress.say(
      f"seed {seed}: {found.same_computation:,} of {found.evaluated:,} evaluation "
      "problems share start and amounts, in other words, with one of "
      f"{max(counts):,} training problems"
    )
  return report


def _enough(experiment, count: int, found: int, searched: overlap.Found) -> None:
  if count <= found:
    return
  parts = divided(experiment)
  repeated = parts.rows - len(parts.training) - len(parts.development)
  unusable = sources.unusable(experiment.data, experiment.world, "train")
  raise ConfigError(
    f"config.study.problems or baseline_problems asks for {count:,} problems; task "
    f"{experiment.data.task!r} has {found:,} for training: of {parts.rows:,} rows {repeated:,} "
    f"repeat another row, {len(parts.development):,} problems (a tenth, by hash) are kept for "
    f"development, and {len(searched.hits):,} repeat an evaluation problem{_told(unusable)}; "
    "ask for fewer, or add rows to config.data.train_path"
  )


def _told(unusable) -> str:
  """Rows that no problem could be made of, in words."""
  reasons = [f"{count:,} ({reason})" for reason, count in unusable.items()]
  return f"; further rows could not be used: {', '.join(reasons)}" if reasons else ""


def _problem(example: Example) -> str:
  return example.question or example.inputs
