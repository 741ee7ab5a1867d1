"""Trees of rollouts in one row: what branches share is read once.

A tree is laid out depth first; `until` of a node's tokens is where its subtree ends, so every token sees exactly its ancestors (the one
mask). Positions count by depth. A token is predicted from the token before it on its path, so the last token of a shared prefix predicts
the first token of every branch: predictions are a list of (source place, target id, segment), not a shifted copy of the row. A segment is
a step.

Neighbouring rows form a group: the rows of a batch that one device computes together. Lists of predictions, segments and trees belong to
a group and count from 0 in it, so a mesh shares groups out as it does rows, and a micro-batch is some of the groups.

Tokens are those that were sampled: nodes are spans of the sampled sequence, and nothing is tokenised again here.

Shapes: B rows, T places of a row, M groups, E predictions, S segments, P trees (pairs) of a group.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from synthjax.data import packing
from synthjax.errors import Error

_EVEN = 8  # predictions of a group are a multiple of it: blocks of a kernel divide them


class TreeError(Error, ValueError):
  """Trees that cannot be laid out; the message names the tree and what is wrong."""


@dataclasses.dataclass(frozen=True)
class Node:
  """A span of tokens and what may follow it."""

  tokens: tuple[int, ...]
  children: tuple["Node", ...] = ()
  predicted: bool = (
    True  # a step of a policy: its tokens are targets, and it is a segment; False for a prompt
  )
  side: int = 0  # +1 on the chosen side of a pair, -1 on the rejected one
  weight: float = 1.0  # how much the step counts in its loss
  advantage: float = 0.0  # of the step

  def size(self) -> int:
    """Tokens of the whole subtree."""
    return sum(len(node.tokens) for node in nodes(self))


def chosen_alone(root: Node) -> Node:
  """A pair's tree without its rejected side; every chosen step has advantage 1, on neither side."""
  children = tuple(_chosen_chain(child) for child in root.children if child.side > 0)
  return dataclasses.replace(root, children=children)


def _chosen_chain(node: Node) -> Node:
  below: tuple[Node, ...] = ()
  for step in reversed(list(nodes(node))):
    below = (dataclasses.replace(step, children=below, side=0, advantage=1.0, weight=1.0),)
  return below[0]


