"""Shapes: N rows, D model, V vocabulary, S segments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synthjax.config import schema
from synthjax.kernels import linear_logprob as kernel
from synthjax.kernels import pallas_logprob
from synthjax.kernels.linear_logprob import Head, linear_logprob
from synthjax.sharding import make_layout

CASES = {
  "one block": (7, 16, 40, Head(block=64)),
  "whole blocks": (8, 16, 128, Head(block=32)),
  "a rest": (5, 8, 101, Head(block=32)),
  "tied": (6, 8, 77, Head(block=16, transposed=True)),
  "capped": (6, 8, 77, Head(block=16, soft_cap=3.0)),
  "capped, tied": (6, 8, 77, Head(block=16, soft_cap=2.0, transposed=True)),
  "one row": (1, 8, 33, Head(block=8)),
}


CASES = {
  name: (*shape, dataclasses.replace(how, entropy=True)) for name, (*shape, how) in CASES.items()
}


def _arrays(N, D, V, how, kind=np.float32):
  random = np.random.default_rng(0)
  hidden, head = (
    random.normal(size=(N, D)),
    random.normal(size=(V, D) if how.transposed else (D, V)),
  )
  return (
    hidden.astype(kind),
    head.astype(kind),
    random.integers(0, V, N),
    random.normal(size=N),
    random.normal(size=N),
  )


def _oracle(hidden, head, targets, how):
  """(log-prob, log-sum-exp, entropy) and the gradient of d1 . log-prob + d2 . log-sum-exp, in float64."""
  hidden, head = hidden.astype(np.float64), head.astype(np.float64)
  weights = head.T if how.transposed else head
  plain = hidden @ weights
  logits, slope = plain, np.ones_like(plain)
  if how.soft_cap:
    logits, slope = (
      how.soft_cap * np.tanh(plain / how.soft_cap),
      1 - np.tanh(plain / how.soft_cap) ** 2,
    )
  top = logits.max(1, keepdims=True)
  lse = (top + np.log(np.exp(logits - top).sum(1, keepdims=True)))[:, 0]
  share = np.exp(logits - lse[:, None])
  rows = np.arange(len(targets))

  def gradient(d1, d2):
    d_logits = share * (d2 - d1)[:, None]
    d_logits[rows, targets] += d1
    d_logits *= slope
    d_head = hidden.T @ d_logits
    return d_logits @ weights.T, d_head.T if how.transposed else d_head

  return logits[rows, targets] - lse, lse, -(share * (logits - lse[:, None])).sum(1), gradient


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_a_float64_oracle(name):
  N, D, V, how = CASES[name]
  hidden, head, targets, d1, d2 = _arrays(N, D, V, how)
  log_prob, lse, entropy, gradient = _oracle(hidden, head, targets, how)
  found = linear_logprob(jnp.asarray(hidden), jnp.asarray(head), jnp.asarray(targets), how)
  np.testing.assert_allclose(found.log_prob, log_prob, atol=2e-5)
  np.testing.assert_allclose(found.log_sum_exp, lse, atol=2e-5)
  np.testing.assert_allclose(found.entropy, entropy, atol=2e-5)

  def loss(hidden, head):
    out = linear_logprob(hidden, head, jnp.asarray(targets), how)
    return (
      d1.astype(np.float32) @ out.log_prob
      + d2.astype(np.float32) @ out.log_sum_exp
      + out.entropy.sum()
    )

  for a, b in zip(jax.grad(loss, (0, 1))(jnp.asarray(hidden), jnp.asarray(head)), gradient(d1, d2)):
    np.testing.assert_allclose(a, b, atol=5e-5)


@pytest.mark.parametrize("bent", [Head(), Head(soft_cap=3.0)])
@pytest.mark.parametrize(
  ("N", "V", "tile"), [(16, 64, (8, 16)), (8, 48, (8, 48)), (12, 30, (4, 10))]
)
def test_the_pallas_path_equals_the_same_oracle(N, V, tile, bent):
  hidden, head, targets, d1, d2 = _arrays(N, 8, V, bent)
  log_prob, lse, _, gradient = _oracle(hidden, head, targets, bent)
  tiled = lambda hidden, head: pallas_logprob.linear_logprob(
    hidden, head, jnp.asarray(targets), bent, tile, interpret=True
  )
  np.testing.assert_allclose(tiled(hidden, head)[0], log_prob, atol=2e-5)
  np.testing.assert_allclose(tiled(hidden, head)[1], lse, atol=2e-5)
  loss = lambda hidden, head: sum(
    d.astype(np.float32) @ out for d, out in zip((d1, d2), tiled(hidden, head))
  )
  for a, b in zip(jax.grad(loss, (0, 1))(hidden, head), gradient(d1, d2)):
    np.testing.assert_allclose(a, b, atol=5e-5)


def test_bfloat16_inputs_accumulate_in_float32():
  N, D, V, how = 16, 64, 300, Head(block=64)
  hidden, head, targets, d1, _ = _arrays(N, D, V, how)
  half = [jnp.asarray(x, jnp.bfloat16) for x in (hidden, head * D**-0.5)]
  log_prob, _, _, gradient = _oracle(
    *[np.asarray(x.astype(jnp.float32)) for x in half], targets, how
  )
  found = linear_logprob(*half, jnp.asarray(targets), how)
  assert found.log_prob.dtype == jnp.float32
  np.testing.assert_allclose(found.log_prob, log_prob, atol=1e-4)
  d_hidden, d_head = jax.grad(
    lambda h, w: d1.astype(np.float32) @ linear_logprob(h, w, jnp.asarray(targets), how).log_prob,
    (0, 1),
  )(*half)
  assert d_hidden.dtype == d_head.dtype == jnp.bfloat16
  for a, b in zip((d_hidden, d_head), gradient(d1, np.zeros(N))):
    np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.03 * np.abs(b).max())


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
  "mesh", [schema.Mesh(1, 4, 2, 1), schema.Mesh(2, 1, 4, 1), schema.Mesh(1, 8, 1, 1)]
)
def test_rows_and_vocabulary_split_over_a_mesh_give_the_same(mesh, transposed):
  how = Head(block=16, transposed=transposed)
  hidden, head, targets, d1, d2 = _arrays(16, 8, 96, how)
  split = make_layout(mesh).split

  def loss(hidden, head, split):
    out = linear_logprob(hidden, head, jnp.asarray(targets), how, split)
    return d1.astype(np.float32) @ out.log_prob + d2.astype(np.float32) @ out.log_sum_exp

  value = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)
  expected, found = value(hidden, head, None), value(hidden, head, split)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)


def test_memory_does_not_grow_with_the_vocabulary():
  def temporary(V):
    shapes = [
      jax.ShapeDtypeStruct(s, k)
      for s, k in (((256, 32), jnp.float32), ((32, V), jnp.float32), ((256,), jnp.int32))
    ]
    step = jax.jit(jax.grad(lambda h, w, t: linear_logprob(h, w, t).log_prob.sum(), (0, 1)))
    return step.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

  assert temporary(65_536) <= 1.1 * temporary(8_192)


def test_sums_by_segment_leave_out_rows_of_none_and_are_zero_where_empty():
  sums = kernel.segment_sums(jnp.array([1.0, 2.0, 4.0, 8.0]), jnp.array([0, 0, 2, 3]), 3)
  assert sums.tolist() == [3.0, 0.0, 4.0]


def test_bad_targets_and_segments_are_named():
  with pytest.raises(ValueError, match=r"targets\[1, 0\] is 9; expected 0 to 7"):
    kernel.check_targets(np.array([[1, 2], [9, 3]]), 8)
  for segments, row, value, last in (
    ([0, 0, 2], 2, 2, 1),
    ([1, 0], 0, 1, 0),
    ([0, 1, 2, 4, 3], 3, 4, 3),
    ([0, -1], 1, -1, 1),
  ):
    with pytest.raises(ValueError, match=rf"segment\[{row}\] is {value}; expected 0 to {last}"):
      kernel.check_segments(np.array(segments))
  for segments in ([], [0, 1, 0, 2]):
    kernel.check_segments(np.array(segments, int))
