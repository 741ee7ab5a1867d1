"""What each method learns from: log-prob sums of pairs of step sequences, or weighted single steps.

Both are linear in the table of log-probs, so a method's data are a sparse matrix of differences
between chosen and rejected counts, or a table of weights.

Shapes: see chains.py; P pairs, I entries of a sparse matrix, T = R N S traces.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse

from synthjax.config.credit_phase import Chain
from synthjax.credit_phase import chains

# Their losses ask for the outcome of whole traces alone, or are the controls of those below.
OUTCOME = ("rft", "chosen_only", "dpo", "dpo_fresh", "rpo")
CREDIT = ("branch", "step", "weighted", "awr")  # these assign credit to single steps
OF_INCORRECT = ("branch", "step")  # of CREDIT those that need values of incorrect traces alone
SAMPLED_MORE = ("rft", "dpo", "rpo")  # of OUTCOME those that could spend the values' rollouts
BY_LIKELIHOOD = ("rft", "chosen_only", "awr")
WITHOUT_BETA = ("rft", "chosen_only")
LARGEST_WEIGHT = 20.0  # of advantage-weighted RL, the default of schema.Advantage


class Data(NamedTuple):
  """What all methods learn from the same traces."""

  traces: chains.Traces
  pairs: dict[str, "Pairs"]  # of the methods that are trained on pairs
  weights: dict[str, np.ndarray]  # [K] of the methods without beta


class Pairs(NamedTuple):
  """Pairs of all replicates."""

  difference_PK: scipy.sparse.csr_matrix  # weighted counts of the chosen minus the rejected side
  taken_K: np.ndarray  # how often the chosen sides take each entry
  anchor_K: np.ndarray  # the same as a mean over pairs of means over steps, weighted as the pairs
  weight_P: np.ndarray  # of the pairs: each replicate's sum to V over its mean length


class Sides(NamedTuple):
  """One side of pairs as entries of a sparse matrix."""

  pair_I: np.ndarray
  entry_I: np.ndarray  # context and action, as an index of the table
  weight_I: np.ndarray


def prepare(
  chain: Chain, wanted: tuple[str, ...], replicates: int, random: np.random.Generator
) -> Data:
  """Samples every replicate's traces and makes of them what the methods in `wanted` train on."""
  traces = chains.sample(chain, replicates, random)
  pairs = {}
  if {"dpo", "rpo"} & set(wanted):
    pairs["dpo"] = pairs["rpo"] = whole_pairs(traces, chain, False, random)
  if "weighted" in wanted:
    pairs["weighted"] = whole_pairs(traces, chain, True, random)
  if "dpo_fresh" in wanted:
    pairs["dpo_fresh"] = fresh_pairs(traces, chain, random)
  if {"branch", "step", "chosen_only"} & set(wanted):
    action_PL = _continuations(traces, chain, random)
    pairs["branch"] = pit_pairs(traces, chain, action_PL, False)
    pairs["step"] = pit_pairs(traces, chain, action_PL, True)
  weights = {"rft": successes(traces, chain)}
  if "chosen_only" in wanted:
    weights["chosen_only"] = pairs["branch"].taken_K
  return Data(traces, pairs, weights)


def entries(contexts: np.ndarray, actions: np.ndarray, chain: Chain) -> np.ndarray:
  """Index into a flattened table [R V, A]."""
  return contexts * chain.actions + actions


def successes(traces: chains.Traces, chain: Chain) -> np.ndarray:
  """RFT: how often each table entry is taken in a correct trace. [K]"""
  entry_MSL = _entries_of(traces, chain)
  return _counts(entry_MSL[traces.reward_MS], chain, traces)


def advantage_weights(traces: chains.Traces, chain: Chain, beta: float) -> np.ndarray:
  """AWR: sums of exp(A / beta), at most LARGEST_WEIGHT each, over all steps of all traces. [K]"""
  advantage_MSL = np.diff(traces.value_MSQ, axis=-1)
  weight_MSL = np.exp(np.minimum(advantage_MSL / beta, np.log(LARGEST_WEIGHT)))
  return _counts(_entries_of(traces, chain), chain, traces, weight_MSL)


def whole_pairs(
  traces: chains.Traces, chain: Chain, weighted: bool, random: np.random.Generator
) -> Pairs:
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
    weight_MSL = np.abs(np.diff(traces.value_MSQ, axis=-1))
  chosen_PL, rejected_PL = weight_MSL[problem_P, chosen_P], weight_MSL[problem_P, rejected_P]
  mean_P1 = (chosen_PL + rejected_PL).mean(axis=1, keepdims=True) / 2  # above 0: rewards differ
  chosen = _whole(entry_MSL[problem_P, chosen_P], chosen_PL / mean_P1)
  rejected = _whole(entry_MSL[problem_P, rejected_P], rejected_PL / mean_P1)
  return _pairs(chosen, rejected, problem_P, chain, traces)


