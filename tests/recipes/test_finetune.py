"""A work folder of fine-tuning: its trainings, damaged checkpoints, which policy readers get."""

import dataclasses
import json
import pathlib
import signal
import time
from unittest import mock

import jax
import numpy as np
import pytest

from synthjax import __main__, config, files, locks, stages, workfolder
from synthjax import job as jobs
from synthjax.config import schema
from synthjax.errors import ConfigError
from synthjax.model.transformer import Transformer, sized
from synthjax.recipes import finetune
from synthjax.train import checkpoint, policies
from tests import commands

ROOT = pathlib.Path(__file__).parents[2]
SMALL = [
  "train.steps=4",
  "train.batch_size=8",
  "train.checkpoint_every=2",
  "data.train_problems=40",
  "data.test_problems=8",
  "evaluate.max_new_tokens=8",
  "evaluate.slots=8",
]
OTHER = ["train.optimizer.learning_rate=0.0003"]
NEUTRAL = [
  "train.eval_every=2",
  "train.log_every=1",
  "train.checkpoint_every=3",
  "train.keep=1",
  "train.accumulate=2",
  "data.threads=1",
  "data.prefetch=1",
  "model.remat=full",
  "model.kernels=xla",
  "evaluate.slots=16",
  "evaluate.before=False",
  "mesh.replica=1",
]


def _job(workdir, *overrides):
  load = [override.replace("model.", "model_overrides.", 1) for override in overrides]
  return jobs.Job(config.load(str(ROOT / "configs/world_sft.py:smoke"), [*SMALL, *load]), workdir)


def _params(workdir):
  abstract = Transformer(sized(_job(workdir).experiment.model, 65)).abstract()
  step, params, _ = checkpoint.load_params(workdir / "train/checkpoints", abstract)
  return step, jax.device_get(params)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  """(work folder trained with the config's settings and then with others, both parameters)."""
  workdir = tmp_path_factory.mktemp("finetune")
  found = []
  for overrides in ([], OTHER):
    finetune.train(_job(workdir, *overrides))
    found.append(_params(workdir))
  return workdir, found


def _no_training(*_, **__):
  raise AssertionError("trained again")


def test_settings_that_come_back_bring_their_weights_back_to_the_bit_without_training(two):
  workdir, (first, second) = two
  assert not np.array_equal(jax.tree.leaves(first[1])[0], jax.tree.leaves(second[1])[0])
  with mock.patch.object(policies, "on_caches", _no_training):
    for overrides, (step, params) in (([], first), (OTHER, second), ([], first)):
      assert finetune.train(_job(workdir, *overrides))["steps"] == step == 4
      jax.tree.map(np.testing.assert_array_equal, _params(workdir)[1], params)
  assert len(stages.versions(workdir / "train")) == 2


@pytest.mark.parametrize("override", NEUTRAL)
def test_a_field_that_does_not_change_the_result_restarts_no_training(two, override):
  workdir, _ = two
  finetune.train(_job(workdir))
  with mock.patch.object(policies, "on_caches", _no_training):
    finetune.train(_job(workdir, override))
  assert "." in override and _named(override) in workfolder.RESULT_NEUTRAL_FIELDS


def _named(override):
  """Of a field, or of the group that is neutral as a whole."""
  name = override.partition("=")[0]
  return name if name in workfolder.RESULT_NEUTRAL_FIELDS else name.partition(".")[0]


def test_every_neutral_field_is_a_field_of_the_config():
  tree = dataclasses.asdict(schema.Experiment())
  for path in (*workfolder.RESULT_NEUTRAL_FIELDS, *workfolder._ADDED_TO_A_FOLDER):
    inner = tree
    for name in path.split("."):
      inner = inner[name]


def _export(workdir, to, *overrides):
  command = [
    "export",
    "--config",
    str(ROOT / "configs/world_sft.py:smoke"),
    "--workdir",
    str(workdir),
    "--to",
    str(to),
  ]
  return __main__.main([*command, *(f"--config.{override}" for override in [*SMALL, *overrides])])


def test_export_hands_out_the_policy_of_the_settings_and_says_what_it_is(two, tmp_path, capsys):
  workdir, (first, second) = two
  finetune.train(_job(workdir))
  for number, (overrides, expected) in enumerate((([], first), (OTHER, second))):
    assert _export(workdir, tmp_path / str(number), *overrides) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.endswith("checkpoints, step 4") and "the parameters of" in said
    abstract = Transformer(sized(_job(workdir).experiment.model, 65)).abstract()
    jax.tree.map(
      np.testing.assert_array_equal,
      checkpoint.load_params(tmp_path / str(number), abstract)[1],
      expected[1],
    )
  assert _export(workdir, tmp_path / "third", "train.steps=6") == 0
  assert (
    "step 4, trained with other settings than this config's (train.steps 4 -> 6)"
    in capsys.readouterr().out
  )
  (workdir / "train/manifest.json").rename(workdir / "train/aside")
  (workdir / "train/checkpoints/4").rename(workdir / "train/checkpoints/4.aside")
  assert _export(workdir, tmp_path / "fourth") == 0
  assert "step 2, of a training that is not finished" in capsys.readouterr().out
  (workdir / "train/checkpoints/4.aside").rename(workdir / "train/checkpoints/4")
  (workdir / "train/aside").rename(workdir / "train/manifest.json")


