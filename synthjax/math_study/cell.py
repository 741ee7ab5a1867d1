"""One cell of study A: N problems and a seed. Each method is a stage in a folder of its own, skipped when it is finished.

What the stages make is text and checkpoints on disk; what goes from one to the next in memory is read back from there.
"""

import collections
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from synthjax import files, keys, progress, records, stages, workfolder
from synthjax import job as jobs
from synthjax.config import schema
from synthjax.credit import steps
from synthjax.credit.traces import Judge, SampledTrace, Splitting, distinct_correct, sample_traces
from synthjax.data import tokenizers, trees
from synthjax.data.documents import TokenDocuments
from synthjax.data.formats import Example
from synthjax.data.tokenizers import Tokenizer
from synthjax.errors import Error
from synthjax.evaluate import protocols, score
from synthjax.evaluate import run as evaluate_lib
from synthjax.math_study import served, splits
from synthjax.model import transformer
from synthjax.records import Verdict
from synthjax.rollout import journal, requests
from synthjax.rollout.engine import JaxEngine
from synthjax.scaling import compute
from synthjax.train import policies, preference
from synthjax.verify import extract, pool
from synthjax.verify.policy import POLICIES

_ON_STEPS = (
  "awr",
  "filtered_sft",
)  # losses that read `objective.advantage`; the others read `objective.preference`


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


class Policy(NamedTuple):
  """A trained policy and what it took."""

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


class TooWeakError(Error, RuntimeError):
  """A policy whose samples are right too seldom for step values to mean anything."""


