"""The blocked head in Pallas: log-sum-exp and target logits tile by tile, and both gradients by recomputing tiles.

Three kernels: forward (one program a block of rows, a loop over blocks of the vocabulary), the rows' gradient (the same), the head's
gradient (one program a block of the vocabulary, a loop over blocks of rows). Plain Pallas, so they run in interpret mode on a CPU, where
the tests check them against the XLA path.

Shapes: N rows, D model, V vocabulary, R rows and C columns of a tile.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from synthjax.kernels.linear_logprob import Head, bend

_LOWEST = -1e30


def linear_logprob(
  hidden_ND: jax.Array,
  head_DV: jax.Array,
  targets_N: jax.Array,
  how: Head | None = None,
  tile: tuple[int, int] = (128, 512),
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """(log-prob of the targets, log-sum-exp), float32 [N]; gradients flow through both.

  Args:
    hidden_ND: float32 or bfloat16.
    head_DV: of the hidden states' type.
    targets_N: int32, 0..V-1.
    how: soft cap.
    tile: rows and columns.
    interpret: run on a CPU, slowly.

  Raises:
    ValueError: the tiles do not divide the rows or the vocabulary.
  """
  N, V = len(hidden_ND), head_DV.shape[1]
  rows, columns = min(tile[0], N), min(tile[1], V)
  if N % rows or V % columns:
    raise ValueError(
      f"{N} rows and a vocabulary of {V} are not divisible into tiles of {rows} x {columns}; pad them or choose other tiles"
    )
  return _log_prob((how or Head(), rows, columns, interpret), hidden_ND, head_DV, targets_N)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_prob(tile, hidden, head, targets):
  return _forward(tile, hidden, head, targets)[0]


def _forward(tile, hidden, head, targets):
  how, R, C, interpret = tile
  (N, D), V = hidden.shape, head.shape[1]
  mine = pl.BlockSpec((R,), lambda i: (i,))
  found = pl.pallas_call(
    functools.partial(_forward_kernel, how=how, columns=C),
    grid=(N // R,),
    in_specs=[pl.BlockSpec((R, D), lambda i: (i, 0)), pl.BlockSpec((D, V), lambda i: (0, 0)), mine],
    out_specs=[mine, mine],
    out_shape=[jax.ShapeDtypeStruct((N,), jnp.float32)] * 2,
    interpret=interpret,
  )(hidden, head, targets)
  return tuple(found), (hidden, head, targets, found[1])


def _backward(tile, kept, gradients):
  how, R, C, interpret = tile
  hidden, head, targets, log_sum = kept
  (N, D), V = hidden.shape, head.shape[1]
  d_log_prob, d_log_sum = gradients
  arguments = (
    hidden,
    head,
    targets,
    log_sum,
    d_log_prob.astype(jnp.float32),
    (d_log_sum - d_log_prob).astype(jnp.float32),
  )
  mine, every = pl.BlockSpec((R,), lambda i: (i,)), pl.BlockSpec((N,), lambda j: (0,))
  d_hidden = pl.pallas_call(
    functools.partial(_rows_kernel, how=how, columns=C),
    grid=(N // R,),
    in_specs=[
      pl.BlockSpec((R, D), lambda i: (i, 0)),
      pl.BlockSpec((D, V), lambda i: (0, 0)),
      *[mine] * 4,
    ],
    out_specs=pl.BlockSpec((R, D), lambda i: (i, 0)),
    out_shape=jax.ShapeDtypeStruct((N, D), jnp.float32),
    interpret=interpret,
  )(*arguments)
  d_head = pl.pallas_call(
    functools.partial(_columns_kernel, how=how, rows=R),
    grid=(V // C,),
    in_specs=[
      pl.BlockSpec((N, D), lambda j: (0, 0)),
      pl.BlockSpec((D, C), lambda j: (0, j)),
      *[every] * 4,
    ],
    out_specs=pl.BlockSpec((D, C), lambda j: (0, j)),
    out_shape=jax.ShapeDtypeStruct((D, V), jnp.float32),
    interpret=interpret,
  )(*arguments)
  return d_hidden.astype(hidden.dtype), d_head.astype(head.dtype), None


_log_prob.defvjp(_forward, _backward)


def _product(a, b, contract):
  return jax.lax.dot_general(a, b, (contract, ((), ())), preferred_element_type=jnp.float32)


def _hits(targets_R, first, columns):
  """Which column of a tile is a row's target: bool [R, C]."""
  return (targets_R - first)[:, None] == jax.lax.broadcasted_iota(
    jnp.int32, (len(targets_R), columns), 1
  )


