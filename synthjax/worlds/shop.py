"""The shop: multi-step word problems with an imperfect teacher.

A problem is a start and a few events, `A shop has 11 apples . gets 2 . sells 5 . ?`; a trace is one
line a step, `11 + 2 = 13 ; 13 - 5 = 8 ; Answer: 8`. That a verb adds or takes away is a fact that a
policy has to learn, and verbs have Zipf frequencies. The teacher is imperfect in two ways: at each
point it fuses two or three operations into one line (`11 + 2 - 5 = 8 ;`, a leap, which the student
cannot compute) with probability `leap`, and it reads a verb as its opposite with probability
`misread`. Where the question is how many boxes the things fill (`box`), an incorrect step can still
lead to the correct answer. Where the shop counts its stock (`recount`), what was before no longer
matters: in `A shop has 11 apples . gets 2 . has 20 . sells 5 . ?`, whose trace is
`11 + 2 = 13 ; has 20 ; 20 - 5 = 15 ; Answer: 15`, a misreading of the first event does no harm. Words
and numbers are single tokens, separated by single spaces.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from synthjax.config.worlds import LARGEST_VERBS, World
from synthjax.records import Problem, Step, Trace
from synthjax.worlds.splits import distinct

PLUS = (
  "gets",
  "buys",
  "finds",
  "receives",
  "adds",
  "collects",
  "gains",
  "orders",
  "picks",
  "imports",
  "wins",
  "stocks",
)
MINUS = (
  "sells",
  "loses",
  "gives",
  "drops",
  "ships",
  "eats",
  "returns",
  "donates",
  "throws",
  "trades",
  "wastes",
  "exports",
)
THINGS = ("apples", "books", "coins", "eggs", "lamps", "pens", "shirts", "toys")
RECOUNT = "has"  # the verb of a recount
SPLITS = ("train", "dev", "test", "base")
# Shares of the problem space, by a hash of the problem itself: no problem can be in two splits, whatever seed or knobs.
_SHARES = {"train": range(64), "dev": range(64, 72), "test": range(72, 80), "base": range(80, 100)}


# The main world of study A: many facts with Zipf frequencies, a teacher that misreads some of them,
# and an answer so coarse that an incorrect step can be lucky. configs/math_scaling_world.py says why.
FACTS = World(leap=0.0, misread=0.3, verbs=512, base_verbs=2, zipf=1.5, largest=99, box=10)

# A world whose luck resolves at once: half of the events come before a recount. By twos no other
# misreading is hidden by the answer: it is off by the amount. The words are those of FACTS, from
# whose base policy that of this world is trained.
LUCK = dataclasses.replace(FACTS, zipf=1.2, box=2, recount=0.5, min_events=6, max_events=6)


class Event(NamedTuple):
  """One event: +1 or -1, its verb, how many things; a recount has the sign 0."""

  sign: int
  verb: str
  amount: int

  def after(self, total: int) -> int:
    """The running total after it."""
    if self.sign == 0:
      return self.amount
    return total + self.sign * self.amount


@functools.cache
def verb(sign: int, rank: int) -> str:
  """The verb of a sign that is the `rank`-th most frequent one, from 0 on."""
  named = PLUS if sign > 0 else MINUS
  if rank < len(named):
    return named[rank]
  number = 2 * (rank - len(named)) + (sign < 0)
  consonants, vowels = "bdfgklmnprstvz", "aeiou"
  number, last = divmod(number, len(vowels))
  number, second = divmod(number, len(consonants))
  first_consonant, first_vowel = divmod(number, len(vowels))
  first = consonants[first_consonant] + vowels[first_vowel]
  return f"{first}{consonants[second]}{vowels[last]}ks"


def vocabulary(world: World) -> list[str]:
  """Every word the world can print; numbers 0..largest are single words.

  It depends on `largest`, on whether the question is of boxes, and on the number of verbs beyond
  the twelve named ones.
  """
  words = ["A", "shop", "has", ".", "?", "+", "-", "=", ";", "Answer:", *THINGS, *PLUS, *MINUS]
  words += [str(n) for n in range(world.largest + 1)]
  if world.box > 1:
    words += ["boxes", "of"]
  return words + [verb(sign, rank) for rank in range(len(PLUS), world.verbs) for sign in (1, -1)]


def problems(world: World, split: str, count: int) -> list[Problem]:
  """The first `count` distinct problems of a split, in the world's seeded order: a longer list begins with the shorter one.

  The `base` split uses only the `base_verbs` most frequent verbs.

  Raises:
    ValueError: unknown split, or the split holds fewer distinct problems.
  """
  if split not in SPLITS:
    raise ValueError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
  where = f"world split {split!r}", "raise world.max_events or world.largest"
  return distinct(
    _drawn(world, split),
    lambda problem: problem.question,
    lambda name: _split_of(name) == split,
    count,
    where,
  )


def teacher_trace(world: World, problem: Problem) -> Trace:
  """The teacher's right solution: with leaps, drawn by the world's seed and the problem."""
  random = np.random.default_rng(
    [world.seed, int.from_bytes(hashlib.sha256(problem.question.encode()).digest()[:8], "big")]
  )
  total, events, _ = parse(problem.question)
  if world.misread:
    events = list(_misread(total, events, world, random))
  return _trace(
    problem,
    "teacher",
    events,
    lambda left: (
      1 if left < 2 or random.random() >= world.leap else min(left, int(random.integers(2, 4)))
    ),
  )


def _misread(total: int, events: Sequence[Event], world: World, random) -> Iterator[Event]:
  """The events as the teacher reads them; its running total stays within 0..largest."""
  for event in events:
    misread = event._replace(sign=-event.sign)
    read = misread if random.random() < world.misread else event
    inside = 0 <= read.after(total) <= world.largest
    if not inside:
      read = misread if read is event else event
    total = read.after(total)
    yield read


def clean_trace(problem: Problem) -> Trace:
  """The correct solution in single operations."""
  return _trace(problem, "clean", parse(problem.question).events, lambda left: 1)


class Parsed(NamedTuple):
  """A problem's text as numbers."""

  start: int
  events: list[Event]
  box: int  # the answer is the last total divided by it, rounded down


