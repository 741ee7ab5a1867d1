"""Trees of rollouts packed into rows: what branches share is read once.

A tree is laid out depth first; `until` of a node's tokens is where its subtree ends, so every token
sees exactly its ancestors (the one mask). Positions count by depth. A token is predicted from the
token before it on its path, so the last token of a shared prefix predicts the first token of every
branch: predictions are a list of (source index, target id, segment), not a shifted copy of the row.
A segment is a step.

Neighbouring rows form a group: the rows of a batch that one device computes together. Lists of
predictions, segments and trees belong to a group and count from 0 in it, so a mesh shares groups
out as it does rows, and a micro-batch is some of the groups.

Tokens are those that were sampled: nodes are spans of the sampled sequence, and nothing is
tokenised again here.

Shapes: B rows, T tokens of a row, M groups, E predictions, S segments, P trees (pairs) of a group.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from synthjax.data import packing
from synthjax.errors import Error

# The predictions of a group are padded to a multiple of this, so that blocks of a kernel divide
# them.
_EVEN = 8


class TreeError(Error, ValueError):
  """Trees that cannot be laid out; the message names the tree and the problem."""


@dataclasses.dataclass(frozen=True)
class Node:
  """A span of tokens and what may follow it."""

  tokens: tuple[int, ...]
  children: tuple["Node", ...] = ()
  # True for a step of a policy: its tokens are targets, and it is a segment. False for a prompt.
  predicted: bool = True
  side: int = 0  # +1 on the chosen side of a pair, -1 on the rejected one
  weight: float = 1.0  # how much the step counts in its loss
  advantage: float = 0.0  # of the step

  def size(self) -> int:
    """Tokens of the whole subtree."""
    return sum(len(node.tokens) for node in nodes(self))


def nodes(root: Node) -> Iterator[Node]:
  """A subtree's nodes, depth first."""
  # A stack of its own: a chain may have more steps than Python has frames.
  stack = [root]
  while stack:
    node = stack.pop()
    yield node
    stack += node.children[::-1]


def chosen_alone(root: Node) -> Node:
  """A pair's tree without its rejected side; every chosen step has advantage 1, on neither side."""
  children = tuple(_chosen_chain(child) for child in root.children if child.side > 0)
  return dataclasses.replace(root, children=children)


def _chosen_chain(node: Node) -> Node:
  below: tuple[Node, ...] = ()
  for step in reversed(list(nodes(node))):
    step = dataclasses.replace(step, children=below, side=0, advantage=1.0, weight=1.0)
    below = (step,)
  return below[0]


