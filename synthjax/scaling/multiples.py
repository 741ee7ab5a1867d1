"""The data-efficiency multiple of every arm against SFT, with its interval and its compute.

The multiple of an arm at N problems is the m with error_arm(N) = error_SFT(m N) (Setlur et al.
2024, arXiv 2406.14532; design.md, "Study A in formulas"). It is read off the measured SFT curve,
made monotone and interpolated by straight lines in log-log. How far the true curve may lie from
these lines is estimated by leaving points out, and is part of the interval. The fitted law gives a
second reading where the data support it. Neither is extrapolated: beyond the measured sizes a
multiple is a bound, `> x` or `< x`.

Shapes: N sizes of the baseline, R = 1 + B (the estimate, then its replicates).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from synthjax import files, stats
from synthjax.files import DataError
from synthjax.scaling import error_law
from synthjax.scaling.bootstrap import Cell, Key
from synthjax.scaling.reference_curve import ReferenceCurve

Beyond = Literal["", "above", "below"]
# What is written before a number with that flag.
BOUND = {"": "", "above": "> ", "below": "< "}


def shown(number: float, beyond: Beyond = "") -> str:
  """A multiple as text: `0.35x`, `2.1x`, `> 128x`."""
  if number < 1:
    decimals = 2
  elif number < 100:
    decimals = 1
  else:
    decimals = 0
  return f"{BOUND[beyond]}{number:.{decimals}f}x"


@dataclasses.dataclass(frozen=True)
class Settings:
  """What the arms are compared with and how."""

  baseline: str = "sft"  # the arm whose problems are the unit
  level: float = 0.95  # of the percentile intervals
  significance: float = 0.05  # the law is rejected at a smaller p-value (our choice)


@dataclasses.dataclass(frozen=True)
class Multiple:
  """A ratio with its interval.

  A number whose flag is set is a bound at the end of the measured range: "above" means `> number`.
  All three numbers are NaN where the multiple is undefined.
  """

  value: float
  low: float
  high: float
  beyond: Beyond = ""  # of `value`
  low_beyond: Beyond = ""
  high_beyond: Beyond = ""

  @property
  def defined(self) -> bool:
    """False where the baseline has the arm's error at every size, or at every small one."""
    return not math.isnan(self.value)

  def __str__(self) -> str:
    if not self.defined:
      return "undefined"
    low = shown(self.low, self.low_beyond)
    high = shown(self.high, self.high_beyond)
    interval = low
    if low != high:
      interval = f"{low} to {high}"
    return f"{shown(self.value, self.beyond)} ({interval})"


@dataclasses.dataclass(frozen=True)
class Point:
  """An arm at one number of problems. For the baseline all multiples are 1 by definition."""

  arm: str
  problems: int  # N
  seeds: tuple[int, ...]
  accuracy: float
  standard_error: float  # of `accuracy`, over seeds and test problems
  test_problems: int  # that it was measured on
  # Of problems, from the measured curve.
  multiple: Multiple
  # The same from the law; None where the data do not support it.
  law_multiple: Multiple | None
  # FLOPs at which the baseline has this error, over the arm's own; None: see the notes.
  compute_multiple: Multiple | None
  # The same with each arm's FLOPs of tuning, paid once on both sides; None: unknown.
  tuned_multiple: Multiple | None
  tokens_trained: float
  tokens_sampled: float
  flops: float  # everything but tuning
  matching_flops: float  # of the baseline at multiple.value * N problems

  @property
  def interval(self) -> tuple[float, float]:
    """95 % interval of the accuracy; see `stats.interval`."""
    return stats.interval(self.accuracy, self.standard_error, self.test_problems)


