"""Preference pairs in tokens, and as trees.

`TokenPair` is a pair in memory. On disk it is the `metadata` of a `records.Pair`, which people may
write by hand, so reading checks it.

`metadata` of a pair may hold

- `prefix_ids`, `chosen_steps`, `rejected_steps`: the sampled tokens, a list of ids for each step;
  all three or none. Without them the texts are tokenised, and each side is one step.
- `chosen_weights`, `rejected_weights`: how much each step's log-ratio enters the margin of
  `step_dpo`, 0 and more. No other loss reads them: `awr` has weights of its own.
- `chosen_advantages`, `rejected_advantages`: q_i - q_(i-1) of each step, for `awr` and
  `filtered_sft`.

Weights and advantages are lists of a number a step, for both sides or for none.
"""

import dataclasses
import math
import reprlib
from collections.abc import Sequence
from typing import Any

from synthjax.data import trees
from synthjax.data.tokenizers import Tokenizer
from synthjax.files import DataError
from synthjax.records import Ids, Pair

SIDES = ("chosen", "rejected")
_TOKENS = ("prefix_ids", "chosen_steps", "rejected_steps")


@dataclasses.dataclass(frozen=True)
class TokenSide:
  """One side of a pair, step by step."""

  steps: tuple[Ids, ...]  # end-of-text within the last one where the side is complete
  complete: bool
  advantages: Sequence[float] | None = None  # of each step
  weights: Sequence[float] | None = None  # of each step's log-ratio in the margin of `step_dpo`

  def ids(self) -> Ids:
    """The tokens of all steps."""
    return tuple(token for step in self.steps for token in step)


@dataclasses.dataclass(frozen=True)
class TokenPair:
  """A preference in tokens."""

  problem_id: str
  prefix_ids: Ids
  chosen: TokenSide
  rejected: TokenSide
  # Where a pair of sampled traces comes from; nobody reads them back from a file.
  trace: int | None = None  # index of the incorrect trace among those of its problem
  pit: int | None = None  # the step that the pair is about, where its mode has one

  def metadata(self) -> dict:
    """As `records.Pair` carries it; see the top of this file."""
    row: dict[str, Any] = {
      "prefix_ids": list(self.prefix_ids),
      "chosen_steps": [list(step) for step in self.chosen.steps],
      "rejected_steps": [list(step) for step in self.rejected.steps],
      "trace": self.trace,
    }
    if self.pit:
      row["pit"] = self.pit
    chosen, rejected = self.chosen, self.rejected
    if chosen.advantages is not None and rejected.advantages is not None:
      row["chosen_advantages"] = list(chosen.advantages)
      row["rejected_advantages"] = list(rejected.advantages)
    if chosen.weights is not None and rejected.weights is not None:
      row["chosen_weights"] = list(chosen.weights)
      row["rejected_weights"] = list(rejected.weights)
    return row


def token_pair(pair: Pair, tokenizer: Tokenizer, number: int) -> TokenPair:
  """The tokens of a pair that was read from a file, checked.

  Args:
    pair: see the top of this file for its metadata.
    tokenizer: of the policy.
    number: of the pair in its file, for messages.

  Raises:
    DataError: prefix and continuation share a token, a side is empty, or the metadata is not as
      described; the message names the pair.
  """
  name, metadata = describe(pair, number), pair.metadata
  if any(key in metadata for key in _TOKENS):
    prefix, chosen, rejected = _sampled(metadata, tokenizer.size, name)
  else:
    prefix, chosen, rejected = _tokenised(pair, tokenizer, name)
  counts = len(chosen), len(rejected)
  # Checked even where the loss reads none: a malformed file is an error under every loss.
  weights = _of_steps(metadata, "weights", counts, name) or (None, None)
  advantages = _of_steps(metadata, "advantages", counts, name) or (None, None)
  return TokenPair(
    problem_id=pair.problem_id,
    prefix_ids=tuple(prefix),
    chosen=TokenSide(
      steps=tuple(tuple(step) for step in chosen),
      complete=pair.chosen_complete,
      advantages=advantages[0],
      weights=weights[0],
    ),
    rejected=TokenSide(
      steps=tuple(tuple(step) for step in rejected),
      complete=pair.rejected_complete,
      advantages=advantages[1],
      weights=weights[1],
    ),
  )


