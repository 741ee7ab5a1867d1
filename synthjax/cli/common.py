"""What the verbs share: options, and the experiment, the job and the policy that options name."""

import argparse
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
  from synthjax.config import schema
  from synthjax.data.tokenizers import Tokenizer
  from synthjax.job import Job
  from synthjax.model.transformer import Params, Transformer
  from synthjax.recipes.study_policies import StudyPolicy

# (parsed arguments, overrides of the config) -> exit code
Verb = Callable[[argparse.Namespace, list[str]], int]
Verbs = argparse._SubParsersAction


class LoadedPolicy(NamedTuple):
  """A policy that is in memory, and what an engine needs to sample it.

  Attributes:
    experiment: the config, with the policy's own model.
    tokenizer: of the policy.
    model: its shapes and functions.
    params: its parameters, on each process's first device.
    fingerprint: hash of checkpoint, model and tokenizer; two policies that share it give the same
      samples.
  """

  experiment: "schema.Experiment"
  tokenizer: "Tokenizer"
  model: "Transformer"
  params: "Params"
  fingerprint: str


def add_verb(
  verbs: Verbs, name: str, function: Verb, text: str, config_required: bool = True
) -> argparse.ArgumentParser:
  """A verb that reads a config."""
  added = verbs.add_parser(name, help=text, description=text)
  added.add_argument(
    "--config",
    required=config_required,
    help="configs/FILE.py, or configs/FILE.py:smoke for its small variant",
  )
  added.set_defaults(verb=function)
  return added


def add_job_verb(verbs: Verbs, name: str, function: Verb, text: str) -> argparse.ArgumentParser:
  """A verb that works on a config in a work folder."""
  added = add_verb(verbs, name, function, text)
  added.add_argument(
    "--workdir", default="", help="folder for everything that is written (default: runs/NAME)"
  )
  added.add_argument(
    "--force",
    action="store_true",
    help="redo finished stages; their earlier contents are kept beside them",
  )
  return added


def add_arm(parser: argparse.ArgumentParser) -> None:
  """`--arm`: one policy of a study."""
  parser.add_argument(
    "--arm",
    default="",
    metavar="CELL/ARM",
    help="a policy of a study, by its folder below the workdir, such as n00512_s0/rft",
  )


def add_checkpoint(parser: argparse.ArgumentParser, default: str) -> None:
  """`--checkpoint`: any policy."""
  parser.add_argument(
    "--checkpoint",
    default="",
    help=f"folder of checkpoints, or of the stage that holds them (default: {default})",
  )


def add_policy(parser: argparse.ArgumentParser) -> None:
  """The options of `load_policy`, and how many sequences an engine samples at a time."""
  add_checkpoint(parser, default="the one trained in the workdir, else train.init")
  add_arm(parser)
  parser.add_argument(
    "--slots", type=int, default=128, help="number of sequences sampled at the same time"
  )


def simulate_devices() -> None:
  """Has XLA make one CPU device a core, unless XLA_FLAGS is set. Call before jax is imported.

  Sampling on CPU is 1.2 to 2 times faster that way.
  """
  cores = len(os.sched_getaffinity(0))
  os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={cores}")


def load_experiment(parsed: argparse.Namespace, overrides: list[str]) -> "schema.Experiment":
  """The config that is named, with its overrides."""
  from synthjax import config

  if getattr(parsed, "profile", ""):
    overrides = [*overrides, f"train.profile='{parsed.profile}'"]
  return config.load(parsed.config, overrides)


def open_job(
  parsed: argparse.Namespace, overrides: list[str], writes: bool = False, trains: bool = False
) -> "Job":
  """The experiment in its folder, with all processes connected.

  Args:
    parsed: the command line.
    overrides: of the config.
    writes: refuse a work folder that another start is working in; this is before jax is loaded.
    trains: refuse a config whose data files are missing, as early.
  """
  experiment = load_experiment(parsed, overrides)
  from synthjax import workfolder

  folder = workfolder.choose(experiment, parsed.workdir)
  if writes:
    workfolder.check_free(experiment, folder)
  if trains:
    from synthjax.data import sources

    sources.check_there(experiment)
  from synthjax import job, multihost, progress

  multihost.start(multihost.from_environment())
  progress.quiet(not multihost.is_first())
  return job.Job(experiment, folder, parsed.force, getattr(parsed, "runner", ""))


def load_policy(parsed: argparse.Namespace, overrides: list[str]) -> LoadedPolicy:
  """The policy of `--arm` or `--checkpoint`, else the one trained so far, else `train.init`.

  Raises:
    ConfigError: both options are given.
    DataError: the work folder holds a study, and no option says which of its policies is meant.
  """
  simulate_devices()
  opened = open_job(parsed, overrides)
  from synthjax import job, progress
  from synthjax.errors import ConfigError
  from synthjax.recipes import finetune, study_policies

  if parsed.arm and parsed.checkpoint:
    raise ConfigError(
      f"--arm {parsed.arm} and --checkpoint {parsed.checkpoint} name two policies; give one of them"
    )
  if parsed.arm:
    return _load_arm(study_policies.find(opened, parsed.arm))
  training = None
  if parsed.checkpoint:
    source = study_policies.checkpoints_in(parsed.checkpoint)
  elif training := finetune.trained(opened):
    source = training.checkpoints
  else:
    source = opened.experiment.train.init
    study_policies.refuse_study(opened.workdir)
  experiment, tokenizer = opened.experiment, job.tokenizer_of(opened)
  model, params, step = job.load_policy(experiment, tokenizer, source, fall_back=True)
  if step is None:
    progress.say("policy: random parameters")
  elif training:
    progress.say(f"policy: {training.describe(step)}")
  else:
    progress.say(f"policy: {source}, step {step:,}")
  # Random parameters have no checkpoint; their seed tells them apart.
  identity = job.identity(source, step) or experiment.seed
  fingerprint = _fingerprint(identity, model, tokenizer)
  return LoadedPolicy(experiment, tokenizer, model, params, fingerprint)


def _load_arm(arm: "StudyPolicy") -> LoadedPolicy:
  from synthjax import job, progress

  model, params, step = job.load_policy(arm.experiment, arm.tokenizer, arm.checkpoints, arm.step)
  progress.say(f"policy: {arm.checkpoints}, step {step:,}")
  identity = job.identity(arm.checkpoints, step)
  fingerprint = _fingerprint(identity, model, arm.tokenizer)
  return LoadedPolicy(arm.experiment, arm.tokenizer, model, params, fingerprint)


def _fingerprint(identity: str | int, model: "Transformer", tokenizer: "Tokenizer") -> str:
  import dataclasses

  from synthjax import files

  return files.value_hash([identity, dataclasses.asdict(model.cfg), tokenizer.fingerprint])