@dataclasses.dataclass(frozen=True)
class Efficiency:
  """The result of a study."""

  settings: Settings
  points: tuple[Point, ...]
  curve: tuple[tuple[int, float], ...]  # (N, error) of the baseline, made monotone
  law: error_law.Law
  missing: tuple[str, ...]  # cells and seeds that other arms or sizes have
  notes: tuple[str, ...]  # what a reader must know to read the numbers
  # FLOPs spent on choosing an arm's settings, by arm.
  tuning: Mapping[str, float] = dataclasses.field(default_factory=dict)
  # Comparisons of two arms draw from these; not part of the JSON.
  cells: Mapping[Key, Cell] = dataclasses.field(default_factory=dict, repr=False, compare=False)

  def at(self, arm: str) -> list[Point]:
    """The arm's points, N rising. Raises DataError where it has none."""
    points = [point for point in self.points if point.arm == arm]
    if not points:
      arms = dict.fromkeys(point.arm for point in self.points)
      raise DataError(f"arm {arm!r} was not measured; there are {', '.join(arms)}")
    return sorted(points, key=lambda point: point.problems)

  def to_json(self) -> dict:
    """A JSON object; numbers that do not exist are null."""
    parts = dataclasses.asdict(dataclasses.replace(self, cells={}))
    del parts["cells"]
    return files.without_nan(parts)


@dataclasses.dataclass(frozen=True)
class RatioBound:
  """Lower end of the ratio of two arms' multiples at one number of problems."""

  problems: int
  low: float  # a bound where the ratio leaves the measured range; NaN: unknown

  @property
  def above(self) -> bool:
    """Whether the first arm is shown to be worth more."""
    return self.low > 1


def analyse(
  cells: Mapping[Key, Cell],
  settings: Settings = Settings(),
  tuning: Mapping[str, float] | None = None,
) -> Efficiency:
  """Multiples of every cell of `bootstrap.resample` against the baseline arm.

  Args:
    cells: of all arms.
    settings: how they are compared.
    tuning: FLOPs spent on choosing each arm's settings, once for all its sizes and seeds;
      None: unknown.

  Raises:
    DataError: the baseline was measured at fewer than two sizes, or tuning lacks an arm.
  """
  tuning = dict(tuning or {})
  unknown = [arm for arm in _arms(cells) if arm not in tuning]
  if tuning and unknown:
    raise DataError(
      f"the compute of tuning is known for {', '.join(tuning)} and not for {', '.join(unknown)}; "
      "give all arms' (0 for one that was not tuned), or none"
    )
  reference = _reference(cells, settings)
  points = tuple(_point(cell, reference, settings, tuning) for cell in cells.values())
  return Efficiency(
    settings=settings,
    points=points,
    curve=reference.points(),
    law=reference.fit.law,
    missing=tuple(_missing(cells)),
    notes=tuple(_notes(cells, reference)),
    tuning=tuning,
    cells=cells,
  )


def _arms(cells: Mapping[Key, Cell]) -> list[str]:
  return list(dict.fromkeys(key.arm for key in cells))


def _reference(cells: Mapping[Key, Cell], settings: Settings) -> ReferenceCurve:
  """The baseline's curve. Raises DataError where it has fewer than two sizes."""
  baseline = [cell for key, cell in cells.items() if key.arm == settings.baseline]
  if len(baseline) < 2:
    raise DataError(
      f"baseline {settings.baseline!r} was measured at {len(baseline)} sizes; "
      f"a curve needs two at least (arms found: {', '.join(_arms(cells)) or 'none'})"
    )
  baseline.sort(key=lambda cell: cell.key.problems)
  return ReferenceCurve(baseline, settings.level, settings.significance)


