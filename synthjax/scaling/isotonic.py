"""A falling curve through measured errors, without a formula: monotone regression and straight lines between points, and its inverse.

Shapes: N measured sizes, R resampled curves.
"""

import numpy as np


def falling(error_NR: np.ndarray, weights_N: np.ndarray) -> np.ndarray:
  """[N, R] the curves nearest in weighted least squares that never rise with N: isotonic regression by its min-max formula."""
  sums_NR = np.cumsum(
    np.vstack([np.zeros_like(error_NR[:1]), error_NR * weights_N[:, None]]), axis=0
  )
  total_N = np.append(0.0, np.cumsum(weights_N))
  sizes = len(error_NR)
  fitted_NR = np.full_like(error_NR, np.inf)
  for first in range(sizes):
    means_NR = (sums_NR[first + 1 :] - sums_NR[first]) / (total_N[first + 1 :] - total_N[first])[
      :, None
    ]  # of first..last, for every last
    highest_NR = np.maximum.accumulate(means_NR[::-1], axis=0)[
      ::-1
    ]  # over the last that are not before the row
    fitted_NR[first:] = np.minimum(fitted_NR[first:], highest_NR)
  return np.minimum.accumulate(fitted_NR, axis=0)  # equal to the last bit where a block was pooled


def invert(x_N: np.ndarray, falling_NR: np.ndarray, level_R: np.ndarray) -> np.ndarray:
  """[R] the x at which each curve, straight between its points, reaches a level.

  +inf where the level lies below the whole curve, -inf where it lies above; the middle of the stretch where the curve is flat at the level.
  """
  first_R = last_R = np.full(level_R.shape, np.nan)
  for k in range(len(x_N) - 1):
    high_R, low_R = falling_NR[k], falling_NR[k + 1]
    flat_R, inside_R = high_R == low_R, (low_R <= level_R) & (level_R <= high_R)
    at_R = x_N[k] + (high_R - level_R) / np.where(flat_R, 1.0, high_R - low_R) * (
      x_N[k + 1] - x_N[k]
    )
    first_R = np.fmin(first_R, np.where(inside_R, np.where(flat_R, x_N[k], at_R), np.nan))
    last_R = np.fmax(last_R, np.where(inside_R, np.where(flat_R, x_N[k + 1], at_R), np.nan))
  outside_R = np.where(level_R < falling_NR[-1], np.inf, -np.inf)
  return np.where(np.isnan(first_R), outside_R, (first_R + last_R) / 2)


def bends(x_N: np.ndarray, falling_NR: np.ndarray) -> np.ndarray:
  """[N - 1] how much the curve bends between two points: its second derivative, from the error of leaving a point out.

  Without point i the straight line between its neighbours misses it by bend * (x_i - x_(i-1)) *
  (x_(i+1) - x_i) / 2. An interval takes the root mean square of its two ends, the first and the
  last one that of their inner end, less the variance that it has in the replicates: points that
  are uncertain bend without a curve. Zeros where there are two points and nothing can be left out.
  """
  if len(x_N) < 3:
    return np.zeros(len(x_N) - 1)
  width_N1 = np.diff(x_N)[:, None]
  slope_NR = np.diff(falling_NR, axis=0) / width_N1
  inner_NR = 2 * np.diff(slope_NR, axis=0) / (width_N1[:-1] + width_N1[1:])
  square_N = inner_NR[:, 0] ** 2
  if inner_NR.shape[1] > 1:
    square_N = square_N - inner_NR[:, 1:].var(axis=1)
  ends_N = np.concatenate([square_N[:1], square_N, square_N[-1:]])
  return np.sqrt(np.maximum((ends_N[:-1] + ends_N[1:]) / 2, 0.0))


def sag(x_N: np.ndarray, bend_N: np.ndarray, x_R: np.ndarray) -> np.ndarray:
  """[R] how far a curve with these bends may lie from the straight lines at x; 0 at the points and off the range."""
  inside_R = (x_R > x_N[0]) & (x_R < x_N[-1])
  place_R = np.where(inside_R, x_R, x_N[0])
  k_R = np.clip(np.searchsorted(x_N, place_R, side="right") - 1, 0, len(x_N) - 2)
  return bend_N[k_R] / 2 * (place_R - x_N[k_R]) * (x_N[k_R + 1] - place_R)
