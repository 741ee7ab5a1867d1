import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthjax.data import packing


@given(st.lists(st.integers(1, 32), max_size=200))
def test_every_document_is_in_exactly_one_row_and_every_row_fits(lengths):
  plan = packing.pack(np.array(lengths, int), 32)
  rows = [plan.row(r).tolist() for r in range(len(plan))]
  assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
  assert all(0 < sum(lengths[i] for i in row) <= 32 for row in rows)


def test_rows_are_at_least_95_percent_full():
  lengths = np.random.default_rng(0).integers(20, 200, 20_000)
  assert packing.pack(lengths, 512).fill >= 0.95


def test_a_document_longer_than_a_row_is_named():
  with pytest.raises(ValueError, match="document 1 has 9 tokens; a row takes 1 to 8"):
    packing.pack(np.array([3, 9]), 8)


def test_targets_never_cross_documents_and_prompts_carry_no_loss():
  rows = packing.layout([[np.array([2, 5, 6, 7, 8]), np.array([0, 9, 10])]], 8)
  assert rows["tokens"].tolist() == [[5, 6, 7, 8, 9, 10, 0, 0]]
  assert rows["targets"].tolist() == [[6, 7, 8, 0, 10, 0, 0, 0]]
  assert rows["weights"].tolist() == [[0, 1, 1, 0, 1, 0, 0, 0]]
  assert rows["positions"].tolist() == [[0, 1, 2, 3, 0, 1, 0, 0]]
  assert rows["until"].tolist() == [[4, 4, 4, 4, 6, 6, 7, 8]]
