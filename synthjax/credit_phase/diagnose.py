"""Where a policy's problems lie in the phase diagram, from its own traces and rollouts.

A prefix's rollouts tell by their next steps what the policy is unsure of, and by their outcomes
what an incorrect step costs. Every prefix is a place of the chain of chains.py (see likelihood.py).
The probability c of the correct step, the survival u of the others, the number of actions and the
share of uncertain prefixes have a flat prior on a grid.

Steps are distinct where their tokens are. A policy that says the same in many ways is seen to
survive its "incorrect" steps: u is near 1, as it is for credit.

Shapes: P problems, G points of the grid, B bootstrap replicates.
"""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from synthjax.config.credit_phase import Chain, Tuning
from synthjax.credit_phase import diagram, likelihood, tuning
from synthjax.credit_phase.likelihood import ObservedPrefix

# Of the tabular model: a twentieth of the diagram's work, since it runs for every draw.
QUICK = Tuning(
  rates=(0.1, 0.3, 1.0),
  betas=(0.1, 0.5),
  temperatures=(0.01, 0.05),
  steps=(20, 100),
  tuning_replicates=4,
  replicates=8,
)
# Traces of all problems of a replicate; beyond it problems and decisions are scaled down.
_MOST_TRACES = 8192
LEAST_UNSURE = 30  # prefixes below which nothing is advised (our choice)


class ObservedProblem(NamedTuple):
  """What was seen of a problem."""

  correct: tuple[bool, ...]  # of its traces
  lengths: tuple[int, ...]  # steps of its traces
  prefixes: tuple[ObservedPrefix, ...]  # distinct ones
  pits: tuple[bool, ...] = ()  # for every pit that was named, whether fresh rollouts confirm it


class Interval(NamedTuple):
  """A figure with its 95 % interval; all NaN where nothing was seen."""

  value: float
  low: float
  high: float


class PhasePoint(NamedTuple):
  """A place in the diagram."""

  success: float  # p
  survival: float  # u
  length: float  # L: uncertain steps of a trace
  contexts: float  # V: distinct decisions


class Estimates(NamedTuple):
  """What is known of a policy on its problems."""

  figures: dict[str, Interval]
  point: PhasePoint
  draws: list[PhasePoint]  # of the bootstrap, for what is computed from them
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


def estimate(
  problems: Sequence[ObservedProblem], replicates: int = 200, seed: int = 0
) -> Estimates:
  """Figures of the diagram with intervals from a bootstrap over problems.

  Each replicate of u and of the uncertain steps is also a draw from their posterior, so that their
  intervals are wide rather than narrow.
  """
  random = np.random.default_rng(seed)
  table_PG = np.stack([likelihood.log_likelihood(problem.prefixes) for problem in problems])
  count = len(problems)
  weight_BP = random.multinomial(count, np.full(count, 1 / count), size=replicates)
  point = _phase_point(problems, table_PG, np.ones(count), None)
  draws = [_phase_point(problems, table_PG, weight_P, random) for weight_P in weight_BP]

  figures = {}
  for name in PhasePoint._fields:
    drawn = [getattr(draw, name) for draw in draws]
    figures[name] = _interval(getattr(point, name), drawn)
  figures["precision"] = _precision(problems, weight_BP)
  unsure = 0
  for problem in problems:
    unsure += sum(_is_unsure(prefix) for prefix in problem.prefixes)
  return Estimates(figures=figures, point=point, draws=draws, unsure=unsure)


