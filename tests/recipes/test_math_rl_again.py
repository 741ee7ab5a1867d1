"""Study A run again: with other settings, killed, shared, and refused."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from unittest import mock

import pytest

from synthjax import config, files, locks
from synthjax import job as jobs
from synthjax.math_study import arms as study_arms
from synthjax.math_study import cell, settings, training
from synthjax.math_study.sampling import TooWeakError
from synthjax.recipes import math_rl
from synthjax.train.training import Result

ROOT = pathlib.Path(__file__).parents[2]
TEXT = {
  "study__arms": ("sft",),
  "data__tokenizer__kind": "bytes",
}  # of a task that is not the world
FEW = ("sft", "rft", "rft2", "dpo", "awr")


def test_a_solution_that_comes_twice_is_trained_on_once_and_counted(tiny, copied):
  job = jobs.Job(tiny.experiment(), copied)
  opened = cell.open_cell(job, jobs.tokenizer_of(job), 24, 0)
  made = []

  def stage(name, inputs, work):
    made.append(work(opened.folder / name))
    return made[-1]

  with (
    mock.patch.object(cell.Cell, "stage", staticmethod(stage)),
    mock.patch.object(training.policies, "on_documents") as train,
  ):
    train.return_value = Result(steps=1, loss=0.0, eval_loss=None, tokens=1)
    teacher = [
      cell.Solution(p.id, tuple(opened.tokenizer.encode(p.targets))) for p in opened.problems
    ]
    training.by_likelihood(
      opened, "sft", teacher + teacher[:5], opened.experiment.train, None, cell.Cost()
    )
  assert (
    made[0]["solutions"] == 29 and made[0]["repeated"] == 5 and len(train.call_args.args[1]) == 24
  )


def test_a_second_run_does_nothing_and_prints_the_same_table(tiny, whole, copied, capsys):
  _, workdir = whole
  before, table = tiny.state(copied), (workdir / "table.txt").read_text()
  began = {path: path.stat().st_mtime_ns for path in copied.glob("n*/**/*") if path.is_file()}
  assert tiny.run(copied)["points"] == json.loads(json.dumps(whole[0]["points"]))
  assert (copied / "table.txt").read_text() == table.replace(str(workdir), str(copied))
  assert (copied / "table.txt").read_text() in capsys.readouterr().out
  assert not tiny.redone(before, copied)
  assert {
    path: path.stat().st_mtime_ns for path in copied.glob("n*/**/*") if path.is_file()
  } == began


def test_a_changed_setting_redoes_the_stages_that_it_decides_and_no_others(tiny, copied):
  before = tiny.state(copied)
  tiny.run(
    copied,
    study__arms=FEW,
    objective__preference__beta=0.3,
    objective__pairs="elsewhere.jsonl",
    evaluate__slots=8,
    study__values__threads=1,
    train__log_every=5,
  )
  assert tiny.redone(before, copied) == {"dpo", "evaluate_dev_dpo", "greedy_dev_dpo"}
  before = tiny.state(copied)
  tiny.run(copied, study__arms=("sft",), evaluate__max_new_tokens=24)
  assert tiny.redone(before, copied) == {"evaluate_dev_sft", "greedy_dev_sft", "evaluate_dev_base"}


def test_settings_are_chosen_on_development_problems_and_can_be_given_to_another_study(
  tiny, copied, tmp_path
):
  tune = {
    "problems": 24,
    "dev_problems": 16,
    "samples": 1,
    "rates": (1e-5, 1e-3),
    "betas": (0.1,),
    "epochs": (1.0,),
    "likelihood_rates": (5e-4, 1e-3),
    "likelihood_epochs": (20.0,),
  }
  result = tiny.run(copied, study__arms=("sft", "rpo"), study__start="sft", study__tune=tune)
  found = files.read_json(copied / "tuned.json")
  assert set(found["arms"]) == {"sft", "rpo"} and found["provenance"]["base"]
  table = (copied / "tune/table.txt").read_text().splitlines()[1:]
  for arm, chosen in found["arms"].items():
    rows = [line.replace("<- chosen", "").split() for line in table if line.startswith(f"{arm} ")]
    best = next(
      line.split() for line in table if line.startswith(f"{arm} ") and "<- chosen" in line
    )
    assert len(rows) == chosen["trials"] == 2 and chosen["flops"] > 0
    assert (
      float(best[5])
      == max(float(row[5]) for row in rows)
      == pytest.approx(100 * chosen["accuracy"], abs=0.06)
    )
    assert float(best[1]) == chosen["setting"]["learning_rate"] and chosen["at_edge"] == [
      "learning_rate"
    ]
    trained = files.read_json(copied / "n00024_s0" / arm / "manifest.json")["config"]["inputs"][
      "train"
    ]
    assert trained["optimizer"]["learning_rate"] == chosen["setting"]["learning_rate"]
  assert {row[4] for row in (line.split() for line in table if line.startswith("rpo "))} == {
    "1"
  }  # never without the anchor
  assert all(point["tuned_multiple"] for point in result["points"])
  assert not [*copied.glob("tune/n*/evaluate_test*")]
  before = tiny.state(copied)
  again = tiny.run(
    copied, study__arms=("sft", "rpo"), study__start="sft", study__tuned=str(copied / "tuned.json")
  )
  assert again["points"] == result["points"] and not tiny.redone(before, copied)
  with pytest.raises(
    config.ConfigError, match="has 'dpo', and the tuned settings know sft, rpo; tune it too"
  ):
    tiny.run(
      copied,
      study__arms=("sft", "dpo"),
      study__start="sft",
      study__tuned=str(copied / "tuned.json"),
    )
  with pytest.raises(
    config.ConfigError, match="config.study.tuned is .*nowhere.json.*no such file"
  ):
    tiny.run(tmp_path / "other", study__tuned="nowhere.json")


@pytest.mark.parametrize("length", [{"epochs": 3.0}, {"steps": 7, "epochs": 0.0}])
def test_without_tuning_arms_are_trained_for_as_long_as_the_config_says(tiny, length):
  changes = {
    f"{group}__{name}": value
    for group in ("train", "study__rft", "study__preference")
    for name, value in length.items()
  }
  experiment = tiny.experiment(**changes)
  study = experiment.study
  for arm, cfg in (
    ("sft", experiment.train),
    ("rft", study.rft),
    ("rft2", study.rft),
    ("chosen_only", study.preference),
    ("dpo", study.preference),
    ("awr", study.preference),
  ):
    assert settings.of_config(experiment, study_arms.ARMS[arm]).train(cfg) == cfg


def test_a_second_look_at_the_test_problems_with_other_settings_is_said(tiny, copied):
  once = tiny.run(
    copied,
    study__arms=("sft",),
    study__split="test",
    evaluate__temperature=0.5,
    evaluate__samples=2,
    evaluate__pass_at=(2,),
  )
  decoding = {
    kind: tiny.made(copied, f"{kind}_test_sft")["decoding"] for kind in ("greedy", "evaluate")
  }
  assert {kind: (how["temperature"], how["samples"]) for kind, how in decoding.items()} == {
    "greedy": (0.0, 1),
    "evaluate": (0.7, 1),
  }
  assert not any("looked at more than once" in note for note in once["notes"])
  again = tiny.run(copied, study__arms=("sft",), study__split="test", train__epochs=10.0)
  assert any(
    "looked at more than once, with other settings: sft (2 times)" in note
    for note in again["notes"]
  )


def test_an_arm_with_nothing_to_learn_stays_where_it_starts_and_says_so(tiny, copied):
  # No rollout of one token reaches an answer: no step has a value to lose.
  result = tiny.run(
    copied, study__arms=("sft", "rft", "step_dpo.paper"), study__values__sampling__max_tokens=1
  )
  paper, rft = (tiny.points(result)[arm] for arm in ("step_dpo.paper", "rft"))
  assert paper["accuracy"] == rft["accuracy"] and paper["tokens_trained"] == rft["tokens_trained"]
  said = (
    "n00024_s0: the samples of 'rft' gave 'step_dpo.paper' nothing to learn from; it is 'rft' "
    "unchanged"
  )
  assert said in result["notes"] and said in (copied / "table.txt").read_text()
  assert tiny.made(copied, "pairs_step_dpo.paper")["pairs"] == 0


def test_solutions_that_do_not_fit_a_row_are_an_error_or_counted_and_noted(tiny, tmp_path, copied):
  with pytest.raises(
    files.DataError,
    match="of the teacher's 24 correct traces are longer than data.seq_len=40, .* set "
    "data.too_long='drop'",
  ):
    tiny.run(tmp_path / "short", study__arms=("sft",), data__seq_len=40)
  result = tiny.run(
    tmp_path / "short",
    study__arms=("sft",),
    study__baseline_problems=(25,),
    data__seq_len=40,
    data__too_long="drop",
    train__epochs=1.0,
  )
  left = tiny.made(tmp_path / "short", "sft")["too_long"]
  assert (
    0 < left < 24
    and f"n00024_s0, 'sft': {left} of 24 solutions are longer than a sequence and were left out"
    in result["notes"]
  )


def test_a_policy_that_is_too_weak_stops_the_study_with_advice(tiny, copied):
  with pytest.raises(
    TooWeakError,
    match=r"n00024_s0: [\d.]+ % of the samples of 'rft' are correct; below 100 % pits are noise. "
    "Train 'rft' on",
  ):
    tiny.run(copied, study__arms=FEW, study__least_accuracy=1.0)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"study__arms": ("sft", "rft3")},
      "config.study.arms has 'rft3'; expected one of sft, sft_long",
    ),
    ({"study__arms": ("sft*2",)}, "has 'sft\\*2'"),
    ({"study__arms": ("dpo*1",)}, "has 'dpo\\*1'.*k of 2 and more"),
    (
      {**TEXT, "study__arms": ("rft_clean",), "data__task": "gsm8k"},
      "'rft_clean', which picks traces by their leaps",
    ),
    ({"study__baseline_problems": ()}, r"config.study.problems is \(24,\).*SFT at two sizes"),
    (
      {"study__tune": {"problems": 24, "seed": 0}},
      "config.study.tune.seed is 0, one of config.study.seeds",
    ),
    ({"study__control": (24,)}, r"config.study.control is \(24,\)"),
    ({**TEXT, "study__control": (24, 48), "data__task": "gsm8k"}, "in the embedded world, or none"),
    ({"study__seeds": ()}, r"config.study.seeds is \(\); expected .*not empty"),
    ({"data__too_long": "split"}, "config.data.too_long is 'split'"),
  ],
)
def test_a_study_that_cannot_be_is_refused_before_anything_is_trained(
  tiny, tmp_path, changes, message
):
  with pytest.raises(ValueError, match=message):
    tiny.run(tmp_path / "none", **changes)
  assert not (tmp_path / "none").exists()


def test_of_two_starts_that_share_a_folder_one_works_on_a_cell(tiny, tmp_path):
  message = (
    "study A, cell n00024_s0, on host .* is at work on .*n00024_s0: .* give this start other "
    "config.study.seeds"
  )
  with (
    locks.folder_lock(tmp_path / "n00024_s0", "study A, cell n00024_s0,"),
    pytest.raises(locks.LockError, match=message),
  ):
    tiny.run(tmp_path)
  assert not list(tmp_path.glob("n*/*"))


def test_forcing_is_refused_with_what_to_do_instead(tiny, tmp_path):
  with pytest.raises(ValueError, match="remove its folder instead of giving --force"):
    math_rl.run(jobs.Job(tiny.experiment(), tmp_path, force=True))


_CONFIG = """
import json
import ml_collections


