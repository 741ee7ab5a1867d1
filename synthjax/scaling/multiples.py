"""How much the data of an arm are worth: the data-efficiency multiple against SFT, with its interval and the compute beside it.

The multiple of an arm at N problems is the m with error_arm(N) = error_SFT(m N) (design.md, "Study A in formulas"; Setlur et al. 2024,
arXiv 2406.14532). It is read off the measured SFT curve, made monotone and straight in log-log between its points; how far the truth may
lie from these lines is taken from the error of leaving a point out, and is part of the interval. The fitted law gives a
second reading where the data support it. Neither is read beyond the measured sizes: there a multiple is a bound, `> x` or `< x`.

Shapes: N sizes of the baseline, R = 1 + B (what was found, then its replicates).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from synthjax import files, stats
from synthjax.files import DataError
from synthjax.scaling import error_law, isotonic, noise
from synthjax.scaling.bootstrap import Cell, Key

Beyond = Literal["", "above", "below"]
BOUND = {"": "", "above": "> ", "below": "< "}  # what is written before a number with that flag


def shown(number: float, beyond: Beyond = "") -> str:
  """A multiple as text: `0.35x`, `2.1x`, `> 128x`."""
  return f"{BOUND[beyond]}{number:.{2 if number < 1 else 1 if number < 100 else 0}f}x"


@dataclasses.dataclass(frozen=True)
class Settings:
  """What the arms are compared with and how."""

  baseline: str = "sft"  # the arm whose problems are the unit
  level: float = 0.95  # of the percentile intervals
  significance: float = 0.05  # p-value below which the data speak against the law (our choice)


@dataclasses.dataclass(frozen=True)
class Multiple:
  """A ratio with its interval. A number whose flag is set is a bound, the end of the measured range: "above" means `> number`."""

  value: float
  low: float
  high: float
  beyond: Beyond = ""  # of `value`
  low_beyond: Beyond = ""
  high_beyond: Beyond = ""

  @property
  def defined(self) -> bool:
    """False where the baseline has the same error at every size, or at every small one: all three numbers are then NaN."""
    return not math.isnan(self.value)

  def __str__(self) -> str:
    if not self.defined:
      return "undefined"
    low, high = shown(self.low, self.low_beyond), shown(self.high, self.high_beyond)
    return f"{shown(self.value, self.beyond)} ({low if low == high else f'{low} to {high}'})"


@dataclasses.dataclass(frozen=True)
class Point:
  """An arm at one number of problems. For the baseline all multiples are 1 by definition."""

  arm: str
  problems: int  # N
  seeds: tuple[int, ...]
  accuracy: float
  standard_error: float  # of `accuracy`, over seeds and test problems
  test_problems: int  # that it was measured on
  multiple: Multiple  # of problems, from the measured curve
  law_multiple: Multiple | None  # the same from the law; None where the data do not support it
  compute_multiple: (
    Multiple | None
  )  # FLOPs with which the baseline has this error, over the arm's own; None: see the notes
  tuned_multiple: (
    Multiple | None
  )  # the same with the FLOPs of tuning, each arm's once, on both sides; None: unknown
  tokens_trained: float
  tokens_sampled: float
  flops: float  # everything but tuning
  matching_flops: float  # that the baseline takes at multiple.value * N problems

  @property
  def interval(self) -> tuple[float, float]:
    """Of the accuracy, 95 %; see `stats.interval`."""
    return stats.interval(self.accuracy, self.standard_error, self.test_problems)


@dataclasses.dataclass(frozen=True)
class Efficiency:
  """What a study found."""

  settings: Settings
  points: tuple[Point, ...]
  curve: tuple[tuple[int, float], ...]  # (N, error) of the baseline, made monotone
  law: error_law.Law
  missing: tuple[str, ...]  # cells and seeds that other arms or sizes have
  notes: tuple[str, ...]  # what a reader must know to read the numbers
  tuning: Mapping[str, float] = dataclasses.field(
    default_factory=dict
  )  # FLOPs of choosing an arm's settings, by arm
  # what comparisons of two arms draw from; not part of the JSON
  cells: Mapping[Key, Cell] = dataclasses.field(default_factory=dict, repr=False, compare=False)

  def at(self, arm: str) -> list[Point]:
    """The arm's points, N rising. Raises DataError where it has none."""
    if not (points := [point for point in self.points if point.arm == arm]):
      raise DataError(
        f"arm {arm!r} was not measured; there are {', '.join(dict.fromkeys(point.arm for point in self.points))}"
      )
    return sorted(points, key=lambda point: point.problems)

  def to_json(self) -> dict:
    """A JSON object; numbers that do not exist are null."""
    parts = dataclasses.asdict(dataclasses.replace(self, cells={}))
    del parts["cells"]
    return files.without_nan(parts)


