"""The study as text: arm by N with its multiples and tokens, then the law, what is missing and what a reader must know."""

import math
from collections.abc import Sequence

from synthjax import stats
from synthjax.scaling.efficiency import BOUND, Efficiency, Point, above


def table(efficiency: Efficiency) -> str:
  """A row a point; accuracies in percent with their standard error (near 0 and 100 % their interval), multiples with their interval."""
  settings = efficiency.settings
  unit = settings.baseline.upper()
  header = ["arm", "N", "seeds", "accuracy %", f"multiple ({100 * settings.level:g} %)", "by the law", "iso-compute"]
  if efficiency.tuning:
    header.append("with tuning")
  rows = [[*header, "trained", "sampled", "FLOPs", f"{unit}'s FLOPs"]]
  rows += [_row(point, efficiency) for point in efficiency.points]
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = [row[0].ljust(widths[0]) + "".join("  " + text.rjust(width) for text, width in zip(row[1:], widths[1:])) for row in rows]
  lines += ["", f"multiple: {unit} needs that many times N problems for the same error; >, <: off the measured range",
            "iso-compute: the same in FLOPs of all that was computed for the policy but tuning",
            f"trained, sampled: tokens; {unit}'s FLOPs: at the matching point", *_law_lines(efficiency)]
  if efficiency.tuning:
    lines.append("with tuning: iso-compute where each side also pays for choosing its settings, once")
    lines.append(f"tuning, in FLOPs: {', '.join(f'{arm} {_number(flops)}' for arm, flops in efficiency.tuning.items())}")
  if efficiency.missing:
    lines.append(f"missing: {'; '.join(efficiency.missing)}")
  return "\n".join(lines + [f"note: {note}" for note in efficiency.notes])


def lower_bounds(efficiency: Efficiency, arms: Sequence[str], controls: Sequence[str]) -> list[str]:
  """A line for every arm and control: at which N the arm's multiple is larger, by the interval of their ratio."""
  lines = []
  for arm in arms:
    for control, rows in above(efficiency, arm, controls).items():
      sizes = ", ".join(f"{row.problems:,} (> {row.low:.2f} times)" for row in rows if row.above)
      where = "nowhere"
      if sizes:
        where = f"at N = {sizes}"
      lines.append(f"multiple of {arm} above that of {control}: {where} (of {len(rows)} sizes)")
  if lines:
    lines.append("above: by the lower end of the ratio's interval, at a level shared by all sizes and controls of the arm")
  return lines


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
  local = ", ".join(f"{e.start:,} to {e.end:,}: {e.exponent:.3f} ± {e.standard_error:.3f}" for e in law.local_exponents)
  if law.supported:
    head = (f"law: {unit} error = {law.coefficient:.3g} N^-{law.exponent:.3f} (exponent {law.low:.3f} to {law.high:.3f}); "
            f"chi-square {law.chi_square:.1f} on {law.freedom} degrees of freedom, p = {law.p_value:.2g}")
  else:
    head = f"law: not supported by the data ({law.reason}); multiples are from the measured curve alone"
  return [head, f"local exponents: {local}"]


def _number(number: float) -> str:
  if math.isnan(number):
    return "undefined"
  for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
    if number >= size:
      return f"{number / size:.3g}{letter}"
  return f"{number:.0f}"
