"""Marks of a cell's policies: the share of correct answers to every evaluation problem."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from synthjax import files, stages, workfolder
from synthjax.data.formats import Example
from synthjax.evaluate import protocols, score
from synthjax.evaluate import run as evaluate_lib
from synthjax.math_study import study_folder
from synthjax.math_study.cell import Cell, TrainedPolicy
from synthjax.math_study.sampling import engine_of

# Shapes: P evaluation problems.


class Marks(NamedTuple):
  """Of one policy."""

  sampled_P: np.ndarray  # means over samples
  greedy_P: np.ndarray


def evaluate(cell: Cell, policy: TrainedPolicy, problems: Sequence[Example]) -> Marks:
  """Marks of a policy on the study's split."""
  study = cell.study
  return Marks(
    sampled_P=mark(cell, policy, problems, study.split, study.marked),
    greedy_P=mark(cell, policy, problems, study.split, 0),
  )


def mark(
  cell: Cell, policy: TrainedPolicy, problems: Sequence[Example], split: str, samples: int
) -> np.ndarray:
  """[P] share of the policy's answers to every problem that are correct.

  Args:
    cell: of the policy.
    policy: that answers.
    problems: of the split.
    split: its name, of the stage.
    samples: answers a problem at the temperature of the study's sampling; 0: the greedy one.
  """
  protocol = protocols.of(cell.experiment)
  temperature = cell.study.sampling.temperature if samples else 0.0
  cfg = dataclasses.replace(
    cell.experiment.evaluate, samples=max(samples, 1), temperature=temperature, pass_at=()
  )
  experiment = dataclasses.replace(cell.experiment, seed=cell.seed("evaluate", split), evaluate=cfg)

  def work(folder: pathlib.Path) -> dict:
    engine = engine_of(cell.experiment, cell.tokenizer, policy)
    return evaluate_lib.answer(engine, problems, experiment, folder)

  name = study_folder.answers_name(split, policy.name, greedy=not samples)
  inputs = {
    "policy": policy.identity,
    "evaluate": workfolder.decisive("evaluate", cfg),
    "protocol": protocol.record(),
    "problems": files.value_hash([[p.id, protocol.prompt(p), p.answer] for p in problems]),
    "seed": experiment.seed,
  }
  cell.stage(name, inputs, work)
  shares = score.shares(cell.folder / name / "responses.jsonl")
  return np.array([shares[p.id] for p in problems])


def looks(cell: Cell, policy: TrainedPolicy) -> int:
  """How many different policies of this name have answered the test problems in this cell."""
  answered = set()
  for version in stages.versions(cell.folder / study_folder.answers_name("test", policy.name)):
    inputs = (version.inputs or {}).get("inputs", {})
    answered.add(json.dumps(inputs.get("policy")))
  return len(answered)
