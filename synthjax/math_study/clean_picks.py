"""Which right traces of the embedded world hold leaps: what RFT picks when it picks spurious steps on purpose, and when it avoids them."""

import collections
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from synthjax.credit.traces import SampledTrace
from synthjax.worlds import shop


class Picks(NamedTuple):
  """The same number of a problem on both sides."""

  clean: list[SampledTrace]  # every line right, one operation each
  spurious: list[SampledTrace]  # every line right, at least one of them a leap


def picks(questions: Mapping[str, str], drawn: Sequence[SampledTrace], most: int) -> Picks:
  """Distinct right traces with and without leaps, in the order of `drawn`; traces with a wrong line are on neither side.

  A problem of the shop has one clean trace, so it gives one trace to each side or none.

  Args:
    questions: problem id -> the bare problem.
    drawn: of the embedded world.
    most: of a problem and side.
  """
  found: dict[str, tuple[dict[str, SampledTrace], dict[str, SampledTrace]]] = (
    collections.defaultdict(lambda: ({}, {}))
  )
  for d in drawn:
    if d.complete and d.verdict.correct:
      verdicts = shop.judge_steps(questions[d.problem_id], d.text)
      if "wrong" not in verdicts:
        found[d.problem_id]["leap" in verdicts].setdefault(d.text, d)
  made = Picks([], [])
  for clean, spurious in found.values():
    count = min(len(clean), len(spurious), most)
    made.clean.extend(list(clean.values())[:count])
    made.spurious.extend(list(spurious.values())[:count])
  return made
