"""`synthjax sample`, `serve` and `doctor` in real processes, on the embedded world's policy."""

import asyncio
import contextlib
import json
import pathlib
import random
import re
import signal
import socket
import time
import urllib.request

import numpy as np
import openai
import psutil
import pytest

from synthjax import __main__, files
from synthjax.config.credit import Sampling
from synthjax.model.transformer import Transformer
from synthjax.rollout.remote import Remote, Server
from synthjax.rollout.requests import Request
from tests import commands

ROOT = pathlib.Path(__file__).parents[2]
# Two devices; compiled fast instead of well: that is most of what a process of seconds does.
FAST = {
  "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
  "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}


def _start(verb, workdir, *more, **variables):
  return commands.start(verb, workdir, *more, **{**FAST, **variables})


def _requests(path, count):
  numbers = random.Random(0)
  rows = [
    Request(
      f"r{i}",
      prompt_ids=tuple(numbers.randrange(2, 65) for _ in range(numbers.randrange(1, 12))),
      seed=i,
      n=1 + i % 2,
      sampling=Sampling(max_tokens=numbers.randrange(1, 17)),
    ).to_json()
    for i in range(count)
  ]
  files.write_jsonl(path, rows)


def _same(one, other):
  """The same samples in the same order.

  Log-probs are equal up to rounding: what is left after a kill is laid out differently.
  """
  one, other = (list(files.read_jsonl(path)) for path in (one, other))
  log_probs = [
    [sample.pop("log_probs", []) for row in rows for sample in row.get("samples", [])]
    for rows in (one, other)
  ]
  assert one == other
  np.testing.assert_allclose(
    *[np.concatenate(list(map(np.asarray, of))) for of in log_probs], atol=2e-5
  )


@pytest.mark.slow
def test_a_job_of_5000_requests_killed_five_times_ends_as_if_it_had_not_been_and_samples_once(
  tmp_path,
):
  _requests(tmp_path / "requests.jsonl", 5000)
  start = lambda name: _start(
    "sample",
    tmp_path,
    "--requests",
    tmp_path / "requests.jsonl",
    "--out",
    tmp_path / name,
    "--slots",
    32,
  )
  output, _ = (whole := start("whole.jsonl")).communicate(timeout=300)
  assert whole.returncode == 0, output
  journal, goals = (
    tmp_path / "killed.jsonl.journal",
    sorted(random.Random(1).sample(range(1, 5000), 5)),
  )
  for goal in goals:  # killed once that many are in the journal, wherever it is by then
    run = start("killed.jsonl")
    while run.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < goal):
      pass
    assert run.poll() is None, run.stdout.read()
    run.send_signal(signal.SIGKILL)
    run.wait()
  output, _ = (run := start("killed.jsonl")).communicate(timeout=300)
  assert run.returncode == 0 and re.search(
    r"[\d,]+ of 5,000 requests were answered before", output
  ), output
  _same(tmp_path / "whole.jsonl", tmp_path / "killed.jsonl")
  ids = [row["id"] for row in files.read_jsonl(journal)]
  assert len(ids) == len(set(ids)) == 5000


def test_two_processes_share_a_job_and_both_kinds_of_answers_are_merged(tmp_path):
  _requests(tmp_path / "requests.jsonl", 60)
  rows = [*files.read_jsonl(tmp_path / "requests.jsonl"), {"id": "bad", "prompt": "unheard"}]
  files.write_jsonl(tmp_path / "requests.jsonl", [*rows, {**rows[3], "id": "again"}])
  more = ["--requests", tmp_path / "requests.jsonl", "--out"]
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    who = {"SYNTHJAX_COORDINATOR": f"127.0.0.1:{s.getsockname()[1]}", "SYNTHJAX_PROCESSES": "2"}
  runs = [
    _start("sample", tmp_path / "w", *more, tmp_path / "two.jsonl", **who, SYNTHJAX_PROCESS=str(k))
    for k in range(2)
  ]
  runs.append(_start("sample", tmp_path / "w", *more, tmp_path / "one.jsonl"))
  outputs = [run.communicate(timeout=120)[0] for run in runs]
  assert [run.returncode for run in runs] == [1, 1, 1], outputs  # one request ended with an error
  assert (
    "62 results, 1 of them errors; the first one, of request 'bad': prompt: word 0 of 'unheard'"
    in outputs[0]
  )
  _same(tmp_path / "one.jsonl", tmp_path / "two.jsonl")
  shares = [
    [row["id"] for row in files.read_jsonl(tmp_path / f"two.jsonl.{k}.journal")] for k in range(2)
  ]
  assert len(shares[0]) == len(shares[1]) == 30 and not set(shares[0]) & set(shares[1])


