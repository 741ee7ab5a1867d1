"""The shop: multi-step word problems with an imperfect teacher.

A problem is a start and a few events, `A shop has 11 apples . gets 2 . sells 5 . ?`; a trace is one
line a step, `11 + 2 = 13 ; 13 - 5 = 8 ; Answer: 8`. That a verb adds or takes away is a fact that a
policy has to learn, and verbs have Zipf frequencies. The teacher is imperfect in two ways: at each
point it fuses two or three operations into one line (`11 + 2 - 5 = 8 ;`, a leap, which the student
cannot compute) with probability `leap`, and it reads a verb as its opposite with probability
`misread`. Where the question is how many boxes the things fill (`box`), an incorrect step can still
lead to the correct answer. Where the shop counts its stock (`recount`), what was before no longer
matters: in `A shop has 11 apples . gets 2 . has 20 . sells 5 . ?`, whose trace is
`11 + 2 = 13 ; has 20 ; 20 - 5 = 15 ; Answer: 15`, a misreading of the first event does no harm.
Words and numbers are single tokens, separated by single spaces.
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
# Percentiles of the problem space, by a hash of the problem itself: no problem can be in two
# splits, whatever seed or knobs.
_SHARES = {
  "train": range(64),
  "dev": range(64, 72),
  "test": range(72, 80),
  "base": range(80, 100),
}

# The main world of study A: many facts with Zipf frequencies, a teacher that misreads some of them,
# and an answer so coarse that an incorrect step can be lucky. configs/math_scaling_world.py says
# why.
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
  named = MINUS
  if sign > 0:
    named = PLUS
  if rank < len(named):
    return named[rank]
  # A made-up word: the digits of a number in which signs alternate, written as syllables.
  consonants = "bdfgklmnprstvz"
  vowels = "aeiou"
  number = 2 * (rank - len(named)) + (sign < 0)
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
  for rank in range(len(PLUS), world.verbs):
    words += [verb(1, rank), verb(-1, rank)]
  return words


def problems(world: World, split: str, count: int) -> list[Problem]:
  """The first `count` distinct problems of a split, in the world's seeded order.

  A longer list begins with the shorter one. The `base` split uses only the `base_verbs` most
  frequent verbs.

  Raises:
    ValueError: unknown split, or the split holds fewer distinct problems.
  """
  if split not in SPLITS:
    raise ValueError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
  return distinct(
    _drawn(world, split),
    name=lambda problem: problem.question,
    inside=lambda question: _split_of(question) == split,
    count=count,
    where=(f"world split {split!r}", "raise world.max_events or world.largest"),
  )


def teacher_trace(world: World, problem: Problem) -> Trace:
  """The teacher's solution.

  Its leaps and misreadings are drawn by the world's seed and the problem.
  """
  digest = hashlib.sha256(problem.question.encode()).digest()
  random = np.random.default_rng([world.seed, int.from_bytes(digest[:8], "big")])
  total, events, _ = parse(problem.question)
  if world.misread:
    events = list(_misread(total, events, world, random))

  def operations_of_line(events_left: int) -> int:
    if events_left < 2 or random.random() >= world.leap:
      return 1
    return min(events_left, int(random.integers(2, 4)))

  return _trace(problem, "teacher", events, operations_of_line)


def _misread(total: int, events: Sequence[Event], world: World, random) -> Iterator[Event]:
  """The events as the teacher reads them; its running total stays within 0..largest."""
  for event in events:
    opposite = event._replace(sign=-event.sign)
    read, other = event, opposite
    if random.random() < world.misread:
      read, other = opposite, event
    if not 0 <= read.after(total) <= world.largest:
      read = other
    total = read.after(total)
    yield read


def clean_trace(problem: Problem) -> Trace:
  """The correct solution in single operations."""
  events = parse(problem.question).events
  return _trace(problem, "clean", events, operations_of_line=lambda events_left: 1)


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
  events = []
  for sentence in match[2].rstrip(" .").split(" . "):
    name, amount = sentence.split()
    events.append(Event(_signs()[name], name, int(amount)))
  return Parsed(start=int(match[1]), events=events, box=int(match[3] or 1))


@functools.cache
def _signs() -> dict[str, int]:
  """Sign of every verb."""
  signs = {RECOUNT: 0}
  for rank in range(LARGEST_VERBS):
    signs[verb(1, rank)] = 1
    signs[verb(-1, rank)] = -1
  return signs


def computation(question: str) -> tuple[int, ...]:
  """What is computed, whatever the words: the start and the signed amounts, in order.

  A recount is a 0 and what was counted.
  """
  start, events, _ = parse(question)
  amounts = [start]
  for event in events:
    amounts.append(event.sign * event.amount)
    if event.sign == 0:
      amounts.append(event.amount)
  return tuple(amounts)


def judge_steps(question: str, text: str) -> list[str]:
  """For each line of a trace: `right`, `leap` (right, several operations fused) or `wrong`.

  A line is right when its arithmetic is true and it continues from the running total with the
  problem's next events.
  """
  total, events, box = parse(question)
  verdicts = []
  done = 0  # events that the lines so far stand for
  for piece in text.split(";"):
    line = piece.strip()
    if line.startswith("Answer:"):
      is_correct = done == len(events) and line == f"Answer: {total // box}"
      verdicts.append(_VERDICT[is_correct])
      continue
    if counted := re.fullmatch(rf"{RECOUNT} (\d+)", line):
      total = int(counted[1])
      is_correct = events[done : done + 1] == [Event(0, RECOUNT, total)]
      verdicts.append(_VERDICT[is_correct])
      done += 1
      continue
    operations = _operations(line)
    if operations is None:
      # It stands for no event, and the running total stays.
      verdicts.append("wrong")
      continue
    moves = operations.moves
    following = events[done : done + len(moves)]
    expected = [event.sign * event.amount for event in following if event.sign]
    result = total + sum(moves)
    is_correct = operations == _Operations(total, expected, result)
    verdict = _VERDICT[is_correct]
    if is_correct and len(moves) > 1:
      verdict = "leap"
    verdicts.append(verdict)
    # A wrong line is followed: what comes after it is judged by what it adds and takes away.
    total = result
    done += len(moves)
  return verdicts


_VERDICT = {True: "right", False: "wrong"}


class _Operations(NamedTuple):
  """A line of arithmetic, `11 + 2 - 5 = 8`."""

  left: int
  moves: list[int]  # signed amounts
  right: int


def _operations(line: str) -> _Operations | None:
  match = re.fullmatch(r"(\d+)((?: [+-] \d+)+) = (\d+)", line)
  if match is None:
    return None
  moves = [int(sign + amount) for sign, amount in re.findall(r"([+-]) (\d+)", match[2])]
  return _Operations(int(match[1]), moves, int(match[3]))


def _drawn(world: World, split: str) -> Iterator[Problem]:
  """Problems in the world's seeded order, with repeats, of all splits."""
  random = np.random.default_rng([world.seed, SPLITS.index(split)])
  verbs = world.verbs
  if split == "base":
    verbs = world.base_verbs
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
      sign = -1
      if random.random() < 0.5:
        sign = 1
      if not 0 <= total + sign * amount <= world.largest:
        sign = -sign
      if not 0 <= total + sign * amount <= world.largest:
        break
      rank = min(int(np.searchsorted(edges, random.random())), verbs - 1)
      words.append(f"{verb(sign, rank)} {amount} .")
      happened += 1
      total += sign * amount
    if happened >= world.min_events:
      asked = "?"
      if world.box > 1:
        asked = f"boxes of {world.box} ?"
      question = f"A shop has {start} {thing} . {' '.join(words)} {asked}"
      yield Problem(
        id=_id(question),
        question=question,
        answer=str(total // world.box),
        source="world",
        metadata={"events": happened},
      )


def _recounted_after(events: int, world: World, random: np.random.Generator) -> int | None:
  """After how many events the shop counts, None where it never does; at least one event follows."""
  if not world.recount:
    return None
  return min(int(random.binomial(events, world.recount)), events - 1)


@functools.lru_cache(1 << 20)
def _bucket(question: str) -> int:
  digest = hashlib.sha256(b"split " + question.encode()).digest()
  return int.from_bytes(digest[:4], "big") % 100


def _split_of(question: str) -> str:
  return next(split for split, share in _SHARES.items() if _bucket(question) in share)


def _id(question: str) -> str:
  return "world-" + hashlib.sha256(question.encode()).hexdigest()[:16]


_SYMBOLS = {1: "+", -1: "-", 0: ""}  # a recount has a line of its own


def _trace(problem: Problem, source: str, events: Sequence[Event], operations_of_line) -> Trace:
  """Lines of one or more operations.

  A step's span holds its line with the ` ; ` after it, so that steps tile the text.
  """
  total, _, box = parse(problem.question)
  text = ""
  steps = []
  while events:
    count = operations_of_line(len(events))
    taken = events[:count]
    events = events[count:]
    result = total
    moves = ""
    for event in taken:
      result = event.after(result)
      moves += f" {_SYMBOLS[event.sign]} {event.amount}"
    line = f"{total}{moves} = {result} ; "
    if taken[0].sign == 0:
      line = f"{RECOUNT} {result} ; "
    steps.append(Step(len(text), len(text) + len(line), leap=count > 1))
    text += line
    total = result
  answer = f"Answer: {total // box}"
  steps.append(Step(len(text), len(text) + len(answer), leap=False))
  return Trace(
    problem_id=problem.id,
    text=text + answer,
    steps=tuple(steps),
    answer=problem.answer,
    source=source,
  )
