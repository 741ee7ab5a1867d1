"""The pit of a trace: the step with the largest fall in value, where guards say that the fall is one.

Until 2026-11-24 it was the first step with the lowest value. A finished incorrect trace has the value 0
exactly at its end, so that this found later and later steps the more rollouts a prefix had: any
prefix of which one rollout in twenty is correct is above 0 sooner or later. Lowest within the noise of n
rollouts has the same end, since the noise shrinks too. The largest fall is found more often with
more rollouts wherever it is the largest in truth (`synthjax bench pits` prints the rates).
"""

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
  """The step with the largest fall in value among those that pass the guards, the first of equals; None where none does.

  Args:
    values: q_0 (the bare problem), q_1, ..., q_L; None where a prefix was not valued.
    guards: what the step must show. A step whose prefix was not valued does not pass.
  """
  slack = 1e-9  # 0.8 - 0.4 and 0.4 - 0.0 are one fall, however floating point rounds them
  found, largest = None, 0.0
  for step in range(1, len(values)):
    before, after = values[step - 1], values[step]
    if before is None or after is None or not guards.hold(before, after):
      continue
    if before - after > largest + slack:
      found, largest = step, before - after
  return found


def agreement(pits: Sequence[int | None], reference: Sequence[int | None]) -> tuple[float, float]:
  """(share of traces with the same pit, or none in both; its standard error)."""
  return metrics.mean([float(one == other) for one, other in zip(pits, reference, strict=True)])
