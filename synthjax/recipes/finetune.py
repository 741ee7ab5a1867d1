"""Tokenizer, caches, training, evaluation before and after: the loop that both studies are made of.

Each function is one stage or a group of them, called by `run` in order and by the verbs `cache` (`prepare`), `train` and `evaluate` alone.
"""

import dataclasses
import itertools
import json
import pathlib
from typing import Any

from synthjax import files, multihost, overlap, progress, sharding, stages, stats, workfolder
from synthjax import job as jobs
from synthjax.config import schema
from synthjax.data import cache, sources, tokenizers
from synthjax.errors import ConfigError
from synthjax.evaluate import protocols, score
from synthjax.evaluate import run as evaluate_lib
from synthjax.evaluate import watch as watch_lib
from synthjax.job import Job
from synthjax.train import checkpoint, policies
from synthjax.verify import extract

_LOOKED_AT = 50  # training documents, before anything is written


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
  jobs.check_start(job.experiment)
  _check_answers(job.experiment)
  say_what_is_asked(job.experiment)
  left_out = overlap.of_documents(job.experiment, job.workdir)
  tokenizer = jobs.tokenizer_of(job)
  if multihost.is_first():
    files.write_json(job.workdir / "config.json", dataclasses.asdict(job.experiment))
  for (split, source), folder in _caches(job).items():
    corpus = sources.Corpus(source, job.experiment.data, job.experiment.world, tokenizer)
    if split == "train":
      corpus = dataclasses.replace(corpus, left_out=left_out)
    cache.cache(corpus, split, folder, job.runner, job.force)
  return tokenizer, {
    folder: source.rate for (split, source), folder in _caches(job).items() if split == "train"
  }


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
    earlier = jobs.earlier_trainings(job, folder, inputs)
    result = policies.on_caches(
      job.experiment,
      caches,
      folder,
      tokenizers.info(tokenizer),
      job.workdir / "cache_test",
      earlier,
    )
    return dataclasses.asdict(result)

  return stages.run(
    job.workdir / "train", inputs, work, job.force, together=True, whole=jobs.is_whole
  )


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
  found, wanted = stages.versions(job.workdir / "train"), jobs.settings(job)
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
  policy: Any = jobs.identity(source) or [
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
    model, params, loaded = jobs.load_policy(experiment, tokenizer, source, step)
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
    "training": jobs.settings(job),
    "evaluate": workfolder.decisive("evaluate", experiment.evaluate),
    "test": evaluate_lib.fingerprint(experiment),
  }

  def one(step: int, folder: pathlib.Path) -> dict:
    model, params, _ = jobs.load_policy(experiment, tokenizer, str(checkpoints), step)
    return evaluate_lib.evaluate(model, params, tokenizer, experiment, folder)

  return watch_lib.watch(
    checkpoints,
    out,
    json.loads(json.dumps(inputs)),
    one,
    (job.workdir / "train/manifest.json").exists,
  )


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


def _training(job: Job) -> dict:
  """What decides the outcome of the training."""
  inputs = jobs.settings(job)
  if job.experiment.recipe == "finetune":
    inputs["caches"] = [
      files.read_json(folder / "manifest.json")["inputs"] for folder in _caches(job).values()
    ]
    inputs["rates"] = [source.rate for source in job.experiment.data.mixture]
  return inputs


def _has_answers(job: Job) -> bool:
  return job.experiment.data.task != "text"
