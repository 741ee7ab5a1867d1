"""An experiment in its folder: its tokenizer, its policies, and what tells one training from another."""

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
  """The config's model with parameters from `source`, whole on each process's first device, and the step they are of.

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
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), model.abstract()
    )
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
      texts = [e.inputs + e.targets for e in sources.examples(data, world, "train")]
      tokenizers.train_sentencepiece(texts, folder / path.name, cfg.vocab_size)
      return {"documents": len(texts), "size": cfg.vocab_size}

    parts = [
      sources.fingerprint(source, data, world, "train")
      for source in sources.of_split(data, "train")
    ]
    stages.run(path.parent, [cfg.vocab_size, parts], work, job.force)
    cfg = dataclasses.replace(cfg, path=str(path))
  return tokenizers.load(cfg, world)


def settings(job: Job) -> dict:
  """The config's part of what decides the outcome of a training, and what it starts from. JSON."""
  experiment = job.experiment
  found = {
    "train": workfolder.decisive("train", experiment.train),
    "model": workfolder.decisive("model", experiment.model),
    "seed": experiment.seed,
    "init": identity(experiment.train.init),
  }
  if trunk := experiment.train.continue_from:
    found["continue_from"] = identity(trunk, experiment.train.continue_step or None)
  if experiment.recipe == "preference":
    found["objective"] = workfolder.decisive("objective", experiment.objective)
  return found


def identity(checkpoints: str, step: int | None = None) -> str:
  """ "STEP:HASH" of the checkpoint that readers take from a folder, or of a certain step in it; "" where there is none.

  The hash is of the names and sizes of its files, which Orbax names at random.
  """
  if not checkpoints:
    return ""
  folder = checkpoint.folder_of(checkpoints)
  step = checkpoint.newest_step(folder) if step is None else step
  if folder.name != str(step):
    folder = folder / str(step)
  found = [
    [str(path.relative_to(folder)), path.stat().st_size]
    for path in folder.rglob("*")
    if path.is_file()
  ]
  return f"{step}:{files.value_hash(sorted(found))}"


def earlier_trainings(job: Job, folder: pathlib.Path, inputs: dict) -> list[Earlier]:
  """Kept versions of a training whose inputs differ in the number of steps or in the schedule alone; none where all is forced anew."""
  found: list[Earlier] = []
  if job.force:
    return found
  for each in stages.versions(folder):
    if (
      each.folder == folder
      or each.inputs is None
      or _without_schedule(each.inputs) != _without_schedule(inputs)
    ):
      continue
    steps = each.inputs["train"]["steps"] or (each.result or {}).get("steps", 0)
    cfg = schema.Optimizer(**each.inputs["train"]["optimizer"])
    found.append(Earlier(each.folder / "checkpoints", cfg, steps))
  return found


def _without_schedule(inputs: dict) -> dict:
  train = {
    key: value
    for key, value in inputs["train"].items()
    if key not in ("steps", "epochs", "optimizer")
  }
  return {**inputs, "train": train}


def is_whole(training: stages.Version) -> bool:
  """Whether a finished training still has the checkpoint that its manifest names, as `stages.run` asks."""
  return not checkpoint.is_lost(training.folder / "checkpoints")
