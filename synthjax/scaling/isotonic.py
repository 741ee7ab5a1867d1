"""A falling curve through measured errors, without a formula.

Monotone regression, straight lines between the points, the inverse of these lines, and how far a
smooth curve may lie from them.

Shapes: N measured sizes, R resampled curves.
"""

import numpy as np


def falling(error_NR: np.ndarray, weights_N: np.ndarray) -> np.ndarray:
  """[N, R] the curves nearest in weighted least squares that never rise with N.

  Isotonic regression by its min-max formula: the fit at a size is the smallest, over blocks that
  begin at or before it, of the highest mean over blocks that end at or after it.
  """
  before_NR = np.zeros_like(error_NR[:1])
  weighted_NR = error_NR * weights_N[:, None]
  sums_NR = np.cumsum(np.vstack([before_NR, weighted_NR]), axis=0)
  total_N = np.append(0.0, np.cumsum(weights_N))
  fitted_NR = np.full_like(error_NR, np.inf)
  for first in range(len(error_NR)):
    # Means of the blocks first..last, for every last.
    weight_N = total_N[first + 1 :] - total_N[first]
    means_NR = (sums_NR[first + 1 :] - sums_NR[first]) / weight_N[:, None]
    # Over every last that is not before the size: a running maximum from the end.
    highest_NR = np.maximum.accumulate(means_NR[::-1], axis=0)[::-1]
    fitted_NR[first:] = np.minimum(fitted_NR[first:], highest_NR)
  # Pooled blocks are to be equal to the last bit: `invert` looks for flat stretches.
  return np.minimum.accumulate(fitted_NR, axis=0)


def invert(x_N: np.ndarray, falling_NR: np.ndarray, level_R: np.ndarray) -> np.ndarray:
  """[R] the x at which each curve, straight between its points, reaches a level.

  +inf where the level lies below the whole curve, -inf where it lies above; the middle of the
  stretch where the curve is flat at the level.
  """
  first_R = np.full(level_R.shape, np.nan)
  last_R = first_R
  for k in range(len(x_N) - 1):
    high_R, low_R = falling_NR[k], falling_NR[k + 1]
    flat_R = high_R == low_R
    inside_R = (low_R <= level_R) & (level_R <= high_R)
    drop_R = np.where(flat_R, 1.0, high_R - low_R)
    crossing_R = x_N[k] + (high_R - level_R) / drop_R * (x_N[k + 1] - x_N[k])
    begin_R = np.where(flat_R, x_N[k], crossing_R)
    end_R = np.where(flat_R, x_N[k + 1], crossing_R)
    # fmin and fmax ignore NaN, which stands for curves that do not reach the level here.
    first_R = np.fmin(first_R, np.where(inside_R, begin_R, np.nan))
    last_R = np.fmax(last_R, np.where(inside_R, end_R, np.nan))
  outside_R = np.where(level_R < falling_NR[-1], np.inf, -np.inf)
  return np.where(np.isnan(first_R), outside_R, (first_R + last_R) / 2)


def bends(x_N: np.ndarray, falling_NR: np.ndarray) -> np.ndarray:
  """[N - 1] the curve's second derivative in each interval, from the error of leaving a point out.

  Without point i the straight line between its neighbours misses it by bend * (x_i - x_(i-1)) *
  (x_(i+1) - x_i) / 2. An interval takes the root mean square of the bends at its two ends; the
  first and the last interval take the bend of their inner end. The bend's variance over the
  replicates is subtracted first, because noise alone makes points bend. Zeros where there are two
  points and none can be left out.
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
  mean_N = (ends_N[:-1] + ends_N[1:]) / 2
  return np.sqrt(np.maximum(mean_N, 0.0))


def sag(x_N: np.ndarray, bend_N: np.ndarray, x_R: np.ndarray) -> np.ndarray:
  """[R] how far a curve with these bends may lie from the straight lines at x.

  0 at the points and off the range.
  """
  inside_R = (x_R > x_N[0]) & (x_R < x_N[-1])
  place_R = np.where(inside_R, x_R, x_N[0])
  after_R = np.searchsorted(x_N, place_R, side="right")
  k_R = np.clip(after_R - 1, 0, len(x_N) - 2)
  left_R = place_R - x_N[k_R]
  right_R = x_N[k_R + 1] - place_R
  return bend_N[k_R] / 2 * left_R * right_R
