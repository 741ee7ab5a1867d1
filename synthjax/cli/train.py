"""run, cache, train, evaluate, export: a policy is trained, scored and handed on."""

import argparse

from synthjax.cli import common


def add_verbs(verbs: common.Verbs) -> None:
  """Adds the family's verbs."""
  _add_run(verbs)
  _add_cache(verbs)
  _add_train(verbs)
  _add_evaluate(verbs)
  _add_export(verbs)


def _add_run(verbs: common.Verbs) -> None:
  text = "run the stages of a recipe in order; finished ones are skipped"
  _add_profile(common.add_job_verb(verbs, "run", run, text))


def run(parsed: argparse.Namespace, overrides: list[str]) -> int:
  """The whole recipe."""
  return _follow_recipe("run", parsed, overrides)


def _add_cache(verbs: common.Verbs) -> None:
  text = "tokenise the config's data into ArrayRecord files"
  parser = common.add_job_verb(verbs, "cache", cache, text)
  parser.add_argument(
    "--runner",
    default="",
    help="a Beam runner, such as DataflowRunner or FlinkRunner (default: in this process)",
  )


def cache(parsed: argparse.Namespace, overrides: list[str]) -> int:
  """The recipe's data."""
  return _follow_recipe("prepare", parsed, overrides)


def _add_train(verbs: common.Verbs) -> None:
  text = "prepare the data if it is missing, and train"
  _add_profile(common.add_job_verb(verbs, "train", train, text))


def train(parsed: argparse.Namespace, overrides: list[str]) -> int:
  """The recipe's training."""
  return _follow_recipe("train", parsed, overrides)


def _add_profile(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--profile", default="", metavar="FIRST:LAST", help="write an xprof trace of these steps"
  )


def _follow_recipe(part: str, parsed: argparse.Namespace, overrides: list[str]) -> int:
  if part != "prepare":
    from synthjax import config

    config.check_files(common.load_experiment(parsed, overrides))
  job = common.open_job(parsed, overrides, writes=True, trains=True)
  from synthjax import recipes, workfolder

  work = recipes.part(job.experiment.recipe, part)
  with workfolder.alone(job.experiment, job.workdir, f"synthjax {recipes.VERBS[part]}"):
    work(job)
  return 0


def _add_evaluate(verbs: common.Verbs) -> None:
  text = "score the trained policy, each of its checkpoints, or completions read from a file"
  parser = common.add_job_verb(verbs, "evaluate", evaluate, text)
  parser.add_argument(
    "--watch",
    action="store_true",
    help="score each checkpoint once, while a training in another process writes them",
  )
  parser.add_argument(
    "--name",
    default="",
    help="of the watcher's folder below WORKDIR/watch (default: the protocol's name)",
  )
  parser.add_argument(
    "--generations", default="", help="JSONL of {id, responses} to score without a model"
  )
  common.add_arm(parser)


def evaluate(parsed: argparse.Namespace, overrides: list[str]) -> int:
  """Scores a policy, its checkpoints as they come, or a file of completions."""
  if parsed.generations:
    return _score_generations(parsed, overrides)
  # A watcher stands beside the training that holds the work folder, and writes to its own.
  opened = common.open_job(parsed, overrides, writes=not parsed.watch)
  from synthjax import job, workfolder
  from synthjax.recipes import finetune, study_policies

  if parsed.arm:
    with workfolder.alone(opened.experiment, opened.workdir, "synthjax evaluate"):
      study_policies.evaluate(opened, study_policies.find(opened, parsed.arm))
    return 0
  if finetune.trained(opened) is None:
    study_policies.refuse_study(opened.workdir)
  if parsed.watch:
    finetune.watch(opened, job.tokenizer_of(opened), parsed.name)
    return 0
  with workfolder.alone(opened.experiment, opened.workdir, "synthjax evaluate"):
    finetune.evaluate(opened, job.tokenizer_of(opened), "after")
  return 0


def _score_generations(parsed: argparse.Namespace, overrides: list[str]) -> int:
  experiment = common.load_experiment(parsed, overrides)
  from synthjax import locks, workfolder
  from synthjax.evaluate import protocols, run, score

  answered = score.read_generations(parsed.generations, lambda: run.golds(experiment))
  out = workfolder.choose(experiment, parsed.workdir) / "evaluate_generations"
  with locks.folder_lock(out, "synthjax evaluate --generations"):
    results = score.score(
      answered,
      protocols.of(experiment),
      experiment.evaluate.policy,
      experiment.evaluate.pass_at,
      out,
      {"generations": parsed.generations},
    )
  print(f"{score.table(results)}\n  in {out}: results.json, responses.jsonl, wrong.jsonl")
  return 0


def _add_export(verbs: common.Verbs) -> None:
  text = "write the parameters of the trained policy, without the optimizer's state"
  parser = common.add_job_verb(verbs, "export", export, text)
  parser.add_argument("--to", required=True, help="a new folder")
  parser.add_argument(
    "--format",
    default="synthjax",
    choices=("synthjax", "hf"),
    help="a checkpoint for train.init, or a folder that transformers and vLLM load",
  )
  common.add_arm(parser)


def export(parsed: argparse.Namespace, overrides: list[str]) -> int:
  """Writes a checkpoint that holds parameters alone."""
  opened = common.open_job(parsed, overrides)
  import jax

  from synthjax import files, job, locks
  from synthjax.model.transformer import Transformer, sized
  from synthjax.recipes import finetune, study_policies
  from synthjax.train import checkpoint

  experiment = opened.experiment
  training = None
  if parsed.arm:
    arm = study_policies.find(opened, parsed.arm)
    experiment, tokenizer, checkpoints = arm.experiment, arm.tokenizer, arm.checkpoints
  elif training := finetune.trained(opened):
    tokenizer, checkpoints = job.tokenizer_of(opened), training.checkpoints
  else:
    study_policies.refuse_study(opened.workdir)
    raise files.DataError(
      f"{opened.workdir / 'train'}: nothing was trained here yet; run `synthjax train` first"
    )
  model = Transformer(sized(experiment.model, tokenizer.size))
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), model.abstract()
  )
  with locks.lock_beside(parsed.to, "synthjax export", "wait for it, or give another --to"):
    if parsed.format == "hf":
      from synthjax.train import imported

      loaded = checkpoint.load_params(checkpoints, abstract)
      step = loaded.step
      tokenizer_config = experiment.data.tokenizer
      provenance = f"the parameters of {checkpoints}, step {step:,}"
      imported.export_folder(parsed.to, model, loaded.tree, tokenizer_config, provenance)
    else:
      step = checkpoint.export_params(checkpoints, parsed.to, abstract)
  exported = f"{checkpoints}, step {step:,}"
  if training:
    exported = training.describe(step)
  print(f"{parsed.to}: the parameters of {exported}")
  return 0