@dataclasses.dataclass(frozen=True)
class Above:
  """How many times another arm's multiple an arm's is, at one number of problems."""

  problems: int
  low: float  # of the ratio, its lower end; off the measured range a bound; NaN: unknown

  @property
  def above(self) -> bool:
    return self.low > 1


def analyse(
  cells: Mapping[Key, Cell],
  settings: Settings = Settings(),
  tuning: Mapping[str, float] | None = None,
) -> Efficiency:
  """Multiples of every cell of `resample.resample` against the baseline arm.

  Args:
    cells: of all arms.
    settings: how they are compared.
    tuning: FLOPs that went into choosing each arm's settings, once for all its sizes and seeds; None: unknown.

  Raises:
    DataError: the baseline was measured at fewer than two sizes, or tuning lacks an arm.
  """
  tuning = dict(tuning or {})
  if tuning and (
    without := [arm for arm in dict.fromkeys(key.arm for key in cells) if arm not in tuning]
  ):
    raise DataError(
      f"the compute of tuning is known for {', '.join(tuning)} and not for {', '.join(without)}; "
      "give all arms' (0 for one that was not tuned), or none"
    )
  reference = _Reference(_baseline(cells, settings), settings)
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


def _baseline(cells: Mapping[Key, Cell], settings: Settings) -> list[Cell]:
  baseline = sorted(
    (cell for key, cell in cells.items() if key.arm == settings.baseline),
    key=lambda cell: cell.key.problems,
  )
  if len(baseline) < 2:
    raise DataError(
      f"baseline {settings.baseline!r} was measured at {len(baseline)} sizes; a curve needs two at least "
      f"(arms found: {', '.join(dict.fromkeys(key.arm for key in cells)) or 'none'})"
    )
  return baseline


class _Reference:
  """The baseline's curve of error against problems and against compute, and its law, with all replicates."""

  def __init__(self, baseline: list[Cell], settings: Settings):
    self.baseline = baseline
    self.problems = [cell.key.problems for cell in baseline]
    self.log_problems_N = np.log(self.problems)
    self.seeds_N = np.array([float(len(cell.seeds)) for cell in baseline])
    raw_NR = np.stack([cell.log_error() for cell in baseline])
    self.log_error_N = self.curves(raw_NR[:, :1])[:, 0]
    moved_N = abs(self.log_error_N - raw_NR[:, 0]) > 1e-9
    self.pooled = [str(cell.key) for cell, moved in zip(baseline, moved_N) if moved]
    covariance_NN, redrawn = _covariance(baseline)
    self.fit = error_law.fit(
      self.problems,
      raw_NR,
      settings.level,
      settings.significance,
      covariance_NN=covariance_NN,
      redrawn=redrawn,
    )
    self.seeds_NB = np.stack([cell.log_error_of_seeds()[1:] for cell in baseline])
    self.flops_N = np.array([cell.flops for cell in baseline])
    self.flops_rise = bool(self.flops_N[0] > 0 and (np.diff(self.flops_N) > 0).all())

  def curves(self, raw_NR: np.ndarray) -> np.ndarray:
    """[N, R] log errors, made monotone."""
    return np.log(isotonic.falling(np.exp(raw_NR), self.seeds_N))

  def against(self, cell: Cell) -> float:
    """Degrees of freedom of the seeds' variance where the cell is compared with the curve: both are estimated."""
    place = isotonic.invert(self.log_problems_N, self.log_error_N[:, None], cell.log_error()[:1])[0]
    at = np.interp(place, self.log_problems_N, np.arange(len(self.log_problems_N)))
    below, above = math.floor(at), math.ceil(at)
    there_B = (1 - (at - below)) * self.seeds_NB[below] + (at - below) * self.seeds_NB[above]
    variances = [float(cell.log_error_of_seeds()[1:].var()), float(there_B.var())]
    return noise.welch(variances, [cell.drawn.freedom, self.baseline[0].drawn.freedom])

  def match(self, axis_N: np.ndarray, curve_NR: np.ndarray, level_R: np.ndarray) -> np.ndarray:
    """[R] where the curve reaches a level; a replicate's curve bends by as much as leaving points out shows."""
    straight_R = isotonic.invert(axis_N, curve_NR, level_R)
    bend_N = isotonic.bends(axis_N, curve_NR)
    # the same draw for every level: two arms are read off one curve
    bent_R = np.append(0.0, np.random.default_rng(len(level_R)).normal(size=len(level_R) - 1))
    return isotonic.invert(
      axis_N, curve_NR, level_R + bent_R * isotonic.sag(axis_N, bend_N, straight_R)
    )

  def undefined_at(self, log_error: float) -> bool:
    """Whether no number of problems belongs to an error: the whole curve is flat there, or begins flat with no correct answer."""
    curve_N = self.log_error_N
    flat = curve_N[0] == curve_N[-1] == log_error
    without_answer = curve_N[0] == curve_N[1] == log_error == 0.0
    return bool(flat or without_answer)

  def points(self) -> tuple[tuple[int, float], ...]:
    return tuple(
      (cell.key.problems, float(np.exp(log_error)))
      for cell, log_error in zip(self.baseline, self.log_error_N)
    )