def test_the_engine_behind_http_gives_what_it_gives_alone_and_the_doctor_finds_parity(tmp_path):
  _requests(tmp_path / "requests.jsonl", 450)
  server = _start("serve", tmp_path, "--port", 0, "--slots", 16, "--prompt", 32, "--max-tokens", 32)
  doctor = _start("doctor", tmp_path, "--logprob-parity", "--slots", 32)
  alone = _start(
    "sample", tmp_path, "--requests", tmp_path / "requests.jsonl", "--out", tmp_path / "alone.jsonl"
  )
  assert alone.wait(120) == 0
  output, _ = doctor.communicate(timeout=120)
  assert doctor.returncode == 0 and re.search(
    r"differ by \S+ at most, \S+ on average; below 0.0001", output
  ), output
  url = next(line for line in server.stdout if line.startswith("serving")).split()[-1]
  requests = [Request.from_json(row) for row in files.read_jsonl(tmp_path / "requests.jsonl")]
  expected = {
    row["id"]: [sample["text"] for sample in row["samples"]]
    for row in files.read_jsonl(tmp_path / "alone.jsonl")
  }
  (refused,) = Remote(Server(url, "world_sft", retries=0)).generate(
    [Request("long", prompt_ids=(5,) * 33)]
  )
  assert "prompt is 33 tokens long; this engine has room for 32" in refused.error
  memory = []
  for seed in range(4):
    assert asyncio.run(_storm(url, requests, random.Random(seed))) == expected
    deadline = time.monotonic() + 10
    while json.load(urllib.request.urlopen(url.replace("/v1", "/health")))["requests"]:
      assert time.monotonic() < deadline, "requests that were given up are still in flight"
    memory.append(psutil.Process(server.pid).memory_info().rss)
  assert memory[-1] - memory[1] < 8 << 20, (
    f"memory after each round: {memory}; the first ones warm up"
  )
  (every_slot,) = Remote(Server(url, "world_sft")).generate(
    [Request("all", prompt_ids=(5,), n=64, sampling=Sampling(max_tokens=32))]
  )
  assert len(every_slot.samples) == 64
  server.send_signal(signal.SIGTERM)
  output, _ = server.communicate(timeout=60)
  assert server.returncode == 0, output


def test_the_doctor_measures_a_policy_in_bfloat16_and_finds_a_wrong_position(
  tmp_path, monkeypatch, capsys
):
  command = [
    "doctor",
    "--config",
    "configs/world_sft.py:smoke",
    "--workdir",
    str(tmp_path),
    "--logprob-parity",
    "--slots",
    "32",
    "--config.model_overrides.dtype=bfloat16",
    "--config.data.test_problems=8",
  ]
  assert __main__.main(command) == 0
  assert re.search(r", bfloat16: .* on average; below 1 and 0.03\n", capsys.readouterr().out)
  hidden = Transformer.hidden

  def off_by_one(self, params, tokens_BT, positions_BT, until_BT):
    return hidden(self, params, tokens_BT, positions_BT + (positions_BT >= 10), until_BT)

  monkeypatch.setattr(Transformer, "hidden", off_by_one)
  assert __main__.main(command) == 1
  assert "NOT BELOW 1 and 0.03" in capsys.readouterr().out


async def _storm(url, requests, chance):
  """500 at once, 25 of them malformed and 25 given up: id -> texts of the good ones."""
  async with openai.AsyncOpenAI(api_key="none", base_url=url, max_retries=0, timeout=120) as client:

    async def good(request):
      answer = await client.completions.create(
        model="world_sft",
        prompt=list(request.prompt_ids),
        n=request.n,
        seed=request.seed,
        max_tokens=request.sampling.max_tokens,
      )
      return request.id, [choice.text for choice in answer.choices]

    async def malformed():
      with pytest.raises(openai.BadRequestError):
        await client.completions.create(
          model="world_sft", prompt=[5], max_tokens=chance.choice([-1, "many", 33])
        )

    async def given_up(number):
      asked = {
        "model": "world_sft",
        "prompt": [5 + number],
        "n": 16,
        "max_tokens": 32,
        "seed": chance.randrange(1000),
      }
      if number % 5 == 0:
        pieces = await client.completions.create(stream=True, **asked)
        await anext(pieces)
        await pieces.close()
        return
      with contextlib.suppress(TimeoutError):  # a few are answered before
        await asyncio.wait_for(client.completions.create(**asked), chance.uniform(0, 2))

    work = [
      *map(good, requests),
      *(malformed() for _ in range(25)),
      *(given_up(number) for number in range(25)),
    ]
    chance.shuffle(work)
    return dict(filter(None, await asyncio.gather(*work)))
