"""The planes of the diagram, what per-step credit gains in each of their cells, and its border.

A gain is the success of the best method of methods.CREDIT less that of the best control of
methods.OUTCOME; both are chosen on the replicates that chose the settings.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

from synthjax.config.credit_phase import Chain, CreditPhase
from synthjax.config.fields import FieldError
from synthjax.credit_phase import chains, methods
from synthjax.credit_phase.tuning import Outcome

# Where success is nearly 1, far smaller gains exclude zero (our choice).
WORTHWHILE = 0.01


class PhaseCell(NamedTuple):
  """One setting, and what the controls may sample."""

  chain: Chain
  equal_sampling: bool  # the controls' traces cost as much as the traces and values of `chain`


class Plane(NamedTuple):
  """u against one other field of Chain."""

  name: str
  field: str
  values: tuple
  cells: dict[tuple, PhaseCell]  # by (value, u); settings that no policy can have are left out


class Gain(NamedTuple):
  """Per-step credit less the best control, in shares of problems."""

  credit: str
  control: str
  mean: float
  low: float  # of a 95 % interval over replicates
  high: float

  @property
  def pays(self) -> bool:
    """Whether the interval lies above WORTHWHILE."""
    return self.low > WORTHWHILE


def planes(study: CreditPhase) -> list[Plane]:
  """All planes, in the order of the figure."""
  base = study.base
  valued = dataclasses.replace(base, rollouts=study.sampling_rollouts)
  late = dataclasses.replace(base, luck="at_end")
  p = study.successes
  u = study.survivals
  candidates = [
    _plane("p", base, "success", p, u, False),
    _plane("p, equal sampling", valued, "success", p, u, True),
    _plane("p, luck at the end", late, "success", p, u, False),
    _plane("L", base, "length", study.lengths, u, False),
    _plane("V", base, "contexts", study.contexts, u, False),
    _plane("S", base, "traces", study.traces, u, False),
    _plane("n", base, "rollouts", study.rollouts, u, False),
    _plane("n, equal sampling", base, "rollouts", study.priced_rollouts, u, True),
  ]
  return [plane for plane in candidates if plane.cells]


def richer(chain: Chain) -> Chain:
  """The same problems with as many traces as the traces and the values of `chain` cost together."""
  traces = int(np.ceil(chains.sampled_steps(chain) / chain.length))
  return dataclasses.replace(chain, traces=traces, rollouts=0)


def parts(cell: PhaseCell) -> list[tuple[Chain, tuple[str, ...]]]:
  """(chain, methods) that a cell compares: one with all methods, or two where sampling is equal.

  At equal sampling RFT, DPO and RPO have more traces, and only those credit methods take part whose
  values are paid for.
  """
  if not cell.equal_sampling:
    return [(cell.chain, (*methods.OUTCOME, *methods.CREDIT))]
  valued = (cell.chain, ("chosen_only", *methods.OF_INCORRECT))
  sampled_more = (richer(cell.chain), methods.SAMPLED_MORE)
  return [valued, sampled_more]


def gain(outcomes_of_parts: Sequence[dict[str, Outcome]]) -> Gain:
  """The best method with credit less the best control, with an interval over replicates.

  Args:
    outcomes_of_parts: outcomes of the cell's `parts`. Replicates are paired within a part and
      independent between two.
  """
  outcomes: dict[str, Outcome] = {}
  for part in outcomes_of_parts:
    outcomes |= part
  credit = _best(outcomes, methods.CREDIT)
  control = _best(outcomes, methods.OUTCOME)
  mean, half = difference(
    outcomes[credit].success_R,
    outcomes[control].success_R,
    paired=control in outcomes_of_parts[0],
  )
  return Gain(
    credit=credit,
    control=control,
    mean=mean,
    low=mean - half,
    high=mean + half,
  )


def difference(
  one_R: Sequence[float], other_R: Sequence[float], paired: bool
) -> tuple[float, float]:
  """(mean, half the width of Student's 95 % interval); Welch's where replicates are not paired."""
  one = np.asarray(one_R)
  other = np.asarray(other_R)
  if paired:
    gap = one - other
    error = gap.std(ddof=1) / np.sqrt(len(gap))
    quantile = scipy.stats.t.ppf(0.975, len(gap) - 1.0)
    return float(gap.mean()), float(quantile * error)
  mean = float(one.mean() - other.mean())
  variance = one.var(ddof=1) / len(one)
  other_variance = other.var(ddof=1) / len(other)
  variances = np.array([variance, other_variance])
  total = variances.sum()
  if total == 0:
    return mean, 0.0
  # Welch-Satterthwaite.
  freedoms = np.array([len(one), len(other)]) - 1
  freedom = total**2 / (variances**2 / freedoms).sum()
  quantile = scipy.stats.t.ppf(0.975, freedom)
  return mean, float(quantile * np.sqrt(total))


def border(plane: Plane, gains: dict[tuple, Gain]) -> dict[float, float | None]:
  """By value of the second axis, the smallest u of the grid from which on every gain pays.

  None where no u does.
  """
  smallest: dict[float, float | None] = {}
  for value in plane.values:
    smallest[value] = None
    survivals = [u for other, u in plane.cells if other == value]
    for u in sorted(survivals, reverse=True):
      if not gains[value, u].pays:
        break
      smallest[value] = u
  return smallest


def _plane(name, base, field, values, survivals, equal_sampling) -> Plane:
  cells = {}
  for value in values:
    for u in survivals:
      try:
        chain = dataclasses.replace(base, survival=u, **{field: value})
      except FieldError:
        # No policy has so few correct traces: a share u ** L of them is correct by luck alone.
        continue
      cells[value, u] = PhaseCell(chain, equal_sampling)
  return Plane(name=name, field=field, values=values, cells=cells)


def _best(outcomes: dict[str, Outcome], among: Iterable[str]) -> str:
  known = [method for method in among if method in outcomes]
  return max(known, key=lambda method: outcomes[method].chosen.success)
