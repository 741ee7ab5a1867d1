"""Pages beside a brute-force reading of their mask."""

import numpy as np
import pytest

from synthjax.rollout.prefixes import Page


def _seen(page, end):
  """What a sequence that goes on from `end` sees, in order: (token, position)."""
  return [
    (int(page.tokens_T[t]), int(page.positions_T[t]))
    for t in range(end + 1)
    if end < page.until_T[t]
  ]


@pytest.mark.parametrize("seed", range(20))
def test_every_prompt_of_a_page_sees_itself_and_nothing_else(seed):
  random = np.random.default_rng(seed)
  prompts = sorted(
    {tuple(random.integers(0, 2, random.integers(1, 9)).tolist()) for _ in range(40)}
  )
  page, ends = Page(60), {}
  for prompt in prompts:
    end = page.add(prompt)
    if end is None:
      break
    ends[prompt] = end
  different = {prompt[:n] for prompt in ends for n in range(1, len(prompt) + 1)}
  assert page.filled == len(different) <= 60  # a node of the tree of prefixes each
  for prompt, end in ends.items():
    assert _seen(page, end) == list(zip(prompt, range(len(prompt))))
    # The same for the tokens inside: a token sees its ancestors and itself.
    for n in range(1, len(prompt)):
      assert _seen(page, page_place(page, ends, prompt[:n])) == list(zip(prompt[:n], range(n)))
  assert (page.until_T > np.arange(60)).all()
  assert all(_seen(page, t)[-1] == (0, 0) for t in range(page.filled, 60))


def page_place(page, ends, prefix):
  """Where a prefix ends: the one place that sees exactly it."""
  (place,) = [
    t for t in range(page.filled) if _seen(page, t) == list(zip(prefix, range(len(prefix))))
  ]
  return place


def test_a_full_page_takes_what_it_holds_already_and_refuses_the_rest():
  page = Page(4)
  assert [page.add(prompt) for prompt in ((1, 2), (1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 5))] == [
    1,
    3,
    3,
    None,
  ]
  assert page.add((1, 2, 3, 4)) == 3 and page.filled == 4