def _point(
  cell: Cell, reference: ReferenceCurve, settings: Settings, tuning: Mapping[str, float]
) -> Point:
  is_baseline = cell.key.arm == settings.baseline
  freedom = reference.comparison_freedom(cell)
  error_R = cell.log_error(freedom)
  curve_NR = reference.curves(freedom)
  undefined = not is_baseline and reference.undefined_at(error_R[0])

  def multiple(matching_R, own, axis_N):
    if undefined:
      return Multiple(math.nan, math.nan, math.nan)
    log_ratio_R = matching_R - own
    if is_baseline:
      log_ratio_R = np.zeros_like(error_R)
    return _multiple(log_ratio_R, axis_N - own, settings.level)

  def multiple_of_compute(baseline_tuning, arm_tuning):
    if not reference.flops_rise or not cell.flops:
      return None
    axis_N = np.log(reference.flops_N + baseline_tuning)
    matching_R = reference.match(axis_N, curve_NR, error_R)
    return multiple(matching_R, np.log(cell.flops + arm_tuning), axis_N)

  axis_N, own = reference.log_problems_N, np.log(cell.key.problems)
  matching_R = reference.match(axis_N, curve_NR, error_R)
  law_multiple = None
  if reference.fit.law.supported:
    law_multiple = multiple(reference.fit.invert(error_R), own, axis_N)
  tuned_multiple = None
  if tuning:
    tuned_multiple = multiple_of_compute(tuning[settings.baseline], tuning[cell.key.arm])
  if undefined:
    matching = math.nan
  elif is_baseline:
    matching = own
  else:
    matching = np.clip(matching_R[0], axis_N[0], axis_N[-1])
  return Point(
    arm=cell.key.arm,
    problems=cell.key.problems,
    seeds=cell.seeds,
    accuracy=1 - cell.error,
    standard_error=cell.standard_error,
    test_problems=cell.test_problems,
    multiple=multiple(matching_R, own, axis_N),
    law_multiple=law_multiple,
    compute_multiple=multiple_of_compute(0.0, 0.0),
    tuned_multiple=tuned_multiple,
    tokens_trained=cell.tokens_trained,
    tokens_sampled=cell.tokens_sampled,
    flops=cell.flops,
    matching_flops=float(np.interp(matching, axis_N, reference.flops_N)),
  )


def _multiple(log_ratio_R: np.ndarray, log_range_N: np.ndarray, level: float) -> Multiple:
  """A multiple from its replicates.

  The ends of the interval are order statistics: a replicate off the range counts as the infinity
  that it is, and is never averaged with its neighbour.
  """
  sorted_B = np.sort(log_ratio_R[1:])
  count = len(sorted_B)
  first = max(0, math.ceil(count * (1 - level) / 2) - 1)
  last = min(count - 1, math.floor(count * (1 + level) / 2))
  lowest, highest = log_range_N[0], log_range_N[-1]
  value, beyond = _bounded(log_ratio_R[0], lowest, highest)
  low, low_beyond = _bounded(sorted_B[first], lowest, highest)
  high, high_beyond = _bounded(sorted_B[last], lowest, highest)
  return Multiple(
    value=value,
    low=low,
    high=high,
    beyond=beyond,
    low_beyond=low_beyond,
    high_beyond=high_beyond,
  )


def _bounded(log_ratio: float, lowest: float, highest: float) -> tuple[float, Beyond]:
  # An arm that equals the last measured point is on the range, whatever the rounding.
  slack = 1e-12
  if log_ratio > highest + slack:
    return float(np.exp(highest)), "above"
  if log_ratio < lowest - slack:
    return float(np.exp(lowest)), "below"
  return float(np.exp(log_ratio)), ""


def _missing(cells: Mapping[Key, Cell]) -> list[str]:
  """Cells, and seeds of cells, that another arm or size has."""
  seeds: set[int] = set()
  for cell in cells.values():
    seeds.update(cell.seeds)
  sizes = sorted({key.problems for key in cells})
  lines = []
  for arm in _arms(cells):
    for size in sizes:
      key = Key(arm, size)
      if key not in cells:
        lines.append(str(key))
        continue
      absent = sorted(seeds - set(cells[key].seeds))
      if absent:
        lines.append(f"{key}: seed {', '.join(map(str, absent))}")
  return lines


