"""Hostile answers: each is answered in time and nothing is executed.

Ordinary cases mixed in keep their verdicts, and memory stays flat.
"""

import concurrent.futures
import pathlib
import random
import time

import psutil
import pytest

from synthjax.verify import pool

# I stands for a number, MARK for a file that must not come into being.
CODE = (
  "__import__('os').system('touch MARKI')",
  "(lambda: open('MARKI','w'))()",
  r"\boxed{eval(\"open('MARKI','w')\")}",
  "().__class__.__bases__[0].__subclasses__()[I]",
  "{0.__class__}%s%nI",
)


def _cheap(i):
  """Answers that are cheap to refuse."""
  yield "7" * (200_000 + i)
  yield "(" * (60 + i % 60) + str(i) + ")" * (60 + i % 60)
  yield rf"\frac{{1}}{{{i}"
  yield f"{i}\x00{i}"
  yield "{" * (100 + i % 50) + str(i)
  yield r"\sqrt" * (10 + i % 10) + f"{{{i}}}"
  yield r"\frac{" * 30 + str(i)
  yield f"{2 + i % 7}**{9 + i % 5}**{i}"
  yield f"\ud800{i}"  # a lone surrogate
  yield "xyzuvw"[: 1 + i % 6] * 8 + str(i)
  yield f"{i}\n\n{i}\r\n"
  for code in CODE:
    yield code.replace("I", str(i))


def _slow(i):
  """Answers that run into the deadline and cost three seconds each."""
  yield f"{10**8 + i}!"
  yield rf"\sum_{{k=1}}^{{{10**7 + i}}} \frac{{1}}{{k^2}}"
  yield "^{".join([str(2 + i % 8)] * 7) + "}" * 6
  yield rf"\binom{{{10**7 + i}}}{{{5 * 10**6}}}"


def _hostile(mark):
  """(gold, answer) pairs."""
  cases = []
  for i in range(1000, 1125):
    cases += [("42", answer.replace("MARK", mark)) for answer in _cheap(i)]
  for i in range(4):
    for answer in _slow(i):
      # A plain number as gold refuses what is not one before it computes it; a formula does not.
      cases += [("42", answer), ("|x|", answer)]
  return cases


def _ordinary():
  """(gold, answer) pairs for the workers, with their verdicts."""
  verdicts = {}
  for k in range(2, 100):
    verdicts[f"|{k}x|", f"{k}|x|"] = "equal"
  for k in range(100):
    verdicts[f"|x|+{k}", f"|x|+{k + 1}"] = "different"
  return verdicts


@pytest.mark.slow
def test_two_thousand_hostile_answers(tmp_path):
  hostile = _hostile(str(tmp_path / "executed_"))
  ordinary = _ordinary()
  assert len(hostile) >= 2000
  cases = [*hostile, *ordinary]
  random.Random(0).shuffle(cases)
  seconds = []

  def judge(case):
    began = time.monotonic()
    verdict = judges.compare(*case)
    seconds.append(time.monotonic() - began)
    return verdict

  with pool.Pool() as judges:
    judges.compare("|2x|", "2|x|")
    parent = psutil.Process()
    before = parent.memory_info().rss
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
      verdicts = dict(zip(cases, threads.map(judge, cases)))
    grown = parent.memory_info().rss - before
    workers = [child for child in parent.children() if "synthjax.verify.worker" in child.cmdline()]
    assert max(child.memory_info().rss for child in workers) < 2 << 30
  assert max(seconds) < 3.5 + 1.5, "one and a half second of grace for this machine's other work"
  assert sorted(seconds)[int(0.999 * len(seconds))] < 3.5
  assert {case: verdicts[case].value for case in ordinary} == ordinary
  assert [case for case in hostile if verdicts[case].value == "equal"] == []
  assert list(pathlib.Path(tmp_path).iterdir()) == []
  assert grown < 100 << 20
