"""`synthjax bench coverage`: how often the intervals of simulated studies hold the truth."""

import dataclasses
import math

from synthjax import config
from synthjax.scaling import coverage

_CONFIGS = ("configs/quickstart.py", "configs/math_scaling_world.py")
# of SFT's log error over log N: a law, and an exponent that rises from 0.1 to 0.4 over 16x
_CURVATURES = (0.0, 0.05)
_SECONDS = 0.1  # of one study on one core


def run(seconds: float) -> None:
  """Prints nominal 95 % intervals' coverage and how often a true law is rejected; three minutes for 400 studies of a structure."""
  studies = max(20, int(seconds / _SECONDS / len(_CONFIGS) / len(_CURVATURES)))
  print(
    f"{studies} simulated studies of each structure; 95 % intervals hold the truth in, "
    "a true law is rejected in:"
  )
  for path in _CONFIGS:
    design = coverage.of_study(config.load(path))
    for curvature in _CURVATURES:
      found = coverage.measure(dataclasses.replace(design, curvature=curvature), studies)
      print(f"  {path}, {design.seeds} seeds, {_described(found, curvature)}")


def _described(found: coverage.Coverage, curvature: float) -> str:
  shares = f"multiples {100 * found.multiples:.1f} %, differences {100 * found.differences:.1f} %"
  if not math.isnan(found.bounds):
    shares += f", multiples off the measured range {100 * found.bounds:.1f} %"
  if curvature:
    return f"no law: {shares}"
  return (
    f"a law: {shares}, exponents {100 * found.exponents:.1f} %, "
    f"law rejected {100 * found.rejected:.1f} %"
  )
