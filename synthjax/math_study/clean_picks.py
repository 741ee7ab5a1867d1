"""Correct traces of the embedded world with and without leaps, for RFT on one kind or the other."""

import collections
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from synthjax.credit.traces import SampledTrace
from synthjax.worlds import shop


class Picks(NamedTuple):
  """The same number of a problem on both sides."""

  clean: list[SampledTrace]  # every line correct, one operation each
  spurious: list[SampledTrace]  # every line correct, at least one of them a leap


def picks(questions: Mapping[str, str], drawn: Sequence[SampledTrace], most: int) -> Picks:
  """Distinct correct traces in the order of `drawn`; traces with an incorrect line are on no side.

  A problem of the shop has one clean trace, so it gives one trace to each side or none.

  Args:
    questions: problem id -> the bare problem.
    drawn: of the embedded world.
    most: of a problem and side.
  """
  clean: dict[str, dict[str, SampledTrace]] = collections.defaultdict(dict)  # problem id -> by text
  spurious: dict[str, dict[str, SampledTrace]] = collections.defaultdict(dict)
  # Problems in the order in which either side first has one of their traces.
  problems: dict[str, None] = {}
  for d in drawn:
    if not d.complete or not d.verdict.correct:
      continue
    verdicts = shop.judge_steps(questions[d.problem_id], d.text)
    if "wrong" in verdicts:
      continue
    side = spurious if "leap" in verdicts else clean
    side[d.problem_id].setdefault(d.text, d)
    problems[d.problem_id] = None
  picked = Picks([], [])
  for name in problems:
    count = min(len(clean[name]), len(spurious[name]), most)
    picked.clean.extend(list(clean[name].values())[:count])
    picked.spurious.extend(list(spurious[name].values())[:count])
  return picked
