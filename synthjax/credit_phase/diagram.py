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
from synthjax.config.fields import (
  FieldError,
)
from synthjax.credit_phase import chains, methods
from synthjax.credit_phase.tuning import Outcome


class Cell(NamedTuple):
  """One setting, and what the controls may sample."""

  chain: Chain
  equal_sampling: bool  # the controls' traces cost what the traces and the values of `chain` do


class Plane(NamedTuple):
  """u against one other field of Chain."""

  name: str
  field: str
  values: tuple
  cells: dict[tuple, Cell]  # (value, u) -> its cell; settings that cannot be are left out


WORTHWHILE = 0.01  # where success is nearly 1, far smaller gains exclude zero (our choice)


class Gain(NamedTuple):
  """Per-step credit less the best control, in shares of problems."""

  credit: str
  control: str
  mean: float
  low: float  # of a 95 % interval over replicates
  high: float

  @property
  def pays(self) -> bool:
    """Whether the interval lies above one point."""
    return self.low > WORTHWHILE


def planes(study: CreditPhase) -> list[Plane]:
  """All planes, in the order of the figure."""
  base, valued = study.base, dataclasses.replace(study.base, rollouts=study.sampling_rollouts)
  late = dataclasses.replace(base, luck="at_end")
  p, n, u = study.successes, study.rollouts, study.survivals
  found = [
    _plane("p", base, "success", p, u, False),
    _plane("p, equal sampling", valued, "success", p, u, True),
    _plane("p, luck at the end", late, "success", p, u, False),
    _plane("L", base, "length", study.lengths, u, False),
    _plane("V", base, "contexts", study.contexts, u, False),
    _plane("S", base, "traces", study.traces, u, False),
    _plane("n", base, "rollouts", n, u, False),
    _plane("n, equal sampling", base, "rollouts", study.priced_rollouts, u, True),
  ]
  return [plane for plane in found if plane.cells]


def richer(chain: Chain) -> Chain:
  """The same problems with as many traces as the traces and the values of `chain` cost together."""
  traces = int(np.ceil(chains.sampled_steps(chain) / chain.length))
  return dataclasses.replace(chain, traces=traces, rollouts=0)


def parts(cell: Cell) -> list[tuple[Chain, tuple[str, ...]]]:
  """(chain, methods) that a cell compares: one with all methods, or two where sampling is equal.

  There RFT, DPO and RPO have more traces, and credit is of the methods whose values are paid for.
  """
  if not cell.equal_sampling:
    return [(cell.chain, (*methods.OUTCOME, *methods.CREDIT))]
  valued = (cell.chain, ("chosen_only", *methods.OF_INCORRECT))
  return [valued, (richer(cell.chain), methods.SAMPLED_MORE)]


def gain(found: Sequence[dict[str, Outcome]]) -> Gain:
  """The best method with credit less the best control, with an interval over replicates.

  Args:
    found: outcomes of the cell's `parts`. Replicates are paired within a part and independent
      between two.
  """
  everything = {name: outcome for part in found for name, outcome in part.items()}
  credit = _best(everything, methods.CREDIT)
  control = _best(everything, methods.OUTCOME)
  paired = control in found[0]
  with_R, without_R = everything[credit].success_R, everything[control].success_R
  mean, half = difference(with_R, without_R, paired)
  return Gain(credit=credit, control=control, mean=mean, low=mean - half, high=mean + half)


def difference(
  one_R: Sequence[float], other_R: Sequence[float], paired: bool
) -> tuple[float, float]:
  """(mean, half the width of Student's 95 % interval); Welch's where replicates are not paired."""
  one, other = np.asarray(one_R), np.asarray(other_R)
  if paired:
    gap = one - other
    error, freedom = gap.std(ddof=1) / np.sqrt(len(gap)), len(gap) - 1.0
    return float(gap.mean()), float(scipy.stats.t.ppf(0.975, freedom) * error)
  parts = np.array([one.var(ddof=1) / len(one), other.var(ddof=1) / len(other)])
  total = parts.sum()
  if total == 0:
    return float(one.mean() - other.mean()), 0.0
  freedom = total**2 / (parts**2 / (np.array([len(one), len(other)]) - 1)).sum()
  return float(one.mean() - other.mean()), float(scipy.stats.t.ppf(0.975, freedom) * np.sqrt(total))


def border(plane: Plane, gains: dict[tuple, Gain]) -> dict[float, float | None]:
  """Value of the second axis -> smallest u of the grid at and above which every gain pays.

  None where no u does.
  """
  found: dict[float, float | None] = {}
  for value in plane.values:
    found[value] = None
    survivals = sorted(u for other, u in plane.cells if other == value)
    for u in reversed(survivals):
      if not gains[value, u].pays:
        break
      found[value] = u
  return found


def _plane(name, base, field, values, survivals, equal_sampling) -> Plane:
  cells = {}
  for value in values:
    for u in survivals:
      try:
        chain = dataclasses.replace(base, survival=u, **{field: value})
      except FieldError:  # no policy has so few correct traces: u ** L of them are correct anyhow
        continue
      cells[value, u] = Cell(chain, equal_sampling)
  return Plane(name, field, values, cells)


def _best(outcomes: dict[str, Outcome], among: Iterable[str]) -> str:
  known = [method for method in among if method in outcomes]
  return max(known, key=lambda method: outcomes[method].chosen.success)
