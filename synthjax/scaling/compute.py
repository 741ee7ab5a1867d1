"""What a policy cost, in floating-point operations: everything that was computed to make it.

A token that is trained on takes a forward and a backward pass (three forward passes), whether it is
a target or part of a prompt. A token that is sampled, that is read before something is sampled, or
that the reference policy scores takes one forward pass. FLOPs are those of the model's matrix
products and attention (`model.count`), so that computes of unlike stages add up.

Not counted: evaluation on test problems, judging (no model), padding.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from synthjax.config.schema import Model
from synthjax.model import count


@dataclasses.dataclass(frozen=True)
class Compute:
  """FLOPs by what they were spent on. Those of stages that follow one another are added."""

  training: float = 0.0  # forward and backward
  reference: float = 0.0  # the reference policy's log-probabilities of what is compared
  reading: float = 0.0  # prompts and prefixes, before something is sampled from them
  sampling: float = 0.0  # traces, and the rollouts of step values

  def __add__(self, other: "Compute") -> "Compute":
    return Compute(
      training=self.training + other.training,
      reference=self.reference + other.reference,
      reading=self.reading + other.reading,
      sampling=self.sampling + other.sampling,
    )

  @property
  def total(self) -> float:
    return self.training + self.reference + self.reading + self.sampling


def flops(
  cfg: Model,
  *,
  trained: float = 0.0,
  reference: float = 0.0,
  read: float = 0.0,
  sampled: float = 0.0,
  mean_context: float,
) -> Compute:
  """The compute of so many tokens.

  Args:
    cfg: the decoder's shape, `vocab_size` set (`model.transformer.sized`).
    trained: tokens in the forward and backward passes of training, prompts among them, an epoch
      after the other.
    reference: tokens that the reference policy scores.
    read: tokens of prompts and prefixes, once for every time they are read.
    sampled: tokens sampled.
    mean_context: positions that these tokens see on average (`mean_context`).
  """
  forward = count.forward_flops(cfg, mean_context)
  return Compute(
    training=3 * forward * trained,
    reference=forward * reference,
    reading=count.forward_flops(cfg, mean_context, head=False) * read,
    sampling=forward * sampled,
  )


def mean_context(lengths: Sequence[int], before: Sequence[int] | int = 0) -> float:
  """Positions that the tokens of sequences attend to on average, each itself and all before it.

  0 without tokens.

  Args:
    lengths: tokens of every sequence.
    before: positions that precede each of them: a completion follows its prompt.
  """
  lengths_S = np.asarray(lengths, np.float64)
  seen_S = lengths_S * (np.asarray(before) + (lengths_S + 1) / 2)
  return float(seen_S.sum() / max(lengths_S.sum(), 1))
