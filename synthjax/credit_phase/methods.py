"""What each method learns from: log-prob sums of pairs of step sequences, or weighted single steps.

Both are linear in the table of log-probs, so a method's data are a sparse matrix of differences
between chosen and rejected counts, or a table of weights.

Shapes: see chains.py; P pairs, I entries of a sparse matrix.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse

from synthjax.config.credit_phase import Chain
from synthjax.credit_phase import chains
from synthjax.credit_phase.chains import ChainTraces

# Methods that need only the outcome of whole traces, or are the controls of the methods below.
OUTCOME = ("rft", "chosen_only", "dpo", "dpo_fresh", "rpo")
CREDIT = ("branch", "step", "weighted", "awr")  # assign credit to single steps
OF_INCORRECT = ("branch", "step")  # of CREDIT: need the values of incorrect traces alone
SAMPLED_MORE = ("rft", "dpo", "rpo")  # of OUTCOME: could spend the values' rollouts on traces
BY_LIKELIHOOD = ("rft", "chosen_only", "awr")
WITHOUT_BETA = ("rft", "chosen_only")
LARGEST_WEIGHT = 20.0  # of advantage-weighted RL, the default of schema.Advantage


class TabularData(NamedTuple):
  """What all methods learn from the same traces."""

  traces: ChainTraces
  pairs: dict[str, "TabularPairs"]  # by method trained on pairs
  weights: dict[str, np.ndarray]  # [K], by method without beta


class TabularPairs(NamedTuple):
  """Pairs of all replicates."""

  difference_PK: scipy.sparse.csr_matrix  # weighted counts of the chosen minus the rejected side
  taken_K: np.ndarray  # how often the chosen sides take each entry
  anchor_K: np.ndarray  # the same as a mean over pairs of means over steps, weighted as the pairs
  weight_P: np.ndarray  # each replicate's sum is V over the mean length of its chosen sides


class Sides(NamedTuple):
  """One side of all pairs as entries of a sparse matrix."""

  pair_I: np.ndarray
  entry_I: np.ndarray  # context and action, as an index of the table
  weight_I: np.ndarray


def prepare(
  chain: Chain, wanted: tuple[str, ...], replicates: int, random: np.random.Generator
) -> TabularData:
  """Samples every replicate's traces and builds what the methods in `wanted` train on."""
  traces = chains.sample(chain, replicates, random)
  pairs = {}
  # The order of these blocks is part of the results: all of them draw from one generator.
  if {"dpo", "rpo"} & set(wanted):
    pairs["dpo"] = whole_pairs(traces, chain, False, random)
    pairs["rpo"] = pairs["dpo"]
  if "weighted" in wanted:
    pairs["weighted"] = whole_pairs(traces, chain, True, random)
  if "dpo_fresh" in wanted:
    pairs["dpo_fresh"] = fresh_pairs(traces, chain, random)
  if {"branch", "step", "chosen_only"} & set(wanted):
    num_pits = int((pits(traces) >= 0).sum())
    action_PL = chains.continuations(chain, num_pits, random)
    pairs["branch"] = pit_pairs(traces, chain, action_PL, False)
    pairs["step"] = pit_pairs(traces, chain, action_PL, True)
  weights = {"rft": successes(traces, chain)}
  if "chosen_only" in wanted:
    weights["chosen_only"] = pairs["branch"].taken_K
  return TabularData(traces, pairs, weights)


def entries(contexts: np.ndarray, actions: np.ndarray, chain: Chain) -> np.ndarray:
  """Index into a flattened table [R V, A]."""
  return contexts * chain.actions + actions


def successes(traces: ChainTraces, chain: Chain) -> np.ndarray:
  """RFT: how often each table entry is taken in a correct trace. [K]"""
  entry_MSL = _entries_of(traces, chain)
  correct_IL = entry_MSL[traces.reward_MS]
  size = _table_size(traces, chain)
  return np.bincount(correct_IL.ravel(), minlength=size).astype(float)


def advantage_weights(traces: ChainTraces, chain: Chain, beta: float) -> np.ndarray:
  """AWR: sums of exp(A / beta), at most LARGEST_WEIGHT each, over all steps of all traces. [K]"""
  entry_MSL = _entries_of(traces, chain)
  advantage_MSL = np.diff(traces.value_MSQ, axis=-1)
  # Clipped before `exp`, which would overflow for a small beta.
  log_weight_MSL = np.minimum(advantage_MSL / beta, np.log(LARGEST_WEIGHT))
  weight_MSL = np.exp(log_weight_MSL)
  size = _table_size(traces, chain)
  return np.bincount(entry_MSL.ravel(), weight_MSL.ravel(), minlength=size).astype(float)


