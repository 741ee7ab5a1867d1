"""Numbers with their intervals: accuracies over problems, pass@k, maj@k, paired differences.

The samples of one problem are one cluster: they are not independent, and a standard error over
samples would be too small.

Shapes: P problems, S samples of a problem.
"""

import collections
import math
from collections.abc import Hashable, Sequence

import numpy as np

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
  if error > 0:
    effective = share * (1 - share) / error**2
    return wilson(share, max(effective, count))
  return wilson(share, count)


def percent(share: float, error: float, count: int) -> str:
  """A share in percent with its error, `25.1 ± 1.6`; near 0 and 100 % with its interval."""
  if near_edge(share, count):
    low, high = interval(share, error, count)
    shown = f"{100 * low:.1f} to {100 * high:.1f}"
    return f"{100 * share:.1f} ({shown})"
  return f"{100 * share:.1f} ± {100 * error:.1f}"


def wilson(share: float, count: float) -> tuple[float, float]:
  """Wilson's 95 % interval (1927) of a share of `count` independent trials."""
  shrink = 1 + _Z**2 / count
  centre = (share + _Z**2 / (2 * count)) / shrink
  variance = share * (1 - share) / count + _Z**2 / (4 * count**2)
  half = _Z * math.sqrt(variance) / shrink
  return max(0.0, centre - half), min(1.0, centre + half)


def mean(values_P: Sequence[float]) -> tuple[float, float]:
  """(mean, standard error) over problems: values are each problem's share of correct samples."""
  shares_P = np.asarray(values_P, float)
  if len(shares_P) == 0:
    raise ValueError("no problems to average over")
  spread = 0.0
  if len(shares_P) > 1:
    spread = shares_P.std(ddof=1)
  return float(shares_P.mean()), float(spread / math.sqrt(len(shares_P)))


def mean_interval(values_P: Sequence[float]) -> tuple[float, float]:
  """95 % interval of the mean; Wilson's where the mean is near 0 or 1, see `interval`."""
  average, error = mean(values_P)
  return interval(average, error, len(values_P))


def pass_at(n: int, c: int, k: int) -> float:
  """Unbiased estimate of the probability that one of k samples is correct.

  Chen et al. 2021, eq. 1.

  Args:
    n: samples taken.
    c: correct ones among them.
    k: samples that the estimate is for.

  Raises:
    ValueError: k is not in 1..n, or c not in 0..n.
  """
  if not (1 <= k <= n and 0 <= c <= n):
    raise ValueError(
      f"pass@{k} from {c} correct samples of {n}: expected 1 <= k <= n and 0 <= c <= n"
    )
  # Of all subsets of k samples, the share without a correct one.
  none_correct = math.comb(n - c, k) / math.comb(n, k)
  return 1.0 - none_correct


def majority(answers: Sequence[Hashable | None]) -> tuple[int | None, bool]:
  """(index of the first sample with the most frequent answer, whether there was a tie).

  Samples without an answer do not vote. A tie goes to the answer that came first; (None, False)
  where there is no vote.
  """
  votes = collections.Counter(answer for answer in answers if answer is not None)
  if not votes:
    return None, False
  most = max(votes.values())
  # In order of first appearance, as a Counter keeps it.
  leading = [answer for answer, count in votes.items() if count == most]
  return answers.index(leading[0]), len(leading) > 1


def paired(one_P: Sequence[float], other_P: Sequence[float]) -> tuple[float, float]:
  """(mean of other - one, standard error) over the same problems in the same order."""
  if len(one_P) != len(other_P):
    raise ValueError(
      f"a paired difference needs the same problems: {len(one_P)} against {len(other_P)}"
    )
  difference_P = np.asarray(other_P, float) - np.asarray(one_P, float)
  return mean(difference_P.tolist())