def place(
  estimates: Estimates, budget: Budget, draws: int = 6, seed: int = 0, quick: Tuning = QUICK
) -> Placed:
  """Trains all methods on chains like the problems: at the estimates, and at draws of them.

  The intervals of gains are the range of so few draws, and hold the noise of the replicates too.
  """
  gains: dict[str, list[float]] = {"traces": [], "sampling": []}
  successes: dict[str, dict[str, list[float]]] = {
    "traces": collections.defaultdict(list),
    "sampling": collections.defaultdict(list),
  }
  points = [estimates.point, *estimates.draws[:draws]]
  for number, point in enumerate(points):
    for equal, traces in (("traces", budget.traces), ("sampling", None)):
      chain = chain_of(point, budget, traces)
      cell = diagram.PhaseCell(chain, equal_sampling=equal == "sampling")
      outcomes_of_parts = []
      for part, methods in diagram.parts(cell):
        outcomes_of_parts.append(tuning.outcomes(part, methods, quick, seed + number))
      gains[equal].append(diagram.gain(outcomes_of_parts).mean)
      for outcomes in outcomes_of_parts:
        for method, outcome in outcomes.items():
          successes[equal][method].append(float(np.mean(outcome.success_R)))

  means = {}
  best = {}
  for equal, of_methods in successes.items():
    mean = {method: float(np.mean(values)) for method, values in of_methods.items()}
    means[equal] = mean
    best[equal] = max(mean, key=mean.__getitem__)
  return Placed(
    at_equal_traces=_interval(gains["traces"][0], gains["traces"]),
    at_equal_sampling=_interval(gains["sampling"][0], gains["sampling"]),
    best=best,
    success=means,
    chain=chain_of(estimates.point, budget, budget.traces),
  )


def chain_of(point: PhasePoint, budget: Budget, traces: int | None = None) -> Chain:
  """The chain of a point; problems and decisions are scaled together to what can be computed.

  Where luck alone succeeds more often than the policy, u is lowered to what the policy's success
  allows.

  Args:
    point, budget: what is estimated, and what training would have.
    traces: the largest number of traces that a method has for each problem; None: as many as the
      traces and values of `budget` cost together.
  """
  length = max(round(point.length), 1)
  success = float(np.clip(point.success, 0.01, 0.99))
  # Chain needs survival ** length below success.
  survival = float(min(point.survival, (0.9 * success) ** (1 / length)))
  chain = Chain(
    success=success,
    survival=survival,
    length=length,
    contexts=max(round(point.contexts), 1),
    traces=budget.traces,
    rollouts=budget.rollouts,
    problems=budget.problems,
  )
  if traces is None:
    traces = diagram.richer(chain).traces
  # At least eight problems stay.
  smallest_scale = 8 / budget.problems
  scale = min(1.0, max(_MOST_TRACES / (budget.problems * traces), smallest_scale))
  return dataclasses.replace(
    chain,
    problems=max(round(scale * budget.problems), 1),
    contexts=max(round(scale * chain.contexts), 1),
  )


def advice(placed: Placed, unsure: int) -> str:
  """Which arm is worth its sampling, in a sentence; `unsure` as in Estimates."""
  if unsure < LEAST_UNSURE:
    return (
      f"none: only {unsure} prefixes were seen at which the policy goes on in more than one way, "
      f"and fewer than {LEAST_UNSURE} say nothing; sample more problems or rollouts"
    )
  sampling = placed.at_equal_sampling
  traces = placed.at_equal_traces
  best = placed.best["sampling"]
  if sampling.low > diagram.WORTHWHILE:
    return (
      f"per-step credit ({best}) is worth its rollouts: at equal sampling it is above every control"
    )
  if traces.low > diagram.WORTHWHILE:
    credit = placed.best["traces"]
    if sampling.high < 0:
      return (
        f"spend sampling on more traces ({best}): per-step credit ({credit}) is better for equal "
        "traces, and worse once its rollouts are counted"
      )
    return (
      f"per-step credit ({credit}) is better for equal traces; whether it is worth its rollouts, "
      f"against {best} with as much sampling, is not told apart"
    )
  if traces.high < diagram.WORTHWHILE:
    return f"per-step credit does not pay here even for equal traces: take {best}"
  return (
    "not told apart: the interval for equal traces includes 0; more problems narrow it. "
    f"Until then the cheaper {best}"
  )


