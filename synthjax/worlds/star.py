"""The star graph (Bachmann & Nagarajan 2024, arXiv 2403.06963): hard for next-token training.

`arms` arms of `length` edges leave a centre. A problem lists all edges in random order, then the
centre and the goal, which is the end of one arm: `7>3 0>5 0>7 5>9 / 0 9`. Its trace is the path,
`5 9`, a node a step. The first node decides, every other one follows from the one before: a policy
that guesses an arm and follows it is correct with probability 1 / arms. An edge is a single token,
and so is a node.
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
# Percentiles of the problem space, by a hash of the graph and its goal: the order of edges does
# not count.
_SHARES = {
  "train": range(80),
  "dev": range(80, 90),
  "test": range(90, 100),
}

# From the nodes so far (without the centre) to the probability of each next node.
NodePolicy = Callable[[tuple[str, ...]], Mapping[str, float]]


class Edge(NamedTuple):
  """An edge, which leads away from the centre."""

  tail: str
  head: str


class Graph(NamedTuple):
  """A problem as its text says it."""

  edges: list[Edge]  # in the order of the text
  centre: str
  goal: str

  def path(self) -> tuple[str, ...]:
    """Nodes from the centre, without it, to the goal.

    Raises:
      ValueError: no edges lead there.
    """
    parents = {edge.head: edge.tail for edge in self.edges}
    backwards = [self.goal]
    while (parent := parents.get(backwards[-1])) != self.centre:
      # More nodes than edges: the edges run in a circle.
      if parent is None or len(backwards) > len(self.edges):
        raise ValueError(f"no edges lead from centre {self.centre} to goal {self.goal}")
      backwards.append(parent)
    return tuple(reversed(backwards))


def vocabulary(star: Star) -> list[str]:
  """Every word the star can print: `/`, nodes, and edges between any two of them."""
  nodes = [str(i) for i in range(star.labels)]
  edges = [f"{tail}>{head}" for tail, head in itertools.permutations(nodes, 2)]
  return ["/", *nodes, *edges]


def problems(star: Star, split: str, count: int) -> list[Problem]:
  """The first `count` distinct problems of a split, in the star's seeded order.

  A longer list begins with the shorter one. Two problems are distinct where their edges or goals
  differ; another order of the edges is the same problem.

  Raises:
    ValueError: unknown split, or the split holds fewer distinct problems.
  """
  if split not in SPLITS:
    raise ValueError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
  return distinct(
    _drawn(star, split),
    name=lambda problem: problem.id,
    inside=lambda name: _split_of(name) == split,
    count=count,
    where=(f"star split {split!r}", "raise star.labels or star.length"),
  )


def parse(question: str) -> Graph:
  """A problem's graph. Raises ValueError where its text is not one of a star."""
  match = re.fullmatch(r"(?P<edges>(?:\d+>\d+ )+)/ (?P<centre>\d+) (?P<goal>\d+)", question)
  if not match:
    raise ValueError(f"not a problem of the star: {question!r}")
  edges = [Edge(*text.split(">")) for text in match["edges"].split()]
  return Graph(edges, match["centre"], match["goal"])


def shortcut(question: str) -> NodePolicy:
  """The policy that next-token training falls into: any arm, then edge by edge to its end."""
  graph = parse(question)

  def policy(nodes: tuple[str, ...]) -> dict[str, float]:
    here = graph.centre
    if nodes:
      here = nodes[-1]
    following = [edge.head for edge in graph.edges if edge.tail == here]
    return dict.fromkeys(following, 1 / max(len(following), 1))

  return policy


def exact_value(question: str, nodes: Sequence[str], policy: NodePolicy) -> float:
  """Probability that `policy`, going on after `nodes`, ends with the whole path.

  It is 0 where the nodes have left the path. The path is the only correct continuation, so the
  value is the product of its probabilities.
  """
  path = parse(question).path()
  if tuple(nodes) != path[: len(nodes)]:
    return 0.0
  value = 1.0
  for i in range(len(nodes), len(path)):
    value *= policy(path[:i]).get(path[i], 0.0)
  return value


def _drawn(star: Star, split: str) -> Iterator[Problem]:
  """Problems in the star's seeded order, with repeats, of all splits."""
  random = np.random.default_rng([star.seed, SPLITS.index(split)])
  num_nodes = star.arms * star.length + 1
  while True:
    labels = random.permutation(star.labels)[:num_nodes]
    centre, *others = map(str, labels)
    arms = []
    edges = []
    for start in range(0, len(others), star.length):
      arm = others[start : start + star.length]
      arms.append(arm)
      edges += [f"{tail}>{head}" for tail, head in itertools.pairwise([centre, *arm])]
    path = arms[random.integers(star.arms)]
    goal = path[-1]
    shuffled = " ".join(random.permutation(edges))
    identity = " ".join([*sorted(edges), goal])
    digest = hashlib.sha256(identity.encode()).hexdigest()
    yield Problem(
      id=f"star-{digest[:16]}",
      question=f"{shuffled} / {centre} {goal}",
      answer=" ".join(path),
      source="star",
      metadata={"arms": star.arms, "length": star.length},
    )


def _split_of(name: str) -> str:
  digest = hashlib.sha256(b"split " + name.encode()).digest()
  percentile = int.from_bytes(digest[:4], "big") % 100
  return next(split for split, share in _SHARES.items() if percentile in share)