def _covariance(baseline: list[Cell]) -> tuple[np.ndarray, error_law.Redrawn]:
  """[N, N] of the log errors, from seeds and problems, and studies drawn anew with what each would estimate."""
  problems_NR = np.stack([cell.log_error_of_problems() for cell in baseline])
  of_problems_NN = np.atleast_2d(np.cov(problems_NR[:, 1:]))
  slope_N = np.array([cell.log_slope for cell in baseline])
  spread = baseline[0].drawn.spread  # the arm's, in the order of its cells
  replicates = problems_NR.shape[1] - 1
  seeds_BN, seeds_BNN = noise.redrawn(spread, noise.Bootstrap(replicates))
  of_seeds_NN = noise.covariance(spread.variance, spread.nested, spread)
  slope_NN = slope_N[:, None] * slope_N
  redrawn = error_law.Redrawn(
    moves_BN=(problems_NR[:, 1:] - problems_NR[:, :1]).T + slope_N * seeds_BN,
    covariance_BNN=of_problems_NN + slope_NN * seeds_BNN,
    freedom=spread.counted or math.inf,
  )
  return of_problems_NN + slope_NN * of_seeds_NN, redrawn


def _point(
  cell: Cell, reference: _Reference, settings: Settings, tuning: Mapping[str, float]
) -> Point:
  own = cell.key.arm == settings.baseline
  freedom = reference.against(cell)
  error_R = cell.log_error(freedom)
  curve_NR = reference.curves(np.stack([other.log_error(freedom) for other in reference.baseline]))
  undefined = not own and reference.undefined_at(error_R[0])

  def multiple(matching_R, here, axis_N):
    if undefined:
      return Multiple(math.nan, math.nan, math.nan)
    return _multiple(
      np.zeros_like(error_R) if own else matching_R - here, axis_N - here, settings.level
    )

  def of_compute(tuned: bool):
    if not reference.flops_rise or not cell.flops or (tuned and not tuning):
      return None
    both = (tuning[settings.baseline], tuning[cell.key.arm]) if tuned else (0.0, 0.0)
    axis_N = np.log(reference.flops_N + both[0])
    return multiple(
      reference.match(axis_N, curve_NR, error_R), np.log(cell.flops + both[1]), axis_N
    )

  axis_N, here = reference.log_problems_N, np.log(cell.key.problems)
  matching_R = reference.match(axis_N, curve_NR, error_R)
  law = None
  if reference.fit.law.supported:
    law = multiple(reference.fit.invert(error_R), here, axis_N)
  matching = here if own else np.clip(matching_R[0], axis_N[0], axis_N[-1])
  if undefined:
    matching = math.nan
  return Point(
    arm=cell.key.arm,
    problems=cell.key.problems,
    seeds=cell.seeds,
    accuracy=1 - cell.error,
    standard_error=cell.standard_error,
    test_problems=cell.test_problems,
    multiple=multiple(matching_R, here, axis_N),
    law_multiple=law,
    compute_multiple=of_compute(tuned=False),
    tuned_multiple=of_compute(tuned=True),
    tokens_trained=cell.tokens_trained,
    tokens_sampled=cell.tokens_sampled,
    flops=cell.flops,
    matching_flops=float(np.interp(matching, axis_N, reference.flops_N)),
  )


def _multiple(log_ratio_R: np.ndarray, log_range_N: np.ndarray, level: float) -> Multiple:
  """Order statistics, so that a replicate off the range counts as the infinity it is and is never averaged with its neighbour."""
  sorted_B = np.sort(log_ratio_R[1:])
  count = len(sorted_B)
  ends = (
    sorted_B[max(0, math.ceil(count * (1 - level) / 2) - 1)],
    sorted_B[min(count - 1, math.floor(count * (1 + level) / 2))],
  )
  (value, beyond), (low, low_beyond), (high, high_beyond) = (
    _bounded(x, log_range_N[0], log_range_N[-1]) for x in (log_ratio_R[0], *ends)
  )
  return Multiple(value, low, high, beyond, low_beyond, high_beyond)


