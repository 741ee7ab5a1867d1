"""Interval attention as a flash kernel in Pallas: a block of keys that no query of the block can see is skipped, forward and backward.

One program handles one block of queries (or of keys, in the second backward kernel) of one head and loops over the blocks of the other
side. A block of keys is skipped when it lies after the queries, when the largest `until` in it is not beyond the first query, or when all
of it lies before the window of every query.

The kernels use plain Pallas (no Triton, no Mosaic primitives), so they run in interpret mode on a CPU, where the tests check them.

Shapes: B batch, H query heads, G key/value heads, T tokens, K head dim, Q queries and S keys of a block.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

_LOWEST = -1e30


@dataclasses.dataclass(frozen=True)
class Flash:
  """How the kernels run."""

  block: int = 64  # queries, and keys, at a time
  window: int = 0  # as `interval_attention` has them
  soft_cap: float = 0.0
  interpret: bool = False  # run on a CPU, slowly


def attention(
  q_BTHK: jax.Array,
  k_BTGK: jax.Array,
  v_BTGK: jax.Array,
  until_BT: jax.Array,
  positions_BT: jax.Array,
  how: Flash,
) -> jax.Array:
  """As `interval_attention`, by the kernels below.

  Raises:
    ValueError: the block does not divide the row.
  """
  T = q_BTHK.shape[1]
  how = dataclasses.replace(how, block=min(how.block, T))
  if T % how.block:
    raise ValueError(
      f"rows of {T} tokens are not divisible into blocks of {how.block}; choose another row length or block"
    )
  heads_first = lambda x: jnp.moveaxis(x, 2, 1)
  out_BHTK = _attention(
    how, heads_first(q_BTHK), heads_first(k_BTGK), heads_first(v_BTGK), until_BT, positions_BT
  )
  return jnp.moveaxis(out_BHTK, 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(how, q, k, v, until, positions):
  return _forward(how, q, k, v, until, positions)[0]


def _forward(how, q, k, v, until, positions):
  B, H, T, K = q.shape
  group = H // k.shape[1]
  mine = pl.BlockSpec((None, None, how.block, K), lambda b, h, i: (b, h, i, 0))
  whole = pl.BlockSpec((None, None, T, K), lambda b, h, i: (b, h // group, 0, 0))
  rows = pl.BlockSpec((None, T), lambda b, h, i: (b, 0))
  out, log_sum = pl.pallas_call(
    functools.partial(_forward_kernel, how=how),
    grid=(B, H, T // how.block),
    in_specs=[mine, whole, whole, rows, rows],
    out_specs=[mine, pl.BlockSpec((None, None, how.block), lambda b, h, i: (b, h, i))],
    out_shape=[
      jax.ShapeDtypeStruct(q.shape, q.dtype),
      jax.ShapeDtypeStruct((B, H, T), jnp.float32),
    ],
    interpret=how.interpret,
  )(q, k, v, until, positions)
  return out, (q, k, v, until, positions, out, log_sum)


def _backward(how, kept, d_out):
  q, k, v, until, positions, out, log_sum = kept
  B, H, T, K = q.shape
  G = k.shape[1]
  group = H // G
  # The derivative of a softmax needs each row's sum of output times its gradient.
  inner = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)
  mine = pl.BlockSpec((None, None, how.block, K), lambda b, h, i: (b, h, i, 0))
  my_row = pl.BlockSpec((None, None, how.block), lambda b, h, i: (b, h, i))
  keys = pl.BlockSpec((None, None, T, K), lambda b, h, i: (b, h // group, 0, 0))
  rows = pl.BlockSpec((None, T), lambda b, h, i: (b, 0))
  arguments = q, k, v, until, positions, d_out, log_sum, inner
  d_q = pl.pallas_call(
    functools.partial(_query_kernel, how=how),
    grid=(B, H, T // how.block),
    in_specs=[mine, keys, keys, rows, rows, mine, my_row, my_row],
    out_specs=mine,
    out_shape=jax.ShapeDtypeStruct(q.shape, jnp.float32),
    interpret=how.interpret,
  )(*arguments)
  my_keys = pl.BlockSpec((None, None, how.block, K), lambda b, h, i: (b, h // group, i, 0))
  all_queries = pl.BlockSpec((None, None, T, K), lambda b, h, i: (b, h, 0, 0))
  all_rows = pl.BlockSpec((None, None, T), lambda b, h, i: (b, h, 0))
  d_k, d_v = pl.pallas_call(
    functools.partial(_key_kernel, how=how),
    grid=(B, H, T // how.block),
    in_specs=[all_queries, my_keys, my_keys, rows, rows, all_queries, all_rows, all_rows],
    out_specs=[mine, mine],
    out_shape=[jax.ShapeDtypeStruct(q.shape, jnp.float32)] * 2,
    interpret=how.interpret,
  )(*arguments)
  over_group = lambda x: x.reshape(B, G, group, T, K).sum(axis=2)
  return (
    d_q.astype(q.dtype),
    over_group(d_k).astype(k.dtype),
    over_group(d_v).astype(v.dtype),
    None,
    None,
  )


_attention.defvjp(_forward, _backward)


def _product(a, b, contract):
  return jax.lax.dot_general(a, b, (contract, ((), ())), preferred_element_type=jnp.float32)


def _any_visible(how, marks, first_query, first_key):
  """Whether some key of a block may be visible to some query of another. `marks` are the row's (until, positions)."""
  until_ref, positions_ref = marks
  queries, keys = pl.ds(first_query, how.block), pl.ds(first_key, how.block)
  seen = jnp.max(until_ref[keys]) > first_query
  return (
    seen & (jnp.min(positions_ref[queries]) - jnp.max(positions_ref[keys]) < how.window)
    if how.window
    else seen
  )