def test_a_damaged_last_checkpoint_is_not_handed_out_and_training_again_heals_it(
  two, tmp_path, capsys
):
  workdir, (first, _) = two
  job = _job(workdir)
  finetune.train(job)
  for path in (workdir / "train/checkpoints/4/state/d").iterdir():
    path.write_bytes(b"xx")
  assert _export(workdir, tmp_path / "out") == 1
  said = capsys.readouterr().err
  assert (
    "checkpoints/4: damaged (" in said
    and "train again with the same settings" in said
    and not (tmp_path / "out").exists()
  )
  with pytest.raises(checkpoint.DamagedError):
    finetune.evaluate(job, jobs.tokenizer_of(job), "after")
  finetune.train(job)
  said = capsys.readouterr().out
  assert (
    "[train] was finished, but part of what it made is damaged: it goes on" in said
    and "going on from step 2" in said
  )
  jax.tree.map(np.testing.assert_array_equal, _params(workdir)[1], first[1])
  assert finetune.evaluate(job, jobs.tokenizer_of(job), "after")["checkpoint_step"] == 4
  manifest = files.read_json(workdir / "evaluate_after/manifest.json")
  assert manifest["result"]["checkpoint_step"] == manifest["config"]["policy"]["step"] == 4
  assert files.read_json(workdir / "train/manifest.json")["config"]["init"].startswith("1508:")


def test_the_default_folder_does_not_mix_settings(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  choose = lambda *overrides, given="": str(
    workfolder.choose(_job(tmp_path, *overrides).experiment, given)
  )
  assert choose() == choose(*OTHER) == "runs/world_sft"
  files.write_json("runs/world_sft/config.json", dataclasses.asdict(_job(tmp_path).experiment))
  assert (
    choose()
    == choose(*NEUTRAL, "evaluate.samples=2", "evaluate.temperature=1.0")
    == "runs/world_sft"
  )
  message = (
    r"runs/world_sft holds a run with other settings \(train.optimizer.learning_rate 0.001 -> "
    r"0.0003\); give .* such as --workdir runs/world_sft-learning_rate-0.0003, or --workdir "
    r"runs/world_sft to work there all the same"
  )
  with pytest.raises(ConfigError, match=message):
    choose(*OTHER)
  assert choose(*OTHER, given="runs/world_sft") == "runs/world_sft"
  assert choose("study.rft.log_every=7", "study.seeds=(5,)") == "runs/world_sft"
  with pytest.raises(
    ConfigError,
    match=r"\(train.init .*; give this one a folder of its own, such as --workdir runs/world_sft-2",
  ):
    choose("train.init=some/where")


def _start(verb, workdir, *more):
  return commands.start(verb, workdir, *more, XLA_FLAGS="")


def test_of_two_runs_in_one_folder_one_works_and_a_killed_ones_place_is_free_at_once(tmp_path):
  first = _start(
    "train", tmp_path, "--config.train.steps=100000", "--config.train.checkpoint_every=100000"
  )
  while not (tmp_path / ".lock").exists():
    assert first.poll() is None, first.stdout.read()
    time.sleep(0.05)
  for verb in ("train", "evaluate"):  # with other settings
    second = _start(verb, tmp_path, "--config.train.optimizer.learning_rate=0.5")
    output, _ = second.communicate(timeout=60)
    message = f"process {first.pid}, since "
    assert second.returncode == 1 and len(output.splitlines()) == 1, output
    assert output.startswith("synthjax: synthjax train on host ") and message in output
    assert f"is at work on {tmp_path}: wait for it or stop it, or give another --workdir" in output
  first.send_signal(signal.SIGKILL)
  first.wait()
  with locks.folder_lock(tmp_path, "third"):
    assert json.loads((tmp_path / ".lock").read_text())["what"] == "third"


def test_two_processes_of_one_start_are_one_writer(tmp_path):
  """The second of them finds the folder locked by the first, which is as it should be."""
  with (
    mock.patch("synthjax.multihost.is_first", return_value=True),
    locks.folder_lock(tmp_path, "first"),
  ):
    with (
      mock.patch("synthjax.multihost.is_first", return_value=False),
      locks.folder_lock(tmp_path, "second"),
    ):
      assert json.loads((tmp_path / ".lock").read_text())["what"] == "first"
