"""Study A with its start policy sampled by a server: the same samples, from a real process."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from unittest import mock

import jax
import pytest

from synthjax import config, files
from synthjax import job as jobs
from synthjax.config import schema
from synthjax.config.credit import Sampling
from synthjax.config.worlds import World
from synthjax.data import tokenizers
from synthjax.math_study import served
from synthjax.recipes import math_rl
from synthjax.rollout.remote import ServerError
from synthjax.rollout.requests import Request, Result, Sample

ROOT = pathlib.Path(__file__).parents[2]
RARE = {"checkpoint_every": 10_000, "log_every": 10_000}
HOW = {"max_tokens": 32, "temperature": 0.7}
STUDY = {
  "name": "served",
  "recipe": "math_rl",
  "model": "world_160k",
  "data": {"task": "world", "test_problems": 8},
  "train": {"batch_size": 8, "init": str(ROOT / "data/base_policy"), "epochs": 8.0, **RARE},
  "study": {
    "problems": (12,),
    "baseline_problems": (16,),
    "seeds": (0,),
    "arms": ("sft", "step_dpo.branch"),
    "start": "sft",
    "least_accuracy": 0.0,
    "samples": 4,
    "sampling": HOW,
    "incorrect": 2,
    "values": {"rollouts": 4, "block": 4, "keep": 2, "sampling": HOW},
    "pairs": {"thresholds": {"min_before": 0.1}},
    "rft": {"batch_size": 8, "epochs": 1.0, **RARE},
    "preference": {"batch_size": 8, "epochs": 1.0, **RARE},
  },
  "evaluate": {"max_new_tokens": 32, "slots": 16},
}
CONFIG = """
import json
import ml_collections


def get_config():
  return ml_collections.ConfigDict(json.loads({text!r}))
"""


def _run(workdir, **server):
  """On one device, its programs compiled fast instead of well."""
  given = json.loads(json.dumps(STUDY))
  given["study"]["server"] = server
  one = jax.devices()[:1]
  jax.config.update("jax_disable_most_optimizations", True)
  try:
    with (
      mock.patch.object(jax, "devices", return_value=one),
      mock.patch.object(jax, "local_devices", return_value=one),
    ):
      return math_rl.run(jobs.Job(config.resolve(given), workdir))
  finally:
    jax.config.update("jax_disable_most_optimizations", False)


@contextlib.contextmanager
def _serving(workdir, arm):
  """Address of `synthjax serve` with a study's arm, a process of its own."""
  file = workdir.parent / "served.py"
  file.write_text(CONFIG.format(text=json.dumps(STUDY)))
  command = [sys.executable, "-m", "synthjax", "serve", "--config", str(file), "--port", "0"]
  command += ["--workdir", str(workdir), "--arm", arm, "--slots", "16", "--prompt", "64"]
  command += ["--max-tokens", "32"]
  one_device = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
  process = subprocess.Popen(
    command, cwd=ROOT, env={**os.environ, **one_device}, stdout=subprocess.PIPE, text=True
  )
  try:
    for line in process.stdout:
      if found := re.match(r"serving (\S+) at (http\S+)", line):
        assert found[1] == arm
        yield found[2]
        break
  finally:
    process.terminate()
    process.communicate(timeout=60)


def _sampled(workdir):
  """What was sampled, and what the values made of it."""
  cell = workdir / "n00012_s0"
  names = ("draw4_sft/drawn.jsonl", "values_sft/values.jsonl", "values_sft/continuations.jsonl")
  return [list(files.read_jsonl(cell / name)) for name in names]


