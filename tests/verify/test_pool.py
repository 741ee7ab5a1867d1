import concurrent.futures
import os
import signal
import threading

import psutil
import pytest

from synthjax.records import Verdict
from synthjax.verify import fast, pool


def test_pools_work_from_threads_and_answer_equal_pairs_once(judge):
  cases = [(f"|{k}x|", f"{k}|x|") for k in range(2, 12)]
  before = judge.counts["symbolic"]
  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    verdicts = list(threads.map(lambda pair: judge.compare(*pair).value, cases * 3))
  assert verdicts == ["equal"] * 30
  assert 10 <= judge.counts["symbolic"] - before <= 30
  before = judge.counts["symbolic"]
  assert {v.value for v in judge.compare_many(cases * 5)} == {"equal"}
  assert judge.counts["symbolic"] == before


def test_the_shared_pool_works_inside_a_beam_dofn():
  import apache_beam as beam
  from apache_beam.runners.portability import fn_api_runner

  class Judge(beam.DoFn):
    def process(self, pair):
      yield pair, pool.compare_many([pair])[0].value

  with beam.Pipeline(runner=fn_api_runner.FnApiRunner()) as pipeline:
    _ = (
      pipeline
      | beam.Create([("|2x|", "2|x|"), ("1", "2")])
      | beam.ParDo(Judge())
      | beam.combiners.ToList()
      | beam.Map(_check)  # an assertion that fails there fails the pipeline
    )


def _check(rows):
  assert sorted(rows) == [(("1", "2"), "different"), (("|2x|", "2|x|"), "equal")]


def _children() -> set[int]:
  """Process numbers of this process's verification workers."""
  children = psutil.Process().children()
  return {child.pid for child in children if "synthjax.verify.worker" in child.cmdline()}


def test_a_workers_death_touches_its_own_case_alone_and_workers_import_no_jax():
  before = _children()
  with pool.Pool(limits=pool.Limits(workers=1)) as judge:
    for k in range(2, 4):  # both processes are up
      assert judge.compare(f"|{k}x|", f"{k}|x|").value == "equal"
    workers = _children() - before
    assert len(workers) == 2
    for worker in workers:
      with open(f"/proc/{worker}/maps") as f:
        assert "jaxlib" not in f.read()

    def kill_workers():
      for worker in workers:
        os.kill(worker, signal.SIGKILL)

    killer = threading.Timer(0.7, kill_workers)
    killer.start()
    verdict = judge.compare("|x|", r"\prod_{k=1}^{1000003} k")
    killer.join()
    assert (verdict.value, verdict.reason) == ("undecided", "memory")
    for k in range(2, 6):
      assert judge.compare(f"|{k}x|+1", f"{k}|x|+1").value == "equal"
    assert judge.counts["replaced"] == 2


def test_workers_are_replaced_after_their_share_of_cases():
  with pool.Pool(limits=pool.Limits(workers=1, cases=2)) as judge:
    for k in range(2, 10):
      assert judge.compare(f"|{k}x|", f"{k}|x|").value == "equal"
    assert judge.counts["replaced"] >= 3


@pytest.mark.parametrize(
  ("gold", "prediction"),
  [("42", text) for text in ("\x00", "\ud800", "{", "}", "\\", "\\boxed", "$", "^", "%", "\n")],
)
def test_odd_characters_are_data(judge, gold, prediction):
  assert judge.compare(gold, prediction).value in ("different", "undecided")


def test_an_exception_in_the_parent_is_an_undecided_answer(monkeypatch):
  def fails(*_):
    raise OverflowError("of this answer alone")

  monkeypatch.setattr(fast, "compare", fails)
  assert pool.settle("1", "2") == Verdict("undecided", "error: OverflowError")
