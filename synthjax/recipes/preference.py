"""Preference training on a file of pairs, evaluated before and after.

The reference's log-probs are computed once, then DPO or one of its relatives is trained.
"""

import dataclasses
import functools
import pathlib

from synthjax import files, multihost, overlap, progress, records, stages
from synthjax import job as jobs
from synthjax.config.schema import Objective
from synthjax.data import pair_trees, tokenizers, trees
from synthjax.job import Job
from synthjax.losses.registry import ADVANTAGE_LOSSES
from synthjax.recipes import finetune
from synthjax.records import Pair
from synthjax.train import policies, preference


def run(job: Job) -> dict:
  """Runs the experiment, skipping what is finished; returns and prints the table.

  Raises:
    DataError: no pairs, pairs that the loss cannot be computed on or that would train nothing;
      ConfigError: see the rooms.
  """
  tokenizer, plan = _begin(job)
  scores = {}
  if job.experiment.evaluate.before:
    scores["before"] = finetune.evaluate(job, tokenizer, "before")
  trained = _train(job, tokenizer, plan)
  result = {"train": trained, **scores, "after": finetune.evaluate(job, tokenizer, "after")}
  if multihost.is_first():
    files.write_json(job.workdir / "results.json", result)
  progress.say(finetune.table(job, result))
  return result


def train(job: Job) -> dict:
  """Reads pairs, lays them out, computes the reference's log-probs and trains."""
  return _train(job, *_begin(job))


def _begin(job: Job) -> tuple[tokenizers.Tokenizer, trees.TreePlan | None]:
  """The tokenizer and the packed pairs, None where the training is finished.

  Pairs that cannot be used are known here, before a stage begins.
  """
  experiment = job.experiment
  if not experiment.objective.pairs or not experiment.train.init:
    raise files.DataError(
      "recipe 'preference' needs config.objective.pairs (JSONL of pairs) and config.train.init "
      "(the policy that is trained, and the reference)"
    )
  jobs.check_start(experiment)
  tokenizer = jobs.tokenizer_of(job)
  plan = None
  done = stages.finished(job.workdir / "train", _inputs(job, tokenizer), jobs.is_whole)
  if job.force or not done:
    plan = _plan(job, tokenizer)
  if multihost.is_first():
    files.write_json(job.workdir / "config.json", dataclasses.asdict(experiment))
  return tokenizer, plan


def _inputs(job: Job, tokenizer: tokenizers.Tokenizer) -> dict:
  # The key is persisted.
  return {**jobs.settings(job), "made_of": _provenance(job, tokenizer)}


def _train(job: Job, tokenizer: tokenizers.Tokenizer, plan: trees.TreePlan | None) -> dict:
  return stages.run(
    job.workdir / "train",
    _inputs(job, tokenizer),
    functools.partial(_work, job, tokenizer, plan),
    job.force,
    together=True,
    whole=jobs.is_whole,
  )


def _plan(job: Job, tokenizer: tokenizers.Tokenizer) -> trees.TreePlan:
  """Packs the pairs.

  Raises:
    DataError: as `_trees`; none fits a sequence, or the loss would train none of them.
  """
  objective, length = job.experiment.objective, job.experiment.data.seq_len
  plan = trees.plan(_trees(job, tokenizer), length, splittable=False)
  left_out = len(plan.too_long)
  if not plan.rows:
    raise files.DataError(
      f"{objective.pairs}: no pair fits a sequence of data.seq_len={length} tokens "
      f"({left_out} are longer)"
    )
  _check_trains(plan, objective)
  pairs = sum(map(len, plan.rows))
  progress.say(
    f"{pairs + left_out:,} pairs in {len(plan.rows):,} sequences, {100 * plan.fill:.1f} % full; "
    f"{left_out} longer than a sequence and left out"
  )
  return plan


def _trees(job: Job, tokenizer: tokenizers.Tokenizer) -> list[trees.Node]:
  """The file's pairs as trees, without those about evaluation problems.

  Raises:
    DataError: a pair cannot be read, or has no step values and the loss needs them; or pairs are
      about evaluation problems, and `config.data.overlap` is "error".
  """
  objective = job.experiment.objective
  numbered = dict(enumerate(records.read(Pair, objective.pairs), 1))
  if not numbered:
    raise files.DataError(f"{objective.pairs}: the file holds no pair; expected one a line")
  for number in overlap.of_pairs(job.experiment, job.workdir, numbered):
    del numbered[number]
  pairs = list(numbered.values())
  if objective.loss != "step_dpo" and any(map(pair_trees.has_weights, pairs)):
    progress.say(
      f"{objective.pairs}: loss {objective.loss!r} does not read the weights of the steps "
      "(chosen_weights, rejected_weights); step_dpo does"
    )
  roots = []
  for number, pair in numbered.items():
    try:
      roots.append(_tree(pair, number, objective, tokenizer))
    except files.DataError as e:
      raise files.DataError(f"{objective.pairs}: {e}") from e
  if _also_predicted(objective) == "mismatched responses":
    return pair_trees.with_mismatched(roots, pairs)
  if _also_predicted(objective) == "prompts":
    return [pair_trees.with_predicted_prompt(root) for root in roots]
  return roots


