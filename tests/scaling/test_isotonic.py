import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st

from synthjax.scaling import isotonic

ERRORS = st.lists(st.floats(0.01, 0.99), min_size=1, max_size=7)


@given(ERRORS, st.data())
def test_the_monotone_curve_never_rises_and_is_the_nearest_one(errors, data):
  weights = st.lists(st.integers(1, 5), min_size=len(errors), max_size=len(errors))
  weights_N = np.array(data.draw(weights), float)
  error_NR = np.stack([errors, errors[::-1]], axis=1)
  fitted_NR = isotonic.falling(error_NR, weights_N)
  assert (np.diff(fitted_NR, axis=0) <= 0).all()
  for error_N, fitted_N in zip(error_NR.T, fitted_NR.T):
    oracle = scipy.optimize.isotonic_regression(error_N, weights=weights_N, increasing=False)
    np.testing.assert_allclose(fitted_N, oracle.x, rtol=1e-9)


VALUES = st.lists(st.floats(-5, 0), min_size=2, max_size=7, unique=True)


@given(VALUES, st.floats(-5, 0))
def test_the_inverse_leads_back_to_the_level_or_says_on_which_side_it_lies(values, level):
  falling_N = np.sort(values)[::-1]
  x_N = np.arange(len(values)) * 2.0
  x = isotonic.invert(x_N, falling_N[:, None], np.array([level]))[0]
  if level > falling_N[0]:
    assert x == -np.inf
  elif level < falling_N[-1]:
    assert x == np.inf
  else:
    assert np.interp(x, x_N, falling_N) == pytest.approx(level, abs=1e-9)


def test_a_level_on_a_flat_stretch_is_read_in_its_middle():
  x_N = np.array([0.0, 1.0, 4.0, 5.0])
  falling_N1 = np.array([[3.0], [2.0], [2.0], [1.0]])
  assert isotonic.invert(x_N, falling_N1, np.array([2.0]))[0] == 2.5


def test_the_error_of_leaving_a_point_out_gives_the_bend_of_a_parabola():
  x_N = np.array([0.0, 1.0, 3.0, 4.0])
  bend_N = isotonic.bends(x_N, -0.1 * x_N[:, None] ** 2)
  np.testing.assert_allclose(bend_N, 0.2)
  between_R = np.array([0.5, 1.5, 3.9])
  lines_R = np.interp(between_R, x_N, -0.1 * x_N**2)
  sag_R = abs(-0.1 * between_R**2 - lines_R)
  np.testing.assert_allclose(isotonic.sag(x_N, bend_N, between_R), sag_R)
  # Neither at the points nor off the range.
  assert not isotonic.sag(x_N, bend_N, np.array([0.0, 1.0, 4.0, np.inf, -np.inf])).any()
  # Of two points none can be left out.
  assert not isotonic.bends(x_N[:2], x_N[:2, None]).any()


def mean_square_bend(curvature):
  """Of noisy points on a parabola, over 400 repetitions."""
  random = np.random.default_rng(0)
  x_N = np.arange(5.0)
  squares = []
  for _ in range(400):
    noise_NR = 0.1 * random.normal(size=(5, 101))
    # The measured curve has one draw of the noise; its replicates have another on top.
    curve_NR = -curvature / 2 * x_N[:, None] ** 2 + noise_NR[:, :1]
    curve_NR = curve_NR + np.hstack([np.zeros((5, 1)), noise_NR[:, 1:]])
    squares.append(np.mean(isotonic.bends(x_N, curve_NR) ** 2))
  return np.mean(squares)


def test_points_that_bend_by_their_noise_alone_have_no_bend():
  # Uncorrected it would be 0.06, the variance of noise 0.1 in a second difference; what is left is
  # because squares are never below 0.
  assert mean_square_bend(0.0) < 0.04
  assert mean_square_bend(0.3) == pytest.approx(0.3**2, rel=0.15)
