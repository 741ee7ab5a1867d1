"""Tokenizer, caches, training, evaluation before and after: the loop that both studies are made of.

Each function is one stage or a group of them, called by `run` in order and by the verbs `cache` (`prepare`), `train` and `evaluate` alone.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
from typing import Any, NamedTuple

import jax

from synthjax import files, multihost, progress, schema, sharding, stages, stats, workfolder
from synthjax.data import cache, sources, tokenizers
from synthjax.errors import ConfigError
from synthjax.evaluate import protocols, score
from synthjax.evaluate import run as evaluate_lib
from synthjax.evaluate import watch as watch_lib
from synthjax.model.transformer import Params, Transformer, sized
from synthjax.recipes import overlap
from synthjax.train import checkpoint, loop
from synthjax.verify import extract

_LOOKED_AT = 50  # training documents, before anything is written


class Job(NamedTuple):
  """An experiment in its folder."""

  experiment: schema.Experiment
  workdir: pathlib.Path
  force: bool = False  # redo finished stages
  runner: str = ""  # Beam runner that caches; "" is this process


def run(job: Job) -> dict:
  """Runs the whole experiment, skipping what is finished; returns and prints the table.

  Raises:
    DataError, ConfigError, MeshError, CheckpointError, TrainingStopped: see the rooms; running again goes on where it stopped.
  """
  scores = {}
  tokenizer, caches = prepare(job)
  if job.experiment.evaluate.before and _has_answers(job):
    scores["before"] = evaluate(job, tokenizer, "before")
  trained = _train(job, tokenizer, caches)
  if _has_answers(job):
    scores["after"] = evaluate(job, tokenizer, "after")
  result = {"train": trained, **scores}
  if multihost.is_first():
    files.write_json(job.workdir / "results.json", result)
  progress.say(table(job, result))
  return result


def prepare(job: Job) -> tuple[tokenizers.Tokenizer, dict[pathlib.Path, float]]:
  """The tokenizer (trained where the config asks for that) and the folders of the training documents with their rates; caches them all."""
  # What cannot be is known before anything is written.
  sharding.make_layout(job.experiment.mesh)
  check_start(job.experiment)
  _check_answers(job.experiment)
  say_what_is_asked(job.experiment)
  left_out = overlap.of_documents(job.experiment, job.workdir)
  tokenizer = tokenizer_of(job)
  if multihost.is_first():
    files.write_json(job.workdir / "config.json", dataclasses.asdict(job.experiment))
  for (split, source), folder in _caches(job).items():
    cache.cache(
      source,
      job.experiment.data,
      job.experiment.world,
      split,
      tokenizer,
      folder,
      job.runner,
      job.force,
      left_out=left_out if split == "train" else frozenset(),
    )
  return tokenizer, {
    folder: source.rate for (split, source), folder in _caches(job).items() if split == "train"
  }


def check_start(experiment: schema.Experiment) -> None:
  """Raises CheckpointError where the policy that training starts from is not there."""
  checkpoint.check_there(experiment.train.init, "config.train.init")
  checkpoint.check_there(experiment.train.continue_from, "config.train.continue_from")


def say_what_is_asked(experiment: schema.Experiment) -> None:
  """A line where the protocol asks problems of another task than the config's data."""
  data = experiment.data
  if data.task == "text" or not data.test_path:
    return
  protocol = protocols.of(experiment)
  if protocol.task != data.task:
    progress.say(
      f"config.evaluate.protocol {protocol.name!r} asks the test problems of {protocol.task}, not those of "
      f"config.data.test_path ({data.test_path}); to ask those, leave it out and set config.evaluate.answer"
    )


def _check_answers(experiment: schema.Experiment) -> None:
  """Raises ConfigError where the policy is trained to answer in a form in which its answers are not looked for."""
  if experiment.evaluate.protocol or experiment.data.task == "text":
    return
  documents = sources.examples(experiment.data, experiment.world, "train")
  looked_at = list(itertools.islice((each for each in documents if each.answer), _LOOKED_AT))
  mode = protocols.of(experiment).mode
  if looked_at and not any(extract.extract(each.targets, mode) for each in looked_at):
    raise ConfigError(
      f"config.evaluate.answer is {experiment.evaluate.answer!r}: none of the first {len(looked_at)} training "
      f"targets has an answer there, looked for as {mode!r}; the first one ends {looked_at[0].targets[-40:]!r}; "
      "name where the answers stand, see synthjax config --explain evaluate.answer"
    )