@dataclasses.dataclass(frozen=True)
class Cell:
  """N problems and a seed.

  Attributes:
    experiment: with the cell's seed and world.
    folder: of all its stages.
    tokenizer: of every policy.
    problems: N of them, with teacher traces.
    judge: of responses to them.
  """

  experiment: schema.Experiment
  folder: pathlib.Path
  tokenizer: Tokenizer
  problems: tuple[Example, ...]
  judge: Judge

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

  def flops(self, cost: Cost) -> float:
    """Of all tokens of a cost together."""
    model_cfg = transformer.sized(self.experiment.model, self.tokenizer.size)
    seen = self.study.sampling.max_tokens / 2 + 1  # positions, on average
    return compute.flops(
      model_cfg,
      trained=cost.passed,
      reference=cost.reference,
      read=cost.read,
      sampled=cost.sampled,
      mean_context=seen,
    ).total

  def stage(self, name: str, inputs: list | dict, work: Callable[[pathlib.Path], dict]) -> dict:
    """A stage of the cell; its config is what it is told here."""
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

    return stages.run(
      self.folder / name, json.loads(json.dumps(key)), logged, say=_quiet, whole=jobs.is_whole
    )

  def teacher(self) -> list[Solution]:
    """The teacher's solutions whose answers are right; the others are counted.

    Raises:
      DataError: none is right, or one does not fit a row and `data.too_long` is "error".
    """

    def work(folder: pathlib.Path) -> dict:
      verdicts = self.judge.pool.compare_many(
        [(p.answer, extract.extract(p.targets, self.judge.mode)) for p in self.problems]
      )
      files.write_jsonl(
        folder / "verdicts.jsonl",
        ({"id": p.id, "verdict": v.to_json()} for p, v in zip(self.problems, verdicts)),
      )
      return {
        "problems": len(self.problems),
        **collections.Counter(verdict.value for verdict in verdicts),
      }

    self.stage(
      "teacher", [self.judging, files.value_hash([p.targets for p in self.problems])], work
    )
    verdicts = {
      row["id"]: Verdict.from_json(row["verdict"])
      for row in files.read_jsonl(self.folder / "teacher/verdicts.jsonl")
    }
    found = [
      Solution(p.id, tuple(self.tokenizer.encode(p.targets)))
      for p in self.problems
      if verdicts[p.id].correct
    ]
    if not found:
      raise files.DataError(
        f"{self.folder.name}: none of the teacher's {len(self.problems)} traces ends with its problem's answer (looked "
        f"for as {self.judge.mode!r}); see {self.folder / 'teacher/verdicts.jsonl'}, and config.evaluate.answer"
      )
    long = [s.problem_id for s in found if not self._fits(s)]
    if long and self.experiment.data.too_long == "error":
      raise files.DataError(
        f"{self.folder.name}: {len(long)} of the teacher's {len(found)} right traces are longer than "
        f"data.seq_len={self.experiment.data.seq_len}, the first of them of {long[0]!r}; make the rows longer, "
        "or set data.too_long='drop'"
      )
    return found

  def by_likelihood(
    self,
    name: str,
    solutions: Sequence[Solution],
    cfg: schema.Train,
    start: Policy | None,
    cost: Cost,
  ) -> Policy:
    """Trains on distinct solutions, from a policy or from where the config says; those that do not fit a row are left out and noted."""
    init = start.checkpoints if start else self.experiment.train.init
    seed = self.seed("train", name)
    experiment = dataclasses.replace(
      self.experiment, seed=seed, train=dataclasses.replace(cfg, init=init)
    )
    distinct = dict.fromkeys(solutions)
    documents = [
      (self.prompts[s.problem_id], (*s.ids, self.tokenizer.eos_id))
      for s in distinct
      if self._fits(s)
    ]

    def work(folder: pathlib.Path) -> dict:
      result = policies.on_documents(
        experiment,
        TokenDocuments(documents),
        folder,
        tokenizers.info(self.tokenizer),
      )
      return {
        **dataclasses.asdict(result),
        "solutions": len(solutions),
        "repeated": len(solutions) - len(distinct),
        "too_long": len(distinct) - len(documents),
      }

    inputs = {
      "train": workfolder.decisive("train", cfg),
      "init": jobs.identity(init),
      "documents": files.value_hash(documents),
      "seq_len": self.experiment.data.seq_len,
      "seed": seed,
    }
    made = self.stage(name, inputs, work)
    targets = sum(len(response) for _, response in documents)
    whole = targets + sum(len(prompt) for prompt, _ in documents)
    own = Cost(trained=made["tokens"], passed=round(made["tokens"] * whole / targets))
    return self._trained(name, made, own, cost, f"of {len(distinct)} solutions")

  def _fits(self, solution: Solution) -> bool:
    return (
      len(self.prompts[solution.problem_id]) + len(solution.ids) < self.experiment.data.seq_len
    )  # end-of-text comes after it

  def _trained(self, name: str, found: dict, own: Cost, cost: Cost, whole: str) -> Policy:
    notes = (
      (
        f"{self.folder.name}, {name!r}: {found['too_long']} {whole} do not fit a row and were left out",
      )
      if found["too_long"]
      else ()
    )
    return Policy(name, str(self.folder / name / "checkpoints"), own, cost + own, notes)

  def sample(self, policy: Policy, n: int) -> tuple[list[SampledTrace], Cost]:
    """(n traces of every problem, what they took). The first of more are those of fewer."""
    how, name = self.study.sampling, f"draw{n}_{policy.name}"
    seed = self.seed("draw", policy.name)

    def work(folder: pathlib.Path) -> dict:
      drawn = list(
        sample_traces(
          self.problems, self.sampler(policy, folder), self.judge, how, n, seed, self.splitting
        )
      )
      order = {p.id: i for i, p in enumerate(self.problems)}
      drawn.sort(key=lambda d: order[d.problem_id])
      records.write(folder / "drawn.jsonl", drawn)
      counts = collections.Counter(d.verdict.value for d in drawn)
      return {
        "traces": len(drawn),
        **counts,
        "reasons": dict(collections.Counter(d.verdict.reason for d in drawn if d.verdict.reason)),
        "truncated": sum(not d.complete for d in drawn),
        "distinct": len({(d.problem_id, d.text) for d in drawn}),
        "tokens": sum(sum(map(len, d.steps)) + d.complete for d in drawn),
        "accuracy": counts["equal"] / len(drawn),
      }

    found = self.stage(
      name,
      [
        self.sampled_by(policy),
        records.to_json(how),
        n,
        dataclasses.asdict(self.splitting),
        self.judging,
        seed,
      ],
      work,
    )
    prompts = sum(len(prompt) for prompt in self.prompts.values())
    drawn = list(records.read(SampledTrace, self.folder / name / "drawn.jsonl"))
    return drawn, Cost(sampled=found["tokens"], read=prompts)

  def sampler(self, policy: Policy, folder: pathlib.Path):
    """Samples of a policy, kept in a journal: a killed stage goes on where it was."""
    engine: requests.Engine
    if held := self.held(policy):
      engine = served.Engine(self.study.server, held, self.tokenizer)
    else:
      engine = engine_of(self.experiment, self.tokenizer, policy.checkpoints, policy.identity)
    return functools.partial(journal.generate, engine, path=folder / "journal.jsonl")

  def held(self, policy: Policy) -> served.Held | None:
    """The policy as `config.study.server` holds it; None where it is sampled here."""
    server = self.study.server
    if not server.url or policy.name != self.study.start:
      return None
    name = self.folder.name
    if self.folder.parent.name == "control":
      name = f"control/{name}"
    name = server.model.replace("{cell}", name).replace("{policy}", policy.name)

    def load():
      return jobs.load_policy(self.experiment, self.tokenizer, policy.checkpoints)[:2]

    return served.Held(name, policy.checkpoints, policy.identity, load)

  def sampled_by(self, policy: Policy) -> str:
    """What samples of a policy depend on: itself, and its name where a server holds it."""
    held = self.held(policy)
    return held.fingerprint if held else policy.identity

  def correct(self, name: str, drawn: Sequence[SampledTrace], most: int) -> list[Solution]:
    """Distinct correct traces, at most so many a problem; what became of the others is in the manifest of stage `right_NAME`."""
    kept, distinct = distinct_correct(drawn, most), distinct_correct(drawn, len(drawn))
    every = [d for d in drawn if d.verdict.correct]
    ended = sum(d.complete for d in every)
    counts = {
      "traces": len(drawn),
      "right": len(every),
      "problems": len({d.problem_id for d in kept}),
      "kept": len(kept),
      "dropped": {
        "did not end": len(every) - ended,
        "the same as another": ended - len(distinct),
        "beyond the most of a problem": len(distinct) - len(kept),
      },
    }
    self.stage(f"right_{name}", [counts], lambda _: counts)
    return [Solution(d.problem_id, sum(d.steps, ())) for d in kept]

  def check(self, drawn: Sequence[SampledTrace], policy: Policy) -> None:
    """Raises TooWeakError where pits would be noise."""
    accuracy = sum(d.verdict.correct for d in drawn) / len(drawn)
    if accuracy < self.study.least_accuracy:
      raise TooWeakError(
        f"{self.folder.name}: {100 * accuracy:.1f} % of the samples of {policy.name!r} are right; below "
        f"{100 * self.study.least_accuracy:.0f} % pits are noise. Train {policy.name!r} on more problems or for longer, "
        "or lower config.study.least_accuracy and expect nothing of the step arms"
      )

  def by_preference(
    self,
    name: str,
    roots: Sequence[trees.Node],
    objective: schema.Objective,
    train: schema.Train,
    start: Policy,
    cost: Cost,
    splittable: bool,
  ) -> Policy:
    """Trains on trees from `start`, which is the reference; without trees the arm stays there, and a note says so."""
    if not roots:
      note = f"{self.folder.name}: the samples of {start.name!r} gave {name!r} nothing to learn from; it is {start.name!r} unchanged"
      return Policy(name, start.checkpoints, Cost(), cost, (note,))
    cfg, length = (
      dataclasses.replace(train, init=start.checkpoints),
      self.experiment.data.seq_len,
    )
    seed = self.seed("train", name)
    experiment = dataclasses.replace(self.experiment, seed=seed, train=cfg, objective=objective)
    content = files.value_hash([_plain(root) for root in roots])

    def work(folder: pathlib.Path) -> dict:
      plan = trees.plan(roots, length, splittable)
      if not plan.rows:
        raise files.DataError(
          f"{folder}: none of {len(roots)} trees fits a row of data.seq_len={length}; make the rows longer"
        )
      model, params, _ = jobs.load_policy(experiment, self.tokenizer, start.checkpoints)
      made_of = {
        "checkpoint": start.identity,
        "tokenizer": self.tokenizer.fingerprint,
        "data": content,
      }
      reference = preference.reference_sums(
        model, params, plan.rows, cfg.batch_size, length, folder / "reference", made_of
      )
      result = policies.on_trees(
        experiment, plan, reference, folder, tokenizers.info(self.tokenizer)
      )
      return {
        **dataclasses.asdict(result),
        "trees": len(roots),
        "too_long": len(plan.too_long),
        "split": plan.split,
      }

    knobs = dataclasses.asdict(
      objective.advantage if objective.loss in _ON_STEPS else objective.preference
    )
    inputs = {
      "train": workfolder.decisive("train", cfg),
      "loss": objective.loss,
      "objective": knobs,
      "init": start.identity,
      "trees": content,
      "seq_len": length,
      "seed": seed,
    }
    found = self.stage(name, inputs, work)
    whole = sum(root.size() for root in roots)
    targets = sum(
      len(node.tokens) for root in roots for node in trees.nodes(root) if node.predicted
    )
    passed = round(found["tokens"] * whole / max(targets, 1))
    own = Cost(trained=found["tokens"], passed=passed, reference=whole)
    return self._trained(name, found, own, cost, f"of {len(roots)} trees")

  def mark(
    self, policy: Policy, problems: Sequence[Example], split: str, samples: int
  ) -> np.ndarray:
    """For every problem the share of the policy's answers that are correct.

    Args:
      policy: that answers.
      problems: of the split.
      split: its name, of the stage.
      samples: answers a problem at the temperature of the study's sampling; 0: the greedy one.
    """
    protocol = protocols.of(self.experiment)
    temperature = self.study.sampling.temperature if samples else 0.0
    cfg = dataclasses.replace(
      self.experiment.evaluate, samples=max(samples, 1), temperature=temperature, pass_at=()
    )
    experiment = dataclasses.replace(
      self.experiment, seed=self.seed("evaluate", split), evaluate=cfg
    )

    def work(folder: pathlib.Path) -> dict:
      engine = engine_of(self.experiment, self.tokenizer, policy.checkpoints, policy.identity)
      return evaluate_lib.answer(engine, problems, experiment, folder)

    name = f"{'evaluate' if samples else 'greedy'}_{split}_{policy.name}"
    asked = files.value_hash([[p.id, protocol.prompt(p), p.answer] for p in problems])
    how = workfolder.decisive("evaluate", cfg)
    inputs = {
      "policy": policy.identity,
      "evaluate": how,
      "protocol": protocol.record(),
      "problems": asked,
      "seed": experiment.seed,
    }
    self.stage(name, inputs, work)
    shares = score.shares(self.folder / name / "responses.jsonl")
    return np.array([shares[p.id] for p in problems])

  def looks(self, policy: Policy) -> int:
    """How many different policies of this name have answered the test problems in this cell."""
    kept = stages.versions(self.folder / f"evaluate_test_{policy.name}")
    return len({json.dumps((each.inputs or {}).get("inputs", {}).get("policy")) for each in kept})


