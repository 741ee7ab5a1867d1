"""The shop: multi-step word problems whose teacher takes leaps, steps too big for the student.

A problem is a start and a few events, `A shop has 11 apples . gets 2 . sells 5 . ?`; a trace is one line a step,
`11 + 2 = 13 ; 13 - 5 = 8 ; Answer: 8`. At each point the teacher fuses two or three operations into one line (`11 + 2 - 5 = 8 ;`)
with probability `leap`. Words and numbers are single tokens, separated by single spaces.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterator
from typing import Annotated, NamedTuple

import numpy as np

from synthjax.fields import Checked, NonNegativeInt, Share, from_to
from synthjax.generate.worlds.splits import distinct
from synthjax.records import Problem, Step, Trace

PLUS = ("gets", "buys", "finds", "receives", "adds", "collects", "gains", "orders", "picks", "imports", "wins", "stocks")
MINUS = ("sells", "loses", "gives", "drops", "ships", "eats", "returns", "donates", "throws", "trades", "wastes", "exports")
THINGS = ("apples", "books", "coins", "eggs", "lamps", "pens", "shirts", "toys")
SPLITS = ("train", "dev", "test", "base")
# Shares of the problem space, by a hash of the problem itself: no problem can be in two splits, whatever seed or knobs.
_SHARES = {"train": range(64), "dev": range(64, 72), "test": range(72, 80), "base": range(80, 100)}


@dataclasses.dataclass(frozen=True)
class World(Checked):
  """Knobs of the shop."""

  # probability that the teacher fuses operations at a point; 0 is the negative control
  leap: Share = 0.6
  # plus verbs and minus verbs in use, of twelve each
  verbs: Annotated[int, from_to(1, len(PLUS))] = 12
  # most frequent verbs of each sign that the base policy has seen; at most `verbs`
  base_verbs: Annotated[int, from_to(1, len(PLUS))] = 4
  zipf: Annotated[float, from_to(0, 10)] = 1.0  # exponent of the verbs' frequencies; 0 is uniform
  largest: Annotated[int, from_to(1, 999)] = 30  # every quantity stays within 0..largest
  operand: Annotated[int, from_to(1, 999)] = 9  # an event moves 1..operand things
  min_events: Annotated[int, from_to(1, 8)] = 2  # fewest events of a problem
  max_events: Annotated[int, from_to(1, 8)] = 4  # most events of a problem
  seed: NonNegativeInt = 0  # of the order in which problems come and of the teacher's leaps

  def __post_init__(self) -> None:
    super().__post_init__()
    for name, bound in (("base_verbs", "verbs"), ("operand", "largest"), ("min_events", "max_events")):
      most = getattr(self, bound)
      self.require(getattr(self, name) <= most, name, f"at most {bound}={most}")


class Event(NamedTuple):
  """One event: +1 or -1, its verb, how many things."""

  sign: int
  verb: str
  amount: int


def vocabulary(world: World) -> list[str]:
  """Every word the world can print, whatever the other knobs; numbers 0..largest are single words."""
  words = ["A", "shop", "has", ".", "?", "+", "-", "=", ";", "Answer:", *THINGS, *PLUS, *MINUS]
  return words + [str(n) for n in range(world.largest + 1)]


def problems(world: World, split: str, count: int) -> list[Problem]:
  """The first `count` distinct problems of a split, in the world's seeded order: a longer list begins with the shorter one.

  The `base` split uses only the `base_verbs` most frequent verbs.

  Raises:
    ValueError: unknown split, or the split holds fewer distinct problems.
  """
  if split not in SPLITS:
    raise ValueError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
  where = f"world split {split!r}", "raise world.max_events or world.largest"
  return distinct(_drawn(world, split), lambda problem: problem.question, lambda name: _split_of(name) == split, count, where)


def teacher_trace(world: World, problem: Problem) -> Trace:
  """The teacher's right solution: with leaps, drawn by the world's seed and the problem."""
  random = np.random.default_rng([world.seed, int.from_bytes(hashlib.sha256(problem.question.encode()).digest()[:8], "big")])
  return _trace(problem, "teacher", lambda left: 1 if left < 2 or random.random() >= world.leap
                else min(left, int(random.integers(2, 4))))


def clean_trace(problem: Problem) -> Trace:
  """The right solution in single operations."""
  return _trace(problem, "clean", lambda left: 1)


def parse(question: str) -> tuple[int, list[Event]]:
  """(start, events) of a problem's text. Raises ValueError where it is not one of this world."""
  match = re.fullmatch(r"A shop has (\d+) \w+ \. ((?:\w+ \d+ \. )+)\?", question)
  if not match:
    raise ValueError(f"not a problem of the shop: {question!r}")
  signs = {**dict.fromkeys(PLUS, 1), **dict.fromkeys(MINUS, -1)}
  pieces = [piece.split() for piece in match[2].rstrip(" .").split(" . ")]
  return int(match[1]), [Event(signs[verb], verb, int(amount)) for verb, amount in pieces]