def _caches(job: Job) -> dict[tuple[str, schema.Source], pathlib.Path]:
  """(split, source) -> its folder, for everything that is cached."""
  data = job.experiment.data
  train = {
    ("train", source): job.workdir
    / (f"cache_train_{number}_{source.task}" if data.mixture else "cache_train")
    for number, source in enumerate(sources.of_split(data, "train"))
  }
  return train | {("test", sources.of_split(data, "test")[0]): job.workdir / "cache_test"}


def train(job: Job) -> dict:
  """Prepares what is not there, and trains in `workdir/train`; all processes together."""
  return _train(job, *prepare(job))


def _train(job, tokenizer, caches) -> dict:
  inputs = _training(job)

  def work(folder: pathlib.Path) -> dict:
    earlier = earlier_trainings(job, folder, inputs)
    result = loop.train(
      job.experiment,
      caches,
      folder,
      (tokenizer.size, tokenizer.fingerprint),
      job.workdir / "cache_test",
      earlier=earlier,
    )
    return dataclasses.asdict(result)

  return stages.run(job.workdir / "train", inputs, work, job.force, together=True, whole=is_whole)


def earlier_trainings(job: Job, folder: pathlib.Path, inputs: dict) -> list[loop.Earlier]:
  """Kept versions of a training whose inputs differ in the number of steps or in the schedule alone; none where all is forced anew."""
  found: list[loop.Earlier] = []
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
    found.append(loop.Earlier(each.folder / "checkpoints", cfg, steps))
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


@dataclasses.dataclass(frozen=True)
class Trained:
  """The training that a work folder stands for."""

  version: stages.Version
  settings: dict  # of the config that asks

  @property
  def checkpoints(self) -> str:
    """Their folder."""
    return str(self.version.folder / "checkpoints")

  @property
  def step(self) -> int | None:
    """The step that readers take: the manifest's, else the newest one."""
    return checkpoint.newest_step(self.checkpoints)

  def describe(self, step: int) -> str:
    """Which policy a reader got, with what the user may not expect of it."""
    told = [f"{self.checkpoints}, step {step:,}"]
    if self.version.result is None:
      told.append("of a training that is not finished")
    if changed := _changed(self.version, self.settings):
      told.append(f"trained with other settings than this config's ({changed})")
    return ", ".join(told)


def trained(job: Job) -> Trained | None:
  """The training with the config's settings, in use in `workdir/train` or kept beside it; else the one in use.

  Returns None where nothing was trained.
  """
  found, wanted = stages.versions(job.workdir / "train"), settings(job)
  same = [each for each in found if not _changed(each, wanted)]
  same.sort(key=lambda each: each.result is None)  # finished ones first
  chosen = (same or found)[:1]
  return Trained(chosen[0], wanted) if chosen else None


def _changed(training: stages.Version, wanted: dict) -> str:
  if training.inputs is None:  # an older synthjax did not write them down
    return ""
  return workfolder.difference({name: training.inputs.get(name) for name in wanted}, wanted)


def evaluate(job: Job, tokenizer: tokenizers.Tokenizer, when: str) -> dict:
  """Accuracy of the policy that training starts from (`before`: its init, or random parameters) or leaves (`after`).

  Raises:
    DataError: `after`, and nothing was trained. DamagedError: the checkpoint is damaged; an older one is not taken.
  """
  experiment = job.experiment
  source = experiment.train.init
  step = checkpoint.newest_step(source) if source else None
  policy: Any = identity(source) or [
    "random",
    experiment.seed,
    workfolder.decisive("model", experiment.model),
  ]
  if when == "after":
    training = trained(job)
    if training is None or training.step is None:
      raise files.DataError(
        f"{job.workdir / 'train'}: nothing was trained here yet; run `synthjax train` first"
      )
    source, step = training.checkpoints, training.step
    policy = {"training": training.version.key, "step": step}
    progress.say(f"[evaluate_after] {training.describe(step)}")
  return evaluate_policy(job, tokenizer, f"evaluate_{when}", source, step, policy)


