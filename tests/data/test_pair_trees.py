"""Pairs as trees: tokens, weights and advantages as the record has them, or an error."""

import dataclasses

import numpy as np
import pytest

from synthjax import files
from synthjax.data import pair_trees, tokenizers, trees
from synthjax.records import Pair

TOKENIZER = tokenizers.Bytes()
SAMPLED = {"prefix_ids": [1, 2], "chosen_steps": [[3], [4]], "rejected_steps": [[5, 6]]}
TEXT = Pair("p", "ab", "c", "d", "paper", rejected_complete=False)


def _pair(**metadata):
  return Pair("p", "x", "a", "b", "step", metadata=metadata)


def _tree(pair, number=0, weighted=True):
  return pair_trees.tree_of(pair_trees.token_pair(pair, TOKENIZER, number), weighted)


def _steps(pair, number=0):
  return [(n.tokens, n.side, n.weight, n.advantage) for n in trees.nodes(_tree(pair, number))]


def test_sampled_tokens_are_taken_as_they_are_with_the_weight_and_the_advantage_of_every_step():
  weights = {"chosen_weights": [1.0, 0], "rejected_weights": [0.5]}
  advantages = {"chosen_advantages": [0.25, 0.5], "rejected_advantages": [-0.25]}
  prefix = ((1, 2), 0, 1.0, 0.0)
  assert _steps(_pair(**SAMPLED)) == [
    prefix,
    ((3,), 1, 1.0, 0.0),
    ((4,), 1, 1.0, 0.0),
    ((5, 6), -1, 1.0, 0.0),
  ]
  assert _steps(_pair(**SAMPLED, **weights, **advantages)) == [
    prefix,
    ((3,), 1, 1.0, 0.25),
    ((4,), 1, 0, 0.5),
    ((5, 6), -1, 0.5, -0.25),
  ]


def test_weights_are_left_out_where_the_loss_reads_none():
  pair = _pair(**SAMPLED, chosen_weights=[0.0, 3.0], rejected_weights=[2.0])
  assert {node.weight for node in trees.nodes(_tree(pair, weighted=False))} == {1.0}


def test_texts_are_one_step_a_side_and_take_one_weight_and_one_advantage():
  prefix = ((97, 98), 0, 1.0, 0.0)
  assert _steps(TEXT) == [prefix, ((99, 257), 1, 1.0, 0.0), ((100,), -1, 1.0, 0.0)]
  known = {
    "chosen_weights": [2.0],
    "rejected_weights": [0.5],
    "chosen_advantages": [0.25],
    "rejected_advantages": [-0.5],
  }
  assert _steps(dataclasses.replace(TEXT, metadata=known)) == [
    prefix,
    ((99, 257), 1, 2.0, 0.25),
    ((100,), -1, 0.5, -0.5),
  ]


@pytest.mark.parametrize(
  ("metadata", "says"),
  [
    (
      {"prefix_ids": [1]},
      "metadata has no chosen_steps and no rejected_steps; expected the sampled tokens as",
    ),
    ({"chosen_steps": [[1]], "rejected_steps": [[1]]}, "metadata has no prefix_ids; expected"),
    (
      {**SAMPLED, "prefix_ids": []},
      r"metadata.prefix_ids is \[\]; expected a list of token ids, at least one",
    ),
    (
      {**SAMPLED, "chosen_steps": [[3], []]},
      r"metadata.chosen_steps\[1\] is \[\]; expected a list of token ids",
    ),
    (
      {**SAMPLED, "rejected_steps": []},
      r"metadata.rejected_steps is \[\]; expected a list of steps, at least one",
    ),
    (
      {**SAMPLED, "rejected_steps": [[258]]},
      r"metadata.rejected_steps\[0\]\[0\] is 258; expected a token id from 0 to 257",
    ),
    ({**SAMPLED, "prefix_ids": [1, "2"]}, r"metadata.prefix_ids\[1\] is '2'; expected a token id"),
    (
      {**SAMPLED, "chosen_weights": [1, 1]},
      "metadata has no rejected_weights; expected weights for both sides or none",
    ),
    (
      {**SAMPLED, "rejected_advantages": [1]},
      "metadata has no chosen_advantages; expected advantages for both sides or none",
    ),
    (
      {**SAMPLED, "chosen_weights": [1], "rejected_weights": [1]},
      "metadata.chosen_weights has 1 values; expected 2, a number for each step",
    ),
    (
      {**SAMPLED, "chosen_weights": [1, 1], "rejected_weights": [-1]},
      r"metadata.rejected_weights\[0\] is -1; expected a finite number, 0 or more",
    ),
    (
      {**SAMPLED, "chosen_weights": [1, float("inf")], "rejected_weights": [1]},
      r"metadata.chosen_weights\[1\] is inf; expected",
    ),
    (
      {**SAMPLED, "chosen_advantages": [0, float("nan")], "rejected_advantages": [1]},
      r"metadata.chosen_advantages\[1\] is nan; expected a finite number$",
    ),
    (
      {**SAMPLED, "chosen_advantages": [0, None], "rejected_advantages": [1]},
      r"metadata.chosen_advantages\[1\] is None; expected a finite number$",
    ),
    (
      {"chosen_weights": [0.5, 1], "rejected_weights": [1]},
      "metadata.chosen_weights has 2 values; expected 1, .* given as text is one step",
    ),
    (
      {"chosen_weights": 0.5, "rejected_weights": [1]},
      "metadata.chosen_weights has 0.5; expected 1",
    ),
  ],
)
def test_metadata_that_is_not_as_described_is_refused_by_the_pair_and_the_value(metadata, says):
  with pytest.raises(files.DataError, match=r"pair 7 \(problem 'p'\): " + says):
    _steps(_pair(**metadata), 7)