def computation(question: str) -> tuple[int, ...]:
  """What is computed, whatever the words: the start and the signed amounts, in order."""
  start, events = parse(question)
  return start, *(event.sign * event.amount for event in events)


def judge_steps(question: str, text: str) -> list[str]:
  """For each line of a trace: `right`, `leap` (right, several operations fused) or `wrong`.

  A line is right when its arithmetic is true and it continues from the running total with the problem's next events.
  """
  total, events = parse(question)
  verdicts, done = [], 0
  for line in [piece.strip() for piece in text.split(";")]:
    if line.startswith("Answer:"):
      verdicts.append("right" if done == len(events) and line == f"Answer: {total}" else "wrong")
      continue
    match = re.fullmatch(r"(\d+)((?: [+-] \d+)+) = (\d+)", line)
    moves = [(1 if sign == "+" else -1) * int(n) for sign, n in re.findall(r"([+-]) (\d+)", match[2] if match else "")]
    expected = [e.sign * e.amount for e in events[done:done + len(moves)]]
    good = match is not None and int(match[1]) == total and moves == expected and int(match[3]) == total + sum(moves)
    verdicts.append("wrong" if not good else "leap" if len(moves) > 1 else "right")
    total, done = total + sum(moves), done + len(moves)
  return verdicts


def _drawn(world: World, split: str) -> Iterator[Problem]:
  """Problems in the world's seeded order, with repeats, of all splits."""
  random = np.random.default_rng([world.seed, SPLITS.index(split)])
  verbs = world.base_verbs if split == "base" else world.verbs
  frequency = np.arange(1, verbs + 1, dtype=float) ** -world.zipf
  edges = np.cumsum(frequency / frequency.sum())
  while True:
    total = start = int(random.integers(0, world.largest + 1))
    thing = THINGS[random.integers(len(THINGS))]
    words = []
    signs = []
    for _ in range(random.integers(world.min_events, world.max_events + 1)):
      amount = int(random.integers(1, world.operand + 1))
      sign = 1 if random.random() < 0.5 else -1
      if not 0 <= total + sign * amount <= world.largest:
        sign = -sign
      if not 0 <= total + sign * amount <= world.largest:
        break
      verb = (PLUS if sign > 0 else MINUS)[min(int(np.searchsorted(edges, random.random())), verbs - 1)]
      words.append(f"{verb} {amount} .")
      signs.append(sign)
      total += sign * amount
    if len(words) >= world.min_events:
      question = f"A shop has {start} {thing} . {' '.join(words)} ?"
      yield Problem(_id(question), question, str(total), "world", {"events": len(words)})


@functools.lru_cache(1 << 20)
def _bucket(question: str) -> int:
  return int.from_bytes(hashlib.sha256(b"split " + question.encode()).digest()[:4], "big") % 100


def _split_of(question: str) -> str:
  return next(split for split, share in _SHARES.items() if _bucket(question) in share)


def _id(question: str) -> str:
  return "world-" + hashlib.sha256(question.encode()).hexdigest()[:16]


def _trace(problem: Problem, source: str, operations_of_line) -> Trace:
  """Lines of one or more operations; a step's span holds its line with the ` ; ` after it, so that steps tile the text."""
  total, events = parse(problem.question)
  text, steps = "", []
  while events:
    count = operations_of_line(len(events))
    taken, events = events[:count], events[count:]
    result = total + sum(e.sign * e.amount for e in taken)
    moves = " ".join(f"{'+' if e.sign > 0 else '-'} {e.amount}" for e in taken)
    line = f"{total} {moves} = {result} ; "
    steps.append(Step(len(text), len(text) + len(line), leap=count > 1))
    text, total = text + line, result
  answer = f"Answer: {total}"
  steps.append(Step(len(text), len(text) + len(answer), leap=False))
  return Trace(problem.id, text + answer, tuple(steps), problem.answer, source)