def evaluate_policy(
  job: Job, tokenizer: tokenizers.Tokenizer, stage: str, source: str, step: int | None, policy: Any
) -> dict:
  """Accuracy of the policy `source`, a folder of checkpoints, at a step, as a stage; `policy` (JSON) tells it from others."""
  experiment = job.experiment

  def work(folder: pathlib.Path) -> dict:
    model, params, loaded = load_policy(experiment, tokenizer, source, step)
    return {
      **evaluate_lib.evaluate(model, params, tokenizer, experiment, folder),
      "checkpoint_step": loaded,
    }

  inputs = {
    "policy": policy,
    "tokenizer": tokenizer.fingerprint,
    "seed": experiment.seed,
    "evaluate": workfolder.decisive("evaluate", experiment.evaluate),
    "test": evaluate_lib.fingerprint(experiment),
  }
  results = stages.run(job.workdir / stage, inputs, work, job.force, together=True)
  progress.say(score.table(results))
  return results


def watch(job: Job, tokenizer: tokenizers.Tokenizer, name: str) -> list[dict]:
  """Scores every checkpoint of `workdir/train` once, while another process writes them, until that training has finished."""
  experiment = job.experiment
  checkpoints, out = (
    job.workdir / "train/checkpoints",
    job.workdir / "watch" / (name or protocols.of(experiment).name),
  )
  inputs = {
    "training": settings(job),
    "evaluate": workfolder.decisive("evaluate", experiment.evaluate),
    "test": evaluate_lib.fingerprint(experiment),
  }

  def one(step: int, folder: pathlib.Path) -> dict:
    model, params, _ = load_policy(experiment, tokenizer, str(checkpoints), step)
    return evaluate_lib.evaluate(model, params, tokenizer, experiment, folder)

  return watch_lib.watch(
    checkpoints,
    out,
    json.loads(json.dumps(inputs)),
    one,
    (job.workdir / "train/manifest.json").exists,
  )


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
    loop.same_tokenizer(about["tokenizer"], tokenizer.fingerprint, source)
  else:
    params = jax.jit(model.init, out_shardings=everywhere)(jax.random.key(experiment.seed))
  return model, jax.tree.map(lambda x: x.addressable_data(0), params), step


def table(job: Job, result: dict) -> str:
  """What was measured and where it lies."""
  scores = {when: result[when] for when in ("before", "after") if when in result}
  lines = [""]
  if scores:
    lines += [
      f"{job.experiment.name}: {job.experiment.data.task}, {scores['after']['problems']:,} test problems",
      f"{'':8} {'accuracy':>22} {'undecided':>10} {'truncated':>10}   steps",
    ]
  for when, scored in scores.items():
    shown = f"{stats.percent(scored['accuracy'], scored['standard_error'], scored['problems'])} %"
    judged = scored.get("steps", {})
    steps = ", ".join(
      f"{100 * n / sum(judged.values()):.1f} % {name}" for name, n in judged.items()
    )
    lines.append(
      f"{when:8} {shown:>22} {sum(scored['undecided'].values()):>10} {scored['truncated']:>10}   {steps}"
    )
  if len(scores) == 2:
    change = score.compare(
      job.workdir / "evaluate_before/responses.jsonl",
      job.workdir / "evaluate_after/responses.jsonl",
    )
    lines.append(
      f"change   {100 * change['difference']:+.1f} ± {100 * change['standard_error']:.1f} points, paired over the same problems"
    )
  train = result["train"]
  held_out = f"; held-out loss {train['eval_loss']:.4f}" if train["eval_loss"] is not None else ""
  lines.append(
    f"loss {train['loss']:.4f} after {train['steps']:,} steps and {train['tokens']:,} target tokens{held_out}"
  )
  responses = ", evaluate_after/responses.jsonl" if "after" in result else ""
  lines.append(
    f"everything is in {job.workdir}: results.json, train/checkpoints, train/metrics.jsonl{responses}"
  )
  return "\n".join(lines)


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


def _training(job: Job) -> dict:
  """What decides the outcome of the training."""
  inputs = settings(job)
  if job.experiment.recipe == "finetune":
    inputs["caches"] = [
      files.read_json(folder / "manifest.json")["inputs"] for folder in _caches(job).values()
    ]
    inputs["rates"] = [source.rate for source in job.experiment.data.mixture]
  return inputs


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


def _has_answers(job: Job) -> bool:
  return job.experiment.data.task != "text"