def _bounded(log_ratio: float, lowest: float, highest: float) -> tuple[float, Beyond]:
  slack = 1e-12  # an arm that equals the last measured point is on the range, whatever the rounding
  if log_ratio > highest + slack:
    return float(np.exp(highest)), "above"
  if log_ratio < lowest - slack:
    return float(np.exp(lowest)), "below"
  return float(np.exp(log_ratio)), ""


def _missing(cells: Mapping[Key, Cell]) -> list[str]:
  """Cells, and seeds of cells, that another arm or size has."""
  seeds = sorted({seed for cell in cells.values() for seed in cell.seeds})
  lines = []
  for key in (
    Key(arm, size)
    for arm in dict.fromkeys(k.arm for k in cells)
    for size in sorted({k.problems for k in cells})
  ):
    if key not in cells:
      lines.append(str(key))
    elif absent := sorted(set(seeds) - set(cells[key].seeds)):
      lines.append(f"{key}: seed {', '.join(map(str, absent))}")
  return lines


def _notes(cells: Mapping[Key, Cell], reference: _Reference) -> list[str]:
  notes = []
  arms = list(dict.fromkeys(key.arm for key in cells))
  several = {key.arm for key, cell in cells.items() if len(cell.seeds) > 1}
  if single := [arm for arm in arms if arm not in several]:
    notes.append(
      f"one seed only: intervals of {', '.join(single)} are over test problems and do not contain the spread of seeds"
    )
  if reference.pooled:
    notes.append(
      f"the baseline's error rises with N somewhere; its curve is pooled at {', '.join(reference.pooled)}"
    )
  if without := [str(key) for key, cell in cells.items() if cell.error == 1]:
    notes.append(f"no correct answer in {', '.join(without)}")
  if len(reference.baseline) == 2:
    notes.append(
      "the baseline has two sizes: how far its curve lies from the line between them is unknown, and not in the intervals"
    )
  if not reference.flops_rise:
    notes.append(
      "no iso-compute multiple: the baseline's FLOPs are not recorded or do not rise with N"
    )
  if perfect := [str(key) for key, cell in cells.items() if cell.error < cell.half_answer]:
    notes.append(
      f"no wrong answer in {', '.join(perfect)}: the error is taken as half a test answer"
    )
  return notes


def above(efficiency: Efficiency, arm: str, others: Sequence[str]) -> dict[str, list[Above]]:
  """For every other arm, at every number of problems at which both were measured: the lower end of the ratio of their multiples.

  The ratio is drawn as a whole, both arms with the same test problems, seeds and curve. Each lower
  end is at a level that all of them share (Bonferroni): the chance that one of them is above 1 by
  chance is (1 - level) / 2 in all, however many sizes and arms were looked at.

  Args:
    efficiency: what `analyse` found.
    arm: whose multiple is the numerator.
    others: the arms to beat.
  """
  settings, cells = efficiency.settings, efficiency.cells
  sizes = [point.problems for point in efficiency.at(arm)]
  pairs = {other: [size for size in sizes if Key(other, size) in cells] for other in others}
  looks = sum(len(shared) for other, shared in pairs.items() if other != arm)
  reference = _Reference(_baseline(cells, settings), settings)
  found = {}
  for other, shared in pairs.items():
    found[other] = [
      Above(
        size,
        _lowest_ratio(
          cells[Key(arm, size)],
          cells[Key(other, size)],
          reference,
          (1 - settings.level) / 2 / max(1, looks),
        ),
      )
      for size in shared
    ]
  return found


def _lowest_ratio(cell: Cell, other: Cell, reference: _Reference, tail: float) -> float:
  """The ratio of two multiples that a share `tail` of the replicates lies below; NaN where they do not reach so far."""
  axis_N = reference.log_problems_N
  # A seed's deviations in two arms are no independent estimates: together they are known no better
  # than one of them (Welch's rule would give the sum of both degrees of freedom).
  freedom = min(cell.drawn.freedom, other.drawn.freedom)
  curve_NR = reference.curves(np.stack([own.log_error(freedom) for own in reference.baseline]))
  place_R, against_R = (
    reference.match(axis_N, curve_NR, one.log_error(freedom)) for one in (cell, other)
  )
  # What is known of two places of which one may be off the range: an arm above it is at least at
  # its end, and one that the other may be above of is above nothing.
  least_R = np.where(place_R < axis_N[0], -np.inf, np.minimum(place_R, axis_N[-1]))
  most_R = np.where(against_R > axis_N[-1], np.inf, np.maximum(against_R, axis_N[0]))
  sorted_B = np.sort(least_R[1:] - most_R[1:])
  index = math.ceil(len(sorted_B) * tail) - 1
  if len(sorted_B) * tail < 1 or reference.undefined_at(cell.log_error()[0]):
    return math.nan
  return float(np.exp(sorted_B[index]))
