"""The study as text: arm by N with its multiples and tokens, then the law, what is missing and what a reader must know."""

import math
from collections.abc import Sequence

from synthjax import stats
from synthjax.scaling.multiples import BOUND, Efficiency, Point, above
from synthjax.scaling.paired import Difference


def table(efficiency: Efficiency) -> str:
  """A row a point; accuracies in percent with their standard error (near 0 and 100 % their interval), multiples with their interval."""
  settings = efficiency.settings
  unit = settings.baseline.upper()
  header = [
    "arm",
    "N",
    "seeds",
    "accuracy %",
    f"multiple ({100 * settings.level:g} %)",
    "by the law",
    "iso-compute",
  ]
  if efficiency.tuning:
    header.append("with tuning")
  rows = [[*header, "trained", "sampled", "FLOPs", f"{unit}'s FLOPs"]]
  rows += [_row(point, efficiency) for point in efficiency.points]
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = [
    row[0].ljust(widths[0])
    + "".join("  " + text.rjust(width) for text, width in zip(row[1:], widths[1:]))
    for row in rows
  ]
  lines += [
    "",
    f"multiple: {unit} needs that many times N problems for the same error; >, <: off the measured range",
    "iso-compute: the same in FLOPs of all that was computed for the policy but tuning",
    f"trained, sampled: tokens; {unit}'s FLOPs: at the matching point",
    *_law_lines(efficiency),
  ]
  if efficiency.tuning:
    lines.append(
      "with tuning: iso-compute where each side also pays for choosing its settings, once"
    )
    lines.append(
      f"tuning, in FLOPs: {', '.join(f'{arm} {_number(flops)}' for arm, flops in efficiency.tuning.items())}"
    )
  if efficiency.missing:
    lines.append(f"missing: {'; '.join(efficiency.missing)}")
  return "\n".join(lines + [f"note: {note}" for note in efficiency.notes])


def lower_bounds(efficiency: Efficiency, arms: Sequence[str], controls: Sequence[str]) -> list[str]:
  """For every arm: which controls it is worth more than, at which N, by the interval of the ratio of multiples."""
  lines = []
  for arm in arms:
    bounds = above(efficiency, arm, controls)
    if not bounds:
      continue
    sizes = {
      control: [row.problems for row in rows if row.above] for control, rows in bounds.items()
    }
    everywhere = set.intersection(*map(set, sizes.values()))
    if everywhere:
      shown = ", ".join(f"{size:,}" for size in sorted(everywhere))
      lines.append(f"{arm} is worth more than every control at N = {shown}")
    else:
      lines.append(f"{arm} is not shown to be worth more than every control at any N")
    for control, rows in bounds.items():
      shown = ", ".join(f"{row.problems:,} (> {row.low:.2f} times)" for row in rows if row.above)
      if shown:
        lines.append(f"  more than {control}: at N = {shown}, of {len(rows)} sizes")
    if others := [control for control, found in sizes.items() if not found]:
      lines.append(f"  not shown to be more than {', '.join(others)}")
  if lines:
    lines.append(
      "more: by the lower end of the ratio's interval, at a level shared by all sizes and controls of the arm"
    )
  return lines


def differences(found: Sequence[Difference]) -> list[str]:
  """Paired differences in points with their 95 % intervals, a row for two arms and a column for an N."""
  sizes = sorted({each.problems for each in found})
  cells = {(each.other, each.arm, each.problems): each for each in found}
  pairs = list(dict.fromkeys((each.other, each.arm) for each in found))
  rows = [["difference in points"] + [f"N={size:,}" for size in sizes]]
  for one, other in pairs:
    shown = [cells.get((one, other, size)) for size in sizes]
    texts = [
      "-"
      if each is None
      else f"{100 * each.value:+.1f} ({100 * each.low:+.1f} to {100 * each.high:+.1f})"
      for each in shown
    ]
    rows.append([f"{one} - {other}", *texts])
  widths = [max(map(len, column)) for column in zip(*rows)]
  return [
    row[0].ljust(widths[0])
    + "".join("  " + text.rjust(width) for text, width in zip(row[1:], widths[1:]))
    for row in rows
  ]


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


def _law_lines(efficiency: Efficiency) -> list[str]:
  law, unit = efficiency.law, efficiency.settings.baseline.upper()
  local = ", ".join(
    f"{e.start:,} to {e.end:,}: {e.exponent:.3f} ± {e.standard_error:.3f}"
    for e in law.local_exponents
  )
  if law.supported:
    head = (
      f"law: {unit} error = {law.coefficient:.3g} N^-{law.exponent:.3f} (exponent {law.low:.3f} to {law.high:.3f}); "
      f"chi-square {law.chi_square:.1f} on {law.freedom} degrees of freedom, p = {law.p_value:.2g}"
    )
  else:
    head = (
      f"law: not supported by the data ({law.reason}); multiples are from the measured curve alone"
    )
  return [head, f"local exponents: {local}"]


def _number(number: float) -> str:
  if math.isnan(number):
    return "undefined"
  for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
    if number >= size:
      return f"{number / size:.3g}{letter}"
  return f"{number:.0f}"