def _scores(how, q_QK, k_SK, marks, first_query, first_key):
  """(scores [Q, S], the lowest number where a key is not visible; their slope against the plain products)."""
  until_ref, positions_ref = marks
  queries, keys = pl.ds(first_query, how.block), pl.ds(first_key, how.block)
  slope = q_QK.shape[1] ** -0.5
  scores_QS = _product(q_QK, k_SK, ((1,), (1,))) * slope
  if how.soft_cap:
    bent_QS = jnp.tanh(scores_QS / how.soft_cap)
    scores_QS, slope = how.soft_cap * bent_QS, slope * (1.0 - jnp.square(bent_QS))
  query_Q1 = first_query + jax.lax.broadcasted_iota(jnp.int32, scores_QS.shape, 0)
  key_1S = first_key + jax.lax.broadcasted_iota(jnp.int32, scores_QS.shape, 1)
  visible_QS = (key_1S <= query_Q1) & (query_Q1 < until_ref[keys][None, :])
  if how.window:
    visible_QS &= positions_ref[queries][:, None] - positions_ref[keys][None, :] < how.window
  return jnp.where(visible_QS, scores_QS, _LOWEST), slope


def _forward_kernel(q_ref, k_ref, v_ref, until_ref, positions_ref, out_ref, log_sum_ref, *, how):
  block, number, marks = how.block, pl.program_id(2), (until_ref, positions_ref)
  first, q_QK = number * block, q_ref[...]

  def visit(j, carry):
    top_Q, total_Q, mixed_QK = carry
    at = pl.ds(j * block, block)
    scores_QS, _ = _scores(how, q_QK, k_ref[at, :], marks, first, j * block)
    new_Q = jnp.maximum(top_Q, scores_QS.max(axis=1))
    weights_QS, shrink_Q = jnp.exp(scores_QS - new_Q[:, None]), jnp.exp(top_Q - new_Q)
    mixed_QK = mixed_QK * shrink_Q[:, None] + _product(
      weights_QS.astype(v_ref.dtype), v_ref[at, :], ((1,), (0,))
    )
    return new_Q, total_Q * shrink_Q + weights_QS.sum(axis=1), mixed_QK

  def step(j, carry):
    return jax.lax.cond(
      _any_visible(how, marks, first, j * block),
      lambda carry: visit(j, carry),
      lambda carry: carry,
      carry,
    )

  zeros_Q = jnp.zeros(block, jnp.float32)
  start = (
    jnp.full(block, _LOWEST, jnp.float32),
    zeros_Q,
    jnp.zeros((block, q_QK.shape[1]), jnp.float32),
  )
  # The last block holds every query's own key, so what a row without visible keys added before it shrinks to nothing.
  top_Q, total_Q, mixed_QK = jax.lax.fori_loop(0, number + 1, step, start)
  out_ref[...] = (mixed_QK / total_Q[:, None]).astype(out_ref.dtype)
  log_sum_ref[...] = top_Q + jnp.log(total_Q)