def _tree(
  pair: Pair, number: int, objective: Objective, tokenizer: tokenizers.Tokenizer
) -> trees.Node:
  """A pair as a tree. Raises DataError where the loss needs step values and it has none."""
  if objective.loss in ADVANTAGE_LOSSES and not pair_trees.has_advantages(pair):
    raise files.DataError(
      f"{pair_trees.describe(pair, number)} has no step values, and loss {objective.loss!r} trains "
      "every step by its advantage; expected chosen_advantages and rejected_advantages in its "
      "metadata, a number a step, or another config.objective.loss"
    )
  tokens = pair_trees.token_pair(pair, tokenizer, number)
  return pair_trees.tree_of(tokens, weighted=objective.loss == "step_dpo")


def _also_predicted(objective: Objective) -> str:
  """What the loss reads log-probs of besides the two sides of a pair."""
  if objective.loss == "kto" and objective.preference.kto_reference == "mismatched":
    return "mismatched responses"
  if objective.loss == "orpo" and objective.preference.orpo_prompt:
    return "prompts"
  return ""


def _check_trains(plan: trees.TreePlan, objective: Objective) -> None:
  """Raises DataError where the loss has no gradient for any step, before anything is computed."""
  roots = [root for row in plan.rows for root in row]
  steps = [node for root in roots for node in trees.nodes(root) if node.predicted]
  if any(_trains(step, objective) for step in steps):
    return
  if objective.loss == "filtered_sft":
    largest = max(step.advantage for step in steps)
    why = (
      f"their largest advantage is {largest:g}, expected one above "
      f"config.objective.advantage.threshold={objective.advantage.threshold:g}"
    )
  else:
    why = "all their weights are 0, expected one above it in chosen_weights or rejected_weights"
  raise files.DataError(
    f"{objective.pairs}: loss {objective.loss!r} would train none of the {len(steps):,} steps; "
    f"{why}"
  )


def _trains(step: trees.Node, objective: Objective) -> bool:
  """Whether the loss reads the step's log-prob with a weight above 0."""
  if objective.loss == "filtered_sft":
    return step.advantage > objective.advantage.threshold
  if objective.loss == "step_dpo":
    return step.weight > 0 or (objective.preference.nll > 0 and step.side > 0)
  return True


def _work(
  job: Job, tokenizer: tokenizers.Tokenizer, plan: trees.TreePlan | None, folder: pathlib.Path
) -> dict:
  """The reference's log-probs, then the training."""
  experiment = job.experiment
  cfg, length = experiment.train, experiment.data.seq_len
  # There is one wherever the stage is not finished, see `_begin`.
  assert plan is not None
  model, params, _ = jobs.load_policy(experiment, tokenizer, cfg.init)
  reference = preference.reference_sums(
    model,
    params,
    plan.rows,
    cfg.batch_size,
    length,
    experiment.objective.reference or job.workdir / "reference",
    _provenance(job, tokenizer),
  )
  # They are loaded once more, sharded, by the training.
  del params
  about_tokenizer = tokenizers.info(tokenizer)
  earlier = jobs.earlier_trainings(job, folder, _inputs(job, tokenizer))
  result = policies.on_trees(experiment, plan, reference, folder, about_tokenizer, earlier)
  return {**dataclasses.asdict(result), "pairs_left_out": len(plan.too_long)}


def _provenance(job: Job, tokenizer: tokenizers.Tokenizer) -> dict[str, str]:
  """What the reference's log-probs depend on."""
  experiment = job.experiment
  data = [files.file_hash(experiment.objective.pairs), experiment.data.seq_len]
  if more := _also_predicted(experiment.objective):
    data.append(more)
  return {
    "checkpoint": jobs.identity(experiment.train.init),
    "tokenizer": tokenizer.fingerprint,
    "data": files.value_hash(data),
  }
