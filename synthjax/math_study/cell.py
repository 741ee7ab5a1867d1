"""One cell of study A: N problems and a seed.

Each method is a stage in a folder of its own, skipped when it is finished. What stages make is text
and checkpoints on disk; what goes from one to the next in memory is read back from there.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

from synthjax import files, keys, locks, progress, stages, workfolder
from synthjax import job as jobs
from synthjax.config import schema
from synthjax.credit import steps
from synthjax.credit.traces import Judge, Splitting
from synthjax.data.formats import Example
from synthjax.data.tokenizers import Tokenizer
from synthjax.evaluate import protocols
from synthjax.math_study import splits, study_folder
from synthjax.model import transformer
from synthjax.scaling import compute
from synthjax.verify import pool
from synthjax.verify.policy import POLICIES


@dataclasses.dataclass(frozen=True)
class Cost:
  """Tokens that were computed; stages that follow one another are added."""

  trained: int = 0  # targets of training
  passed: int = 0  # in the passes of training: targets and prompts
  sampled: int = 0
  read: int = 0  # prompts and prefixes before something is sampled
  reference: int = 0  # scored by the reference policy

  def __add__(self, other: "Cost") -> "Cost":
    names = [field.name for field in dataclasses.fields(self)]
    return Cost(**{name: getattr(self, name) + getattr(other, name) for name in names})


class TrainedPolicy(NamedTuple):
  """A trained policy and what it cost."""

  name: str
  checkpoints: str  # folder
  own: Cost  # its training alone
  cost: Cost  # with all stages that it stands on
  notes: tuple[str, ...] = ()  # what a reader of its numbers must know

  @property
  def identity(self) -> str:
    return jobs.identity(self.checkpoints)


class Solution(NamedTuple):
  """A whole response to train on, in tokens: the teacher's, or as it was sampled."""

  problem_id: str
  ids: tuple[int, ...]  # without end-of-text


@dataclasses.dataclass(frozen=True)
class Cell:
  """N problems and a seed.

  Attributes:
    experiment: with the cell's seed and world.
    folder: of all its stages.
    tokenizer: of every policy.
    problems: N of them, with teacher traces.
    judge: of responses to them.
    number: of its seed in the study; the experiment's own seed is that much further.
  """

  experiment: schema.Experiment
  folder: pathlib.Path
  tokenizer: Tokenizer
  problems: tuple[Example, ...]
  judge: Judge
  number: int = 0

  @functools.cached_property
  def prompts(self) -> dict[str, tuple[int, ...]]:
    """Problem id -> ids of its prompt."""
    return {p.id: tuple(self.tokenizer.encode(p.inputs)) for p in self.problems}

  @property
  def study(self) -> schema.Study:
    return self.experiment.study

  @property
  def splitting(self) -> Splitting:
    """How responses fall into steps."""
    return Splitting(steps.rule_of(self.experiment.data), self.study.step_limit)

  @functools.cached_property
  def judging(self) -> list[str]:
    """What verdicts depend on, for the inputs of a stage."""
    return [
      files.value_hash([[p.id, p.inputs, p.answer] for p in self.problems]),
      self.judge.mode,
      self.experiment.evaluate.policy,
    ]

  def seed(self, *names: str) -> int:
    """The random seed of one purpose in this cell."""
    return keys.named(self.experiment.seed, *names)

  @property
  def base_identity(self) -> str:
    """Of the policy that all training begins with; "" where it begins from scratch."""
    init = self.experiment.train.init
    return str(jobs.identity(init)) if init else ""

  def base_policy(self) -> TrainedPolicy:
    """The policy that all training begins with, which cost the study nothing."""
    return TrainedPolicy("base", self.experiment.train.init, Cost(), Cost())

  def flops(self, cost: Cost) -> float:
    """Of all tokens of a cost together."""
    model_cfg = transformer.sized(self.experiment.model, self.tokenizer.size)
    # Half of a response is before a sampled token on average.
    mean_context = self.study.sampling.max_tokens / 2 + 1
    return compute.flops(
      model_cfg,
      trained=cost.passed,
      reference=cost.reference,
      read=cost.read,
      sampled=cost.sampled,
      mean_context=mean_context,
    ).total

  def stage(self, name: str, inputs: list | dict, work: Callable[[pathlib.Path], dict]) -> dict:
    """Runs a stage of the cell, which depends on `inputs` (JSON); returns its result."""
    key = {
      "stage": name,
      "seed": self.experiment.seed,
      "model": workfolder.decisive("model", self.experiment.model),
      "tokenizer": self.tokenizer.fingerprint,
      "inputs": inputs,
    }

    def logged(folder: pathlib.Path) -> dict:
      with progress.stage(name), progress.logged(folder / "log.txt"):
        return work(folder)

    # As JSON has it: a manifest that is read back holds lists, not tuples.
    plain = json.loads(json.dumps(key))
    return stages.run(self.folder / name, plain, logged, say=_quiet, whole=jobs.is_whole)

  def lock(self):
    """Of several starts that share the work folder one works on a cell."""
    remedy = "wait for it or stop it, or give this start other config.study.seeds"
    return locks.folder_lock(self.folder, f"study A, cell {self.folder.name},", remedy)


def of_seed(experiment: schema.Experiment, seed: int) -> schema.Experiment:
  """The config as the cells of a seed have it."""
  world = dataclasses.replace(experiment.world, seed=experiment.world.seed + seed)
  return dataclasses.replace(experiment, seed=experiment.seed + seed, world=world)


def open_cell(job: jobs.Job, tokenizer: Tokenizer, count: int, seed: int) -> Cell:
  """The cell of `count` problems and a seed; see `splits.training`."""
  experiment = of_seed(job.experiment, seed)
  problems = tuple(splits.training(experiment, count))
  # Responses to training problems have the form of the teacher's traces, whatever protocol asks
  # the test problems.
  own_form = dataclasses.replace(experiment.evaluate, protocol="")
  judge = Judge(
    answers={p.id: p.answer for p in problems},
    mode=protocols.of(dataclasses.replace(experiment, evaluate=own_form)).mode,
    tokenizer=tokenizer,
    pool=pool.shared(POLICIES[experiment.evaluate.policy]),
  )
  return Cell(
    experiment=experiment,
    folder=job.workdir / study_folder.cell_name(count, seed),
    tokenizer=tokenizer,
    problems=problems,
    judge=judge,
    number=seed,
  )


def _quiet(line: str) -> None:
  """Stages of a cell are many: only repeated, resumed and waiting ones are shown."""
  if any(word in line for word in ("anew", "taken back", "goes on", "waits for")):
    progress.say(line)
