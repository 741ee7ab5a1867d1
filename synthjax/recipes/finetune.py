"""Tokenizer, caches, training, evaluation before and after: the loop that both studies are made of.

Each function is one stage or a group of them, called by `run` in order and alone by the verbs
`cache` (`prepare`), `train` and `evaluate`.
"""

import dataclasses
import itertools
import json
import pathlib
from typing import Any, NamedTuple

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

_LOOKED_AT = 50  # training documents whose answers are checked before anything is written


class EvaluatedPolicy(NamedTuple):
  """Which policy is evaluated."""

  checkpoints: str  # folder; "": random parameters
  step: int | None  # None: the newest
  identity: Any  # JSON, tells it from others


def run(job: Job) -> dict:
  """Runs the whole experiment, skipping what is finished; returns and prints the table.

  Raises:
    DataError, ConfigError, MeshError, CheckpointError, TrainingStopped: see the rooms; running
      again goes on where it stopped.
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
  """Caches all documents, training the tokenizer first where the config asks for that.

  Returns:
    The tokenizer, and the folders of the training documents with their rates.
  """
  # What cannot be is known before anything is written.
  sharding.make_layout(job.experiment.mesh)
  jobs.check_start(job.experiment)
  _check_answers(job.experiment)
  say_what_is_asked(job.experiment)
  left_out = overlap.of_documents(job.experiment, job.workdir)
  tokenizer = jobs.tokenizer_of(job)
  if multihost.is_first():
    files.write_json(job.workdir / "config.json", dataclasses.asdict(job.experiment))
  rates = {}
  for (split, source), folder in _caches(job).items():
    corpus = sources.Corpus(source, job.experiment.data, job.experiment.world, tokenizer)
    if split == "train":
      corpus = dataclasses.replace(corpus, left_out=left_out)
      rates[folder] = source.rate
    cache.cache(corpus, split, folder, job.runner, job.force)
  return tokenizer, rates


def say_what_is_asked(experiment: schema.Experiment) -> None:
  """A line where the protocol asks problems of another task than the config's data."""
  data = experiment.data
  if data.task == "text" or not data.test_path:
    return
  protocol = protocols.of(experiment)
  if protocol.task != data.task:
    progress.say(
      f"config.evaluate.protocol {protocol.name!r} asks the test problems of {protocol.task}, not "
      f"those of config.data.test_path ({data.test_path}); to ask those, leave it out and set "
      "config.evaluate.answer"
    )


def _check_answers(experiment: schema.Experiment) -> None:
  """Raises ConfigError where no training target has an answer that evaluation would find."""
  if experiment.evaluate.protocol or experiment.data.task == "text":
    return
  documents = sources.examples(experiment.data, experiment.world, "train")
  with_answers = (document for document in documents if document.answer)
  looked_at = list(itertools.islice(with_answers, _LOOKED_AT))
  mode = protocols.of(experiment).mode
  if looked_at and not any(extract.extract(document.targets, mode) for document in looked_at):
    raise ConfigError(
      f"config.evaluate.answer is {experiment.evaluate.answer!r}: none of the first "
      f"{len(looked_at)} training targets has an answer there, looked for as {mode!r}; the first "
      f"one ends {looked_at[0].targets[-40:]!r}; name where the answers stand, see synthjax config "
      "--explain evaluate.answer"
    )


def _caches(job: Job) -> dict[tuple[str, schema.Source], pathlib.Path]:
  """(split, source) -> its folder, for everything that is cached."""
  data = job.experiment.data
  folders = {}
  for number, source in enumerate(sources.of_split(data, "train")):
    name = "cache_train"
    if data.mixture:
      name = f"cache_train_{number}_{source.task}"
    folders["train", source] = job.workdir / name
  folders["test", sources.of_split(data, "test")[0]] = job.workdir / "cache_test"
  return folders


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
  """The training with the config's settings, in use in `workdir/train` or kept beside it.

  Where there is none it is the one in use; None where nothing was trained.
  """
  versions, wanted = stages.versions(job.workdir / "train"), jobs.settings(job)
  same = [version for version in versions if not _changed(version, wanted)]
  # Finished ones first; `sort` keeps the order of the others.
  same.sort(key=lambda version: version.result is None)
  candidates = same or versions
  if not candidates:
    return None
  return Trained(candidates[0], wanted)


def _changed(training: stages.Version, wanted: dict) -> str:
  # An older synthjax did not write them down.
  if training.inputs is None:
    return ""
  return workfolder.difference({name: training.inputs.get(name) for name in wanted}, wanted)


def evaluate(job: Job, tokenizer: tokenizers.Tokenizer, when: str) -> dict:
  """Accuracy of the policy that training starts from, or of the one that it leaves.

  Args:
    job: of the training.
    tokenizer: of the policy.
    when: `before` (train.init, or random parameters) or `after`.

  Raises:
    DataError: `after`, and nothing was trained. DamagedError: the checkpoint is damaged; an older
      one is not taken.
  """
  policy = _trained_policy(job) if when == "after" else _start(job)
  return evaluate_policy(job, tokenizer, f"evaluate_{when}", policy)