def open_cell(job: jobs.Job, tokenizer: Tokenizer, count: int, seed: int) -> Cell:
  """The cell of `count` problems and a seed; see `splits.training`."""
  experiment = dataclasses.replace(
    job.experiment,
    seed=job.experiment.seed + seed,
    world=dataclasses.replace(job.experiment.world, seed=job.experiment.world.seed + seed),
  )
  problems = tuple(splits.training(experiment, count))
  # Responses to training problems have the form of the teacher's traces, whatever protocol asks the test problems.
  own = dataclasses.replace(
    experiment, evaluate=dataclasses.replace(experiment.evaluate, protocol="")
  )
  judge = Judge(
    {p.id: p.answer for p in problems},
    protocols.of(own).mode,
    tokenizer,
    pool.shared(POLICIES[experiment.evaluate.policy]),
  )
  return Cell(experiment, job.workdir / f"n{count:05}_s{seed}", tokenizer, problems, judge)


_engines: dict[str, JaxEngine] = {}


def engine_of(
  experiment: schema.Experiment, tokenizer: Tokenizer, checkpoints: str, identity: str
) -> JaxEngine:
  """One engine for all policies of a study: they have one shape, and new weights compile nothing."""
  model, params, _ = jobs.load_policy(experiment, tokenizer, checkpoints)
  key = files.value_hash(
    [dataclasses.asdict(model.cfg), tokenizer.fingerprint, experiment.evaluate.slots]
  )
  if key not in _engines:
    _engines[key] = JaxEngine(model, params, tokenizer, slots=experiment.evaluate.slots)
  _engines[key].load(params, identity)
  return _engines[key]


def _plain(root: trees.Node) -> list:
  """A tree as JSON, depth first; a tree is its nodes and how many children each has."""
  return [
    [list(node.tokens), node.side, node.weight, node.advantage, len(node.children)]
    for node in trees.nodes(root)
  ]


def _quiet(line: str) -> None:
  """Stages of a cell are many: what is skipped, begins for the first time or finishes is not shown."""
  if any(word in line for word in ("anew", "taken back", "goes on", "waits for")):
    progress.say(line)