def _query_kernel(
  q_ref, k_ref, v_ref, until_ref, positions_ref, d_out_ref, log_sum_ref, inner_ref, d_q_ref, *, how
):
  block, number, marks = how.block, pl.program_id(2), (until_ref, positions_ref)
  first, q_QK, d_out_QK = number * block, q_ref[...], d_out_ref[...]
  log_sum_Q, inner_Q = log_sum_ref[...], inner_ref[...]

  def visit(j, d_q_QK):
    at = pl.ds(j * block, block)
    scores_QS, slope = _scores(how, q_QK, k_ref[at, :], marks, first, j * block)
    d_weights_QS = _product(d_out_QK, v_ref[at, :], ((1,), (1,)))
    d_products_QS = (
      jnp.exp(scores_QS - log_sum_Q[:, None]) * (d_weights_QS - inner_Q[:, None]) * slope
    )
    return d_q_QK + _product(d_products_QS.astype(k_ref.dtype), k_ref[at, :], ((1,), (0,)))

  def step(j, d_q_QK):
    return jax.lax.cond(
      _any_visible(how, marks, first, j * block), lambda d: visit(j, d), lambda d: d, d_q_QK
    )

  d_q_ref[...] = jax.lax.fori_loop(0, number + 1, step, jnp.zeros(q_QK.shape, jnp.float32))


def _key_kernel(
  q_ref,
  k_ref,
  v_ref,
  until_ref,
  positions_ref,
  d_out_ref,
  log_sum_ref,
  inner_ref,
  d_k_ref,
  d_v_ref,
  *,
  how,
):
  block, number, marks = how.block, pl.program_id(2), (until_ref, positions_ref)
  first, k_SK, v_SK = number * block, k_ref[...], v_ref[...]

  def visit(i, carry):
    d_k_SK, d_v_SK = carry
    at = pl.ds(i * block, block)
    q_QK, d_out_QK = q_ref[at, :], d_out_ref[at, :]
    scores_QS, slope = _scores(how, q_QK, k_SK, marks, i * block, first)
    weights_QS = jnp.exp(scores_QS - log_sum_ref[at][:, None])
    d_products_QS = (
      weights_QS * (_product(d_out_QK, v_SK, ((1,), (1,))) - inner_ref[at][:, None]) * slope
    )
    d_v_SK += _product(weights_QS.astype(d_out_QK.dtype), d_out_QK, ((0,), (0,)))
    return d_k_SK + _product(d_products_QS.astype(q_QK.dtype), q_QK, ((0,), (0,))), d_v_SK

  def step(i, carry):
    return jax.lax.cond(
      _any_visible(how, marks, i * block, first),
      lambda carry: visit(i, carry),
      lambda carry: carry,
      carry,
    )

  zeros = jnp.zeros(k_SK.shape, jnp.float32)
  d_k_ref[...], d_v_ref[...] = jax.lax.fori_loop(
    number, q_ref.shape[0] // block, step, (zeros, zeros)
  )