def tree_of(pair: TokenPair, weighted: bool = True) -> trees.Node:
  """A pair as a tree: its prefix, and a chain of steps for each side.

  Args:
    pair: with the weights and advantages of both sides, or of none.
    weighted: whether steps have the weights of the pair; else each has weight 1.
  """
  chosen, rejected = pair.chosen, pair.rejected
  weights = advantages = None
  if weighted and chosen.weights is not None and rejected.weights is not None:
    weights = (chosen.weights, rejected.weights)
  if chosen.advantages is not None and rejected.advantages is not None:
    advantages = (chosen.advantages, rejected.advantages)
  return trees.pair(
    pair.prefix_ids, chosen.steps, rejected.steps, weights=weights, advantages=advantages
  )


def describe(pair: Pair, number: int) -> str:
  """The pair's name in a message."""
  return f"pair {number} (problem {pair.problem_id!r})"


def has_advantages(pair: Pair) -> bool:
  """Whether the step values of both sides are known."""
  return "chosen_advantages" in pair.metadata and "rejected_advantages" in pair.metadata


def has_weights(pair: Pair) -> bool:
  """Whether its steps have weights."""
  return "chosen_weights" in pair.metadata


def with_mismatched(roots: Sequence[trees.Node], pairs: Sequence[Pair]) -> list[trees.Node]:
  """The trees, each with both responses of a pair of another problem as two further branches.

  KTO estimates its reference point from them (see `losses.preference.kto`). The other pair is the
  next one in the file, which comes after the last one to its beginning. The branches are on neither
  side and weigh 0: each is one segment whose log-prob is summed and trained on by no loss.

  Raises:
    DataError: all pairs are of one problem.
  """
  others = _next_of_another_problem(pairs)
  return [
    dataclasses.replace(root, children=root.children + _responses(roots[other]))
    for root, other in zip(roots, others, strict=True)
  ]


def with_predicted_prompt(root: trees.Node) -> trees.Node:
  """The tree with its prefix predicted but for its first token, on neither side, with weight 0."""
  first, rest = root.tokens[:1], root.tokens[1:]
  if not rest:
    return root
  prompt = trees.Node(rest, root.children, weight=0.0)
  return dataclasses.replace(root, tokens=first, children=(prompt,))


def _next_of_another_problem(pairs: Sequence[Pair]) -> list[int]:
  count = len(pairs)
  if len({pair.problem_id for pair in pairs}) < 2:
    raise DataError(
      f"KTO's reference point needs responses to other problems, but all {count} pairs are of one; "
      "add pairs of others, or set config.objective.preference.kto_reference='matched'"
    )
  others = [0] * count
  other = 0
  # Backwards and twice around: only the second time is it known what follows the last pairs.
  for index in reversed(range(2 * count)):
    this, after = index % count, (index + 1) % count
    if pairs[this].problem_id != pairs[after].problem_id:
      other = after
    others[this] = other
  return others


def _responses(root: trees.Node) -> tuple[trees.Node, ...]:
  """Both sides of a pair's tree, each as one node that no loss trains on."""
  tokens: dict[int, list[int]] = {1: [], -1: []}
  for node in trees.nodes(root):
    if node.side:
      tokens[node.side] += node.tokens
  return tuple(trees.Node(tuple(ids), weight=0.0) for ids in tokens.values())


def _tokenised(pair: Pair, tokenizer: Tokenizer, name: str):
  """Tokens of the texts: (prefix, one step of the chosen side, one of the rejected)."""
  prefix = list(tokenizer.encode(pair.prefix))
  if not prefix:
    raise DataError(f"{name}: its prefix has no tokens; expected a problem to go on from")
  chosen = _continuation(prefix, pair.prefix + pair.chosen, tokenizer, name)
  rejected = _continuation(prefix, pair.prefix + pair.rejected, tokenizer, name)
  if pair.chosen_complete:
    chosen.append(tokenizer.eos_id)
  if pair.rejected_complete:
    rejected.append(tokenizer.eos_id)
  return prefix, [chosen], [rejected]