def pair(
  prefix: Sequence[int],
  chosen: Sequence[Sequence[int]],
  rejected: Sequence[Sequence[int]],
  weights: tuple[Sequence[float], Sequence[float]] | None = None,
  advantages: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Node:
  """A pair as a tree: the prefix, then both sides as chains of steps.

  Args:
    prefix: tokens that both sides go on from; not predicted.
    chosen: tokens of every step, end-of-text within the last one where the side is complete.
    rejected: the same.
    weights: of the steps of both sides; 1 where None.
    advantages: of the steps of both sides; 0 where None.
  """
  if weights is None:
    weights = [1.0] * len(chosen), [1.0] * len(rejected)
  if advantages is None:
    advantages = [0.0] * len(chosen), [0.0] * len(rejected)
  children = (
    *_chain(chosen, 1, weights[0], advantages[0]),
    *_chain(rejected, -1, weights[1], advantages[1]),
  )
  return Node(tuple(prefix), children, predicted=False)


def _chain(
  steps: Sequence[Sequence[int]], side: int, weights: Sequence[float], advantages: Sequence[float]
) -> tuple[Node, ...]:
  """The steps as a chain, each the only child of the one before it; () where there are none."""
  rest: tuple[Node, ...] = ()
  for tokens, weight, advantage in list(zip(steps, weights, advantages, strict=True))[::-1]:
    step = Node(tuple(tokens), rest, side=side, weight=weight, advantage=advantage)
    rest = (step,)
  return rest


def split(tree: Node, seq_len: int) -> list[Node] | None:
  """The tree in pieces that fit a row, each with the path above it.

  Pieces are cut at branches only. What stands above a cut is predicted in the first piece alone: no
  step counts twice. The result is None where one path alone is too long.
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
    parts = split(child, room)
    if parts is None:
      return None
    pieces += parts
  siblings = _fill_in_order(pieces, room)
  return [_under(spine, children, number == 0) for number, children in enumerate(siblings)]


def _fill_in_order(pieces: Sequence[Node], room: int) -> list[list[Node]]:
  """Neighbouring pieces together, as many as fit the room."""
  filled: list[list[Node]] = []
  for piece in pieces:
    if filled and sum(p.size() for p in filled[-1]) + piece.size() <= room:
      filled[-1].append(piece)
    else:
      filled.append([piece])
  return filled


def _under(spine: Sequence[Node], children: Sequence[Node], first: bool) -> Node:
  """A chain of nodes with other children at its end; it is predicted in the first piece alone."""
  below = tuple(children)
  for node in spine[::-1]:
    predicted = node.predicted and first
    below = (dataclasses.replace(node, children=below, predicted=predicted),)
  return below[0]


class TreePlan(NamedTuple):
  """Trees by row, and those that fit no row."""

  rows: list[list[Node]]
  split: int  # trees that were split at a branch
  too_long: list[int]  # indices of trees with a path, or (pairs) a whole, longer than a row
  fill: float  # share of the rows' tokens that is no padding


def plan(trees: Sequence[Node], seq_len: int, splittable: bool) -> TreePlan:
  """Packs trees into rows.

  Args:
    trees: any number of them.
    seq_len: T.
    splittable: a tree longer than a row may be split at a branch. A pair may not: both of its sides
      enter one margin.
  """
  pieces: list[Node] = []
  too_long: list[int] = []
  divided = 0
  for number, tree in enumerate(trees):
    parts: list[Node] | None = None
    if splittable:
      parts = split(tree, seq_len)
    elif tree.size() <= seq_len:
      parts = [tree]
    if parts is None:
      too_long.append(number)
      continue
    divided += len(parts) > 1
    pieces += parts
  packed = packing.pack(np.array([piece.size() for piece in pieces], int), seq_len)
  rows = []
  for number in range(len(packed)):
    rows.append([pieces[i] for i in packed.row(number)])
  return TreePlan(rows, divided, too_long, packed.fill)


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
  """Bounds that hold for any group of `PackedTrees`.

  They are those of the largest rows together, each as often as a group can hold it.

  Args:
    rows: of a plan.
    group_rows: rows of a group.
    seq_len: T.
    even: E is a multiple of it.
  """
  largest_first = np.sort(np.array([_counts(row) for row in rows]), axis=0)[::-1]
  # A group may go over the ends of epochs, and each epoch has every row.
  repeats = -(-(group_rows - 1) // len(rows)) + 1
  most = np.repeat(largest_first, repeats, axis=0)[:group_rows].sum(axis=0)
  predictions, segments, trees = (int(count) for count in most)
  return Bounds(
    rows=group_rows,
    seq_len=seq_len,
    predictions=-(-predictions // even) * even,
    segments=segments,
    trees=trees,
  )


def _counts(row: Sequence[Node]) -> tuple[int, int, int]:
  """(predictions, segments, trees) of a row."""
  predictions = segments = 0
  for tree in row:
    for node in nodes(tree):
      if node.predicted:
        predictions += len(node.tokens)
        segments += 1
  return predictions, segments, len(row)


def layout(rows: Sequence[Sequence[Node]], limits: Bounds) -> dict[str, np.ndarray]:
  """Rows of trees as the arrays that training reads; the last group may lack rows.

  Returns:
    [B, T]: `tokens`, `positions`, `until`.
    [M, E]: `source` (index r * T + t, in the group's rows, of the hidden state that predicts),
      `targets`, `segment` (S for padding).
    [M, S]: `tree` (P for padding), `side`, `weight` (0 for padding), `advantage`, `segment_tokens`.

  Raises:
    TreeError: a tree does not fit the bounds; a predicted node at the root (nothing comes before
      it); an empty node.
  """
  groups: list[dict[str, np.ndarray]] = []
  for start in range(0, len(rows), limits.rows):
    arrays_of_group = _Group(limits)
    tree = 0
    for row, members in enumerate(rows[start : start + limits.rows]):
      arrays_of_group.begin_row(row)
      for root in members:
        arrays_of_group.add(root, tree)
        tree += 1
    groups.append(arrays_of_group.arrays)
  arrays = {}
  for name in groups[0]:
    arrays[name] = np.concatenate([group[name] for group in groups])
  return arrays


class _Visit(NamedTuple):
  """A node that waits to be laid out."""

  node: Node
  before: int | None  # index in the row of the token before it on its path; None for a root
  depth: int  # of its first token


class _Group:
  """Fills the arrays of one group."""

  def __init__(self, limits: Bounds):
    self.limits = limits
    B, T = limits.rows, limits.seq_len
    E, S, P = limits.predictions, limits.segments, limits.trees
    alone_T = np.arange(1, T + 1, dtype=np.int32)  # padding sees itself
    self.arrays = {
      "tokens": np.zeros((B, T), np.int32),
      "positions": np.zeros((B, T), np.int32),
      "until": np.tile(alone_T, (B, 1)),
      "source": np.zeros((1, E), np.int32),
      "targets": np.zeros((1, E), np.int32),
      "segment": np.full((1, E), S, np.int32),
      "tree": np.full((1, S), P, np.int32),
      "side": np.zeros((1, S), np.float32),
      "weight": np.zeros((1, S), np.float32),
      "advantage": np.zeros((1, S), np.float32),
      "segment_tokens": np.zeros((1, S), np.float32),
    }
    self.row = 0
    self.end = 0  # of what is laid out in this row
    self.predictions = 0
    self.segments = 0

  def begin_row(self, row: int) -> None:
    self.row, self.end = row, 0

  def add(self, root: Node, tree: int) -> None:
    """Lays a tree out, depth first."""
    # A slice of the row stands for a node whose subtree is laid out by the time it is popped.
    stack: list[_Visit | slice] = [_Visit(root, None, 0)]
    while stack:
      visit = stack.pop()
      if isinstance(visit, slice):
        self.arrays["until"][self.row, visit] = self.end
        continue
      span = self._place(visit, tree)
      stack.append(span)
      below = visit.depth + len(visit.node.tokens)
      for child in visit.node.children[::-1]:
        stack.append(_Visit(child, span.stop - 1, below))

  def _place(self, visit: _Visit, tree: int) -> slice:
    """Lays one node out; returns its span of the row."""
    node, before, depth = visit
    self._check(visit, tree)
    span = slice(self.end, self.end + len(node.tokens))
    self.arrays["tokens"][self.row, span] = node.tokens
    self.arrays["positions"][self.row, span] = depth + np.arange(len(node.tokens))
    if node.predicted:
      assert before is not None  # as checked above
      self._predict(node, before, span, tree)
    self.end = span.stop
    return span

  def _check(self, visit: _Visit, tree: int) -> None:
    node, limits = visit.node, self.limits
    if len(node.tokens) == 0:
      raise TreeError(f"tree {tree}: a node without tokens at depth {visit.depth}")
    if min(node.tokens) < 0 or node.weight < 0:
      raise TreeError(
        f"tree {tree}: at depth {visit.depth} a token is {min(node.tokens)} and the step's weight "
        f"{node.weight}; expected 0 or more for both: `side` says which side a step is on, not the "
        "sign of its weight"
      )
    end = self.end + len(node.tokens)
    if end > limits.seq_len or tree >= limits.trees:
      raise TreeError(
        f"tree {tree}: it ends at token {end} of row {self.row}, which takes {limits.seq_len}, or "
        f"it is beyond the {limits.trees} trees of its group"
      )
    if node.predicted and visit.before is None:
      raise TreeError(
        f"tree {tree}: its first node is to be predicted, but nothing comes before it; begin with "
        "a prompt"
      )

  def _predict(self, node: Node, before: int, span: slice, tree: int) -> None:
    """Makes the node's tokens predictions, and the node a segment."""
    count, limits, arrays = len(node.tokens), self.limits, self.arrays
    predictions = slice(self.predictions, self.predictions + count)
    if predictions.stop > limits.predictions or self.segments >= limits.segments:
      raise TreeError(
        f"tree {tree}: {predictions.stop} predictions and {self.segments + 1} segments in this "
        f"group, bounds are {limits.predictions} and {limits.segments}"
      )
    sources = np.arange(span.start - 1, span.stop - 1)
    sources[0] = before  # which may stand far from it, at the end of a shared prefix
    arrays["source"][0, predictions] = self.row * limits.seq_len + sources
    arrays["targets"][0, predictions] = node.tokens
    arrays["segment"][0, predictions] = self.segments
    arrays["tree"][0, self.segments] = tree
    arrays["side"][0, self.segments] = node.side
    arrays["weight"][0, self.segments] = node.weight
    arrays["advantage"][0, self.segments] = node.advantage
    arrays["segment_tokens"][0, self.segments] = count
    self.predictions = predictions.stop
    self.segments += 1


class PackedTrees:
  """Planned rows of trees in one global order, as `loader.PackedDocuments` has them for documents.

  Epoch by epoch, the rows are permuted by the seed.

  Args:
    rows: of a plan.
    reference: the reference's log-prob sum of every segment, an array per row in depth-first order;
      None where no loss reads it.
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

    def order(epoch: int) -> np.ndarray:
      return np.random.default_rng([seed, epoch]).permutation(len(rows))

    # A batch may reach into the next epoch.
    self._order = functools.lru_cache(2)(order)

  def ids(self, index: int) -> list[int]:
    """The row of the plan that stands at this index of the global order."""
    epoch, index_in_epoch = divmod(index, len(self.rows))
    return [int(self._order(epoch)[index_in_epoch])]

  def read(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """The arrays of some rows, whole groups of them (see `layout`), with `reference` [M, S]."""
    chosen = [i for index in indices for i in self.ids(index)]
    arrays = layout([self.rows[i] for i in chosen], self.limits)
    sums_MS = np.zeros(arrays["tree"].shape, np.float32)
    if self.reference is not None:
      for group, sums_S in enumerate(sums_MS):
        first = group * self.limits.rows
        of_group = chosen[first : first + self.limits.rows]
        sums = np.concatenate([self.reference[i] for i in of_group])
        sums_S[: len(sums)] = sums
    return {**arrays, "reference": sums_MS}
