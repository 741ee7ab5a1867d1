"""Intervals of shares: what every room that prints an accuracy uses."""

import math

_Z = 1.96  # of a 95 % interval
_EDGE = 10  # problems on one side below which a normal interval is not to be trusted


def near_edge(share: float, count: float) -> bool:
  """Whether fewer than ten problems' worth of `count` lie on one side of a share."""
  return min(share, 1 - share) * count < _EDGE


def interval(share: float, error: float, count: int) -> tuple[float, float]:
  """95 % interval of a mean share over `count` problems; Wilson's near 0 and 1.

  For shares of several samples Wilson's interval takes the number of independent samples that gives
  the standard error, which is over problems.
  """
  if not near_edge(share, count):
    return share - _Z * error, share + _Z * error
  effective = share * (1 - share) / error**2 if error > 0 else count
  return wilson(share, max(effective, count))


def percent(share: float, error: float, count: int) -> str:
  """A share in percent with its error, `25.1 ± 1.6`; near 0 and 100 % with its interval."""
  if near_edge(share, count):
    low, high = interval(share, error, count)
    return f"{100 * share:.1f} ({100 * low:.1f} to {100 * high:.1f})"
  return f"{100 * share:.1f} ± {100 * error:.1f}"


def wilson(share: float, count: float) -> tuple[float, float]:
  """Wilson's 95 % interval (1927) of a share of `count` independent trials."""
  centre = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
  half = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2)) / (1 + _Z**2 / count)
  return max(0.0, centre - half), min(1.0, centre + half)
