import collections
import json
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from synthjax import files
from synthjax.config.worlds import World
from synthjax.evaluate import watch
from tests import commands

ROOT = pathlib.Path(__file__).parents[2]


def _start(verb, workdir, *more):
  often = ["--config.train.steps=160", "--config.train.checkpoint_every=8"]
  few = "--config.train.keep=1"
  return commands.start(verb, workdir, *often, few, *more, XLA_FLAGS="")


@pytest.mark.slow
def test_a_watcher_killed_ten_times_scores_every_checkpoint_exactly_once(tmp_path):
  moments = random.Random(0)
  watcher, training = _start("evaluate", tmp_path, "--watch"), None
  for _ in range(10):
    time.sleep(moments.uniform(1.0, 4.0))
    watcher.send_signal(signal.SIGKILL)
    watcher.wait()
    watcher = _start("evaluate", tmp_path, "--watch")
    training = training or _start("train", tmp_path)
  output, _ = training.communicate(timeout=300)
  assert training.returncode == 0, output
  output, _ = watcher.communicate(timeout=120)
  assert watcher.returncode == 0, output
  rows = list(files.read_jsonl(tmp_path / "watch/world/results.jsonl"))
  assert collections.Counter(row["step"] for row in rows) == dict.fromkeys(range(8, 161, 8), 1)
  assert all(0 <= row["accuracy"] <= 1 and row["problems"] == 50 for row in rows)
  assert len(list((tmp_path / "watch/world/tensorboard").glob("events*"))) == 1
  incorrect = list(files.read_jsonl(tmp_path / "watch/world/step_160/wrong.jsonl"))
  assert len(incorrect) == round(50 * (1 - rows[-1]["accuracy"]))
  again = _start("evaluate", tmp_path, "--watch")
  assert again.wait(60) == 0
  assert list(files.read_jsonl(tmp_path / "watch/world/results.jsonl")) == rows


def test_a_step_that_a_watcher_has_not_scored_is_kept(tmp_path):
  import jax.numpy as jnp

  from synthjax.train.checkpointer import Checkpoints

  journal = tmp_path / "watch/w/results.jsonl"
  files.write_jsonl(journal, [{"step": 1}])
  with Checkpoints(tmp_path / "c", 1, tmp_path / "watch") as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(step, {"params": {"w": jnp.ones(3)}}, {})
      checkpoints.wait()
    assert checkpoints.steps() == [2, 3]
    files.write_jsonl(journal, [{"step": 1}, {"step": 2}, {"step": 3}])
    checkpoints.save(4, {"params": {"w": jnp.ones(3)}}, {})
    checkpoints.wait()
    assert checkpoints.steps() == [4]


def test_other_settings_are_refused_in_the_same_folder(tmp_path):
  def run(settings):
    return watch.watch(
      checkpoints=tmp_path / "none",
      out=tmp_path / "w",
      settings=settings,
      evaluate=lambda step, folder: {},
      finished=lambda: True,
      say=lambda line: None,
    )

  assert run({"a": 1}) == []
  assert run({"a": 1}) == []
  with pytest.raises(files.DataError, match="scored with other settings; give another --name"):
    run({"a": 2})


def test_completions_from_elsewhere_are_scored_without_a_model(tmp_path, shared_data):
  files.write_jsonl(
    tmp_path / "g.jsonl",
    [
      {"id": "a", "responses": [r"\boxed{1}", r"\boxed{2}"], "gold": "1"},
      {"id": "test/algebra/1.json", "response": r"\boxed{2}"},
    ],
  )
  command = [
    sys.executable,
    "-m",
    "synthjax",
    "evaluate",
    "--config",
    "configs/world_sft.py",
    "--config.evaluate.protocol=math_boxed",
    "--config.data.test_problems=5",
    "--generations",
    str(tmp_path / "g.jsonl"),
    "--workdir",
    str(tmp_path),
  ]
  run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  results = json.loads((tmp_path / "evaluate_generations/results.json").read_text())
  assert results["accuracy"] == 0.75
  assert results["samples"] == 3
  files.write_jsonl(tmp_path / "g.jsonl", [{"id": "unknown", "response": "x"}])
  run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert run.returncode == 1
  message = "g.jsonl, row 1: no `gold` in the row, and the task has no problem 'unknown'"
  assert message in run.stderr


def _policy(**evaluate):
  import jax

  from synthjax.config import schema
  from synthjax.data import tokenizers
  from synthjax.model.transformer import Transformer, sized
  from synthjax.worlds import shop

  tokenizer = tokenizers.Words(shop.vocabulary(World()))
  cfg = sized(
    schema.Model(d_model=32, layers=1, heads=2, kv_heads=2, head_dim=16, mlp_dim=64, mlp="relu"),
    tokenizer.size,
  )
  experiment = schema.Experiment(
    data=schema.Data(test_problems=12),
    model=cfg,
    evaluate=schema.Evaluate(max_new_tokens=8, **evaluate),
  )
  model = Transformer(cfg)
  return model, model.init(jax.random.key(0)), tokenizer, experiment


def _texts(folder):
  """Problem id -> texts of its responses."""
  texts = {}
  for row in files.read_jsonl(folder / "responses.jsonl"):
    texts[row["id"]] = [response["text"] for response in row["responses"]]
  return texts


def test_responses_do_not_depend_on_the_slots_and_a_cold_policy_is_greedy(tmp_path):
  from synthjax.evaluate import run

  settings = {
    "one": {"slots": 8, "temperature": 1.0, "samples": 2},
    "two": {"slots": 16, "temperature": 1.0, "samples": 2},
    "cold": {"temperature": 1e-4, "samples": 1},
    "greedy": {"temperature": 0.0, "samples": 1},
  }
  texts = {}
  for name, evaluate in settings.items():
    results = run.evaluate(*_policy(**evaluate), tmp_path / name)
    assert results["problems"] == 12
    texts[name] = _texts(tmp_path / name)
  assert texts["one"] == texts["two"]
  assert texts["cold"] == texts["greedy"]
  assert any(first != second for first, second in texts["one"].values())


def test_checkpoints_of_one_model_are_evaluated_without_compiling_again(tmp_path):
  import jax

  from synthjax.evaluate import run
  from synthjax.rollout import slots

  model, params, tokenizer, experiment = _policy(temperature=1.0)
  run.evaluate(model, params, tokenizer, experiment, tmp_path / "one")
  misses = slots.functions.cache_info().misses
  run.evaluate(model, model.init(jax.random.key(1)), tokenizer, experiment, tmp_path / "two")
  assert slots.functions.cache_info().misses == misses
  assert _texts(tmp_path / "one") != _texts(tmp_path / "two")


def test_a_problem_that_cannot_be_asked_is_named(tmp_path):
  import dataclasses

  from synthjax.evaluate import run

  model, params, tokenizer, experiment = _policy()
  evaluate = dataclasses.replace(experiment.evaluate, max_new_tokens=10_000)
  experiment = dataclasses.replace(experiment, evaluate=evaluate)
  message = (
    r"problem '.+' cannot be asked: max_tokens is 10000 tokens long; "
    "this engine has room for 8192"
  )
  with pytest.raises(files.DataError, match=message):
    run.evaluate(model, params, tokenizer, experiment, tmp_path)
