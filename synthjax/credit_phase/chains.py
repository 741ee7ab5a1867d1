"""Problems that are chains of decisions, a reference's traces of them, and exact step values.

A problem is a chain of L steps, each in one of V contexts drawn uniformly; one action of a context
is correct. An incorrect step survives with probability u, independently each time it is taken: then
it does no harm. The reference takes the correct action with one probability c in every context and
the incorrect ones equally often.

Shapes: R replicates, N problems, M = R N problems of all replicates, S traces a problem, L steps,
Q = L + 1 values, V contexts, A actions, K = R V A entries of the policies' tables.
"""

from typing import NamedTuple

import numpy as np

from synthjax.config.credit_phase import Chain

CORRECT = 0  # the correct action of every context: tables know no order of actions


class ChainTraces(NamedTuple):
  """Traces of the reference on the training problems of all replicates."""

  contexts_ML: np.ndarray  # every replicate has contexts of its own, numbered consecutively
  actions_MSL: np.ndarray
  reward_MS: np.ndarray  # bool
  value_MSQ: np.ndarray  # q_0 (the bare problem), ..., q_L


def sample(chain: Chain, replicates: int, random: np.random.Generator) -> ChainTraces:
  """Traces of every replicate's own problems with their step values, exact or from n rollouts."""
  num_problems = replicates * chain.problems
  first_context_M = np.repeat(np.arange(replicates) * chain.contexts, chain.problems)
  context_ML = random.integers(chain.contexts, size=(num_problems, chain.length))
  contexts_ML = first_context_M[:, None] + context_ML

  shape = (num_problems, chain.traces, chain.length)
  actions_MSL = _actions(chain, chain.correct, shape, random)
  is_incorrect_MSL = actions_MSL != CORRECT
  is_fatal_MSL = is_incorrect_MSL & (random.random(shape) >= chain.survival)
  reward_MS = ~is_fatal_MSL.any(axis=-1)
  value_MSQ = _exact_values(chain, actions_MSL, is_fatal_MSL, reward_MS)
  # Estimates are drawn last, so that any number of rollouts values the same traces.
  if chain.rollouts:
    value_MSQ = _estimates(chain.rollouts, value_MSQ, random)
  return ChainTraces(
    contexts_ML=contexts_ML,
    actions_MSL=actions_MSL,
    reward_MS=reward_MS,
    value_MSQ=value_MSQ,
  )


def continuations(chain: Chain, count: int, random: np.random.Generator) -> np.ndarray:
  """Actions [count, L] of the reference, given that every step of a continuation does no harm.

  The reference's steps are independent, so this is exactly the distribution of its correct
  continuations from any prefix that can still succeed, whenever luck resolves.
  """
  return _actions(chain, chain.correct_if_harmless, (count, chain.length), random)


def sampled_steps(chain: Chain) -> float:
  """Expected number of sampled steps a problem: its traces, and the values of incorrect ones.

  Every prefix of an incorrect trace has n rollouts to the end; the bare problem has n, which its
  traces share.
  """
  steps_of_traces = chain.traces * chain.length
  incorrect_traces = chain.traces * (1 - chain.success)
  # The prefixes of a trace have L-1, ..., 1 steps left, L (L-1) / 2 in all.
  steps_of_prefixes = incorrect_traces * chain.length * (chain.length - 1) / 2
  return steps_of_traces + chain.rollouts * (chain.length + steps_of_prefixes)


def _actions(chain, correct_share, shape, random) -> np.ndarray:
  incorrect = random.integers(1, chain.actions, size=shape, dtype=np.int16)
  is_correct = random.random(shape) < correct_share
  return np.where(is_correct, np.int16(CORRECT), incorrect)


def _exact_values(chain, actions_MSL, is_fatal_MSL, reward_MS) -> np.ndarray:
  steps_left_Q = chain.length - np.arange(chain.length + 1)
  if chain.luck == "at_once":
    is_lost_MSL = np.maximum.accumulate(is_fatal_MSL, axis=-1)
    survival_MSL = 1.0 - is_lost_MSL
  else:
    incorrect_steps_MSL = np.cumsum(actions_MSL != CORRECT, axis=-1)
    survival_MSL = chain.survival**incorrect_steps_MSL
  bare_MS1 = np.ones((*reward_MS.shape, 1))
  survival_MSQ = np.concatenate([bare_MS1, survival_MSL], axis=-1)
  value_MSQ = survival_MSQ * chain.harmless**steps_left_Q
  value_MSQ[..., -1] = reward_MS
  return value_MSQ


def _estimates(rollouts, value_MSQ, random) -> np.ndarray:
  """Means of n rollouts; a finished trace has its reward, all traces of a problem share q_0."""
  # Products of probabilities may round to just above 1, which `binomial` refuses.
  probability_MSQ = np.clip(value_MSQ, 0, 1)
  estimate_MSQ = random.binomial(rollouts, probability_MSQ) / rollouts
  estimate_MSQ[..., 0] = estimate_MSQ[:, :1, 0]
  estimate_MSQ[..., -1] = value_MSQ[..., -1]
  return estimate_MSQ
