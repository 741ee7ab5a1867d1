"""Trees of rollouts in one row: what branches share is read once.

A tree is laid out depth first; `until` of a node's tokens is where its subtree ends, so every token sees exactly its ancestors (the one
mask). Positions count by depth. A token is predicted from the token before it on its path, so the last token of a shared prefix predicts
the first token of every branch: predictions are a list of (source place, target id, segment), not a shifted copy of the row. A segment is
a step.

Tokens are those that were sampled: nodes are spans of the sampled sequence, and nothing is tokenised again here.

Shapes: B rows, T places of a row, E predictions, S segments, P trees of the batch (pairs).
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from synthjax.data import packing
from synthjax.errors import Error

_EVEN = 64  # predictions of a batch are a multiple of it, so that a mesh can share them out


class TreeError(Error, ValueError):
  """Trees that cannot be laid out; the message names the tree and what is wrong."""


@dataclasses.dataclass(frozen=True)
class Node:
  """A span of tokens and what may follow it."""

  tokens: tuple[int, ...]
  children: tuple["Node", ...] = ()
  predicted: bool = True  # a step of a policy: its tokens are targets, and it is a segment; False for a prompt
  side: int = 0  # +1 on the chosen side of a pair, -1 on the rejected one
  weight: float = 1.0  # how much the step counts in its loss
  advantage: float = 0.0  # of the step

  def size(self) -> int:
    """Tokens of the whole subtree."""
    return len(self.tokens) + sum(child.size() for child in self.children)


def pair(prefix: Sequence[int], chosen: Sequence[Sequence[int]], rejected: Sequence[Sequence[int]], shared: int = 0,
         weights: tuple[Sequence[float], Sequence[float]] | None = None) -> Node:
  """A pair as a tree: prefix, then both sides as chains of steps.

  Args:
    prefix: tokens that both sides go on from; not predicted.
    chosen: tokens of every step, end-of-text within the last one where the side is complete.
    rejected: the same.
    shared: how many first steps both sides have in common; they are laid out once and cancel in the margin.
    weights: of the steps of both sides; 1 where None.
  """
  if chosen[:shared] != rejected[:shared]:
    raise TreeError(f"the first {shared} steps of the two sides are not the same")
  weights = weights or ([1.0] * len(chosen), [1.0] * len(rejected))
  sides = tuple(_chain(steps[shared:], side, weight[shared:]) for steps, side, weight in
                ((chosen, 1, weights[0]), (rejected, -1, weights[1])) if len(steps) > shared)
  start = tuple(prefix) + tuple(token for step in chosen[:shared] for token in step)
  return Node(start, sides, predicted=False)


def _chain(steps, side, weights) -> Node:
  node: Node | None = None
  for tokens, weight in list(zip(steps, weights, strict=True))[::-1]:
    node = Node(tuple(tokens), (node,) if node else (), side=side, weight=weight)
  assert node is not None
  return node


def split(tree: Node, row_length: int) -> list[Node] | None:
  """The tree in pieces that fit a row, each with the path above it; None where one path alone is too long.

  Pieces are cut at branches only. What stands above a cut is predicted in the first piece alone: no step counts twice.
  """
  if tree.size() <= row_length:
    return [tree]
  room = row_length - len(tree.tokens)
  pieces: list[Node] = []
  for child in tree.children:
    found = split(child, room)
    if found is None:
      return None
    pieces += found
  if room <= 0 or not pieces:
    return None
  groups: list[list[Node]] = []
  for piece in pieces:
    if groups and sum(p.size() for p in groups[-1]) + piece.size() <= room:
      groups[-1].append(piece)
    else:
      groups.append([piece])
  return [dataclasses.replace(tree, children=tuple(group), predicted=tree.predicted and number == 0) for number, group in enumerate(groups)]


class Plan(NamedTuple):
  """Trees by row, and what found no place."""

  rows: list[list[Node]]
  split: int  # trees that were split at a branch
  too_long: list[int]  # indices of trees with a path, or (pairs) a whole, longer than a row
  fill: float


def plan(trees: Sequence[Node], row_length: int, splittable: bool) -> Plan:
  """Packs trees into rows.

  Args:
    trees: any number of them.
    row_length: T.
    splittable: a tree longer than a row may be split at a branch; a pair may not: its two sides belong into one margin.
  """
  pieces: list[Node] = []
  too_long, divided = [], 0
  for number, tree in enumerate(trees):
    found = split(tree, row_length) if splittable else ([tree] if tree.size() <= row_length else None)
    if found is None:
      too_long.append(number)
    else:
      divided += len(found) > 1
      pieces += found
  packed = packing.pack(np.array([piece.size() for piece in pieces], int), row_length)
  return Plan([[pieces[i] for i in packed.row(r)] for r in range(len(packed))], divided, too_long, packed.fill)


@dataclasses.dataclass(frozen=True)
class Bounds:
  """Static sizes of a batch: one compilation for all of them."""

  rows: int  # B
  row_length: int  # T
  predictions: int  # E
  segments: int  # S
  trees: int  # P


def bounds(rows: Sequence[Sequence[Node]], batch_rows: int, row_length: int) -> Bounds:
  """Bounds that hold for every batch of consecutive rows."""
  counts = [_counts(row) for row in rows]
  batches = [np.sum(counts[start:start + batch_rows], axis=0) for start in range(0, len(rows), batch_rows)]
  predictions, segments, trees = np.max(batches, axis=0)
  return Bounds(batch_rows, row_length, _even(int(predictions)), int(segments), int(trees))


def bounds_of_any(rows: Sequence[Sequence[Node]], batch_rows: int, row_length: int) -> Bounds:
  """Bounds that hold for a batch of `TreeRows`: those of the largest rows together, each as often as a batch can hold it."""
  counts = np.sort(np.array([_counts(row) for row in rows]), axis=0)[::-1]
  repeats = -(-(batch_rows - 1) // len(rows)) + 1  # a batch may go over the ends of epochs, and each epoch has every row
  predictions, segments, trees = np.repeat(counts, repeats, axis=0)[:batch_rows].sum(axis=0)
  return Bounds(batch_rows, row_length, _even(int(predictions)), int(segments), int(trees))


def _even(count: int) -> int:
  return -(-count // _EVEN) * _EVEN


def _counts(row) -> tuple[int, int, int]:
  steps = [node for tree in row for node in nodes(tree) if node.predicted]
  return sum(len(node.tokens) for node in steps), len(steps), len(row)


def nodes(node: Node) -> Iterator[Node]:
  """A subtree's nodes, depth first."""
  yield node
  for child in node.children:
    yield from nodes(child)


