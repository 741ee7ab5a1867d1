"""Jobs that are killed, changed and asked again."""

import collections
import dataclasses
import json
import os
import pathlib
import random
import subprocess
import sys
import time
import tracemalloc

import pytest

from synthjax import files
from synthjax.config.credit import Sampling
from synthjax.rollout import journal
from synthjax.rollout.requests import Request, Result, Sample

ROOT = pathlib.Path(__file__).parents[2]


class Engine:
  """Answers in an order of its own; writes down what it was asked and what it answered."""

  def __init__(self, fingerprint="policy", log=None, seconds=0.0, fails=()):
    self.fingerprint = fingerprint
    self.log = log
    self.seconds = seconds
    self.fails = fails
    self.sampled = []

  def generate(self, requests):
    requests = list(requests)
    random.Random(os.urandom(4)).shuffle(requests)
    for request in requests:
      time.sleep(self.seconds)
      self.sampled.append(request.id)
      if self.log:
        with open(self.log, "a") as f:
          f.write(request.id + "\n")
      if request.id in self.fails:
        yield Result(request.id, error="no luck")
        continue
      samples = []
      for j in range(request.n):
        text = f"{request.key()} {self.fingerprint} {j}"
        samples.append(Sample(text, (j, 7), (-0.5, -1 / 3)))
      yield Result(request.id, tuple(samples), prompt_tokens=3)


