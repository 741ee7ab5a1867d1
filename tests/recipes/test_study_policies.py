"""Policies of a study, chosen by a verb."""

import pathlib
import shutil
import warnings

import jax
import pytest

from synthjax import __main__, config, files, shipped
from synthjax import job as jobs
from synthjax.recipes import finetune, study_policies
from synthjax.train import checkpoint

CONFIG = ("--config", "configs/quickstart.py:smoke")
LISTED = "n00024_s0/ rft, sft; n00048_s0/ sft"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  """What a finished study leaves of three policies."""
  folder = tmp_path_factory.mktemp("study")
  for name in ("n00024_s0/sft", "n00024_s0/rft", "n00048_s0/sft"):
    shutil.copytree(shipped.folder("facts_policy"), folder / name / "checkpoints")
    files.write_json(folder / name / "manifest.json", {"result": {"steps": 2274}})
  shutil.copytree(
    folder / "n00024_s0/rft", folder / "n00024_s0/rft.0123abcd"
  )  # a version that made room
  return folder


@pytest.mark.parametrize(
  "verb",
  [
    ("export", "--to", "somewhere"),
    ("evaluate",),
    ("evaluate", "--watch"),
    ("serve",),
    ("doctor", "--logprob-parity"),
    ("sample", "--requests", "requests.jsonl", "--out", "out.jsonl"),
  ],
  ids=" ".join,
)
def test_a_verb_that_needs_one_policy_of_a_study_lists_its_arms(
  study, tmp_path, verb, capsys, monkeypatch
):
  (tmp_path / "requests.jsonl").touch()
  monkeypatch.setattr("sys.argv", ["synthjax"])
  command = [part.replace("requests.jsonl", str(tmp_path / "requests.jsonl")) for part in verb]
  assert __main__.main([*command, *CONFIG, "--workdir", str(study)]) == 1
  assert (
    "holds a study of several policies; say which one with --arm: there are, below "
    f"{study}: {LISTED}" in capsys.readouterr().err
  )


def test_an_arm_is_exported_and_an_unknown_one_is_told_which_there_are(study, tmp_path, capsys):
  command = ["export", *CONFIG, "--workdir", str(study), "--to", str(tmp_path / "to")]
  assert __main__.main([*command, "--arm", "n00024_s0/rtf"]) == 1
  assert LISTED in capsys.readouterr().err
  with warnings.catch_warnings():
    warnings.simplefilter("error")  # a library's warning is no line for the user
    assert __main__.main([*command, "--arm", "n00024_s0/rft"]) == 0
  assert f"{study}/n00024_s0/rft/checkpoints, step 2,274" in capsys.readouterr().out
  assert (tmp_path / "to/2274").is_dir()


@pytest.fixture
def _compiled_fast():
  """Compiled fast instead of well: the compiler takes nearly all the time."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.usefixtures("_compiled_fast")
def test_an_arm_is_evaluated_in_a_stage_of_its_own(study, capsys):
  command = [
    "evaluate",
    *CONFIG,
    "--workdir",
    str(study),
    "--arm",
    "n00024_s0/rft",
    "--config.evaluate.slots=8",
  ]
  assert __main__.main([*command, "--config.data.test_problems=4"]) == 0
  assert "world: 4 problems, 4 responses" in capsys.readouterr().out
  assert (
    files.read_json(study / "evaluate_arm/n00024_s0/rft/manifest.json")["result"]["checkpoint_step"]
    == 2274
  )


def test_a_stage_folder_stands_for_its_checkpoints(study, tmp_path):
  stage = study / "n00024_s0/rft"
  assert (
    study_policies.checkpoints_in(str(stage))
    == study_policies.checkpoints_in(str(stage / "checkpoints"))
    == str(stage / "checkpoints")
  )
  (tmp_path / "train/checkpoints").mkdir(parents=True)
  assert study_policies.checkpoints_in(str(tmp_path)) == str(tmp_path / "train/checkpoints")
  with pytest.raises(files.DataError, match="holds a study of several policies"):
    study_policies.checkpoints_in(str(study))


def test_training_starts_from_a_stage_folder_and_a_missing_start_is_said_first(study, tmp_path):
  stage, checkpoints = study / "n00024_s0/rft", study / "n00024_s0/rft/checkpoints"
  assert jobs.identity(str(stage)) == jobs.identity(str(checkpoints)) != ""
  words = ["world.verbs=512", "world.largest=99", "world.box=10"]
  job = jobs.Job(
    config.load("configs/world_sft.py:smoke", [f"train.init={stage}", *words]), tmp_path
  )
  tokenizer = jobs.tokenizer_of(job)
  assert jobs.load_policy(job.experiment, tokenizer, str(stage))[2] == 2274
  for start, said in (
    (tmp_path / "nowhere", "looked for from"),
    (study, f"below it there are {stage}, "),
  ):
    job = jobs.Job(config.load("configs/world_sft.py:smoke", [f"train.init={start}"]), tmp_path)
    message = (
      rf"config.train.init is '{start}', which holds no checkpoint; .* of the stage that wrote "
      rf"them \({said}"
    )
    with pytest.raises(checkpoint.CheckpointError, match=message):
      finetune.run(job)
  assert not list(tmp_path.iterdir())


def test_an_arm_of_the_star_has_the_words_of_its_graph_and_the_width_of_its_attempt(tmp_path):
  experiment = config.load("configs/star_graph.py")
  job = jobs.Job(experiment, pathlib.Path(tmp_path))
  for folder, arms_of_graph, width in (
    ("d2_l3_n9", 2, 64),
    ("d2_l3_n9_w128", 2, 128),
    ("d3_l3_n10", 3, 64),
  ):
    shutil.copytree(shipped.folder("facts_policy"), tmp_path / folder / "sft/checkpoints")
    files.write_json(tmp_path / folder / "sft/manifest.json", {"result": {"steps": 2274}})
    arm = study_policies.find(job, f"{folder}/sft")
    labels = max(9, 3 * arms_of_graph + 1)
    assert arm.experiment.model.d_model == width
    assert (
      arm.tokenizer.decode(arm.tokenizer.encode(f"0>{labels - 1} / 0 1")) == f"0>{labels - 1} / 0 1"
    )
  with pytest.raises(files.DataError, match="recipe 'star' scores its policies itself"):
    study_policies.evaluate(job, arm)
