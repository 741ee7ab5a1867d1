"""The blocked head against a float64 oracle, on its XLA path and on its Pallas path.

Shapes: N rows, D model, V vocabulary, S segments.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synthjax.config import schema
from synthjax.kernels import linear_logprob as kernel
from synthjax.kernels import pallas_logprob
from synthjax.kernels.linear_logprob import Head, linear_logprob
from synthjax.sharding import make_layout

# (N, D, V, how the head is walked)
CASES = {
  "one block": (7, 16, 40, Head(block=64)),
  "whole blocks": (8, 16, 128, Head(block=32)),
  "a rest": (5, 8, 101, Head(block=32)),
  "tied": (6, 8, 77, Head(block=16, transposed=True)),
  "capped": (6, 8, 77, Head(block=16, soft_cap=3.0)),
  "capped, tied": (6, 8, 77, Head(block=16, soft_cap=2.0, transposed=True)),
  "one row": (1, 8, 33, Head(block=8)),
}


class Arrays(NamedTuple):
  hidden: np.ndarray
  head: np.ndarray
  targets: np.ndarray
  d_log_prob: np.ndarray
  d_log_sum_exp: np.ndarray

  def pull(self, log_prob, log_sum_exp):
    """The scalar whose gradient is tested."""
    of_targets = self.d_log_prob.astype(np.float32) @ log_prob
    return of_targets + self.d_log_sum_exp.astype(np.float32) @ log_sum_exp


def _arrays(N, D, V, transposed=False):
  random = np.random.default_rng(0)
  hidden = random.normal(size=(N, D)).astype(np.float32)
  shape = (V, D) if transposed else (D, V)
  return Arrays(
    hidden=hidden,
    head=random.normal(size=shape).astype(np.float32),
    targets=random.integers(0, V, N),
    d_log_prob=random.normal(size=N),
    d_log_sum_exp=random.normal(size=N),
  )


class Oracle(NamedTuple):
  log_prob: np.ndarray
  log_sum_exp: np.ndarray
  entropy: np.ndarray
  # (d_log_prob, d_log_sum_exp) -> (gradient of the hidden states, of the head)
  gradient: Callable


def _oracle(hidden, head, targets, options):
  """Everything in float64, from the whole matrix of logits."""
  hidden, head = hidden.astype(np.float64), head.astype(np.float64)
  head_DV = head.T if options.transposed else head
  logits = hidden @ head_DV
  slope = np.ones_like(logits)
  if options.soft_cap:
    tanh = np.tanh(logits / options.soft_cap)
    logits, slope = options.soft_cap * tanh, 1 - tanh**2
  highest = logits.max(1, keepdims=True)
  log_sum_exp = highest[:, 0] + np.log(np.exp(logits - highest).sum(1))
  softmax = np.exp(logits - log_sum_exp[:, None])
  rows = np.arange(len(targets))

  def gradient(d_log_prob, d_log_sum_exp):
    d_logits = softmax * (d_log_sum_exp - d_log_prob)[:, None]
    d_logits[rows, targets] += d_log_prob
    d_logits *= slope
    d_head = hidden.T @ d_logits
    if options.transposed:
      d_head = d_head.T
    return d_logits @ head_DV.T, d_head

  return Oracle(
    log_prob=logits[rows, targets] - log_sum_exp,
    log_sum_exp=log_sum_exp,
    entropy=-(softmax * (logits - log_sum_exp[:, None])).sum(1),
    gradient=gradient,
  )


def _assert_close(found, expected, atol):
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_allclose(one, other, atol=atol)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_a_float64_oracle(name):
  N, D, V, options = CASES[name]
  options = dataclasses.replace(options, entropy=True)
  arrays = _arrays(N, D, V, options.transposed)
  oracle = _oracle(arrays.hidden, arrays.head, arrays.targets, options)
  targets = jnp.asarray(arrays.targets)
  hidden, head = jnp.asarray(arrays.hidden), jnp.asarray(arrays.head)
  found = linear_logprob(hidden, head, targets, options)
  _assert_close(found, (oracle.log_prob, oracle.log_sum_exp, oracle.entropy), 2e-5)

  def loss(hidden, head):
    found = linear_logprob(hidden, head, targets, options)
    # The entropy is added to show that it carries no gradient.
    return arrays.pull(found.log_prob, found.log_sum_exp) + found.entropy.sum()

  expected = oracle.gradient(arrays.d_log_prob, arrays.d_log_sum_exp)
  _assert_close(jax.grad(loss, (0, 1))(hidden, head), expected, 5e-5)


TILES = [(16, 64, (8, 16)), (8, 48, (8, 48)), (12, 30, (4, 10))]


@pytest.mark.parametrize("options", [Head(), Head(soft_cap=3.0)])
@pytest.mark.parametrize(("N", "V", "tile"), TILES)
def test_the_pallas_path_equals_the_same_oracle(N, V, tile, options):
  arrays = _arrays(N, 8, V)
  oracle = _oracle(arrays.hidden, arrays.head, arrays.targets, options)
  targets = jnp.asarray(arrays.targets)

  def tiled(hidden, head):
    return pallas_logprob.linear_logprob(hidden, head, targets, options, tile, interpret=True)

  found = tiled(arrays.hidden, arrays.head)
  _assert_close(found, (oracle.log_prob, oracle.log_sum_exp), 2e-5)
  gradient = jax.grad(lambda hidden, head: arrays.pull(*tiled(hidden, head)), (0, 1))
  expected = oracle.gradient(arrays.d_log_prob, arrays.d_log_sum_exp)
  _assert_close(gradient(arrays.hidden, arrays.head), expected, 5e-5)


def test_bfloat16_inputs_accumulate_in_float32():
  N, D, V, options = 16, 64, 300, Head(block=64)
  arrays = _arrays(N, D, V)
  targets = jnp.asarray(arrays.targets)
  hidden = jnp.asarray(arrays.hidden, jnp.bfloat16)
  head = jnp.asarray(arrays.head * D**-0.5, jnp.bfloat16)
  exact = [np.asarray(x.astype(jnp.float32)) for x in (hidden, head)]
  oracle = _oracle(*exact, arrays.targets, options)
  found = linear_logprob(hidden, head, targets, options)
  assert found.log_prob.dtype == jnp.float32
  np.testing.assert_allclose(found.log_prob, oracle.log_prob, atol=1e-4)

  def loss(hidden, head):
    log_prob = linear_logprob(hidden, head, targets, options).log_prob
    return arrays.d_log_prob.astype(np.float32) @ log_prob

  gradient = jax.grad(loss, (0, 1))(hidden, head)
  expected = oracle.gradient(arrays.d_log_prob, np.zeros(N))
  for one, other in zip(gradient, expected, strict=True):
    assert one.dtype == jnp.bfloat16
    np.testing.assert_allclose(one.astype(jnp.float32), other, atol=0.03 * np.abs(other).max())


MESHES = [schema.Mesh(1, 4, 2, 1), schema.Mesh(2, 1, 4, 1), schema.Mesh(1, 8, 1, 1)]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("mesh", MESHES)
def test_rows_and_vocabulary_split_over_a_mesh_give_the_same(mesh, transposed):
  options = Head(block=16, transposed=transposed)
  arrays = _arrays(16, 8, 96, transposed)
  targets = jnp.asarray(arrays.targets)

  def loss(hidden, head, split):
    found = linear_logprob(hidden, head, targets, options, split)
    return arrays.pull(found.log_prob, found.log_sum_exp)

  value = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)
  expected = value(arrays.hidden, arrays.head, None)
  found = value(arrays.hidden, arrays.head, make_layout(mesh).split)
  _assert_close(jax.tree.leaves(found), jax.tree.leaves(expected), 2e-5)


def test_memory_does_not_grow_with_the_vocabulary():
  def loss(hidden, head, targets):
    return linear_logprob(hidden, head, targets).log_prob.sum()

  def temporary_bytes(V):
    step = jax.jit(jax.grad(loss, (0, 1))).lower(
      jax.ShapeDtypeStruct((256, 32), jnp.float32),
      jax.ShapeDtypeStruct((32, V), jnp.float32),
      jax.ShapeDtypeStruct((256,), jnp.int32),
    )
    return step.compile().memory_analysis().temp_size_in_bytes

  assert temporary_bytes(65_536) <= 1.1 * temporary_bytes(8_192)


def test_sums_by_segment_leave_out_rows_of_none_and_are_zero_where_empty():
  log_prob = jnp.array([1.0, 2.0, 4.0, 8.0])
  sums = kernel.segment_sums(log_prob, jnp.array([0, 0, 2, 3]), 3)
  assert sums.tolist() == [3.0, 0.0, 4.0]


def test_a_target_outside_the_vocabulary_is_named():
  with pytest.raises(ValueError, match=r"targets\[1, 0\] is 9; expected 0 to 7"):
    kernel.check_targets(np.array([[1, 2], [9, 3]]), 8)


@pytest.mark.parametrize(
  ("segments", "row", "value", "last"),
  [
    ([0, 0, 2], 2, 2, 1),
    ([1, 0], 0, 1, 0),
    ([0, 1, 2, 4, 3], 3, 4, 3),
    ([0, -1], 1, -1, 1),
  ],
)
def test_a_segment_that_skips_an_id_is_named(segments, row, value, last):
  with pytest.raises(ValueError, match=rf"segment\[{row}\] is {value}; expected 0 to {last}"):
    kernel.check_segments(np.array(segments))


@pytest.mark.parametrize("segments", [[], [0, 1, 0, 2]])
def test_segments_may_be_none_or_come_again(segments):
  kernel.check_segments(np.array(segments, int))  # raises nothing
