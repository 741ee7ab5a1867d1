"""The policies of a study, one by one: which there are, and what a verb needs to use one of them.

An arm is named by its folder below the work folder, such as `n00512_s0/rft`.
"""

import dataclasses
import pathlib

from synthjax import files, stages
from synthjax import job as jobs
from synthjax.config import schema
from synthjax.data.tokenizers import Tokenizer
from synthjax.job import Job
from synthjax.recipes import finetune, star
from synthjax.train import checkpoint


@dataclasses.dataclass(frozen=True)
class StudyPolicy:
  """A trained policy of a study.

  Attributes:
    name: of its folder below the work folder.
    experiment: the config with the arm's own model.
    tokenizer: of the policy.
    checkpoints: their folder.
    step: which one is read.
  """

  name: str
  experiment: schema.Experiment
  tokenizer: Tokenizer
  checkpoints: str
  step: int


def known(workdir: files.Path) -> list[str]:
  """Names of the arms that are trained below a work folder."""
  workdir = pathlib.Path(workdir)
  names = []
  for pattern in ("*/*/manifest.json", "control/*/*/manifest.json"):
    for manifest in workdir.glob(pattern):
      stage = manifest.parent
      if (stage / "checkpoints").is_dir() and not stages.is_kept(stage):
        names.append(str(stage.relative_to(workdir)))
  return sorted(names)


def find(job: Job, name: str) -> StudyPolicy:
  """The arm of that name.

  Raises:
    DataError: there is none; the message lists those there are.
  """
  name = name.rstrip("/")
  if name not in known(job.workdir):
    raise files.DataError(
      f"--arm {name}: {job.workdir} has no trained policy of that name; {_listed(job.workdir)}"
    )
  experiment = job.experiment
  tokenizer: Tokenizer
  if experiment.recipe == "star":
    experiment, tokenizer = star.words_of(job, name.partition("/")[0])
  else:
    tokenizer = jobs.tokenizer_of(job)
  checkpoints = str(job.workdir / name / "checkpoints")
  step = checkpoint.newest_step(checkpoints)
  if step is None:
    raise files.DataError(
      f"--arm {name}: {checkpoints} holds no checkpoint; run the study again to train it anew"
    )
  return StudyPolicy(
    name=name,
    experiment=experiment,
    tokenizer=tokenizer,
    checkpoints=checkpoints,
    step=step,
  )


def refuse_study(workdir: files.Path) -> None:
  """Raises DataError where a folder holds a study: which of its policies is meant must be said."""
  if known(workdir):
    raise files.DataError(
      f"{workdir} holds a study of several policies; say which one with --arm: {_listed(workdir)}"
    )


def checkpoints_in(given: str) -> str:
  """The folder of checkpoints that a folder stands for: its own, a stage's, or a work folder's.

  Raises:
    DataError: a work folder of several policies.
  """
  folder = str(checkpoint.folder_of(given))
  if folder == given:
    refuse_study(given)
  return folder


def evaluate(job: Job, arm: StudyPolicy) -> dict:
  """Scores an arm on the config's test problems, in the stage `WORKDIR/evaluate_arm/NAME`.

  Raises:
    DataError: an arm of recipe star, whose problems have no protocol.
  """
  refuse_star(job.experiment)
  identity = {"arm": arm.name, "checkpoints": jobs.identity(arm.checkpoints), "step": arm.step}
  policy = finetune.EvaluatedPolicy(arm.checkpoints, arm.step, identity)
  return finetune.evaluate_policy(job, arm.tokenizer, f"evaluate_arm/{arm.name}", policy)


def refuse_star(experiment: schema.Experiment) -> None:
  """Raises DataError for recipe star, where a verb asks problems by a protocol."""
  if experiment.recipe == "star":
    raise files.DataError(
      "recipe 'star' scores its policies itself (evaluate_* beside each of them): its problems "
      "have no protocol; `sample`, `serve` and `export` take its arms"
    )


def _listed(workdir: files.Path) -> str:
  """The arms by the folders that they lie in."""
  folders: dict[str, list[str]] = {}
  for name in known(workdir):
    folder, _, stage = name.rpartition("/")
    folders.setdefault(folder, []).append(stage)
  if not folders:
    return f"there is none below {workdir}"
  listed = "; ".join(f"{folder}/ {', '.join(names)}" for folder, names in folders.items())
  return f"there are, below {workdir}: {listed}"
