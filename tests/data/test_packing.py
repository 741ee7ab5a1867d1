"""The packing plan: every document once, full rows, and what a row looks like."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthjax.data import packing


@given(st.lists(st.integers(1, 32), max_size=200))
def test_every_document_is_in_exactly_one_row_and_every_row_fits(lengths):
  plan = packing.pack(np.array(lengths, int), 32)
  seen = []
  for number in range(len(plan)):
    row = plan.row(number).tolist()
    assert 0 < sum(lengths[i] for i in row) <= 32
    seen += row
  assert sorted(seen) == list(range(len(lengths)))


def test_rows_are_at_least_95_percent_full():
  lengths = np.random.default_rng(0).integers(20, 200, 20_000)
  assert packing.pack(lengths, 512).fill >= 0.95


def test_a_document_longer_than_a_row_is_named():
  with pytest.raises(ValueError, match="document 1 has 9 tokens; a row takes 1 to 8"):
    packing.pack(np.array([3, 9]), 8)


def test_targets_never_cross_documents_and_prompts_carry_no_loss():
  with_prompt_of_2, without_prompt = np.array([2, 5, 6, 7, 8]), np.array([0, 9, 10])
  arrays = packing.layout([[with_prompt_of_2, without_prompt]], 8)
  row = {name: array[0].tolist() for name, array in arrays.items()}
  assert row == {
    "tokens": [5, 6, 7, 8, 9, 10, 0, 0],
    "targets": [6, 7, 8, 0, 10, 0, 0, 0],
    "weights": [0, 1, 1, 0, 1, 0, 0, 0],
    "positions": [0, 1, 2, 3, 0, 1, 0, 0],
    "until": [4, 4, 4, 4, 6, 6, 7, 8],
  }
