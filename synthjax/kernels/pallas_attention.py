"""Interval attention as a flash kernel in Pallas, which skips blocks of keys that are not visible.

One program handles one block of queries (or of keys, in the second backward kernel) of one head and
loops over the blocks of the other side. A block of keys is skipped, forward and backward, when it
lies after the queries, when the largest `until` in it is not beyond the first query, or when all of
it lies before the window of every query.

The kernels use plain Pallas (no Triton, no Mosaic primitives), so they run in interpret mode on a
CPU, where the tests check them.

Shapes: B batch, H query heads, G key/value heads, T tokens, K head dim, Q queries and S keys of a
block.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from synthjax.kernels.pallas_math import AB, ABT, ATB, LOWEST, product


@dataclasses.dataclass(frozen=True)
class Flash:
  """How the kernels run."""

  block: int = 64  # queries, and keys, at a time
  window: int = 0  # as `interval_attention` has it
  soft_cap: float = 0.0
  interpret: bool = False  # run on a CPU, slowly


def attention(
  q_BTHK: jax.Array,
  k_BTGK: jax.Array,
  v_BTGK: jax.Array,
  until_BT: jax.Array,
  positions_BT: jax.Array,
  options: Flash,
) -> jax.Array:
  """As `interval_attention`, by the kernels below.

  Raises:
    ValueError: the block does not divide the row.
  """
  T = q_BTHK.shape[1]
  options = dataclasses.replace(options, block=min(options.block, T))
  if T % options.block:
    raise ValueError(
      f"rows of {T} tokens are not divisible into blocks of {options.block}; choose another row "
      "length or block"
    )
  q_BHTK = jnp.moveaxis(q_BTHK, 2, 1)
  k_BGTK = jnp.moveaxis(k_BTGK, 2, 1)
  v_BGTK = jnp.moveaxis(v_BTGK, 2, 1)
  out_BHTK = _attention(options, q_BHTK, k_BGTK, v_BGTK, until_BT, positions_BT)
  return jnp.moveaxis(out_BHTK, 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(options, q, k, v, until, positions):
  return _forward(options, q, k, v, until, positions)[0]


class _Specs:
  """The parts of the arrays that one program of the grid (B, H, T / block) sees."""

  def __init__(self, options: Flash, q: jax.Array, k: jax.Array):
    _, H, T, K = q.shape
    block, group = options.block, H // k.shape[1]
    one, all_of_head = (None, None, block, K), (None, None, T, K)
    self.block = pl.BlockSpec(one, lambda b, h, i: (b, h, i, 0))
    self.block_row = pl.BlockSpec(one[:3], lambda b, h, i: (b, h, i))
    self.queries = pl.BlockSpec(all_of_head, lambda b, h, i: (b, h, 0, 0))
    self.query_row = pl.BlockSpec(all_of_head[:3], lambda b, h, i: (b, h, 0))
    # The query heads of a group share one head of keys and values.
    self.keys = pl.BlockSpec(all_of_head, lambda b, h, i: (b, h // group, 0, 0))
    self.key_block = pl.BlockSpec(one, lambda b, h, i: (b, h // group, i, 0))
    self.row = pl.BlockSpec((None, T), lambda b, h, i: (b, 0))


def _forward(options, q, k, v, until, positions):
  B, H, T, _ = q.shape
  specs = _Specs(options, q, k)
  out, log_sum = pl.pallas_call(
    functools.partial(_forward_kernel, options=options),
    grid=(B, H, T // options.block),
    in_specs=[specs.block, specs.keys, specs.keys, specs.row, specs.row],
    out_specs=[specs.block, specs.block_row],
    out_shape=[
      jax.ShapeDtypeStruct(q.shape, q.dtype),
      jax.ShapeDtypeStruct((B, H, T), jnp.float32),
    ],
    interpret=options.interpret,
  )(q, k, v, until, positions)
  return out, (q, k, v, until, positions, out, log_sum)


def _backward(options, residuals, d_out):
  q, k, v, until, positions, out, log_sum = residuals
  B, H, T, K = q.shape
  G = k.shape[1]
  # The derivative of a softmax needs each row's sum of output times its gradient.
  inner = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)
  specs = _Specs(options, q, k)
  grid = (B, H, T // options.block)
  arguments = q, k, v, until, positions, d_out, log_sum, inner
  d_q = pl.pallas_call(
    functools.partial(_query_kernel, options=options),
    grid=grid,
    in_specs=[
      *(specs.block, specs.keys, specs.keys),
      *(specs.row, specs.row),
      *(specs.block, specs.block_row, specs.block_row),
    ],
    out_specs=specs.block,
    out_shape=jax.ShapeDtypeStruct(q.shape, jnp.float32),
    interpret=options.interpret,
  )(*arguments)
  d_k, d_v = pl.pallas_call(
    functools.partial(_key_kernel, options=options),
    grid=grid,
    in_specs=[
      *(specs.queries, specs.key_block, specs.key_block),
      *(specs.row, specs.row),
      *(specs.queries, specs.query_row, specs.query_row),
    ],
    out_specs=[specs.block, specs.block],
    out_shape=[jax.ShapeDtypeStruct(q.shape, jnp.float32)] * 2,
    interpret=options.interpret,
  )(*arguments)

  def over_group(x):
    return x.reshape(B, G, H // G, T, K).sum(axis=2)

  d_k, d_v = over_group(d_k).astype(k.dtype), over_group(d_v).astype(v.dtype)
  return d_q.astype(q.dtype), d_k, d_v, None, None


_attention.defvjp(_forward, _backward)


class _Visibility(NamedTuple):
  """References to what decides on visibility, of a whole row [T]."""

  until: Any
  positions: Any


class _BackwardRefs(NamedTuple):
  """References to what both backward kernels read."""

  q: Any
  k: Any
  v: Any
  until: Any
  positions: Any
  d_out: Any
  log_sum: Any
  inner: Any

  @property
  def visibility(self) -> _Visibility:
    return _Visibility(self.until, self.positions)


def _any_visible(options: Flash, visibility: _Visibility, first_query, first_key):
  """Whether some key of a block may be visible to some query of another."""
  queries, keys = pl.ds(first_query, options.block), pl.ds(first_key, options.block)
  visible = jnp.max(visibility.until[keys]) > first_query
  if options.window:
    nearest = jnp.min(visibility.positions[queries]) - jnp.max(visibility.positions[keys])
    visible = visible & (nearest < options.window)
  return visible


def _scores(options: Flash, q_QK, k_SK, visibility: _Visibility, first_query, first_key):
  """(scores [Q, S], their slope against the plain products); hidden keys score `LOWEST`."""
  queries, keys = pl.ds(first_query, options.block), pl.ds(first_key, options.block)
  slope = q_QK.shape[1] ** -0.5
  scores_QS = product(q_QK, k_SK, ABT) * slope
  if options.soft_cap:
    tanh_QS = jnp.tanh(scores_QS / options.soft_cap)
    scores_QS, slope = options.soft_cap * tanh_QS, slope * (1.0 - jnp.square(tanh_QS))
  # `arange` has one dimension, which a TPU does not support.
  query_QS = first_query + jax.lax.broadcasted_iota(jnp.int32, scores_QS.shape, 0)
  key_QS = first_key + jax.lax.broadcasted_iota(jnp.int32, scores_QS.shape, 1)
  visible_QS = (key_QS <= query_QS) & (query_QS < visibility.until[keys][None, :])
  if options.window:
    distance_QS = visibility.positions[queries][:, None] - visibility.positions[keys][None, :]
    visible_QS &= distance_QS < options.window
  return jnp.where(visible_QS, scores_QS, LOWEST), slope


def _forward_kernel(*refs, options: Flash):
  q_ref, k_ref, v_ref, until_ref, positions_ref, out_ref, log_sum_ref = refs
  block, number = options.block, pl.program_id(2)
  visibility = _Visibility(until_ref, positions_ref)
  first, q_QK = number * block, q_ref[...]

  def visit(j, carry):
    highest_Q, total_Q, mixed_QK = carry
    at = pl.ds(j * block, block)
    scores_QS, _ = _scores(options, q_QK, k_ref[at, :], visibility, first, j * block)
    new_Q = jnp.maximum(highest_Q, scores_QS.max(axis=1))
    weights_QS = jnp.exp(scores_QS - new_Q[:, None])
    shrink_Q = jnp.exp(highest_Q - new_Q)
    shrunk_QK = mixed_QK * shrink_Q[:, None]
    mixed_QK = shrunk_QK + product(weights_QS.astype(v_ref.dtype), v_ref[at, :], AB)
    return new_Q, total_Q * shrink_Q + weights_QS.sum(axis=1), mixed_QK

  def step(j, carry):
    visible = _any_visible(options, visibility, first, j * block)
    return jax.lax.cond(visible, lambda carry: visit(j, carry), lambda carry: carry, carry)

  zeros_Q = jnp.zeros(block, jnp.float32)
  lowest_Q = jnp.full(block, LOWEST, jnp.float32)
  start = lowest_Q, zeros_Q, jnp.zeros((block, q_QK.shape[1]), jnp.float32)
  # The last block holds every query's own key, so what a row without visible keys added before it
  # shrinks to nothing.
  highest_Q, total_Q, mixed_QK = jax.lax.fori_loop(0, number + 1, step, start)
  out_ref[...] = (mixed_QK / total_Q[:, None]).astype(out_ref.dtype)
  log_sum_ref[...] = highest_Q + jnp.log(total_Q)


def _query_kernel(*all_refs, options: Flash):
  """The gradient of a block of queries, from all blocks of keys up to its own."""
  *read, d_q_ref = all_refs
  refs = _BackwardRefs(*read)
  block, number = options.block, pl.program_id(2)
  first, q_QK, d_out_QK = number * block, refs.q[...], refs.d_out[...]
  log_sum_Q, inner_Q = refs.log_sum[...], refs.inner[...]

  def visit(j, d_q_QK):
    at = pl.ds(j * block, block)
    scores_QS, slope = _scores(options, q_QK, refs.k[at, :], refs.visibility, first, j * block)
    d_weights_QS = product(d_out_QK, refs.v[at, :], ABT)
    weights_QS = jnp.exp(scores_QS - log_sum_Q[:, None])
    d_products_QS = weights_QS * (d_weights_QS - inner_Q[:, None]) * slope
    return d_q_QK + product(d_products_QS.astype(refs.k.dtype), refs.k[at, :], AB)

  def step(j, d_q_QK):
    visible = _any_visible(options, refs.visibility, first, j * block)
    return jax.lax.cond(visible, lambda d: visit(j, d), lambda d: d, d_q_QK)

  d_q_ref[...] = jax.lax.fori_loop(0, number + 1, step, jnp.zeros(q_QK.shape, jnp.float32))


def _key_kernel(*all_refs, options: Flash):
  """The gradients of a block of keys and values, from its own block of queries and all after it."""
  *read, d_k_ref, d_v_ref = all_refs
  refs = _BackwardRefs(*read)
  block, number = options.block, pl.program_id(2)
  first, k_SK, v_SK = number * block, refs.k[...], refs.v[...]

  def visit(i, carry):
    d_k_SK, d_v_SK = carry
    at = pl.ds(i * block, block)
    q_QK, d_out_QK = refs.q[at, :], refs.d_out[at, :]
    scores_QS, slope = _scores(options, q_QK, k_SK, refs.visibility, i * block, first)
    weights_QS = jnp.exp(scores_QS - refs.log_sum[at][:, None])
    d_weights_QS = product(d_out_QK, v_SK, ABT)
    d_products_QS = weights_QS * (d_weights_QS - refs.inner[at][:, None]) * slope
    d_v_SK += product(weights_QS.astype(d_out_QK.dtype), d_out_QK, ATB)
    return d_k_SK + product(d_products_QS.astype(q_QK.dtype), q_QK, ATB), d_v_SK

  def step(i, carry):
    visible = _any_visible(options, refs.visibility, i * block, first)
    return jax.lax.cond(visible, lambda carry: visit(i, carry), lambda carry: carry, carry)

  zeros = jnp.zeros(k_SK.shape, jnp.float32)
  blocks = refs.q.shape[0] // block
  d_k_ref[...], d_v_ref[...] = jax.lax.fori_loop(number, blocks, step, (zeros, zeros))
