"""Where a policy's problems lie in the phase diagram, from its own traces and rollouts.

A prefix's rollouts tell by their next steps what the policy is unsure of, and by their outcomes what
a wrong step costs. Every prefix is a place of the chain of chains.py: one unknown next step is
correct, the policy takes it with probability c, and after another one success is u times as likely.
Shares of prefixes are certain: the policy always goes on in the same way there. (c, u, the number of
actions, the share of uncertain prefixes) have a flat prior on a grid, as success after the correct
step has for every prefix; which step is correct is summed out.

A step is another step where its tokens are. A policy that says the same in many ways is seen to
survive its "wrong" steps: u is near 1, as it is for credit.

Shapes: P problems, G points of the grid, B bootstrap replicates.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from synthjax.config.credit_phase import Chain, Tuning
from synthjax.credit_phase import diagram, tuning
from synthjax.credit_phase.tuning import Outcome

_CORRECT = 1 - np.geomspace(0.02, 0.9, 16)  # c
_SURVIVAL = np.linspace(0, 0.95, 20)  # u
_ACTIONS = np.array([2, 3, 6, 12, 50])
_UNCERTAIN = np.linspace(0, 1, 21)  # share of prefixes
_AFTER = np.linspace(0, 1, 21)  # success after the correct step
_LEAST = 1e-300  # of a likelihood

# Of the tabular model: a twentieth of the diagram's work, since it runs for every draw.
QUICK = Tuning(
  rates=(0.1, 0.3, 1.0),
  betas=(0.1, 0.5),
  temperatures=(0.01, 0.05),
  steps=(20, 100),
  tuning_replicates=4,
  replicates=8,
)
_MOST_TRACES = 8192  # of all problems of a replicate: beyond it problems and decisions are scaled


LEAST_UNSURE = 30  # prefixes below which nothing is advised (our choice)


class Prefix(NamedTuple):
  """A prefix of a trace, and what its rollouts did."""

  decision: str  # what is decided here: prefixes of all problems with the same one teach each other
  steps: tuple[str, ...]  # the next step of every rollout
  correct: tuple[bool, ...]  # whether the rollout was
  times: int = 1  # traces that pass through it


class Problem(NamedTuple):
  """What was seen of a problem."""

  correct: tuple[bool, ...]  # its traces
  lengths: tuple[int, ...]  # their steps
  prefixes: tuple[Prefix, ...]  # distinct ones
  pits: tuple[bool, ...] = ()  # for every pit that was named, whether fresh rollouts confirm it


class Interval(NamedTuple):
  """A figure with its 95 % interval; all NaN where nothing was seen."""

  value: float
  low: float
  high: float


class Setting(NamedTuple):
  """A place in the diagram."""

  success: float  # p
  survival: float  # u
  length: float  # L: uncertain steps of a trace
  contexts: float  # V: distinct decisions


class Estimates(NamedTuple):
  """What is known of a policy on its problems."""

  figures: dict[str, Interval]
  point: Setting
  draws: list[Setting]  # of the bootstrap, for what is computed from them
  unsure: int  # prefixes seen whose rollouts differ in their next step


@dataclasses.dataclass(frozen=True)
class Budget:
  """What training would have."""

  problems: int  # N
  traces: int  # S a problem
  rollouts: int  # n a prefix


class Placed(NamedTuple):
  """What the tabular model says of arms, in shares of problems."""

  at_equal_traces: Interval  # per-step credit less the best control
  at_equal_sampling: Interval
  best: dict[str, str]  # the method with the highest success, by what is held equal
  success: dict[str, dict[str, float]]  # of all methods, by what is held equal; means over draws
  chain: Chain  # of the point estimate


def estimate(problems: Sequence[Problem], replicates: int = 200, seed: int = 0) -> Estimates:
  """Figures of the diagram with intervals from a bootstrap over problems.

  Each replicate of u and of the uncertain steps is also a draw from their posterior, so that their
  intervals are wide rather than narrow.
  """
  random = np.random.default_rng(seed)
  table_PG = np.stack([_log_likelihood(problem.prefixes) for problem in problems])
  count = len(problems)
  weight_BP = random.multinomial(count, np.full(count, 1 / count), size=replicates)
  point = _setting(problems, table_PG, np.ones(count), None)
  draws = [_setting(problems, table_PG, weight_P, random) for weight_P in weight_BP]
  figures = {
    name: _interval(value, draws_of)
    for name, value, draws_of in zip(Setting._fields, point, zip(*draws))
  }
  figures["precision"] = _precision(problems, weight_BP)
  unsure = sum(_differ(prefix) for problem in problems for prefix in problem.prefixes)
  return Estimates(figures=figures, point=point, draws=draws, unsure=unsure)


def place(
  found: Estimates, budget: Budget, draws: int = 6, seed: int = 0, quick: Tuning = QUICK
) -> Placed:
  """Trains all methods on chains like the problems: at the estimates, and at draws of them.

  The intervals of gains are the range of so few draws, and hold the noise of the replicates too.
  """
  settings = [found.point, *found.draws[:draws]]
  gains: dict[str, list[float]] = {"traces": [], "sampling": []}
  success: dict[str, dict[str, list[float]]] = {
    "traces": collections.defaultdict(list),
    "sampling": collections.defaultdict(list),
  }
  for number, setting in enumerate(settings):
    for equal, most in (("traces", budget.traces), ("sampling", None)):
      chain = chain_of(setting, budget, most)
      cell = diagram.Cell(chain, equal_sampling=equal == "sampling")
      outcomes = [
        tuning.outcomes(part, names, quick, seed + number) for part, names in diagram.parts(cell)
      ]
      gains[equal].append(diagram.gain(outcomes).mean)
      for name, outcome in _together(outcomes).items():
        success[equal][name].append(float(np.mean(outcome.success_R)))
  means = {
    equal: {name: float(np.mean(values)) for name, values in of.items()}
    for equal, of in success.items()
  }
  return Placed(
    at_equal_traces=_interval(gains["traces"][0], gains["traces"]),
    at_equal_sampling=_interval(gains["sampling"][0], gains["sampling"]),
    best={equal: max(of, key=lambda name: of[name]) for equal, of in means.items()},
    success=means,
    chain=chain_of(found.point, budget, budget.traces),
  )


def chain_of(setting: Setting, budget: Budget, traces: int | None = None) -> Chain:
  """The chain of a setting; problems and decisions are scaled together to what can be computed.

  Where luck alone succeeds more often than the policy, u is lowered to what the policy's success
  allows.

  Args:
    setting, budget: what is estimated, and what training would have.
    traces: a problem, of those who have most; None: whatever the traces and values of `budget` cost.
  """
  length = max(round(setting.length), 1)
  success = float(np.clip(setting.success, 0.01, 0.99))
  survival = float(min(setting.survival, (0.9 * success) ** (1 / length)))
  chain = Chain(
    success=success,
    survival=survival,
    length=length,
    contexts=max(round(setting.contexts), 1),
    traces=budget.traces,
    rollouts=budget.rollouts,
    problems=budget.problems,
  )
  most = diagram.richer(chain).traces if traces is None else traces
  scale = min(1.0, max(_MOST_TRACES / (budget.problems * most), 8 / budget.problems))
  return dataclasses.replace(
    chain,
    problems=max(round(scale * budget.problems), 1),
    contexts=max(round(scale * chain.contexts), 1),
  )


def advice(placed: Placed, unsure: int) -> str:
  """Which arm is worth its sampling, in a sentence; `unsure` as in Estimates."""
  if unsure < LEAST_UNSURE:
    return (
      f"none: only {unsure} prefixes were seen at which the policy goes on in more than one way, and fewer than {LEAST_UNSURE} say "
      "nothing; sample more problems or rollouts"
    )
  sampling, traces = placed.at_equal_sampling, placed.at_equal_traces
  best = placed.best["sampling"]
  if sampling.low > diagram.WORTHWHILE:
    return (
      f"per-step credit ({best}) is worth its rollouts: at equal sampling it is above every control"
    )
  if traces.low > diagram.WORTHWHILE:
    credit = placed.best["traces"]
    if sampling.high < 0:
      return (
        f"spend sampling on more traces ({best}): per-step credit ({credit}) is better for equal traces, and worse once its rollouts "
        "are counted"
      )
    return (
      f"per-step credit ({credit}) is better for equal traces; whether it is worth its rollouts, against {best} with as much "
      "sampling, is not told apart"
    )
  if traces.high < diagram.WORTHWHILE:
    return f"per-step credit does not pay here even for equal traces: take {best}"
  return f"not told apart: the interval for equal traces includes 0; more problems narrow it. Until then the cheaper {best}"


def _together(outcomes: Sequence[Mapping[str, Outcome]]) -> dict[str, Outcome]:
  return {name: outcome for part in outcomes for name, outcome in part.items()}


def _setting(problems, table_PG, weight_P, random) -> Setting:
  """The setting of weighted problems: posterior means, or a draw where there is a generator."""
  shape = (len(_CORRECT), len(_SURVIVAL), len(_ACTIONS), len(_UNCERTAIN))
  log_G = weight_P.astype(np.float32) @ table_PG
  posterior_G = np.exp(log_G - log_G.max())
  if random is None:
    posterior_G /= posterior_G.sum()
    top = np.unravel_index(posterior_G.argmax(), shape)
    survival = float(posterior_G.reshape(shape).sum(axis=(0, 2, 3)) @ _SURVIVAL)
  else:
    up_to_G = np.cumsum(posterior_G, dtype=float)
    top = np.unravel_index(np.searchsorted(up_to_G, random.random() * up_to_G[-1]), shape)
    jitter = random.uniform(-0.5, 0.5) * _SURVIVAL[1]  # between the points of the grid
    survival = float(np.clip(_SURVIVAL[top[1]] + jitter, 0, 0.99))
  return Setting(
    success=_mean([problem.correct for problem in problems], weight_P),
    survival=survival,
    length=_uncertain_share(problems, weight_P, top)
    * _mean([problem.lengths for problem in problems], weight_P),
    contexts=_decisions(problems, weight_P),
  )


def _uncertain_share(problems, weight_P, top) -> float:
  """Of the steps of traces: the probability of every prefix to be an uncertain one, at a point of the grid."""
  at, share = tuple(top[:3]), _UNCERTAIN[top[3]]
  uncertain_P, steps_P = np.zeros(len(problems)), np.zeros(len(problems))
  for number, problem in enumerate(problems):
    for prefix in problem.prefixes:
      uncertain, certain = (float(likelihood[at]) for likelihood in _likelihoods(_counts(prefix)))
      odds = share * uncertain, (1 - share) * certain
      uncertain_P[number] += prefix.times * odds[0] / max(sum(odds), _LEAST)
      steps_P[number] += prefix.times
  return float(weight_P @ uncertain_P / max(weight_P @ steps_P, 1))


def _differ(prefix: Prefix) -> bool:
  return len(set(prefix.steps)) > 1


def _mean(values: Sequence[Sequence[float]], weight_P) -> float:
  sums = np.array([sum(of) for of in values], float)
  counts = np.array([len(of) for of in values])
  return float(weight_P @ sums / max(weight_P @ counts, 1))


def _decisions(problems, weight_P) -> float:
  """How many equally frequent decisions would repeat as often between problems as those seen do.

  Of prefixes where the rollouts differ in their next step. Where none repeats: a third of the
  pairs, the number at which seeing none has a probability of 5 %.
  """
  counts_P = [
    collections.Counter(p.decision for p in problem.prefixes if _differ(p)) for problem in problems
  ]
  total_P = weight_P * np.array([of.total() for of in counts_P])
  pairs = total_P.sum() ** 2 - (total_P**2).sum()
  seen: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
  for weight, of in zip(weight_P, counts_P):
    for decision, count in of.items():
      seen[decision][0] += weight * count
      seen[decision][1] += (weight * count) ** 2
  repeated = sum(both**2 - squares for both, squares in seen.values())
  if pairs == 0:
    return 1.0
  return float(pairs / max(repeated, 6.0))  # every pair is counted twice


def _precision(problems, weight_BP) -> Interval:
  named_P = np.array([len(problem.pits) for problem in problems])
  confirmed_P = np.array([sum(problem.pits) for problem in problems])
  if not named_P.sum():
    return Interval(math.nan, math.nan, math.nan)
  draws = [weight @ confirmed_P / (weight @ named_P) for weight in weight_BP if weight @ named_P]
  return _interval(confirmed_P.sum() / named_P.sum(), draws)


def _interval(value: float, draws: Sequence[float]) -> Interval:
  low, high = np.quantile([*draws, value], [0.025, 0.975])
  return Interval(float(value), float(low), float(high))


def _log_likelihood(prefixes: Sequence[Prefix]) -> np.ndarray:
  """Of all points of the grid. [G]"""
  total = np.zeros(len(_CORRECT) * len(_SURVIVAL) * len(_ACTIONS) * len(_UNCERTAIN), np.float32)
  for prefix in prefixes:
    total += _log_likelihood_of(_counts(prefix))
  return total


def _counts(prefix: Prefix) -> tuple[tuple[int, int], ...]:
  """(rollouts, correct ones) of every next step; which is which does not matter."""
  found: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
  for step, correct in zip(prefix.steps, prefix.correct, strict=True):
    found[step][0] += 1
    found[step][1] += correct
  return tuple(sorted((n, good) for n, good in found.values()))


@functools.lru_cache(maxsize=1024)  # many prefixes have the same counts
def _log_likelihood_of(counts: tuple[tuple[int, int], ...]) -> np.ndarray:
  """Of a prefix's rollouts. [G]"""
  uncertain, certain = _likelihoods(counts)
  mixed = uncertain[..., None] * _UNCERTAIN + certain[..., None] * (1 - _UNCERTAIN)
  return np.log(np.maximum(mixed, _LEAST)).astype(np.float32).ravel()


