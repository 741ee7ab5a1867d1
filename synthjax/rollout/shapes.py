"""The engine's static sizes, chosen for a queue that is known or for requests to come."""

from collections.abc import Sequence

import numpy as np

from synthjax.rollout.prefixes import common
from synthjax.rollout.slots import Shape

_MANY = 16  # with so many sequences a page, two pages a block are enough
_SEEN = 4096  # sequences that are looked at to choose a shape


def batch_shape(
  prompts: Sequence[tuple[int, ...]], needed: tuple[int, int], most: int, devices: int
) -> Shape:
  """Sizes for a queue: pages that serve many sequences each, blocks that they keep busy.

  A page is locked until the last of its sequences is finished, so a block has several. With few
  sequences a page it needs more of them: 2,000 uneven requests occupy 92 % of the slots with four
  pages of 128, 88 % with two of 512.

  Args:
    prompts: of every sequence that waits, in lexicographic order.
    needed: tokens of the longest prompt and of the longest sample.
    most: sequences that decode together.
    devices: that share the blocks.
  """
  longest_prompt, longest_sample = needed
  together = _round(min(most, len(prompts)), devices)
  page_length = _round(longest_prompt, 64)
  max_tokens = _round(longest_sample, 16)
  if len(prompts) <= together and len(set(prompts)) == 1:
    return Shape(
      blocks=devices,
      slots=together // devices,
      pages=1,
      page_length=page_length,
      max_tokens=max_tokens,
    )
  seen = prompts[:_SEEN]
  tokens = sum(len(new) - common(old, new) for old, new in zip([(), *seen], seen))
  while page_length * len(seen) < 3 * tokens and page_length < 256:
    page_length *= 2
  sequences = page_length * len(seen) / tokens  # that a page serves
  pages = 2 if sequences >= _MANY else 4
  slots = 1 << max(0, int(np.log2(min(sequences * pages / 3, together / devices))))
  return Shape(
    blocks=max(1, together // slots // devices) * devices,
    slots=slots,
    pages=pages,
    page_length=page_length,
    max_tokens=max_tokens,
  )


def serving_shape(slots: int, prompt: int, max_tokens: int, devices: int) -> Shape:
  """Sizes for requests to come: every slot may have its own prompt, and the host looks often."""
  return Shape(
    blocks=-(-slots // (4 * devices)) * devices,
    slots=4,
    pages=4,
    page_length=prompt,
    max_tokens=max_tokens,
    steps=8,
  )


def _round(size: int, to: int) -> int:
  return -(-size // to) * to
