"""Preference training on a file of pairs: reference log-probs once, then DPO and its relatives; evaluated before and after."""

import dataclasses
import functools
from collections.abc import Sequence

from synthjax import files, multihost, progress, records, stages
from synthjax.data import tokenizers, trees
from synthjax.recipes import finetune
from synthjax.recipes.finetune import Job
from synthjax.records import Pair
from synthjax.train import policies, preference


def run(job: Job) -> dict:
  """Runs the experiment, skipping what is finished; returns and prints the table.

  Raises:
    DataError: no pairs, or a pair whose tokens cannot be told apart; ConfigError: see the rooms.
  """
  tokenizer, plan = _begin(job)
  scores = {"before": finetune.evaluate(job, tokenizer, "before")} if job.experiment.evaluate.before else {}
  trained = _train(job, tokenizer, plan)
  result = {"train": trained, **scores, "after": finetune.evaluate(job, tokenizer, "after")}
  if multihost.is_first():
    files.write_json(job.workdir / "results.json", result)
  progress.say(finetune.table(job, result))
  return result


def train(job: Job) -> dict:
  """Reads pairs, lays them out, computes the reference's log-probs and trains."""
  return _train(job, *_begin(job))


def _begin(job) -> tuple[tokenizers.Tokenizer, trees.Plan | None]:
  """The tokenizer and the rows of pairs, None where the training is finished: pairs that cannot be used are known before a stage begins."""
  experiment = job.experiment
  if not experiment.objective.pairs or not experiment.train.init:
    raise files.DataError("recipe 'preference' needs config.objective.pairs (JSONL of pairs) and config.train.init (the policy that is "
                          "trained, and the reference)")
  if multihost.is_first():
    files.write_json(job.workdir / "config.json", dataclasses.asdict(experiment))
  tokenizer = finetune.tokenizer_of(job)
  done = stages.finished(job.workdir / "train", _inputs(job, tokenizer)) and not job.force
  return tokenizer, None if done else _plan(job, tokenizer)


def _inputs(job, tokenizer) -> dict:
  return {**finetune.settings(job), "made_of": _made_of(job, tokenizer)}


def _train(job, tokenizer, plan) -> dict:
  return stages.run(job.workdir / "train", _inputs(job, tokenizer), functools.partial(_work, job, tokenizer, plan), job.force,
                    together=True)


def _plan(job, tokenizer) -> trees.Plan:
  experiment, length = job.experiment, job.experiment.data.row_length
  pairs = list(records.read(Pair, experiment.objective.pairs))
  plan = trees.plan([tree_of(pair, tokenizer, number) for number, pair in enumerate(pairs)], length, splittable=False)
  if not plan.rows:
    raise files.DataError(f"{experiment.objective.pairs}: no pair fits a row of data.row_length={length} tokens "
                          f"({len(plan.too_long)} are longer)")
  progress.say(f"{len(pairs):,} pairs in {len(plan.rows):,} rows, {100 * plan.fill:.1f} % full; "
               f"{len(plan.too_long)} longer than a row and left out")
  return plan


def _work(job, tokenizer, plan, folder) -> dict:
  experiment = job.experiment
  cfg, length = experiment.train, experiment.data.row_length
  alone, params = finetune.load_policy(experiment, tokenizer, cfg.init)
  reference = preference.reference_sums(alone, params, plan.rows, cfg.batch_size, length, experiment.objective.reference
                                        or job.workdir / "reference", _made_of(job, tokenizer))
  del params
  result = policies.on_trees(experiment, plan, reference, folder, (tokenizer.size, tokenizer.fingerprint))
  return {**dataclasses.asdict(result), "pairs_left_out": len(plan.too_long)}


def tree_of(pair: Pair, tokenizer: tokenizers.Tokenizer, number: int) -> trees.Node:
  """A pair as a tree. `metadata` may hold the sampled tokens: `prefix_ids`, and `chosen_steps`, `rejected_steps` with their `_weights`.

  Without them the texts are tokenised with the prefix before them, so that the tokens at the boundary are those of the whole text.

  Raises:
    DataError: prefix and continuation share a token, or a side is empty.
  """
  known = pair.metadata
  if "prefix_ids" in known:
    weights = [known.get(f"{side}_weights", [1.0] * len(known[f"{side}_steps"])) for side in ("chosen", "rejected")]
    return trees.pair(known["prefix_ids"], known["chosen_steps"], known["rejected_steps"], weights=(weights[0], weights[1]))
  prefix = tokenizer.encode(pair.prefix)
  sides = [_continuation(prefix, pair.prefix + text, tokenizer, number) + [tokenizer.eos_id] * complete
           for text, complete in ((pair.chosen, pair.chosen_complete), (pair.rejected, pair.rejected_complete))]
  return trees.pair(prefix, [sides[0]], [sides[1]])


def _continuation(prefix: Sequence[int], whole: str, tokenizer, number) -> list[int]:
  tokens = tokenizer.encode(whole)
  if list(tokens[:len(prefix)]) != list(prefix) or len(tokens) == len(prefix):
    raise files.DataError(f"pair {number}: the tokens of its prefix are not the first tokens of prefix and response together; give the "
                          "sampled tokens in metadata (prefix_ids, chosen_steps, rejected_steps)")
  return list(tokens[len(prefix):])


def _made_of(job: Job, tokenizer) -> dict[str, str]:
  experiment = job.experiment
  data = [files.file_hash(experiment.objective.pairs), experiment.data.row_length]
  return {"checkpoint": finetune.identity(experiment.train.init), "tokenizer": tokenizer.fingerprint,
          "data": files.value_hash(data)}
