"""`synthjax bench coverage`: how often the intervals of simulated studies hold the truth."""

import dataclasses

from synthjax.scaling import coverage

_SECONDS = {"quickstart": 0.05, "sweep": 0.25}  # of one study on one core


def run(seconds: float) -> None:
  """Prints nominal 95 % intervals' coverage and how often a true law is rejected; 400 studies of each structure in two minutes."""
  studies = max(20, int(seconds / sum(_SECONDS.values())))
  print(f"{studies} simulated studies of each structure; 95 % intervals hold the truth in, "
        "a true law is rejected in:")
  for name, design in coverage.DESIGNS.items():
    for seeds in (design.seeds, 8):
      found = coverage.measure(dataclasses.replace(design, seeds=seeds), studies)
      shares = f"multiples {100 * found.multiples:.1f} %, differences {100 * found.differences:.1f} %"
      if len(design.baseline) > 3:
        shares += f", exponents {100 * found.exponents:.1f} %, law rejected {100 * found.rejected:.1f} %"
      print(f"  {name}, {seeds} seeds: {shares}")
