"""The engine's static sizes, chosen for a queue that is known or for requests to come."""

from collections.abc import Sequence

import numpy as np

from synthjax.rollout.prefixes import common
from synthjax.rollout.slots import Shape

_MANY = 16  # sequences of a page from which on two pages a block are enough
_SEEN = 4096  # sequences from which a shape is chosen


def batch_shape(
  prompts: Sequence[tuple[int, ...]], needed: tuple[int, int], most: int, devices: int
) -> Shape:
  """Sizes for a queue: pages that serve many sequences each, blocks that they keep busy.

  A page is locked until the last of its sequences is finished, so a block has several. With few sequences a page it needs more of them:
  2,000 uneven requests occupy 92 % of the slots with four pages of 128, 88 % with two of 512.

  Args:
    prompts: of every sequence that waits, in lexicographic order.
    needed: tokens of the longest prompt and of the longest sample.
    most: sequences that decode together.
    devices: that share the blocks.
  """
  together = -(-min(most, len(prompts)) // devices) * devices
  page, seen = _round(needed[0], 64), prompts[:_SEEN]
  if len(prompts) <= together and len(set(prompts)) == 1:
    return Shape(devices, together // devices, 1, page, _round(needed[1], 16))
  tokens = sum(len(new) - common(old, new) for old, new in zip([(), *seen], seen))
  while page * len(seen) < 3 * tokens and page < 256:
    page *= 2
  each = page * len(seen) / tokens  # sequences that a page serves
  pages = 2 if each >= _MANY else 4
  block = 1 << max(0, int(np.log2(min(each * pages / 3, together / devices))))
  return Shape(
    max(1, together // block // devices) * devices, block, pages, page, _round(needed[1], 16)
  )


def serving_shape(slots: int, prompt: int, max_tokens: int, devices: int) -> Shape:
  """Sizes for requests that are not known yet: every slot may have a prompt of its own, and the host looks often."""
  return Shape(-(-slots // (4 * devices)) * devices, 4, 4, prompt, max_tokens, steps=8)


def _round(size: int, to: int) -> int:
  return -(-size // to) * to
