"""Problems that are chains of decisions, a reference's traces of them, and exact step values.

A problem is a chain of L steps, each in one of V contexts drawn uniformly; one action of a context
is correct. A wrong step survives with probability u, independently each time it is taken: then it
does no harm. The reference takes the correct action with one probability c in every context and the
wrong ones equally often.

Shapes: R replicates, N problems, M = R N problems of all replicates, S traces a problem, L steps,
V contexts, A actions, K = R V A entries of the policies' tables.
"""

import dataclasses
from typing import Annotated, Literal, NamedTuple

import numpy as np

from synthjax.config.fields import (
  Checked,
  NonNegativeInt,
  PositiveInt,
  Share,
  at_least,
  from_to_below,
)

CORRECT = 0  # the correct action of every context: tables know no order of actions


@dataclasses.dataclass(frozen=True)
class Chain(Checked):
  """One setting of the phase diagram."""

  success: Share = 0.3  # p: share of the reference's traces that are correct
  survival: Annotated[float, from_to_below(0, 1)] = 0.5  # u: how often a wrong step does no harm
  length: PositiveInt = 10  # L: steps of a problem
  contexts: PositiveInt = 100  # V: distinct decisions
  traces: PositiveInt = 8  # S: sampled traces a training problem
  rollouts: NonNegativeInt = 0  # n of every step value; 0: exact values
  # when the luck of a wrong step resolves: values after it know of it, or the final reward alone
  luck: Literal["at_once", "at_end"] = "at_once"
  problems: PositiveInt = 64  # N: training problems
  actions: Annotated[int, at_least(2)] = 6  # A: of each context

  def __post_init__(self) -> None:
    super().__post_init__()
    above = f"above survival ** length, here {self.survival**self.length:.3g}, and below 1"
    self.require(self.survival**self.length < self.success < 1, "success", above)

  @property
  def harmless(self) -> float:
    """r: probability that a step of the reference does no harm; p = r ** L."""
    return self.success ** (1 / self.length)

  @property
  def correct(self) -> float:
    """c: probability of the correct action under the reference; r = c + (1 - c) u."""
    return (self.harmless - self.survival) / (1 - self.survival)

  @property
  def correct_if_harmless(self) -> float:
    """Share of correct actions among the reference's steps that do no harm."""
    return self.correct / self.harmless


class Traces(NamedTuple):
  """Traces of the reference on the training problems of all replicates."""

  contexts_ML: np.ndarray  # numbered through over replicates
  actions_MSL: np.ndarray
  reward_MS: np.ndarray  # bool
  value_MSQ: np.ndarray  # q_0 (the bare problem), ..., q_L: Q = L + 1


def sample(chain: Chain, replicates: int, random: np.random.Generator) -> Traces:
  """Traces of every replicate's own problems with their step values, exact or from n rollouts."""
  total = replicates * chain.problems
  first_M = np.repeat(np.arange(replicates) * chain.contexts, chain.problems)
  contexts_ML = first_M[:, None] + random.integers(chain.contexts, size=(total, chain.length))
  shape = (total, chain.traces, chain.length)
  actions_MSL = _actions(chain, chain.correct, shape, random)
  unlucky_MSL = (actions_MSL != CORRECT) & (random.random(shape) >= chain.survival)
  reward_MS = ~unlucky_MSL.any(axis=-1)
  value_MSQ = _exact_values(chain, actions_MSL, unlucky_MSL, reward_MS)
  if chain.rollouts:
    value_MSQ = _estimates(chain.rollouts, value_MSQ, random)
  return Traces(contexts_ML, actions_MSL, reward_MS, value_MSQ)


def continuations(chain: Chain, count: int, random: np.random.Generator) -> np.ndarray:
  """Actions [count, L] of the reference, given that every step of a row does no harm.

  The reference's steps are independent, so this is the law of its correct continuations from any
  prefix that is not lost, exactly, whenever luck resolves.
  """
  return _actions(chain, chain.correct_if_harmless, (count, chain.length), random)


def sampled_steps(chain: Chain) -> float:
  """Steps a problem that the traces and the values of incorrect traces cost, in expectation.

  Every prefix of an incorrect trace has n rollouts to the end, the bare problem n in all.
  """
  own = chain.traces * chain.length
  incorrect = chain.traces * (1 - chain.success)
  of_prefixes = incorrect * chain.length * (chain.length - 1) / 2
  return own + chain.rollouts * (chain.length + of_prefixes)


def _actions(chain, correct, shape, random) -> np.ndarray:
  wrong = random.integers(1, chain.actions, size=shape, dtype=np.int16)
  return np.where(random.random(shape) < correct, np.int16(CORRECT), wrong)


def _exact_values(chain, actions_MSL, unlucky_MSL, reward_MS) -> np.ndarray:
  left_Q = chain.length - np.arange(chain.length + 1)
  if chain.luck == "at_once":
    lost_MSL = np.maximum.accumulate(unlucky_MSL, axis=-1)
    so_far_MSL = 1.0 - lost_MSL
  else:
    so_far_MSL = chain.survival ** np.cumsum(actions_MSL != CORRECT, axis=-1)
  bare = np.ones((*reward_MS.shape, 1))
  value_MSQ = np.concatenate([bare, so_far_MSL], axis=-1) * chain.harmless**left_Q
  value_MSQ[..., -1] = reward_MS
  return value_MSQ


def _estimates(rollouts, value_MSQ, random) -> np.ndarray:
  """Means of n rollouts; a finished trace has its reward, all traces of a problem share q_0."""
  found_MSQ = random.binomial(rollouts, np.clip(value_MSQ, 0, 1)) / rollouts
  found_MSQ[..., 0] = found_MSQ[:, :1, 0]
  found_MSQ[..., -1] = value_MSQ[..., -1]
  return found_MSQ