def _notes(cells: Mapping[Key, Cell], reference: ReferenceCurve) -> list[str]:
  notes = []
  several = {key.arm for key, cell in cells.items() if len(cell.seeds) > 1}
  single = [arm for arm in _arms(cells) if arm not in several]
  if single:
    notes.append(
      f"one seed only: intervals of {', '.join(single)} are over test problems "
      "and do not contain the spread of seeds"
    )
  if reference.pooled:
    notes.append(
      "the baseline's error rises with N somewhere; "
      f"its curve is pooled at {', '.join(reference.pooled)}"
    )
  none_correct = [str(key) for key, cell in cells.items() if cell.error == 1]
  if none_correct:
    notes.append(f"no correct answer in {', '.join(none_correct)}")
  if len(reference.baseline) == 2:
    notes.append(
      "the baseline has two sizes: how far its curve lies from the line between them is unknown, "
      "and not in the intervals"
    )
  if not reference.flops_rise:
    notes.append(
      "no iso-compute multiple: the baseline's FLOPs are not recorded or do not rise with N"
    )
  all_correct = [str(key) for key, cell in cells.items() if cell.error < cell.half_answer]
  if all_correct:
    notes.append(
      f"no incorrect answer in {', '.join(all_correct)}: the error is taken as half a test answer"
    )
  return notes


def above(efficiency: Efficiency, arm: str, others: Sequence[str]) -> dict[str, list[RatioBound]]:
  """Lower ends of the ratios of one arm's multiples to those of others.

  There is one for every other arm at every number of problems at which both were measured. The
  ratio is drawn as a whole, both arms with the same test problems, seeds and curve. All lower ends
  share one level (Bonferroni): if no arm is better, the chance that any of them is above 1 is at
  most (1 - level) / 2, however many sizes and arms were looked at.

  Args:
    efficiency: the result of `analyse`.
    arm: whose multiple is the numerator.
    others: the arms to beat.
  """
  settings, cells = efficiency.settings, efficiency.cells
  sizes = [point.problems for point in efficiency.at(arm)]
  shared = {}
  for other in others:
    shared[other] = [size for size in sizes if Key(other, size) in cells]
  looks = sum(len(shared[other]) for other in shared if other != arm)
  tail = (1 - settings.level) / 2 / max(1, looks)
  reference = _reference(cells, settings)
  bounds: dict[str, list[RatioBound]] = {}
  for other, other_sizes in shared.items():
    bounds[other] = []
    for size in other_sizes:
      low = _lowest_ratio(cells[Key(arm, size)], cells[Key(other, size)], reference, tail)
      bounds[other].append(RatioBound(size, low))
  return bounds


def _lowest_ratio(cell: Cell, other: Cell, reference: ReferenceCurve, tail: float) -> float:
  """The ratio of two multiples below which a share `tail` of the replicates lies.

  NaN where there are too few replicates for that share.
  """
  axis_N = reference.log_problems_N
  # A seed's deviations in two arms are no independent estimates: together they are known no better
  # than one of them (Welch's rule would give the sum of both degrees of freedom).
  freedom = min(cell.drawn.freedom, other.drawn.freedom)
  curve_NR = reference.curves(freedom)
  matching_R = reference.match(axis_N, curve_NR, cell.log_error(freedom))
  other_R = reference.match(axis_N, curve_NR, other.log_error(freedom))
  # Off the range only one side is known. The first arm, if above, is worth at least the range's
  # end; if below, it may be worth nothing. The other arm, if above, may be worth anything.
  least_R = np.where(matching_R < axis_N[0], -np.inf, np.minimum(matching_R, axis_N[-1]))
  most_R = np.where(other_R > axis_N[-1], np.inf, np.maximum(other_R, axis_N[0]))
  sorted_B = np.sort(least_R[1:] - most_R[1:])
  index = math.ceil(len(sorted_B) * tail) - 1
  if len(sorted_B) * tail < 1 or reference.undefined_at(cell.log_error()[0]):
    return math.nan
  return float(np.exp(sorted_B[index]))