@functools.lru_cache(maxsize=1 << 14)
def _likelihoods(counts: tuple[tuple[int, int], ...]) -> tuple[np.ndarray, np.ndarray]:
  """Of a prefix's rollouts, (if it is uncertain, if it is certain), by c, u and the number of actions.

  Next steps are named; which of the actions is correct has equal chances.
  """
  rollouts, correct = sum(n for n, _ in counts), sum(good for _, good in counts)
  c, actions = _CORRECT[:, None, None], _ACTIONS[None, None, :]
  uncertain = np.zeros((len(_CORRECT), len(_SURVIVAL), len(_ACTIONS)))
  unseen = ((0, 0), np.maximum(actions - len(counts), 0))
  for (n, good), candidates in (unseen, *((each, 1) for each in counts)):
    taken = c**n * ((1 - c) / (actions - 1)) ** (rollouts - n)
    uncertain += candidates / actions * taken * _outcomes(n, good, rollouts, correct)[None, :, None]
  uncertain *= actions >= len(counts)
  certain = np.zeros_like(uncertain)
  if len(counts) <= 1:
    certain += _outcomes(rollouts, correct, rollouts, correct)[None, :, None] / actions
  return uncertain, certain


def _outcomes(n: int, good: int, rollouts: int, correct: int) -> np.ndarray:
  """Probability of the outcomes by u: n rollouts took the correct step, `good` of these succeeded."""
  after = _AFTER[None, :]
  wrong = _SURVIVAL[:, None] * after
  others, lucky = rollouts - n, correct - good
  each = after**good * (1 - after) ** (n - good) * wrong**lucky * (1 - wrong) ** (others - lucky)
  return each.mean(axis=1)