def test_a_server_that_holds_the_start_policy_gives_the_samples_and_values_that_this_machine_gives(
  tmp_path,
):
  here, there = tmp_path / "here", tmp_path / "there"
  _run(here)
  shutil.copytree(here, there)
  with pytest.raises(ServerError, match="does not say which models it has .*is the server up"):
    _run(there, url="http://127.0.0.1:9/v1")
  with _serving(there, "n00012_s0/sft") as url:
    with pytest.raises(ServerError, match="has no model 'mine'; it has 'n00012_s0/sft'. Serve .*"):
      _run(there, url=url, model="mine")
    result = _run(there, url=url)
    assert _sampled(there) == _sampled(here)
    assert {point["arm"] for point in result["points"]} == {"sft", "step_dpo.branch"}
    for stage in ("draw4_sft", "values_sft"):
      rows = list(files.read_jsonl(there / "n00012_s0" / stage / "journal.jsonl"))
      assert rows and all(row["engine"].endswith("served as n00012_s0/sft") for row in rows)
    _refuses_another_policy(url)


def _refuses_another_policy(url):
  """Where the server's arm should be the base policy, from which it was trained."""
  experiment = config.resolve(json.loads(json.dumps(STUDY)))
  words = tokenizers.load(experiment.data.tokenizer, experiment.world)
  base = experiment.train.init
  held = served.Held(
    "n00012_s0/sft", base, "1:ab", lambda: jobs.load_policy(experiment, words, base)[:2]
  )
  prompt = tuple(words.encode("A shop has 11 apples . gets 2 . sells 5 . ?"))
  engine = served.ServedEngine(schema.StudyServer(url), held, words)
  too_long, good = Sampling(max_tokens=64), Sampling(max_tokens=32)
  (refused,) = engine.generate([Request("long", prompt_ids=prompt, sampling=too_long)])
  assert "refuses the request" in refused.error, "an error says nothing about the policy"
  with pytest.raises(ServerError, match="it holds another policy; serve this checkpoint"):
    next(engine.generate([Request("good", prompt_ids=prompt, sampling=good, n=16)]))


class _Texts:
  """Stands for the server: answers every request with one text."""

  server = schema.StudyServer("http://127.0.0.1:9/v1")
  text = ""
  ids = ()

  def __init__(self, _):
    pass

  def models(self):
    return ["policy"]

  def generate(self, requests):
    yield from (Result(r.id, (Sample(self.text, self.ids, finish="stop"),)) for r in requests)


def _sample(monkeypatch, text, tokenizer, ids=()):
  monkeypatch.setattr(served, "Remote", _Texts)
  monkeypatch.setattr(_Texts, "text", text)
  monkeypatch.setattr(_Texts, "ids", ids)
  held = served.Held("policy", "runs/policy", "1:ab", load=None)
  engine = served.ServedEngine(schema.StudyServer("http://127.0.0.1:9/v1"), held, tokenizer)
  (result,) = engine.generate([Request("a", "p")])
  return result.samples[0].ids


def test_samples_that_come_as_text_are_put_into_the_policys_tokens(
  monkeypatch, shared_data, capsys
):
  words = tokenizers.load(schema.Tokenizer(), World())
  ids = words.encode("11 + 2 = 13 ; Answer: 13")
  assert _sample(monkeypatch, words.decode(ids), words) == tuple(ids)
  assert "was not checked" in capsys.readouterr().out
  named = (*ids, words.eos_id)
  assert _sample(monkeypatch, words.decode(ids), words, named) == tuple(ids)
  path = str(shared_data / "tokenizers/sentencepiece/seqio_test.model")
  other = tokenizers.load(schema.Tokenizer("sentencepiece", path), World())
  with pytest.raises(files.DataError, match="a sample of 'policy' at .* is 'two  spaces', which"):
    _sample(monkeypatch, "two  spaces", other)


def test_the_server_is_not_asked_for_what_the_journal_holds(monkeypatch):
  monkeypatch.setattr(served, "Remote", _Texts)
  monkeypatch.setattr(_Texts, "models", lambda _: pytest.fail("asked"))
  held = served.Held("policy", "runs/policy", "1:ab", load=None)
  engine = served.ServedEngine(schema.StudyServer("http://h/v1"), held, tokenizers.Bytes())
  assert list(engine.generate([])) == []
  assert engine.fingerprint == dataclasses.replace(held).fingerprint == "1:ab served as policy"