def layout(rows: Sequence[Sequence[Node]], limits: Bounds) -> dict[str, np.ndarray]:
  """Rows of trees as the arrays that training reads.

  Returns:
    [B, T]: `tokens`, `positions`, `until`.
    [E]: `source` (place b * T + t whose hidden state predicts), `targets`, `segment` (S for filler).
    [S]: `tree` (P for filler), `side`, `weight` (0 for filler), `advantage`, `segment_tokens`.

  Raises:
    TreeError: a tree does not fit the bounds; a predicted node at the root (nothing comes before it); an empty node.
  """
  builder = _Builder(limits)
  if len(rows) > limits.rows:
    raise TreeError(f"{len(rows)} rows, but the batch has room for {limits.rows}")
  tree = 0
  for row, members in enumerate(rows):
    builder.begin_row(row)
    for root in members:
      builder.add(root, None, 0, tree)
      tree += 1
  return builder.arrays


class _Builder:
  """Fills the arrays of one batch."""

  def __init__(self, limits: Bounds):
    self.limits = limits
    B, T, E, S, P = dataclasses.astuple(limits)
    alone_T = np.arange(1, T + 1, dtype=np.int32)  # filler sees itself
    self.arrays = {
      "tokens": np.zeros((B, T), np.int32), "positions": np.zeros((B, T), np.int32), "until": np.tile(alone_T, (B, 1)),
      "source": np.zeros(E, np.int32), "targets": np.zeros(E, np.int32), "segment": np.full(E, S, np.int32),
      "tree": np.full(S, P, np.int32), **{name: np.zeros(S, np.float32) for name in ("side", "weight", "advantage", "segment_tokens")},
    }
    self.row = self.at = self.predictions = self.segments = 0

  def begin_row(self, row: int) -> None:
    self.row, self.at = row, 0

  def add(self, node: Node, before: int | None, depth: int, tree: int) -> None:
    """Lays a subtree out; `before` is the place of the token before it on its path."""
    count, start, limits = len(node.tokens), self.at, self.limits
    if count == 0:
      raise TreeError(f"tree {tree}: a node without tokens at depth {depth}")
    if min(node.tokens) < 0 or node.weight < 0:
      raise TreeError(f"tree {tree}: at depth {depth} a token is {min(node.tokens)} and the step's weight {node.weight}; expected 0 and "
                      "more of both: which side a step is on is said by `side`, not by the sign of its weight")
    if start + count > limits.row_length or tree >= limits.trees:
      raise TreeError(f"tree {tree}: place {start + count} of row {self.row} is beyond its {limits.row_length} places, or the tree beyond "
                      f"the batch's {limits.trees}")
    if node.predicted and before is None:
      raise TreeError(f"tree {tree}: its first node is to be predicted, but nothing comes before it; begin with a prompt")
    places = slice(start, start + count)
    self.arrays["tokens"][self.row, places] = node.tokens
    self.arrays["positions"][self.row, places] = depth + np.arange(count)
    if node.predicted:
      self._predict(node, before, start, tree)
    self.at += count
    for child in node.children:
      self.add(child, start + count - 1, depth + count, tree)
    self.arrays["until"][self.row, places] = self.at

  def _predict(self, node, before, start, tree) -> None:
    count, first, limits = len(node.tokens), self.predictions, self.limits
    if first + count > limits.predictions or self.segments >= limits.segments:
      raise TreeError(f"tree {tree}: {first + count} predictions and {self.segments + 1} segments in this batch, bounds are "
                      f"{limits.predictions} and {limits.segments}")
    entries, row = slice(first, first + count), self.row * limits.row_length
    self.arrays["source"][entries] = row + np.concatenate([[before], np.arange(start, start + count - 1)])
    self.arrays["targets"][entries] = node.tokens
    self.arrays["segment"][entries] = self.segments
    about = {"tree": tree, "side": node.side, "weight": node.weight, "advantage": node.advantage, "segment_tokens": count}
    for name, value in about.items():
      self.arrays[name][self.segments] = value
    self.predictions += count
    self.segments += 1


