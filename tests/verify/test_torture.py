"""Hostile answers: each is answered in time, nothing is executed, ordinary cases mixed in keep their verdicts, memory stays flat."""

import concurrent.futures
import pathlib
import random
import time

import psutil
import pytest

from synthjax.verify import pool

# Cheap to refuse: hundreds of each. Slow ones run into the deadline and cost three seconds each.
CHEAP = {
  "too long": lambda i: "7" * (200_000 + i),
  "nested brackets": lambda i: "(" * (60 + i % 60) + str(i) + ")" * (60 + i % 60),
  "open fraction": lambda i: rf"\frac{{1}}{{{i}",
  "null byte": lambda i: f"{i}\x00{i}",
  "open groups": lambda i: "{" * (100 + i % 50) + str(i),
  "roots": lambda i: r"\sqrt" * (10 + i % 10) + f"{{{i}}}",
  "fractions": lambda i: r"\frac{" * 30 + str(i),
  "import": lambda i: f"__import__('os').system('touch MARK{i}')",
  "lambda": lambda i: f"(lambda: open('MARK{i}','w'))()",
  "boxed eval": lambda i: rf"\boxed{{eval(\"open('MARK{i}','w')\")}}",
  "chain": lambda i: f"().__class__.__bases__[0].__subclasses__()[{i}]",
  "tower": lambda i: f"{2 + i % 7}**{9 + i % 5}**{i}",
  "format": lambda i: f"{{0.__class__}}%s%n{i}",
  "lone surrogate": lambda i: f"\ud800{i}",
  "many variables": lambda i: "xyzuvw"[: 1 + i % 6] * 8 + str(i),
  "newlines": lambda i: f"{i}\n\n{i}\r\n",
}
SLOW = {
  "factorial": lambda i: f"{10**8 + i}!",
  "long sum": lambda i: rf"\sum_{{k=1}}^{{{10**7 + i}}} \frac{{1}}{{k^2}}",
  "towers": lambda i: "^{".join([str(2 + i % 8)] * 7) + "}" * 6,
  "binomial": lambda i: rf"\binom{{{10**7 + i}}}{{{5 * 10**6}}}",
}
# Cases for the workers, among the hostile ones.
ORDINARY = [(f"|{k}x|", f"{k}|x|", "equal") for k in range(2, 100)] + [
  (f"|x|+{k}", f"|x|+{k + 1}", "different") for k in range(100)
]


@pytest.mark.slow
def test_two_thousand_hostile_answers(tmp_path):
  mark = str(tmp_path / "executed_")
  cases = [
    ("42", make(1000 + i).replace("MARK", mark), None)
    for make in CHEAP.values()
    for i in range(125)
  ]
  # A plain number as gold refuses what is not one before it computes it; a formula does not.
  cases += [
    (gold, make(i), None) for make in SLOW.values() for gold in ("42", "|x|") for i in range(4)
  ]
  assert len(cases) >= 2000
  cases += ORDINARY
  random.Random(0).shuffle(cases)
  seconds = []

  def judge(case):
    began = time.monotonic()
    verdict = judges.compare(*case[:2])
    seconds.append(time.monotonic() - began)
    return verdict

  with pool.Pool() as judges:
    judges.compare("|2x|", "2|x|")
    parent, before = psutil.Process(), None
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
      before = parent.memory_info().rss
      verdicts = list(threads.map(judge, cases))
    grown = parent.memory_info().rss - before
    workers = [child for child in parent.children() if "synthjax.verify.worker" in child.cmdline()]
    assert max(child.memory_info().rss for child in workers) < 2 << 30
  assert max(seconds) < 3.5 + 1.5, "one and a half second of grace for this machine's other work"
  assert sorted(seconds)[int(0.999 * len(seconds))] < 3.5
  assert [v.value for v, case in zip(verdicts, cases) if case[2]] == [
    case[2] for case in cases if case[2]
  ]
  assert not [v for v, case in zip(verdicts, cases) if not case[2] and v.value == "equal"]
  assert not list(pathlib.Path(tmp_path).iterdir())
  assert grown < 100 << 20