def _phase_point(problems, table_PG, weight_P, random) -> PhasePoint:
  """The point of weighted problems: posterior means, or a draw where there is a generator."""
  log_G = weight_P.astype(np.float32) @ table_PG
  posterior_G = np.exp(log_G - log_G.max())
  if random is None:
    posterior_G /= posterior_G.sum()
    top = np.unravel_index(posterior_G.argmax(), likelihood.SHAPE)
    marginal = posterior_G.reshape(likelihood.SHAPE).sum(axis=(0, 2, 3))
    survival = float(marginal @ likelihood.SURVIVAL)
  else:
    cumulative_G = np.cumsum(posterior_G, dtype=float)
    index = np.searchsorted(cumulative_G, random.random() * cumulative_G[-1])
    top = np.unravel_index(index, likelihood.SHAPE)
    spacing = likelihood.SURVIVAL[1]
    jitter = random.uniform(-0.5, 0.5) * spacing  # between the points of the grid
    survival = float(np.clip(likelihood.SURVIVAL[top[1]] + jitter, 0, 0.99))
  share = _uncertain_share(problems, weight_P, top)
  length = _mean([problem.lengths for problem in problems], weight_P)
  return PhasePoint(
    success=_mean([problem.correct for problem in problems], weight_P),
    survival=survival,
    length=share * length,
    contexts=_decisions(problems, weight_P),
  )


def _uncertain_share(problems, weight_P, grid_index) -> float:
  """Share of the steps of traces that are uncertain, given a point of the grid."""
  at = tuple(grid_index[:3])
  share = likelihood.UNCERTAIN[grid_index[3]]
  uncertain_P = np.zeros(len(problems))
  steps_P = np.zeros(len(problems))
  for number, problem in enumerate(problems):
    for prefix in problem.prefixes:
      uncertain, certain = likelihood.likelihoods(likelihood.count_steps(prefix))
      odds = share * float(uncertain[at])
      against = (1 - share) * float(certain[at])
      probability = prefix.times * odds / max(odds + against, likelihood.LEAST)
      uncertain_P[number] += probability
      steps_P[number] += prefix.times
  return float(weight_P @ uncertain_P / max(weight_P @ steps_P, 1))


def _is_unsure(prefix: ObservedPrefix) -> bool:
  return len(set(prefix.steps)) > 1


def _mean(values: Sequence[Sequence[float]], weight_P) -> float:
  """Mean over all values of the problems, each problem counted as often as its weight says."""
  sums = np.array([sum(of_problem) for of_problem in values], float)
  counts = np.array([len(of_problem) for of_problem in values])
  return float(weight_P @ sums / max(weight_P @ counts, 1))


def _decisions(problems, weight_P) -> float:
  """How many equally frequent decisions would repeat as often between problems as those seen do.

  Of prefixes where the rollouts differ in their next step. Where none repeats: a third of the
  pairs, the number at which seeing none has a probability of 5 %.
  """
  counts_P = []
  for problem in problems:
    unsure = [prefix.decision for prefix in problem.prefixes if _is_unsure(prefix)]
    counts_P.append(collections.Counter(unsure))
  total_P = weight_P * np.array([counts.total() for counts in counts_P])
  pairs = total_P.sum() ** 2 - (total_P**2).sum()

  sums: dict[str, float] = collections.defaultdict(float)
  squares: dict[str, float] = collections.defaultdict(float)
  for weight, counts in zip(weight_P, counts_P):
    for decision, count in counts.items():
      sums[decision] += weight * count
      squares[decision] += (weight * count) ** 2
  repeated = sum(sums[decision] ** 2 - squares[decision] for decision in sums)
  if pairs == 0:
    return 1.0
  # Every pair is counted twice: 6 stands for the three pairs of the 5 % bound.
  return float(pairs / max(repeated, 6.0))


def _precision(problems, weight_BP) -> Interval:
  """Share of the named pits that fresh rollouts confirm."""
  named_P = np.array([len(problem.pits) for problem in problems])
  confirmed_P = np.array([sum(problem.pits) for problem in problems])
  if not named_P.sum():
    return Interval(math.nan, math.nan, math.nan)
  draws = []
  for weight_P in weight_BP:
    named = weight_P @ named_P
    if named:
      draws.append(weight_P @ confirmed_P / named)
  return _interval(confirmed_P.sum() / named_P.sum(), draws)


def _interval(value: float, draws: Sequence[float]) -> Interval:
  low, high = np.quantile([*draws, value], [0.025, 0.975])
  return Interval(float(value), float(low), float(high))