def _start(job: Job) -> EvaluatedPolicy:
  experiment = job.experiment
  init = experiment.train.init
  if init:
    return EvaluatedPolicy(init, checkpoint.newest_step(init), jobs.identity(init))
  identity = ["random", experiment.seed, workfolder.decisive("model", experiment.model)]
  return EvaluatedPolicy("", None, identity)


def _trained_policy(job: Job) -> EvaluatedPolicy:
  training = trained(job)
  if training is None or training.step is None:
    raise files.DataError(
      f"{job.workdir / 'train'}: nothing was trained here yet; run `synthjax train` first"
    )
  progress.say(f"[evaluate_after] {training.describe(training.step)}")
  identity = {"training": training.version.key, "step": training.step}
  return EvaluatedPolicy(training.checkpoints, training.step, identity)


def evaluate_policy(
  job: Job, tokenizer: tokenizers.Tokenizer, stage: str, policy: EvaluatedPolicy
) -> dict:
  """Accuracy of a policy on the config's test problems, as a stage."""
  experiment = job.experiment

  def work(folder: pathlib.Path) -> dict:
    model, params, step = jobs.load_policy(experiment, tokenizer, policy.checkpoints, policy.step)
    scored = evaluate_lib.evaluate(model, params, tokenizer, experiment, folder)
    return {**scored, "checkpoint_step": step}

  inputs = {
    "policy": policy.identity,
    "tokenizer": tokenizer.fingerprint,
    "seed": experiment.seed,
    "evaluate": workfolder.decisive("evaluate", experiment.evaluate),
    "test": evaluate_lib.fingerprint(experiment),
  }
  results = stages.run(job.workdir / stage, inputs, work, job.force, together=True)
  progress.say(score.table(results))
  return results


def watch(job: Job, tokenizer: tokenizers.Tokenizer, name: str) -> list[dict]:
  """Scores every checkpoint of `workdir/train` once, while another process writes them.

  Ends when that training has finished.
  """
  experiment = job.experiment
  checkpoints = job.workdir / "train/checkpoints"
  name = name or protocols.of(experiment).name
  inputs = {
    "training": jobs.settings(job),
    "evaluate": workfolder.decisive("evaluate", experiment.evaluate),
    "test": evaluate_lib.fingerprint(experiment),
  }

  def score_step(step: int, folder: pathlib.Path) -> dict:
    model, params, _ = jobs.load_policy(experiment, tokenizer, str(checkpoints), step)
    return evaluate_lib.evaluate(model, params, tokenizer, experiment, folder)

  return watch_lib.watch(
    checkpoints,
    job.workdir / "watch" / name,
    json.loads(json.dumps(inputs)),
    score_step,
    (job.workdir / "train/manifest.json").exists,
  )


def table(job: Job, result: dict) -> str:
  """What was measured and where it lies."""
  scores = {when: result[when] for when in ("before", "after") if when in result}
  lines = [""]
  if scores:
    lines += [
      f"{job.experiment.name}: {job.experiment.data.task}, {scores['after']['problems']:,} test "
      "problems",
      f"{'':8} {'accuracy':>22} {'undecided':>10} {'truncated':>10}   steps",
    ]
  for when, scored in scores.items():
    lines.append(_score_line(when, scored))
  if len(scores) == 2:
    lines.append(_change_line(job.workdir))
  lines.append(_loss_line(result["train"]))
  responses = ""
  if "after" in result:
    responses = ", evaluate_after/responses.jsonl"
  lines.append(
    f"everything is in {job.workdir}: results.json, train/checkpoints, train/metrics.jsonl"
    f"{responses}"
  )
  return "\n".join(lines)


def _score_line(when: str, scored: dict) -> str:
  accuracy = stats.percent(scored["accuracy"], scored["standard_error"], scored["problems"])
  judged = scored.get("steps", {})
  shares = [f"{100 * n / sum(judged.values()):.1f} % {name}" for name, n in judged.items()]
  undecided = sum(scored["undecided"].values())
  return (
    f"{when:8} {f'{accuracy} %':>22} {undecided:>10} {scored['truncated']:>10}   "
    f"{', '.join(shares)}"
  )


def _change_line(workdir: pathlib.Path) -> str:
  change = score.compare(
    workdir / "evaluate_before/responses.jsonl", workdir / "evaluate_after/responses.jsonl"
  )
  return (
    f"change   {100 * change['difference']:+.1f} ± {100 * change['standard_error']:.1f} points, "
    "paired over the same problems"
  )


def _loss_line(train: dict) -> str:
  line = (
    f"loss {train['loss']:.4f} after {train['steps']:,} steps and {train['tokens']:,} target tokens"
  )
  if train["eval_loss"] is None:
    return line
  return f"{line}; held-out loss {train['eval_loss']:.4f}"


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
