"""`synthjax bench coverage`: how often the intervals of simulated studies hold the truth."""

import dataclasses
import math

from synthjax import config
from synthjax.scaling import coverage

_CONFIGS = ("configs/quickstart.py", "configs/math_scaling_world.py")
# Of SFT's log error over log N: a law, and an exponent that rises from 0.1 to 0.4 over 16x.
_CURVATURES = (0.0, 0.05)
# Of one study on one core.
_STUDY_SECONDS = 0.1


def run(seconds: float) -> None:
  """Prints the coverage of nominal 95 % intervals, and how often a true law is rejected.

  Three minutes are enough for 400 studies of a structure.
  """
  studies = max(20, int(seconds / _STUDY_SECONDS / len(_CONFIGS) / len(_CURVATURES)))
  print(
    f"{studies} simulated studies of each structure; 95 % intervals hold the truth in, "
    "a true law is rejected in:"
  )
  for path in _CONFIGS:
    design = coverage.of_study(config.load(path))
    for curvature in _CURVATURES:
      measured = coverage.measure(dataclasses.replace(design, curvature=curvature), studies)
      print(f"  {path}, {design.seeds} seeds, {_describe(measured, curvature)}")


def _describe(measured: coverage.Coverage, curvature: float) -> str:
  text = (
    f"multiples {100 * measured.multiples:.1f} %, differences {100 * measured.differences:.1f} %"
  )
  if not math.isnan(measured.bounds):
    text += f", multiples off the measured range {100 * measured.bounds:.1f} %"
  # Without a law there is no true exponent, and no false rejection.
  if curvature:
    return f"no law: {text}"
  return (
    f"a law: {text}, exponents {100 * measured.exponents:.1f} %, "
    f"law rejected {100 * measured.rejected:.1f} %"
  )
