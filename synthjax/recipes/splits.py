"""Which problems a study trains on and which it is evaluated on: no problem is in both."""

import dataclasses

import numpy as np

from synthjax import files, schema
from synthjax.data import sources
from synthjax.data.sources import Example
from synthjax.evaluate import run as evaluate_lib


def training(experiment: schema.Experiment, count: int) -> list[Example]:
  """The first `count` problems of the seed's order: fewer are the first of more, and another seed has others.

  Raises:
    DataError: there are fewer. ValueError: the world holds fewer.
  """
  data = experiment.data
  if data.task == "world":
    return list(sources.examples(dataclasses.replace(data, train_problems=count), experiment.world, "train"))
  found = divided(experiment)[0]
  if len(found) < count:
    raise files.DataError(f"config.study.problems asks for {count} problems; task {data.task!r} has {len(found)} for training")
  return [found[i] for i in np.random.default_rng(experiment.seed).permutation(len(found))[:count]]


def evaluated(experiment: schema.Experiment) -> list[Example]:
  """The problems that arms are evaluated on: those of the test split, or development problems that no arm is trained on."""
  data = experiment.data
  if experiment.study.split == "test":
    return evaluate_lib.problems(experiment)
  if data.task == "world":
    return list(sources.examples(data, experiment.world, "dev"))
  return divided(experiment)[1][:data.test_problems or None]


def divided(experiment: schema.Experiment) -> tuple[list[Example], list[Example]]:
  """(training, development) problems of a task in files: a tenth, by the hash of the problem, is for development."""
  parts: tuple[list[Example], list[Example]] = ([], [])
  for example in sources.examples(experiment.data, experiment.world, "train"):
    parts[int(files.value_hash(example.question or example.inputs)[:8], 16) % 10 == 0].append(example)
  return parts