def fresh_pairs(traces: chains.Traces, chain: Chain, random: np.random.Generator) -> Pairs:
  """DPO with as many fresh positives as `branch` has: incorrect traces against new correct ones."""
  problem_P, rejected_P = np.nonzero(~traces.reward_MS)
  action_PL = chains.continuations(chain, len(problem_P), random)
  chosen_PL = entries(traces.contexts_ML[problem_P], action_PL, chain)
  rejected_PL = _entries_of(traces, chain)[problem_P, rejected_P]
  one_PL = np.ones(chosen_PL.shape)
  return _pairs(_whole(chosen_PL, one_PL), _whole(rejected_PL, one_PL), problem_P, chain, traces)


def pits(traces: chains.Traces) -> np.ndarray:
  """The step (from 0) of the largest fall in value of each incorrect trace, -1 where none falls."""
  fall_MSL = -np.diff(traces.value_MSQ, axis=-1)
  has_pit_MS = ~traces.reward_MS & (fall_MSL.max(axis=-1) > 0)
  return np.where(has_pit_MS, fall_MSL.argmax(axis=-1), -1)


def pit_pairs(
  traces: chains.Traces, chain: Chain, action_PL: np.ndarray, first_step: bool
) -> Pairs:
  """Per-step DPO: after the steps before the pit, a correct continuation against the pit.

  Args:
    traces, chain: what was sampled.
    action_PL: a correct continuation for every trace with a pit, in their order.
    first_step: the continuation is cut to its first step (mode `step`; else `branch`).
  """
  pit_MS = pits(traces)
  problem_P, trace_P = np.nonzero(pit_MS >= 0)
  pit_P, pair_P = pit_MS[problem_P, trace_P], np.arange(len(problem_P))
  entry_PL = entries(traces.contexts_ML[problem_P], action_PL, chain)
  step_L = np.arange(chain.length)
  kept_PL = step_L == pit_P[:, None] if first_step else step_L >= pit_P[:, None]
  row_I, column_I = np.nonzero(kept_PL)
  chosen = Sides(row_I, entry_PL[row_I, column_I], np.ones(len(row_I)))
  entry_P = _entries_of(traces, chain)[problem_P, trace_P, pit_P]
  return _pairs(chosen, Sides(pair_P, entry_P, np.ones(len(pair_P))), problem_P, chain, traces)


def _whole(entry_PL, weight_PL) -> Sides:
  pair_PL = np.broadcast_to(np.arange(len(entry_PL))[:, None], entry_PL.shape)
  return Sides(pair_PL.ravel(), entry_PL.ravel(), weight_PL.ravel())


def _continuations(traces, chain, random) -> np.ndarray:
  return chains.continuations(chain, int((pits(traces) >= 0).sum()), random)


def _entries_of(traces, chain) -> np.ndarray:
  return entries(traces.contexts_ML[:, None, :], traces.actions_MSL, chain)


def _table_size(traces, chain) -> int:
  return len(traces.contexts_ML) // chain.problems * chain.contexts * chain.actions


def _counts(entry, chain, traces, weight=None) -> np.ndarray:
  if weight is not None:
    weight = weight.ravel()
  return np.bincount(entry.ravel(), weight, minlength=_table_size(traces, chain)).astype(float)


def _pairs(chosen: Sides, rejected: Sides, problem_P, chain, traces) -> Pairs:
  count, size = len(problem_P), _table_size(traces, chain)
  rows = np.concatenate([chosen.pair_I, rejected.pair_I])
  columns = np.concatenate([chosen.entry_I, rejected.entry_I])
  signed = np.concatenate([chosen.weight_I, -rejected.weight_I])
  difference = scipy.sparse.csr_matrix((signed.astype(np.float32), (rows, columns)), (count, size))
  difference.eliminate_zeros()  # what both sides share
  length_P = np.bincount(chosen.pair_I, minlength=count)
  replicate_P = problem_P // chain.problems
  steps_R = np.bincount(replicate_P, length_P, minlength=len(traces.contexts_ML) // chain.problems)
  weight_P = chain.contexts / np.maximum(steps_R, 1)[replicate_P]
  share_I = (weight_P / length_P)[chosen.pair_I]
  return Pairs(
    difference_PK=difference,
    taken_K=np.bincount(chosen.entry_I, minlength=size).astype(float),
    anchor_K=np.bincount(chosen.entry_I, share_I, minlength=size),
    weight_P=weight_P,
  )
