"""The star graph (Bachmann & Nagarajan 2024, arXiv 2403.06963): a path that next-token training finds hard to plan.

`arms` arms of `length` edges leave a centre; a problem lists all edges in random order, then centre and goal, the end of one arm:
`7>3 0>5 0>7 5>9 / 0 9`; its trace is the path, `5 9`, a node a step. The first node decides, the others follow from the one before: a
policy that guesses an arm and follows it is right with probability 1 / arms. An edge is a single token, and so is a node.
"""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from synthjax.config.worlds import Star
from synthjax.records import Problem
from synthjax.worlds.splits import distinct

SPLITS = ("train", "dev", "test")
# Shares of the problem space, by a hash of the graph and its goal, whatever the order of its edges.
_SHARES = {"train": range(80), "dev": range(80, 90), "test": range(90, 100)}

Policy = Callable[
  [tuple[str, ...]], Mapping[str, float]
]  # probability of each next node, given the nodes so far (without the centre)


class Graph(NamedTuple):
  """A problem as its text says it."""

  edges: list[tuple[str, str]]  # away from the centre, in the order of the text
  centre: str
  goal: str

  def path(self) -> tuple[str, ...]:
    """Nodes from the centre, without it, to the goal. Raises ValueError where no edges lead there."""
    parent = {b: a for a, b in self.edges}
    found = [self.goal]
    while (before := parent.get(found[-1])) != self.centre:
      if before is None or len(found) > len(self.edges):
        raise ValueError(f"no edges lead from centre {self.centre} to goal {self.goal}")
      found.append(before)
    return tuple(found[::-1])


def vocabulary(star: Star) -> list[str]:
  """Every word the star can print: `/`, nodes, and edges between any two of them."""
  nodes = [str(i) for i in range(star.labels)]
  return ["/", *nodes, *(f"{a}>{b}" for a, b in itertools.permutations(nodes, 2))]


def problems(star: Star, split: str, count: int) -> list[Problem]:
  """The first `count` distinct problems of a split, in the star's seeded order: a longer list begins with the shorter one.

  Two problems are distinct where their edges or goals differ; another order of the edges is the same problem.

  Raises:
    ValueError: unknown split, or the split holds fewer distinct problems.
  """
  if split not in SPLITS:
    raise ValueError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
  where = f"star split {split!r}", "raise star.labels or star.length"
  return distinct(
    _drawn(star, split),
    lambda problem: problem.id,
    lambda name: _split_of(name) == split,
    count,
    where,
  )


def parse(question: str) -> Graph:
  """A problem's graph. Raises ValueError where its text is not one of a star."""
  match = re.fullmatch(r"((?:\d+>\d+ )+)/ (\d+) (\d+)", question)
  if not match:
    raise ValueError(f"not a problem of the star: {question!r}")
  return Graph(
    [(a, b) for a, b in (edge.split(">") for edge in match[1].split())], match[2], match[3]
  )


def shortcut(question: str) -> Policy:
  """The policy that next-token training falls into: an arm at random, then edge by edge to its end."""
  graph = parse(question)

  def policy(nodes: tuple[str, ...]) -> dict[str, float]:
    here = nodes[-1] if nodes else graph.centre
    following = [b for a, b in graph.edges if a == here]
    return dict.fromkeys(following, 1 / max(len(following), 1))

  return policy


def exact_value(question: str, nodes: Sequence[str], policy: Policy) -> float:
  """Probability that `policy`, going on after `nodes`, ends with the whole path; 0 where they have left it.

  The path is the only right continuation, so the value is the product of its probabilities.
  """
  path = parse(question).path()
  if _common(path, nodes) < len(nodes):
    return 0.0
  value = 1.0
  for i in range(len(nodes), len(path)):
    value *= policy(path[:i]).get(path[i], 0.0)
  return value


def _common(path: Sequence[str], nodes: Sequence[str]) -> int:
  """How many first nodes are those of the path."""
  return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(path, nodes)))


def _drawn(star: Star, split: str) -> Iterator[Problem]:
  """Problems in the star's seeded order, with repeats, of all splits."""
  random = np.random.default_rng([star.seed, SPLITS.index(split)])
  while True:
    centre, *rest = map(str, random.permutation(star.labels)[: star.arms * star.length + 1])
    arms = [rest[i : i + star.length] for i in range(0, len(rest), star.length)]
    edges = [f"{a}>{b}" for arm in arms for a, b in itertools.pairwise([centre, *arm])]
    path = arms[random.integers(star.arms)]
    question = f"{' '.join(random.permutation(edges))} / {centre} {path[-1]}"
    name = hashlib.sha256(" ".join([*sorted(edges), path[-1]]).encode()).hexdigest()[:16]
    yield Problem(
      f"star-{name}", question, " ".join(path), "star", {"arms": star.arms, "length": star.length}
    )


def _split_of(name: str) -> str:
  bucket = int.from_bytes(hashlib.sha256(b"split " + name.encode()).digest()[:4], "big") % 100
  return next(split for split, share in _SHARES.items() if bucket in share)
