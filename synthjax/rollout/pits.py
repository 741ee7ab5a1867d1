"""The pit of a trace: the first step with the lowest value, where guards say that the fall is one."""

import dataclasses
from collections.abc import Sequence

from synthjax.evaluate import metrics
from synthjax.fields import Checked, Share
from synthjax.records import Record


@dataclasses.dataclass(frozen=True)
class Guards(Record, Checked):
  """What a step must show to be a pit. The defaults are our choice."""

  # value of the prefix before the step: below it the trace was lost already
  min_before: Share = 0.3
  min_drop: Share = 0.5  # share of that value that the step loses

  def hold(self, before: float, after: float) -> bool:
    """Whether a fall from `before` to `after` is one."""
    slack = 1e-9  # 0.3 of 0.6 is a fall by half, however floating point rounds it
    return after < before >= self.min_before - slack and before - after >= self.min_drop * before - slack


def first_pit(values: Sequence[float | None], guards: Guards) -> int | None:
  """The first step with the lowest value; None where it does not pass the guards.

  Args:
    values: q_0 (the bare problem), q_1, ..., q_L; None where a prefix was not valued.
    guards: what the step must show. A step whose prefix was not valued does not pass.
  """
  known = [(q, step) for step, q in enumerate(values) if step > 0 and q is not None]
  if not known:
    return None
  lowest, step = min(known)
  before = values[step - 1]
  return step if before is not None and guards.hold(before, lowest) else None


def agreement(pits: Sequence[int | None], reference: Sequence[int | None]) -> tuple[float, float]:
  """(share of traces with the same pit, or none in both; its standard error)."""
  return metrics.mean([float(one == other) for one, other in zip(pits, reference, strict=True)])