def _forward_kernel(hidden_ref, head_ref, targets_ref, log_prob_ref, log_sum_ref, *, how, columns):
  hidden_RD, targets_R = hidden_ref[...], targets_ref[...]

  def step(j, carry):
    top_R, total_R, target_R = carry
    logits_RC, _ = bend(
      how, _product(hidden_RD, head_ref[:, pl.ds(j * columns, columns)], ((1,), (0,)))
    )
    new_R = jnp.maximum(top_R, logits_RC.max(axis=1))
    total_R = total_R * jnp.exp(top_R - new_R) + jnp.exp(logits_RC - new_R[:, None]).sum(axis=1)
    return (
      new_R,
      total_R,
      target_R + jnp.where(_hits(targets_R, j * columns, columns), logits_RC, 0.0).sum(axis=1),
    )

  zeros_R = jnp.zeros(len(targets_R), jnp.float32)
  top_R, total_R, target_R = jax.lax.fori_loop(
    0, head_ref.shape[1] // columns, step, (zeros_R + _LOWEST, zeros_R, zeros_R)
  )
  log_sum_ref[...] = top_R + jnp.log(total_R)
  log_prob_ref[...] = target_R - log_sum_ref[...]


def _d_products(how, hidden_RD, head_DC, targets_R, log_sum_R, d_log_prob_R, d_softmax_R, first):
  """Gradient of a tile of plain products, which are recomputed."""
  logits_RC, slope_RC = bend(how, _product(hidden_RD, head_DC, ((1,), (0,))))
  hits_RC = _hits(targets_R, first, head_DC.shape[1])
  d_logits_RC = jnp.exp(logits_RC - log_sum_R[:, None]) * d_softmax_R[:, None] + jnp.where(
    hits_RC, d_log_prob_R[:, None], 0.0
  )
  return (d_logits_RC * slope_RC).astype(head_DC.dtype)


def _rows_kernel(
  hidden_ref,
  head_ref,
  targets_ref,
  log_sum_ref,
  d_log_prob_ref,
  d_softmax_ref,
  d_hidden_ref,
  *,
  how,
  columns,
):
  hidden_RD = hidden_ref[...]
  per_row = targets_ref[...], log_sum_ref[...], d_log_prob_ref[...], d_softmax_ref[...]

  def step(j, d_hidden_RD):
    head_DC = head_ref[:, pl.ds(j * columns, columns)]
    d_products_RC = _d_products(how, hidden_RD, head_DC, *per_row, j * columns)
    return d_hidden_RD + _product(d_products_RC, head_DC, ((1,), (1,)))

  d_hidden_ref[...] = jax.lax.fori_loop(
    0, head_ref.shape[1] // columns, step, jnp.zeros(hidden_RD.shape, jnp.float32)
  )


def _columns_kernel(
  hidden_ref,
  head_ref,
  targets_ref,
  log_sum_ref,
  d_log_prob_ref,
  d_softmax_ref,
  d_head_ref,
  *,
  how,
  rows,
):
  head_DC = head_ref[...]
  first = pl.program_id(0) * head_DC.shape[1]

  def step(i, d_head_DC):
    at = pl.ds(i * rows, rows)
    per_row = targets_ref[at], log_sum_ref[at], d_log_prob_ref[at], d_softmax_ref[at]
    d_products_RC = _d_products(how, hidden_ref[at, :], head_DC, *per_row, first)
    return d_head_DC + _product(hidden_ref[at, :], d_products_RC, ((0,), (0,)))

  d_head_ref[...] = jax.lax.fori_loop(
    0, hidden_ref.shape[0] // rows, step, jnp.zeros(head_DC.shape, jnp.float32)
  )
