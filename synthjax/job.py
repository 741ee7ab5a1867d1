"""An experiment in its folder: its tokenizer, its policies, and the identity of its trainings."""

import dataclasses
import functools
import pathlib
from typing import NamedTuple

import jax

from synthjax import files, sharding, stages, workfolder
from synthjax.config import schema
from synthjax.data import sources, tokenizers
from synthjax.model.transformer import Params, Transformer, sized
from synthjax.train import checkpoint, resume
from synthjax.train.training import Earlier


class Job(NamedTuple):
  """An experiment in its folder."""

  experiment: schema.Experiment
  workdir: pathlib.Path
  force: bool = False  # redo finished stages
  runner: str = ""  # Beam runner that caches; "" is this process


def check_start(experiment: schema.Experiment) -> None:
  """Raises CheckpointError where the policy that training starts from is not there."""
  checkpoint.check_there(experiment.train.init, "config.train.init")
  checkpoint.check_there(experiment.train.continue_from, "config.train.continue_from")


@functools.lru_cache(1)
def _model(cfg: schema.Model) -> Transformer:
  return Transformer(cfg)


def load_policy(
  experiment: schema.Experiment,
  tokenizer: tokenizers.Tokenizer,
  source: str,
  step: int | None = None,
  fall_back: bool = False,
) -> tuple[Transformer, Params, int | None]:
  """The config's model, its parameters from `source`, and the step that they are of.

  Parameters are whole on each process's first device.

  Args:
    experiment: its model, and the seed of random parameters.
    tokenizer: of the policy.
    source: folder of checkpoints, or of one step; "": random parameters, of no step.
    step: which one; None: the one that the training's manifest names, else the newest.
    fall_back: where no manifest names a step and the newest is damaged, an older one is taken.
  """
  model = _model(sized(experiment.model, tokenizer.size))
  everywhere = sharding.make_layout(schema.Mesh()).replicated
  if source:

    def placed(x):
      return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere)

    abstract = jax.tree.map(placed, model.abstract())
    if step is None and not fall_back:
      step = checkpoint.newest_step(source)
    step, params, about = checkpoint.load_params(source, abstract, step)
    resume.check_tokenizer(about["tokenizer"], tokenizer.fingerprint, source)
  else:
    params = jax.jit(model.init, out_shardings=everywhere)(jax.random.key(experiment.seed))
  return model, jax.tree.map(lambda x: x.addressable_data(0), params), step


def tokenizer_of(job: Job) -> tokenizers.Tokenizer:
  """The config's tokenizer, trained on the training documents where it asks for that."""
  cfg, data, world = job.experiment.data.tokenizer, job.experiment.data, job.experiment.world
  if cfg.kind == "sentencepiece" and not cfg.path:
    path = job.workdir / "tokenizer/model.model"

    def work(folder):
      examples = sources.examples(data, world, "train")
      texts = [example.inputs + example.targets for example in examples]
      tokenizers.train_sentencepiece(texts, folder / path.name, cfg.vocab_size)
      return {"documents": len(texts), "size": cfg.vocab_size}

    training = sources.of_split(data, "train")
    parts = [sources.fingerprint(source, data, world, "train") for source in training]
    stages.run(path.parent, [cfg.vocab_size, parts], work, job.force)
    cfg = dataclasses.replace(cfg, path=str(path))
  return tokenizers.load(cfg, world)


def settings(job: Job) -> dict:
  """What the config says of the outcome of a training, and what it starts from, as JSON."""
  experiment = job.experiment
  inputs = {
    "train": workfolder.decisive("train", experiment.train),
    "model": workfolder.decisive("model", experiment.model),
    "seed": experiment.seed,
    "init": identity(experiment.train.init),
  }
  if trunk := experiment.train.continue_from:
    inputs["continue_from"] = identity(trunk, experiment.train.continue_step or None)
  if experiment.recipe == "preference":
    inputs["objective"] = workfolder.decisive("objective", experiment.objective)
  return inputs


def identity(checkpoints: str, step: int | None = None) -> str:
  """Tells the checkpoint that readers take from a folder, or a certain step of it, from others.

  Returns "STEP:HASH", "" where no folder is given. The hash is of the names and sizes of its files,
  which Orbax names at random.
  """
  if not checkpoints:
    return ""
  folder = checkpoint.folder_of(checkpoints)
  if step is None:
    step = checkpoint.newest_step(folder)
  if folder.name != str(step):
    folder = folder / str(step)
  sizes = []
  for path in folder.rglob("*"):
    if path.is_file():
      sizes.append([str(path.relative_to(folder)), path.stat().st_size])
  return f"{step}:{files.value_hash(sorted(sizes))}"


def earlier_trainings(job: Job, folder: pathlib.Path, inputs: dict) -> list[Earlier]:
  """Kept versions of a training that this one may continue; none where all is forced anew.

  Their inputs differ in the number of steps or in the schedule alone.
  """
  if job.force:
    return []
  trainings: list[Earlier] = []
  for version in stages.versions(folder):
    if version.folder == folder or version.inputs is None:
      continue
    if _without_schedule(version.inputs) != _without_schedule(inputs):
      continue
    train = version.inputs["train"]
    steps = train["steps"] or (version.result or {}).get("steps", 0)
    cfg = schema.Optimizer(**train["optimizer"])
    trainings.append(Earlier(version.folder / "checkpoints", cfg, steps))
  return trainings


def _without_schedule(inputs: dict) -> dict:
  train = dict(inputs["train"])
  for key in ("steps", "epochs", "optimizer"):
    train.pop(key, None)
  return {**inputs, "train": train}


def is_whole(training: stages.Version) -> bool:
  """Whether a finished training still has the checkpoint that its manifest names.

  It is what `stages.run` asks.
  """
  return not checkpoint.is_lost(training.folder / "checkpoints")
