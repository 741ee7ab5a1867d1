"""Trains the policies of a cell, each in a stage: by likelihood, or by a loss on trees."""

import dataclasses
import pathlib
from collections.abc import Sequence

from synthjax import files, workfolder
from synthjax import job as jobs
from synthjax.config import schema
from synthjax.data import tokenizers, trees
from synthjax.data.documents import TokenDocuments
from synthjax.losses.registry import ADVANTAGE_LOSSES
from synthjax.math_study import sampling
from synthjax.math_study.arms import Arm
from synthjax.math_study.cell import Cell, Cost, Solution, TrainedPolicy
from synthjax.train import policies, preference


def by_likelihood(
  cell: Cell,
  name: str,
  solutions: Sequence[Solution],
  cfg: schema.Train,
  start: TrainedPolicy | None,
  cost: Cost,
) -> TrainedPolicy:
  """Trains on distinct solutions; those that are longer than a sequence are left out and noted.

  Args:
    cell: of the problems.
    name: of the policy and its stage.
    solutions: some may repeat.
    cfg: of the training.
    start: the policy to go on from; None: where the config says.
    cost: of all that this training stands on.
  """
  init = start.checkpoints if start else cell.experiment.train.init
  seed = cell.seed("train", name)
  train = dataclasses.replace(cfg, init=init)
  experiment = dataclasses.replace(cell.experiment, seed=seed, train=train)
  # In the order of their first occurrence: the order of documents is part of what training does.
  distinct = dict.fromkeys(solutions)
  documents = []
  for solution in distinct:
    if sampling.fits(cell, solution):
      response = (*solution.ids, cell.tokenizer.eos_id)
      documents.append((cell.prompts[solution.problem_id], response))

  def work(folder: pathlib.Path) -> dict:
    tokenizer = tokenizers.info(cell.tokenizer)
    result = policies.on_documents(experiment, TokenDocuments(documents), folder, tokenizer)
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
    "seq_len": cell.experiment.data.seq_len,
    "seed": seed,
  }
  made = cell.stage(name, inputs, work)
  targets = sum(len(response) for _, response in documents)
  whole = targets + sum(len(prompt) for prompt, _ in documents)
  own = Cost(trained=made["tokens"], passed=round(made["tokens"] * whole / targets))
  return _trained(cell, name, own, cost, _note(cell, name, made, f"{len(distinct)} solutions"))


def objective_of(arm: Arm, objective: schema.Objective) -> schema.Objective:
  """The config's objective with the loss of a preference arm."""
  assert arm.loss != "likelihood", arm.name
  return dataclasses.replace(objective, loss=arm.loss)


@dataclasses.dataclass(frozen=True)
class PreferenceTraining:
  """What a preference arm is trained on, and how.

  Attributes:
    roots: pairs or traces as trees.
    objective: names the loss.
    train: rate and length.
    start: the policy that is trained, and the reference.
    cost: of all that the training stands on.
    splittable: a tree that is longer than a sequence may be divided over several.
  """

  roots: Sequence[trees.Node]
  objective: schema.Objective
  train: schema.Train
  start: TrainedPolicy
  cost: Cost
  splittable: bool


def by_preference(cell: Cell, name: str, training: PreferenceTraining) -> TrainedPolicy:
  """Trains on trees; without any the arm stays where it starts, and a note says so."""
  start, roots = training.start, training.roots
  if not roots:
    note = (
      f"{cell.folder.name}: the samples of {start.name!r} gave {name!r} nothing to learn from; "
      f"it is {start.name!r} unchanged"
    )
    return TrainedPolicy(name, start.checkpoints, Cost(), training.cost, (note,))
  cfg = dataclasses.replace(training.train, init=start.checkpoints)
  seed = cell.seed("train", name)
  experiment = dataclasses.replace(
    cell.experiment, seed=seed, train=cfg, objective=training.objective
  )
  content = files.value_hash([_plain(root) for root in roots])
  inputs = {
    "train": workfolder.decisive("train", cfg),
    "loss": training.objective.loss,
    "objective": _knobs(training.objective),
    "init": start.identity,
    "trees": content,
    "seq_len": cell.experiment.data.seq_len,
    "seed": seed,
  }
  made = cell.stage(name, inputs, lambda folder: _fit(cell, experiment, training, content, folder))
  own = _preference_cost(roots, made["tokens"])
  return _trained(cell, name, own, training.cost, _note(cell, name, made, f"{len(roots)} trees"))


def _fit(
  cell: Cell,
  experiment: schema.Experiment,
  training: PreferenceTraining,
  content: str,
  folder: pathlib.Path,
) -> dict:
  """The reference's log-probs, then the training."""
  length, roots = experiment.data.seq_len, training.roots
  plan = trees.plan(roots, length, training.splittable)
  if not plan.rows:
    raise files.DataError(
      f"{folder}: none of {len(roots)} trees fits a sequence of data.seq_len={length}; raise it"
    )
  model, params, _ = jobs.load_policy(experiment, cell.tokenizer, training.start.checkpoints)
  provenance = {
    "checkpoint": training.start.identity,
    "tokenizer": cell.tokenizer.fingerprint,
    "data": content,
  }
  reference = preference.reference_sums(
    model,
    params,
    plan.rows,
    experiment.train.batch_size,
    length,
    folder / "reference",
    provenance,
  )
  tokenizer = tokenizers.info(cell.tokenizer)
  result = policies.on_trees(experiment, plan, reference, folder, tokenizer)
  return {
    **dataclasses.asdict(result),
    "trees": len(roots),
    "too_long": len(plan.too_long),
    "split": plan.split,
  }


def _knobs(objective: schema.Objective) -> dict:
  """The part of the objective that its loss reads."""
  if objective.loss in ADVANTAGE_LOSSES:
    return dataclasses.asdict(objective.advantage)
  return dataclasses.asdict(objective.preference)


def _plain(root: trees.Node) -> list:
  """A tree as JSON, depth first; a tree is its nodes and how many children each has."""
  rows = []
  for node in trees.nodes(root):
    rows.append([list(node.tokens), node.side, node.weight, node.advantage, len(node.children)])
  return rows


def _preference_cost(roots: Sequence[trees.Node], trained: int) -> Cost:
  """Prompts are passed as often as the targets after them."""
  whole = sum(root.size() for root in roots)
  targets = 0
  for root in roots:
    targets += sum(len(node.tokens) for node in trees.nodes(root) if node.predicted)
  passed = round(trained * whole / max(targets, 1))
  return Cost(trained=trained, passed=passed, reference=whole)


def _note(cell: Cell, name: str, made: dict, whole: str) -> tuple[str, ...]:
  if not made["too_long"]:
    return ()
  return (
    f"{cell.folder.name}, {name!r}: {made['too_long']} of {whole} are longer than a sequence and "
    "were left out",
  )


def _trained(cell: Cell, name: str, own: Cost, cost: Cost, notes: tuple[str, ...]) -> TrainedPolicy:
  checkpoints = str(cell.folder / name / "checkpoints")
  return TrainedPolicy(name, checkpoints, own, cost + own, notes)
