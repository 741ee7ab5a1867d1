"""Problems that are chains of decisions, a reference's traces of them, and exact step values.

A problem is a chain of L steps, each in one of V contexts drawn uniformly; one action of a context
is correct. A wrong step survives with probability u, independently each time it is taken: then it
does no harm. The reference takes the correct action with one probability c in every context and the
wrong ones equally often.

Shapes: R replicates, N problems, M = R N problems of all replicates, S traces a problem, L steps,
V contexts, A actions, K = R V A entries of the policies' tables.
"""

from typing import NamedTuple

import numpy as np

from synthjax.config.credit_phase import Chain

CORRECT = 0  # the correct action of every context: tables know no order of actions


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