def _requests(count):
  """The last tenth repeats the first under other ids."""
  return [
    Request(f"r{i}", f"é\u2028\n{i % (count - count // 10)}", n=1 + i % (count - count // 10) % 3)
    for i in range(count)
  ]


def _job(folder):
  """What the killed process runs: writes the results only when it has got to the end."""
  results = journal.generate(
    Engine(log=folder / "sampled", seconds=0.002), _requests(500), folder / "journal.jsonl"
  )
  files.write_jsonl(
    folder / "results.jsonl", sorted((r.to_json() for r in results), key=lambda row: row["id"])
  )


def test_a_job_killed_five_times_ends_like_an_uninterrupted_one_and_samples_nothing_twice(
  tmp_path,
):
  for name in ("whole", "killed"):
    (tmp_path / name).mkdir()
  _job(tmp_path / "whole")
  killed, moments, kills = tmp_path / "killed", random.Random(0), 0
  journalled = set()
  while True:
    (killed / "sampled").write_text("")
    run = subprocess.Popen(
      [sys.executable, __file__, str(killed)],
      cwd=ROOT,
      env={**os.environ, "PYTHONPATH": str(ROOT)},
      stdout=subprocess.PIPE,
      text=True,
    )
    while kills < 5 and not (killed / "sampled").read_text():
      time.sleep(0.005)
    if kills < 5:
      time.sleep(moments.uniform(0.0, 0.2))
      run.kill()
    out, _ = run.communicate(timeout=60)
    sampled = (killed / "sampled").read_text().split()
    assert not journalled & set(sampled) and len(sampled) == len(set(sampled))
    if kills == 5:
      break
    assert run.returncode == -9, "ended before it was killed"
    kills += 1
    whole_lines = (killed / "journal.jsonl").read_bytes().rpartition(b"\n")[0].splitlines()
    journalled = {json.loads(line)["id"] for line in whole_lines}
    assert len(sampled) - 1 <= len(journalled)  # what was in flight at most is lost
  assert run.returncode == 0
  repeated = journalled & {f"r{i}" for i in range(50)}  # each answers a second request
  answered = len(journalled) + len(repeated)
  assert f"{answered} of 500 requests were answered before" in out
  rows = list(files.read_jsonl(killed / "journal.jsonl"))
  assert max(collections.Counter(row["key"] for row in rows).values()) == 1 and len(rows) == 450
  assert (killed / "results.jsonl").read_bytes() == (tmp_path / "whole/results.jsonl").read_bytes()
  assert len(list(files.read_jsonl(killed / "results.jsonl"))) == 500


def test_equal_requests_are_sampled_once_and_answered_under_every_id(tmp_path):
  requests = [
    Request("a", "p", n=2),
    Request("b", "q"),
    Request("c", "p", n=2),
    Request("d", "p", n=2, seed=1),
  ]
  engine = Engine()
  results = {r.id: r for r in journal.generate(engine, requests, tmp_path / "j")}
  assert sorted(engine.sampled) == ["a", "b", "d"]
  assert sorted(results) == ["a", "b", "c", "d"]
  assert results["a"].samples == results["c"].samples != results["d"].samples
  later = Engine()
  more = journal.generate(later, [*requests, Request("e", "q")], tmp_path / "j")
  expected = {**results, "e": dataclasses.replace(results["b"], id="e")}
  assert {result.id: result for result in more} == expected
  assert later.sampled == []


def test_a_changed_request_and_another_policy_are_sampled_again_and_that_is_said(tmp_path, capsys):
  requests = [Request(str(i), f"p{i}") for i in range(10)]
  list(journal.generate(Engine(), requests, tmp_path / "j"))
  capsys.readouterr()
  changed = [dataclasses.replace(r, sampling=Sampling(temperature=0.5)) for r in requests[:3]]
  changed += requests[3:]
  engine = Engine()
  assert len(list(journal.generate(engine, changed, tmp_path / "j"))) == 10
  said = capsys.readouterr().out
  assert sorted(engine.sampled) == ["0", "1", "2"]
  assert "3 requests have changed since they were answered; they are sampled again" in said
  assert "7 of 10 requests were answered before" in said
  other = Engine("new policy")
  for result in journal.generate(other, requests, tmp_path / "j"):
    assert "new policy" in result.samples[0].text
  assert sorted(other.sampled) == [r.id for r in requests]
  said = capsys.readouterr().out
  assert "10 requests were answered by another policy than new policy; they are sampled" in said
  again = Engine()
  both = [*requests, *(dataclasses.replace(r, id=r.id + "x") for r in changed)]
  for result in journal.generate(again, both, tmp_path / "j"):
    assert result.samples[0].text.split()[1] == "policy"
  assert again.sampled == []
  assert "again" not in capsys.readouterr().out


def test_a_result_with_an_error_is_yielded_and_asked_again_at_the_next_run(tmp_path, capsys):
  requests = [Request(str(i), f"p{i}") for i in range(5)]
  results = list(journal.generate(Engine(fails=("2", "4")), requests, tmp_path / "j"))
  assert sorted(r.id for r in results if r.error) == ["2", "4"] and len(results) == 5
  assert "2 of 5 different requests ended with an error" in capsys.readouterr().out
  engine = Engine()
  assert not [r for r in journal.generate(engine, requests, tmp_path / "j") if r.error] and sorted(
    engine.sampled
  ) == ["2", "4"]


def test_a_caller_that_stops_has_in_the_journal_what_it_got(tmp_path):
  requests, seen = [Request(str(i), f"p{i}") for i in range(20)], set()
  results = journal.generate(Engine(), requests, tmp_path / "j")
  for _ in range(6):
    seen.add(next(results).id)
  results.close()
  engine = Engine()
  assert len(list(journal.generate(engine, requests, tmp_path / "j"))) == 20
  assert set(engine.sampled) == {r.id for r in requests} - seen


def test_two_requests_with_one_id_a_foreign_file_and_an_engine_that_ends_early_are_named(tmp_path):
  with pytest.raises(files.DataError, match="two requests have the id 'a'"):
    list(journal.generate(Engine(), [Request("a", "p"), Request("a", "q")], tmp_path / "j"))
  (tmp_path / "foreign").write_text('{"problem_id": "x"}\n')
  with pytest.raises(files.DataError, match="foreign, row 1: Row: unknown field 'problem_id'"):
    list(journal.generate(Engine(), [Request("a", "p")], tmp_path / "foreign"))

  class Lazy(Engine):
    def generate(self, requests):
      yield from list(super().generate(requests))[:2]

  with pytest.raises(journal.UnansweredError, match="without an answer to 3 requests"):
    list(journal.generate(Lazy(), [Request(str(i), f"p{i}") for i in range(5)], tmp_path / "j"))


@pytest.mark.parametrize("torn", [1, 1 << 20, (5 << 19) + 3])
def test_a_torn_end_of_any_length_is_removed_and_its_request_asked_again(tmp_path, torn):
  requests = [Request(str(i), f"p{i}") for i in range(3)]
  list(journal.generate(Engine(), requests[:2], tmp_path / "j"))
  whole = (tmp_path / "j").read_bytes()
  (tmp_path / "j").write_bytes(whole + b"x" * torn)
  engine = Engine()
  assert len(list(journal.generate(engine, requests, tmp_path / "j"))) == 3
  assert (
    engine.sampled == ["2"]
    and (tmp_path / "j").read_bytes().startswith(whole)
    and len(list(files.read_jsonl(tmp_path / "j"))) == 3
  )


def test_results_that_were_yielded_stay_on_disk_alone(tmp_path):
  requests = [Request(str(i), f"p{i}", n=4) for i in range(200)]

  class Long(Engine):
    def generate(self, requests):
      for request in requests:
        yield Result(
          request.id, (Sample("text " * 100, tuple(range(1000, 1200)), (-1 / 3,) * 200),) * 4
        )

  for _ in range(2):  # sampled, then read
    tracemalloc.start()
    assert sum(1 for _ in journal.generate(Long(), requests, tmp_path / "j")) == 200
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20 < os.path.getsize(tmp_path / "j")


if __name__ == "__main__":
  _job(pathlib.Path(sys.argv[1]))
