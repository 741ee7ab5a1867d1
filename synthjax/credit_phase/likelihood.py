"""Likelihood of a prefix's rollouts under the chain of chains.py, on a grid of its parameters.

One unknown next step is correct, the policy takes it with probability c, and after another one
success is u times as likely. A share of the prefixes is certain: there the policy always goes on
with the same step. Success after the correct step has a flat prior and is integrated out, as is
which of the steps is correct.

Shapes: G points of the grid, flattened from (c, u, number of actions, share of uncertain prefixes).
"""

import collections
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CORRECT = 1 - np.geomspace(0.02, 0.9, 16)  # c
SURVIVAL = np.linspace(0, 0.95, 20)  # u
ACTIONS = np.array([2, 3, 6, 12, 50])
UNCERTAIN = np.linspace(0, 1, 21)  # share of prefixes
SHAPE = (len(CORRECT), len(SURVIVAL), len(ACTIONS), len(UNCERTAIN))
# Where a likelihood underflows to 0 it is replaced by this, whose logarithm is finite.
LEAST = 1e-300
_AFTER = np.linspace(0, 1, 21)  # success after the correct step


class StepCount(NamedTuple):
  """Rollouts of a prefix that go on with one and the same step."""

  rollouts: int
  correct: int


class ObservedPrefix(NamedTuple):
  """A prefix of a trace, and what its rollouts did."""

  decision: str  # prefixes of all problems with the same decision teach each other
  steps: tuple[str, ...]  # the next step of every rollout
  correct: tuple[bool, ...]  # whether the rollout was
  times: int = 1  # traces that pass through it


def log_likelihood(prefixes: Sequence[ObservedPrefix]) -> np.ndarray:
  """Log-likelihood of all prefixes at every point of the grid. [G]"""
  total_G = np.zeros(np.prod(SHAPE), np.float32)
  for prefix in prefixes:
    total_G += _log_likelihood_of(count_steps(prefix))
  return total_G


def count_steps(prefix: ObservedPrefix) -> tuple[StepCount, ...]:
  """Counts of every next step, sorted: which step is which does not matter."""
  rollouts: collections.Counter[str] = collections.Counter()
  correct: collections.Counter[str] = collections.Counter()
  for step, is_correct in zip(prefix.steps, prefix.correct, strict=True):
    rollouts[step] += 1
    correct[step] += is_correct
  return tuple(sorted(StepCount(rollouts[step], correct[step]) for step in rollouts))


@functools.lru_cache(maxsize=1 << 14)
def likelihoods(counts: tuple[StepCount, ...]) -> tuple[np.ndarray, np.ndarray]:
  """(if the prefix is uncertain, if it is certain), each by c, u and the number of actions.

  Next steps are named; which of the actions is correct has equal chances.
  """
  rollouts = sum(count.rollouts for count in counts)
  correct = sum(count.correct for count in counts)
  c = CORRECT[:, None, None]
  actions = ACTIONS[None, None, :]
  uncertain = np.zeros(SHAPE[:3])
  # The correct step is one of those that no rollout took, or one of those seen.
  unseen_steps = np.maximum(actions - len(counts), 0)
  candidates = [(StepCount(0, 0), unseen_steps)]
  candidates += [(count, 1) for count in counts]
  for count, num_steps in candidates:
    others = rollouts - count.rollouts
    taken = c**count.rollouts * ((1 - c) / (actions - 1)) ** others
    outcomes = _outcomes(count, rollouts, correct)[None, :, None]
    uncertain += num_steps / actions * taken * outcomes
  uncertain *= actions >= len(counts)
  certain = np.zeros_like(uncertain)
  if len(counts) <= 1:
    outcomes = _outcomes(StepCount(rollouts, correct), rollouts, correct)
    certain += outcomes[None, :, None] / actions
  return uncertain, certain


@functools.lru_cache(maxsize=1024)  # many prefixes have the same counts
def _log_likelihood_of(counts: tuple[StepCount, ...]) -> np.ndarray:
  """Log-likelihood of one prefix's rollouts. [G]"""
  uncertain, certain = likelihoods(counts)
  mixed = uncertain[..., None] * UNCERTAIN + certain[..., None] * (1 - UNCERTAIN)
  return np.log(np.maximum(mixed, LEAST)).astype(np.float32).ravel()


def _outcomes(taken: StepCount, rollouts: int, correct: int) -> np.ndarray:
  """Probability of the rollouts' outcomes by u, where `taken` counts those of the correct step."""
  after = _AFTER[None, :]
  after_incorrect = SURVIVAL[:, None] * after
  failed = taken.rollouts - taken.correct
  lucky = correct - taken.correct
  unlucky = rollouts - taken.rollouts - lucky
  of_correct_step = after**taken.correct * (1 - after) ** failed
  probability = of_correct_step * after_incorrect**lucky * (1 - after_incorrect) ** unlucky
  return probability.mean(axis=1)