def test_texts_whose_boundary_is_within_a_token_and_empty_ones_are_refused():
  class Merging(tokenizers.Bytes):
    def encode(self, text):
      return [300] if text == "abc" else super().encode(text)

  with pytest.raises(
    files.DataError, match="pair 7 .* the tokens of its prefix are not the first tokens"
  ):
    pair_trees.token_pair(TEXT, Merging(), 7)
  with pytest.raises(files.DataError, match="pair 7 .* or the response is empty"):
    _steps(dataclasses.replace(TEXT, rejected=""), 7)
  with pytest.raises(files.DataError, match="pair 7 .* its prefix has no tokens"):
    _steps(dataclasses.replace(TEXT, prefix=""), 7)


def test_each_pair_is_given_the_responses_to_the_next_other_problem_and_none_of_its_own():
  names = "aabcca"
  pairs = [Pair(name, "?", f"w{i}", f"l{i}", "paper", False, False) for i, name in enumerate(names)]
  plain = [_tree(pair) for pair in pairs]
  found = pair_trees.with_mismatched(plain, pairs)
  for root, before, other in zip(found, plain, (2, 2, 3, 5, 5, 2), strict=True):
    assert root.children[:2] == before.children and root.tokens == before.tokens
    assert [
      (bytes(n.tokens).decode(), n.side, n.weight, n.predicted) for n in root.children[2:]
    ] == [(f"w{other}", 0, 0.0, True), (f"l{other}", 0, 0.0, True)]
  with pytest.raises(files.DataError, match="all 2 pairs are of one; add pairs of others, or set"):
    pair_trees.with_mismatched(plain[:2], pairs[:2])


def test_a_predicted_prompt_is_one_segment_on_neither_side_without_its_first_token():
  plain = _tree(_pair(**SAMPLED))
  root, prompt, *rest = trees.nodes(pair_trees.with_predicted_prompt(plain))
  assert (root.tokens, root.predicted) == ((1,), False)
  assert (prompt.tokens, prompt.predicted, prompt.side, prompt.weight) == ((2,), True, 0, 0.0)
  assert rest == list(trees.nodes(plain))[1:]
  short = dataclasses.replace(plain, tokens=(1,))
  assert pair_trees.with_predicted_prompt(short) is short


def test_a_pair_of_1200_steps_a_side_is_laid_out_with_the_advantage_of_each():
  """More steps than Python has frames; with KTO's further branches as well."""
  count = 1200
  steps, advantages = [[3]] * count, [i / count for i in range(count)]
  metadata = {
    "prefix_ids": [1, 2],
    "chosen_steps": steps,
    "rejected_steps": steps,
    "chosen_advantages": advantages,
    "rejected_advantages": advantages,
  }
  pairs = [Pair(name, "?", "", "", "random", metadata=metadata) for name in "ab"]
  roots = [_tree(pair) for pair in pairs]
  for trees_, length in (
    (roots, 2 * count + 2),
    (pair_trees.with_mismatched(roots, pairs), 4 * count + 2),
  ):
    plan = trees.plan(trees_, length, splittable=False)
    arrays = trees.layout(plan.rows[:1], trees.bounds(plan.rows, 1, length))
    assert plan.fill == 1 and not plan.too_long
    np.testing.assert_allclose(arrays["advantage"][0, : 2 * count], advantages * 2, rtol=1e-6)
    assert arrays["side"][0, : 2 * count].tolist() == [1.0] * count + [-1.0] * count
