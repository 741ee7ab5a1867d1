"""A study as text: arm by N with its multiples and tokens, then its law, gaps and notes."""

import math
from collections.abc import Sequence

from synthjax import stats
from synthjax.scaling.multiples import BOUND, Efficiency, Point, above
from synthjax.scaling.paired import Difference

_MAGNITUDES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def table(efficiency: Efficiency) -> str:
  """A row a point, then the legend, the law, what is missing and the notes.

  Accuracies are in percent with their standard error (near 0 and 100 % with their interval);
  multiples have their interval.
  """
  rows = [_header(efficiency)]
  rows += [_row(point, efficiency) for point in efficiency.points]
  lines = _aligned(rows)
  lines.append("")
  lines += _legend(efficiency)
  if efficiency.missing:
    lines.append(f"missing: {'; '.join(efficiency.missing)}")
  lines += [f"note: {note}" for note in efficiency.notes]
  return "\n".join(lines)


def lower_bounds(efficiency: Efficiency, arms: Sequence[str], controls: Sequence[str]) -> list[str]:
  """For every arm, the controls that it is worth more than, and at which N.

  Judged by the interval of the ratio of their multiples (`multiples.above`).
  """
  lines = []
  for arm in arms:
    lines += _bounds_of_arm(efficiency, arm, controls)
  if lines:
    lines.append(
      "more: by the lower end of the ratio's interval, "
      "at a level shared by all sizes and controls of the arm"
    )
  return lines


def _bounds_of_arm(efficiency: Efficiency, arm: str, controls: Sequence[str]) -> list[str]:
  bounds = above(efficiency, arm, controls)
  if not bounds:
    return []
  sizes = {}
  for control, rows in bounds.items():
    sizes[control] = {row.problems for row in rows if row.above}
  everywhere = sorted(set.intersection(*sizes.values()))
  if everywhere:
    shown = ", ".join(f"{size:,}" for size in everywhere)
    lines = [f"{arm} is worth more than every control at N = {shown}"]
  else:
    lines = [f"{arm} is not shown to be worth more than every control at any N"]
  for control, rows in bounds.items():
    shown = ", ".join(f"{row.problems:,} (> {row.low:.2f} times)" for row in rows if row.above)
    if shown:
      lines.append(f"  more than {control}: at N = {shown}, of {len(rows)} sizes")
  not_beaten = [control for control in bounds if not sizes[control]]
  if not_beaten:
    lines.append(f"  not shown to be more than {', '.join(not_beaten)}")
  return lines


def differences(gains: Sequence[Difference]) -> list[str]:
  """Paired differences in points with 95 % intervals: a row for two arms, a column for an N."""
  sizes = sorted({gain.problems for gain in gains})
  texts: dict[tuple[str, str], dict[int, str]] = {}
  for gain in gains:
    by_size = texts.setdefault((gain.other, gain.arm), {})
    interval = f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}"
    by_size[gain.problems] = f"{100 * gain.value:+.1f} ({interval})"
  rows = [["difference in points"] + [f"N={size:,}" for size in sizes]]
  for (other, arm), by_size in texts.items():
    rows.append([f"{other} - {arm}"] + [by_size.get(size, "-") for size in sizes])
  return _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
  """Rows as lines: the first column on the left, the others on the right."""
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = []
  for row in rows:
    line = row[0].ljust(widths[0])
    for text, width in zip(row[1:], widths[1:]):
      line += "  " + text.rjust(width)
    lines.append(line)
  return lines


def _header(efficiency: Efficiency) -> list[str]:
  settings = efficiency.settings
  header = ["arm", "N", "seeds", "accuracy %"]
  header += [f"multiple ({100 * settings.level:g} %)", "by the law", "iso-compute"]
  if efficiency.tuning:
    header.append("with tuning")
  return header + ["trained", "sampled", "FLOPs", f"{settings.baseline.upper()}'s FLOPs"]


def _row(point: Point, efficiency: Efficiency) -> list[str]:
  multiples = [point.multiple, point.law_multiple, point.compute_multiple]
  if efficiency.tuning:
    multiples.append(point.tuned_multiple)
  if point.arm == efficiency.settings.baseline:
    shown = ["1"] * len(multiples)
  else:
    shown = [str(multiple or "-") for multiple in multiples]
  return [
    point.arm,
    f"{point.problems:,}",
    str(len(point.seeds)),
    stats.percent(point.accuracy, point.standard_error, point.test_problems),
    *shown,
    _number(point.tokens_trained),
    _number(point.tokens_sampled),
    _number(point.flops),
    BOUND[point.multiple.beyond] + _number(point.matching_flops),
  ]


def _legend(efficiency: Efficiency) -> list[str]:
  unit = efficiency.settings.baseline.upper()
  lines = [
    f"multiple: {unit} needs that many times N problems for the same error; "
    ">, <: off the measured range",
    "iso-compute: the same in FLOPs of all that was computed for the policy but tuning",
    f"trained, sampled: tokens; {unit}'s FLOPs: at the matching point",
    *_law_lines(efficiency),
  ]
  if efficiency.tuning:
    tuning = ", ".join(f"{arm} {_number(flops)}" for arm, flops in efficiency.tuning.items())
    lines += [
      "with tuning: iso-compute where each side also pays for choosing its settings, once",
      f"tuning, in FLOPs: {tuning}",
    ]
  return lines


def _law_lines(efficiency: Efficiency) -> list[str]:
  law, unit = efficiency.law, efficiency.settings.baseline.upper()
  if law.supported:
    head = (
      f"law: {unit} error = {law.coefficient:.3g} N^-{law.exponent:.3f} "
      f"(exponent {law.low:.3f} to {law.high:.3f}); "
      f"chi-square {law.chi_square:.1f} on {law.freedom} degrees of freedom, p = {law.p_value:.2g}"
    )
  else:
    head = (
      f"law: not supported by the data ({law.reason}); multiples are from the measured curve alone"
    )
  exponents = []
  for local in law.local_exponents:
    exponent = f"{local.exponent:.3f} ± {local.standard_error:.3f}"
    exponents.append(f"{local.start:,} to {local.end:,}: {exponent}")
  return [head, f"local exponents: {', '.join(exponents)}"]


def _number(number: float) -> str:
  """Three digits and a letter for the magnitude: `7.04T`."""
  if math.isnan(number):
    return "undefined"
  for size, letter in _MAGNITUDES:
    if number >= size:
      return f"{number / size:.3g}{letter}"
  return f"{number:.0f}"