def whole_pairs(
  traces: ChainTraces, chain: Chain, weighted: bool, random: np.random.Generator
) -> TabularPairs:
  """DPO: each incorrect trace against a correct one of its problem, drawn at random.

  With `weighted` every step enters with the absolute value of its advantage, divided by the mean
  over the pair as credit/pairs.py does.
  """
  has_correct_M1 = traces.reward_MS.any(axis=1, keepdims=True)
  problem_P, rejected_P = np.nonzero(~traces.reward_MS & has_correct_M1)
  draw_PS = random.random((len(problem_P), chain.traces))
  draw_PS[~traces.reward_MS[problem_P]] = -1
  chosen_P = draw_PS.argmax(axis=1)

  entry_MSL = _entries_of(traces, chain)
  weight_MSL = np.ones(entry_MSL.shape)
  if weighted:
    advantage_MSL = np.diff(traces.value_MSQ, axis=-1)
    weight_MSL = np.abs(advantage_MSL)
  chosen_PL = weight_MSL[problem_P, chosen_P]
  rejected_PL = weight_MSL[problem_P, rejected_P]
  # Above 0: the two rewards differ, so at least one advantage does not vanish.
  mean_P1 = (chosen_PL + rejected_PL).mean(axis=1, keepdims=True) / 2
  chosen = _whole(entry_MSL[problem_P, chosen_P], chosen_PL / mean_P1)
  rejected = _whole(entry_MSL[problem_P, rejected_P], rejected_PL / mean_P1)
  return _pairs(chosen, rejected, problem_P, chain, traces)


def fresh_pairs(traces: ChainTraces, chain: Chain, random: np.random.Generator) -> TabularPairs:
  """DPO with as many fresh positives as `branch` has: incorrect traces against new correct ones."""
  problem_P, rejected_P = np.nonzero(~traces.reward_MS)
  action_PL = chains.continuations(chain, len(problem_P), random)
  chosen_PL = entries(traces.contexts_ML[problem_P], action_PL, chain)
  rejected_PL = _entries_of(traces, chain)[problem_P, rejected_P]
  chosen = _whole(chosen_PL, np.ones(chosen_PL.shape))
  rejected = _whole(rejected_PL, np.ones(rejected_PL.shape))
  return _pairs(chosen, rejected, problem_P, chain, traces)


def pits(traces: ChainTraces) -> np.ndarray:
  """The step (from 0) of the largest fall in value of each incorrect trace, -1 where none falls."""
  fall_MSL = -np.diff(traces.value_MSQ, axis=-1)
  has_pit_MS = ~traces.reward_MS & (fall_MSL.max(axis=-1) > 0)
  return np.where(has_pit_MS, fall_MSL.argmax(axis=-1), -1)


def pit_pairs(
  traces: ChainTraces, chain: Chain, action_PL: np.ndarray, first_step: bool
) -> TabularPairs:
  """Per-step DPO: after the steps before the pit, a correct continuation against the pit.

  Args:
    traces, chain: what was sampled.
    action_PL: a correct continuation for every trace with a pit, in their order.
    first_step: the continuation is cut to its first step (mode `step`; else `branch`).
  """
  pit_MS = pits(traces)
  problem_P, trace_P = np.nonzero(pit_MS >= 0)
  pit_P = pit_MS[problem_P, trace_P]
  step_L = np.arange(chain.length)
  if first_step:
    is_chosen_PL = step_L == pit_P[:, None]
  else:
    is_chosen_PL = step_L >= pit_P[:, None]
  pair_I, step_I = np.nonzero(is_chosen_PL)
  entry_PL = entries(traces.contexts_ML[problem_P], action_PL, chain)
  chosen = Sides(pair_I, entry_PL[pair_I, step_I], np.ones(len(pair_I)))

  num_pairs = len(problem_P)
  entry_P = _entries_of(traces, chain)[problem_P, trace_P, pit_P]
  rejected = Sides(np.arange(num_pairs), entry_P, np.ones(num_pairs))
  return _pairs(chosen, rejected, problem_P, chain, traces)


def _whole(entry_PL, weight_PL) -> Sides:
  pair_P1 = np.arange(len(entry_PL))[:, None]
  pair_PL = np.broadcast_to(pair_P1, entry_PL.shape)
  return Sides(pair_PL.ravel(), entry_PL.ravel(), weight_PL.ravel())


def _entries_of(traces, chain) -> np.ndarray:
  return entries(traces.contexts_ML[:, None, :], traces.actions_MSL, chain)


def _table_size(traces, chain) -> int:
  replicates = len(traces.contexts_ML) // chain.problems
  return replicates * chain.contexts * chain.actions


def _pairs(chosen: Sides, rejected: Sides, problem_P, chain, traces) -> TabularPairs:
  num_pairs = len(problem_P)
  size = _table_size(traces, chain)
  rows = np.concatenate([chosen.pair_I, rejected.pair_I])
  columns = np.concatenate([chosen.entry_I, rejected.entry_I])
  signed = np.concatenate([chosen.weight_I, -rejected.weight_I]).astype(np.float32)
  difference_PK = scipy.sparse.csr_matrix((signed, (rows, columns)), (num_pairs, size))
  difference_PK.eliminate_zeros()  # steps that both sides share cancel

  length_P = np.bincount(chosen.pair_I, minlength=num_pairs)
  replicate_P = problem_P // chain.problems
  replicates = len(traces.contexts_ML) // chain.problems
  steps_R = np.bincount(replicate_P, length_P, minlength=replicates)
  weight_P = chain.contexts / np.maximum(steps_R, 1)[replicate_P]
  share_I = (weight_P / length_P)[chosen.pair_I]
  return TabularPairs(
    difference_PK=difference_PK,
    taken_K=np.bincount(chosen.entry_I, minlength=size).astype(float),
    anchor_K=np.bincount(chosen.entry_I, share_I, minlength=size),
    weight_P=weight_P,
  )