def parse(question: str) -> Parsed:
  """A problem's text as numbers. Raises ValueError where it is not one of this world."""
  pattern = r"A shop has (\d+) \w+ \. ((?:\w+ \d+ \. )+)(?:boxes of (\d+) )?\?"
  match = re.fullmatch(pattern, question)
  if not match:
    raise ValueError(f"not a problem of the shop: {question!r}")
  pieces = [piece.split() for piece in match[2].rstrip(" .").split(" . ")]
  events = [Event(_signs()[name], name, int(amount)) for name, amount in pieces]
  return Parsed(start=int(match[1]), events=events, box=int(match[3] or 1))


@functools.cache
def _signs() -> dict[str, int]:
  signs = {verb(sign, rank): sign for sign in (1, -1) for rank in range(LARGEST_VERBS)}
  return {**signs, RECOUNT: 0}


def computation(question: str) -> tuple[int, ...]:
  """What is computed, whatever the words: the start and the signed amounts, in order.

  A recount is a 0 and what was counted.
  """
  start, events, _ = parse(question)
  found = [start]
  for event in events:
    found.append(event.sign * event.amount)
    if event.sign == 0:
      found.append(event.amount)
  return tuple(found)


def judge_steps(question: str, text: str) -> list[str]:
  """For each line of a trace: `right`, `leap` (right, several operations fused) or `wrong`.

  A line is right when its arithmetic is true and it continues from the running total with the problem's next events.
  """
  total, events, box = parse(question)
  verdicts, done = [], 0
  for line in [piece.strip() for piece in text.split(";")]:
    if line.startswith("Answer:"):
      verdicts.append(
        "right" if done == len(events) and line == f"Answer: {total // box}" else "wrong"
      )
      continue
    counted = re.fullmatch(rf"{RECOUNT} (\d+)", line)
    if counted:
      total = int(counted[1])
      good = events[done : done + 1] == [Event(0, RECOUNT, total)]
      verdicts.append("right" if good else "wrong")
      done += 1
      continue
    match = re.fullmatch(r"(\d+)((?: [+-] \d+)+) = (\d+)", line)
    moves = [
      (1 if sign == "+" else -1) * int(n)
      for sign, n in re.findall(r"([+-]) (\d+)", match[2] if match else "")
    ]
    expected = [e.sign * e.amount for e in events[done : done + len(moves)] if e.sign]
    good = (
      match is not None
      and int(match[1]) == total
      and moves == expected
      and int(match[3]) == total + sum(moves)
    )
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
    events = int(random.integers(world.min_events, world.max_events + 1))
    recount = _recounted_after(events, world, random)
    happened = 0
    for number in range(events):
      if number == recount:
        total = int(random.integers(0, world.largest + 1))
        words.append(f"{RECOUNT} {total} .")
      amount = int(random.integers(1, world.operand + 1))
      sign = 1 if random.random() < 0.5 else -1
      if not 0 <= total + sign * amount <= world.largest:
        sign = -sign
      if not 0 <= total + sign * amount <= world.largest:
        break
      rank = min(int(np.searchsorted(edges, random.random())), verbs - 1)
      words.append(f"{verb(sign, rank)} {amount} .")
      happened += 1
      total += sign * amount
    if happened >= world.min_events:
      asked = f"boxes of {world.box} ?" if world.box > 1 else "?"
      question = f"A shop has {start} {thing} . {' '.join(words)} {asked}"
      yield Problem(_id(question), question, str(total // world.box), "world", {"events": happened})


def _recounted_after(events: int, world: World, random: np.random.Generator) -> int | None:
  """After how many events the shop counts, None where it never does; at least one event follows."""
  if not world.recount:
    return None
  return min(int(random.binomial(events, world.recount)), events - 1)


@functools.lru_cache(1 << 20)
def _bucket(question: str) -> int:
  return int.from_bytes(hashlib.sha256(b"split " + question.encode()).digest()[:4], "big") % 100


def _split_of(question: str) -> str:
  return next(split for split, share in _SHARES.items() if _bucket(question) in share)


def _id(question: str) -> str:
  return "world-" + hashlib.sha256(question.encode()).hexdigest()[:16]


def _trace(problem: Problem, source: str, events: Sequence[Event], operations_of_line) -> Trace:
  """Lines of one or more operations; a step's span holds its line with the ` ; ` after it, so that steps tile the text."""
  total, _, box = parse(problem.question)
  text, steps = "", []
  while events:
    count = operations_of_line(len(events))
    taken, events = events[:count], events[count:]
    result = total
    for event in taken:
      result = event.after(result)
    moves = " ".join(f"{'+' if e.sign > 0 else '-'} {e.amount}" for e in taken)
    line = f"{total} {moves} = {result} ; "
    if taken[0].sign == 0:
      line = f"{RECOUNT} {result} ; "
    steps.append(Step(len(text), len(text) + len(line), leap=count > 1))
    text, total = text + line, result
  answer = f"Answer: {total // box}"
  steps.append(Step(len(text), len(text) + len(answer), leap=False))
  return Trace(problem.id, text + answer, tuple(steps), problem.answer, source)