class TreeRows:
  """Planned rows of trees in one global order, as `loader.Rows` has them for documents: epoch by epoch, rows permuted by the seed.

  Args:
    rows: of a plan.
    reference: the reference's log-prob sum of every segment, an array a row in depth-first order; None where no loss reads it.
    batch_size: rows of a batch, for bounds that hold for any of them.
    row_length: T.
    seed: of the permutations.
    fill: of the plan.
  """

  def __init__(self, rows: Sequence[Sequence[Node]], reference: Sequence[np.ndarray] | None, batch_size: int, row_length: int, seed: int,
               fill: float):
    self.rows, self.reference, self.fill = rows, reference, fill
    self.limits = bounds_of_any(rows, batch_size, row_length)
    self._order = functools.lru_cache(2)(lambda epoch: np.random.default_rng([seed, epoch]).permutation(len(rows)))

  def ids(self, index: int) -> list[int]:
    """The row of the plan that stands at a place of the global order."""
    epoch, place = divmod(index, len(self.rows))
    return [int(self._order(epoch)[place])]

  def read(self, indices: list[int]) -> dict[str, np.ndarray]:
    """The arrays of a batch (see `layout`), with `reference` [S]."""
    chosen = [i for index in indices for i in self.ids(index)]
    arrays = layout([self.rows[i] for i in chosen], self.limits)
    sums_S = np.zeros(self.limits.segments, np.float32)
    if self.reference is not None:
      found = np.concatenate([self.reference[i] for i in chosen])
      sums_S[:len(found)] = found
    return {**arrays, "reference": sums_S}