def pair(
  prefix: Sequence[int],
  chosen: Sequence[Sequence[int]],
  rejected: Sequence[Sequence[int]],
  weights: tuple[Sequence[float], Sequence[float]] | None = None,
  advantages: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Node:
  """A pair as a tree: prefix, then both sides as chains of steps.

  Args:
    prefix: tokens that both sides go on from; not predicted.
    chosen: tokens of every step, end-of-text within the last one where the side is complete.
    rejected: the same.
    weights: of the steps of both sides; 1 where None.
    advantages: of the steps of both sides; 0 where None.
  """
  children: list[Node] = []
  for number, (side, steps) in enumerate(((1, chosen), (-1, rejected))):
    side_weights = weights[number] if weights else [1.0] * len(steps)
    side_advantages = advantages[number] if advantages else [0.0] * len(steps)
    children += _chain(steps, side, side_weights, side_advantages)
  return Node(tuple(prefix), tuple(children), predicted=False)


def _chain(steps, side, weights, advantages) -> tuple[Node, ...]:
  """The steps as a chain, each the only child of the one before it; () where there are none."""
  rest: tuple[Node, ...] = ()
  for tokens, weight, advantage in list(zip(steps, weights, advantages, strict=True))[::-1]:
    rest = (Node(tuple(tokens), rest, side=side, weight=weight, advantage=advantage),)
  return rest


def split(tree: Node, seq_len: int) -> list[Node] | None:
  """The tree in pieces that fit a row, each with the path above it; None where one path alone is too long.

  Pieces are cut at branches only. What stands above a cut is predicted in the first piece alone: no step counts twice.
  """
  if tree.size() <= seq_len:
    return [tree]
  # A chain is followed in a loop: it may have more steps than Python has frames.
  spine = [tree]
  while len(spine[-1].children) == 1:
    spine.append(spine[-1].children[0])
  room = seq_len - sum(len(node.tokens) for node in spine)
  if room <= 0 or not spine[-1].children:
    return None
  pieces: list[Node] = []
  for child in spine[-1].children:
    found = split(child, room)
    if found is None:
      return None
    pieces += found
  groups: list[list[Node]] = []
  for piece in pieces:
    if groups and sum(p.size() for p in groups[-1]) + piece.size() <= room:
      groups[-1].append(piece)
    else:
      groups.append([piece])
  return [_under(spine, tuple(group), number == 0) for number, group in enumerate(groups)]


def _under(spine: Sequence[Node], children: tuple[Node, ...], first: bool) -> Node:
  """A chain of nodes with other children at its end; it is predicted in the first piece alone."""
  for node in spine[::-1]:
    predicted = node.predicted and first
    children = (dataclasses.replace(node, children=children, predicted=predicted),)
  return children[0]


class Plan(NamedTuple):
  """Trees by row, and what found no place."""

  rows: list[list[Node]]
  split: int  # trees that were split at a branch
  too_long: list[int]  # indices of trees with a path, or (pairs) a whole, longer than a row
  fill: float


def plan(trees: Sequence[Node], seq_len: int, splittable: bool) -> Plan:
  """Packs trees into rows.

  Args:
    trees: any number of them.
    seq_len: T.
    splittable: a tree longer than a row may be split at a branch; a pair may not: its two sides belong into one margin.
  """
  pieces: list[Node] = []
  too_long, divided = [], 0
  for number, tree in enumerate(trees):
    found = split(tree, seq_len) if splittable else ([tree] if tree.size() <= seq_len else None)
    if found is None:
      too_long.append(number)
    else:
      divided += len(found) > 1
      pieces += found
  packed = packing.pack(np.array([piece.size() for piece in pieces], int), seq_len)
  return Plan(
    [[pieces[i] for i in packed.row(r)] for r in range(len(packed))], divided, too_long, packed.fill
  )


@dataclasses.dataclass(frozen=True)
class Bounds:
  """Static sizes of a group of rows: one compilation for all batches."""

  rows: int  # of a group
  seq_len: int  # T
  predictions: int  # E
  segments: int  # S
  trees: int  # P


def bounds(
  rows: Sequence[Sequence[Node]], group_rows: int, seq_len: int, even: int = _EVEN
) -> Bounds:
  """Bounds that hold for any group of `TreeRows`: those of the largest rows together, each as often as a group can hold it.

  Args:
    rows: of a plan.
    group_rows: rows of a group.
    seq_len: T.
    even: E is a multiple of it.
  """
  counts = np.sort(np.array([_counts(row) for row in rows]), axis=0)[::-1]
  repeats = (
    -(-(group_rows - 1) // len(rows)) + 1
  )  # a group may go over the ends of epochs, and each epoch has every row
  predictions, segments, trees = np.repeat(counts, repeats, axis=0)[:group_rows].sum(axis=0)
  return Bounds(group_rows, seq_len, -(-int(predictions) // even) * even, int(segments), int(trees))


def _counts(row) -> tuple[int, int, int]:
  steps = [node for tree in row for node in nodes(tree) if node.predicted]
  return sum(len(node.tokens) for node in steps), len(steps), len(row)


def nodes(node: Node) -> Iterator[Node]:
  """A subtree's nodes, depth first."""
  waiting = [node]
  while waiting:
    found = waiting.pop()
    yield found
    waiting += found.children[::-1]


def layout(rows: Sequence[Sequence[Node]], limits: Bounds) -> dict[str, np.ndarray]:
  """Rows of trees as the arrays that training reads; the last group may lack rows.

  Returns:
    [B, T]: `tokens`, `positions`, `until`.
    [M, E]: `source` (place r * T + t of the group's rows whose hidden state predicts), `targets`, `segment` (S for padding).
    [M, S]: `tree` (P for padding), `side`, `weight` (0 for padding), `advantage`, `segment_tokens`.

  Raises:
    TreeError: a tree does not fit the bounds; a predicted node at the root (nothing comes before it); an empty node.
  """
  groups = []
  for start in range(0, len(rows), limits.rows):
    group = _Group(limits)
    tree = 0
    for row, members in enumerate(rows[start : start + limits.rows]):
      group.begin_row(row)
      for root in members:
        group.add(root, tree)
        tree += 1
    groups.append(group.arrays)
  return {name: np.concatenate([arrays[name] for arrays in groups]) for name in groups[0]}


class _Group:
  """Fills the arrays of one group."""

  def __init__(self, limits: Bounds):
    self.limits = limits
    B, T, E, S, P = dataclasses.astuple(limits)
    alone_T = np.arange(1, T + 1, dtype=np.int32)  # padding sees itself
    self.arrays = {
      "tokens": np.zeros((B, T), np.int32),
      "positions": np.zeros((B, T), np.int32),
      "until": np.tile(alone_T, (B, 1)),
      "source": np.zeros((1, E), np.int32),
      "targets": np.zeros((1, E), np.int32),
      "segment": np.full((1, E), S, np.int32),
      "tree": np.full((1, S), P, np.int32),
      **{
        name: np.zeros((1, S), np.float32)
        for name in ("side", "weight", "advantage", "segment_tokens")
      },
    }
    self.row = self.at = self.predictions = self.segments = 0

  def begin_row(self, row: int) -> None:
    self.row, self.at = row, 0

  def add(self, root: Node, tree: int) -> None:
    """Lays a tree out, depth first."""
    # (node, place of the token before it, depth); or (place of its first token, None, 0) once its subtree is laid out
    waiting: list[tuple[Node | slice, int | None, int]] = [(root, None, 0)]
    while waiting:
      node, before, depth = waiting.pop()
      if isinstance(node, slice):
        self.arrays["until"][self.row, node] = self.at
        continue
      places = self._place(node, before, depth, tree)
      waiting.append((places, None, 0))
      below = depth + len(node.tokens)
      waiting += [(child, places.stop - 1, below) for child in node.children[::-1]]

  def _place(self, node: Node, before: int | None, depth: int, tree: int) -> slice:
    """Lays one node out; returns its places in the row. `before` is the place of the token before it on its path."""
    count, start, limits = len(node.tokens), self.at, self.limits
    if count == 0:
      raise TreeError(f"tree {tree}: a node without tokens at depth {depth}")
    if min(node.tokens) < 0 or node.weight < 0:
      raise TreeError(
        f"tree {tree}: at depth {depth} a token is {min(node.tokens)} and the step's weight {node.weight}; expected 0 and "
        "more of both: which side a step is on is said by `side`, not by the sign of its weight"
      )
    if start + count > limits.seq_len or tree >= limits.trees:
      raise TreeError(
        f"tree {tree}: place {start + count} of row {self.row} is beyond its {limits.seq_len} places, or the tree beyond "
        f"the group's {limits.trees}"
      )
    if node.predicted and before is None:
      raise TreeError(
        f"tree {tree}: its first node is to be predicted, but nothing comes before it; begin with a prompt"
      )
    places = slice(start, start + count)
    self.arrays["tokens"][self.row, places] = node.tokens
    self.arrays["positions"][self.row, places] = depth + np.arange(count)
    if node.predicted:
      self._predict(node, before, start, tree)
    self.at += count
    return places

  def _predict(self, node, before, start, tree) -> None:
    count, first, limits = len(node.tokens), self.predictions, self.limits
    if first + count > limits.predictions or self.segments >= limits.segments:
      raise TreeError(
        f"tree {tree}: {first + count} predictions and {self.segments + 1} segments in this group, bounds are "
        f"{limits.predictions} and {limits.segments}"
      )
    entries, row = slice(first, first + count), self.row * limits.seq_len
    self.arrays["source"][0, entries] = row + np.concatenate(
      [[before], np.arange(start, start + count - 1)]
    )
    self.arrays["targets"][0, entries] = node.tokens
    self.arrays["segment"][0, entries] = self.segments
    about = {
      "tree": tree,
      "side": node.side,
      "weight": node.weight,
      "advantage": node.advantage,
      "segment_tokens": count,
    }
    for name, value in about.items():
      self.arrays[name][0, self.segments] = value
    self.predictions += count
    self.segments += 1


class TreeRows:
  """Planned rows of trees in one global order, as `loader.Rows` has them for documents: epoch by epoch, rows permuted by the seed.

  Args:
    rows: of a plan.
    reference: the reference's log-prob sum of every segment, an array a row in depth-first order; None where no loss reads it.
    limits: from `bounds`.
    seed: of the permutations.
    fill: of the plan.
  """

  def __init__(
    self,
    rows: Sequence[Sequence[Node]],
    reference: Sequence[np.ndarray] | None,
    limits: Bounds,
    seed: int,
    fill: float,
  ):
    self.rows, self.reference, self.limits, self.fill = rows, reference, limits, fill
    self._order = functools.lru_cache(2)(
      lambda epoch: np.random.default_rng([seed, epoch]).permutation(len(rows))
    )

  def ids(self, index: int) -> list[int]:
    """The row of the plan that stands at a place of the global order."""
    epoch, place = divmod(index, len(self.rows))
    return [int(self._order(epoch)[place])]

  def read(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """The arrays of some rows, whole groups of them (see `layout`), with `reference` [M, S]."""
    chosen = [i for index in indices for i in self.ids(index)]
    arrays = layout([self.rows[i] for i in chosen], self.limits)
    sums_MS = np.zeros(arrays["tree"].shape, np.float32)
    if self.reference is not None:
      for group, sums_S in enumerate(sums_MS):
        first = group * self.limits.rows
        found = np.concatenate(
          [self.reference[i] for i in chosen[first : first + self.limits.rows]]
        )
        sums_S[: len(found)] = found
    return {**arrays, "reference": sums_MS}