def get_config():
  return ml_collections.ConfigDict(json.loads({text!r}))
"""


def _start(tiny, workdir):
  given = {
    **tiny.given,
    "study": {**tiny.given["study"], "arms": ("rft2", "dpo", "step_dpo.branch", "awr")},
  }
  workdir.parent.mkdir(exist_ok=True)
  file = workdir.parent / "tiny.py"
  file.write_text(_CONFIG.format(text=json.dumps(given)))
  fast = {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
  }
  command = [
    sys.executable,
    "-m",
    "synthjax",
    "run",
    "--config",
    str(file),
    "--workdir",
    str(workdir),
  ]
  return subprocess.Popen(
    command,
    cwd=ROOT,
    env={**os.environ, **fast},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def _progress(workdir):
  """Stages that have begun, and results that are in journals."""
  return len([*workdir.glob("n*/*/begun.json")]) + sum(
    path.read_bytes().count(b"\n") for path in workdir.glob("n*/*/journal.jsonl")
  )


def _finish(run):
  output, _ = run.communicate(timeout=500)
  assert run.returncode == 0, output


@pytest.mark.slow
def test_a_study_stopped_and_killed_at_random_moments_ends_with_the_table_of_an_uninterrupted_one(
  tiny, tmp_path
):
  whole, killed = tmp_path / "whole/tiny", tmp_path / "killed/tiny"
  _finish(_start(tiny, whole))
  ends = [
    (signal.SIGTERM, 143),
    (signal.SIGKILL, -9),
    (signal.SIGINT, 130),
    (signal.SIGKILL, -9),
    (signal.SIGTERM, 143),
  ]
  for goal, (number, code) in zip(
    sorted(random.Random(0).sample(range(1, _progress(whole)), 5)), ends
  ):
    run = _start(tiny, killed)
    while run.poll() is None and _progress(killed) < goal:
      time.sleep(0.005)
    assert run.poll() is None, run.stdout.read()
    run.send_signal(number)
    output, _ = run.communicate(timeout=30)
    assert run.returncode == code, output
    assert code < 0 or "synthjax: stopped by" in output.splitlines()[-1]
  assert _progress(killed) < _progress(whole)
  _finish(_start(tiny, killed))
  assert (killed / "table.txt").read_text().replace(str(killed), str(whole)) == (
    whole / "table.txt"
  ).read_text()
  for path in sorted(whole.glob("n*/draw*/drawn.jsonl")):  # the sampled tokens
    assert path.read_text() == (killed / path.relative_to(whole)).read_text()