def _continuation(prefix: Sequence[int], whole: str, tokenizer: Tokenizer, name: str) -> list[int]:
  """Tokens after the prefix, tokenised with it, so that the boundary is that of the whole text."""
  tokens = list(tokenizer.encode(whole))
  if tokens[: len(prefix)] != list(prefix) or len(tokens) == len(prefix):
    raise DataError(
      f"{name}: the tokens of its prefix are not the first tokens of prefix and response together, "
      "or the response is empty; give the sampled tokens in metadata (prefix_ids, chosen_steps, "
      "rejected_steps)"
    )
  return tokens[len(prefix) :]


def _sampled(metadata: dict[str, Any], vocabulary: int, name: str):
  """The sampled tokens: (prefix, steps of the chosen side, steps of the rejected one)."""
  missing = [key for key in _TOKENS if key not in metadata]
  if missing:
    raise DataError(
      f"{name}: metadata has no {' and no '.join(missing)}; expected the sampled tokens as "
      f"{', '.join(_TOKENS)}, all three or none"
    )
  _check_ids(metadata["prefix_ids"], "prefix_ids", vocabulary, name)
  for side in SIDES:
    steps = metadata[f"{side}_steps"]
    if not isinstance(steps, list) or not steps:
      raise DataError(
        f"{name}: metadata.{side}_steps is {reprlib.repr(steps)}; expected a list of steps, at "
        "least one, each a list of token ids"
      )
    for place, ids in enumerate(steps):
      _check_ids(ids, f"{side}_steps[{place}]", vocabulary, name)
  return tuple(metadata[key] for key in _TOKENS)


def _check_ids(ids: Any, key: str, vocabulary: int, name: str) -> None:
  if not isinstance(ids, list) or not ids:
    raise DataError(
      f"{name}: metadata.{key} is {reprlib.repr(ids)}; expected a list of token ids, at least one"
    )
  for place, i in enumerate(ids):
    # A bool is an int to Python.
    if type(i) is not int or not 0 <= i < vocabulary:
      raise DataError(
        f"{name}: metadata.{key}[{place}] is {reprlib.repr(i)}; expected a token id from 0 to "
        f"{vocabulary - 1}"
      )


def _of_steps(
  metadata: dict[str, Any], quantity: str, counts: tuple[int, int], name: str
) -> tuple[list[float], list[float]] | None:
  """The weights or advantages of the steps of both sides; None where there are none."""
  chosen, rejected = f"chosen_{quantity}", f"rejected_{quantity}"
  missing = [key for key in (chosen, rejected) if key not in metadata]
  if len(missing) == 2:
    return None
  if missing:
    raise DataError(
      f"{name}: metadata has no {missing[0]}; expected {quantity} for both sides or none"
    )
  for key, count in zip((chosen, rejected), counts):
    _check_numbers(metadata[key], key, count, name)
  return metadata[chosen], metadata[rejected]


def _check_numbers(values: Any, key: str, count: int, name: str) -> None:
  if not isinstance(values, list) or len(values) != count:
    found = reprlib.repr(values)
    if isinstance(values, list):
      found = f"{len(values)} values"
    raise DataError(
      f"{name}: metadata.{key} has {found}; expected {count}, a number for each step of the side "
      "(a side given as text is one step; several are given as chosen_steps, rejected_steps)"
    )
  expected = "a finite number"
  if key.endswith("weights"):
    expected = "a finite number, 0 or more: the side says which way a step counts"
  for place, value in enumerate(values):
    is_number = isinstance(value, int | float) and math.isfinite(value)
    if not is_number or (key.endswith("weights") and value < 0):
      found = reprlib.repr(value)
      raise DataError(f"{name}: metadata.{key}[{place}] is {found}; expected {expected}")
