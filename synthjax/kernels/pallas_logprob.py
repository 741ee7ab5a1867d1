"""The blocked head in Pallas: log-sum-exp and target logits, tile by tile.

Three kernels: forward (one program per block of rows, a loop over blocks of the vocabulary), the
rows' gradient (the same), the head's gradient (one program per block of the vocabulary, a loop over
blocks of rows). The gradients recompute the tiles. Plain Pallas, so they run in interpret mode on a
CPU, where the tests check them against the XLA path.

Shapes: N rows, D model, V vocabulary, R rows and C columns of a tile.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from synthjax.kernels.linear_logprob import Head, apply_soft_cap
from synthjax.kernels.pallas_math import AB, ABT, ATB, LOWEST, product


class _Tiling(NamedTuple):
  """How the kernels run; hashable, as an argument that is not traced has to be."""

  options: Head
  rows: int
  columns: int
  interpret: bool


def linear_logprob(
  hidden_ND: jax.Array,
  head_DV: jax.Array,
  targets_N: jax.Array,
  options: Head | None = None,
  tile: tuple[int, int] = (128, 512),
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """(log-prob of the targets, log-sum-exp), float32 [N]; gradients flow through both.

  Args:
    hidden_ND: float32 or bfloat16.
    head_DV: of the hidden states' type.
    targets_N: int32, 0..V-1.
    options: soft cap.
    tile: rows and columns.
    interpret: run on a CPU, slowly.

  Raises:
    ValueError: the tiles do not divide the rows or the vocabulary.
  """
  N, V = len(hidden_ND), head_DV.shape[1]
  rows, columns = min(tile[0], N), min(tile[1], V)
  if N % rows or V % columns:
    raise ValueError(
      f"{N} rows and a vocabulary of {V} are not divisible into tiles of {rows} x {columns}; pad "
      "them or choose other tiles"
    )
  tiling = _Tiling(options or Head(), rows, columns, interpret)
  return _log_prob(tiling, hidden_ND, head_DV, targets_N)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_prob(tiling, hidden, head, targets):
  return _forward(tiling, hidden, head, targets)[0]


def _forward(tiling: _Tiling, hidden, head, targets):
  (N, D), V = hidden.shape, head.shape[1]
  R = tiling.rows
  block = pl.BlockSpec((R,), lambda i: (i,))
  hidden_block = pl.BlockSpec((R, D), lambda i: (i, 0))
  whole_head = pl.BlockSpec((D, V), lambda i: (0, 0))
  log_prob, log_sum = pl.pallas_call(
    functools.partial(_forward_kernel, tiling=tiling),
    grid=(N // R,),
    in_specs=[hidden_block, whole_head, block],
    out_specs=[block, block],
    out_shape=[jax.ShapeDtypeStruct((N,), jnp.float32)] * 2,
    interpret=tiling.interpret,
  )(hidden, head, targets)
  return (log_prob, log_sum), (hidden, head, targets, log_sum)


def _backward(tiling: _Tiling, residuals, gradients):
  hidden, head, targets, log_sum = residuals
  (N, D), V = hidden.shape, head.shape[1]
  R, C = tiling.rows, tiling.columns
  d_log_prob, d_log_sum = gradients
  d_target = d_log_prob.astype(jnp.float32)
  d_softmax = (d_log_sum - d_log_prob).astype(jnp.float32)
  arguments = hidden, head, targets, log_sum, d_target, d_softmax
  block = pl.BlockSpec((R,), lambda i: (i,))
  hidden_block = pl.BlockSpec((R, D), lambda i: (i, 0))
  whole_head = pl.BlockSpec((D, V), lambda i: (0, 0))
  d_hidden = pl.pallas_call(
    functools.partial(_rows_kernel, tiling=tiling),
    grid=(N // R,),
    in_specs=[hidden_block, whole_head, *[block] * 4],
    out_specs=hidden_block,
    out_shape=jax.ShapeDtypeStruct((N, D), jnp.float32),
    interpret=tiling.interpret,
  )(*arguments)
  all_rows = pl.BlockSpec((N,), lambda j: (0,))
  whole_hidden = pl.BlockSpec((N, D), lambda j: (0, 0))
  head_block = pl.BlockSpec((D, C), lambda j: (0, j))
  d_head = pl.pallas_call(
    functools.partial(_columns_kernel, tiling=tiling),
    grid=(V // C,),
    in_specs=[whole_hidden, head_block, *[all_rows] * 4],
    out_specs=head_block,
    out_shape=jax.ShapeDtypeStruct((D, V), jnp.float32),
    interpret=tiling.interpret,
  )(*arguments)
  return d_hidden.astype(hidden.dtype), d_head.astype(head.dtype), None


_log_prob.defvjp(_forward, _backward)


class _PerRow(NamedTuple):
  """What the gradient kernels read of every row, [R] each; or references to it."""

  target: Any
  log_sum: Any
  d_log_prob: Any
  d_softmax: Any


def _hits(targets_R, first, columns: int):
  """Which column of a tile is a row's target: bool [R, C]."""
  # `arange` has one dimension, which a TPU does not support.
  column_RC = jax.lax.broadcasted_iota(jnp.int32, (len(targets_R), columns), 1)
  return (targets_R - first)[:, None] == column_RC


def _forward_kernel(*refs, tiling: _Tiling):
  hidden_ref, head_ref, targets_ref, log_prob_ref, log_sum_ref = refs
  columns = tiling.columns
  hidden_RD, targets_R = hidden_ref[...], targets_ref[...]

  def step(j, carry):
    highest_R, total_R, target_R = carry
    first = j * columns
    plain_RC = product(hidden_RD, head_ref[:, pl.ds(first, columns)], AB)
    logits_RC, _ = apply_soft_cap(tiling.options, plain_RC)
    new_R = jnp.maximum(highest_R, logits_RC.max(axis=1))
    shrunk_R = total_R * jnp.exp(highest_R - new_R)
    total_R = shrunk_R + jnp.exp(logits_RC - new_R[:, None]).sum(axis=1)
    hits_RC = _hits(targets_R, first, columns)
    return new_R, total_R, target_R + jnp.where(hits_RC, logits_RC, 0.0).sum(axis=1)

  zeros_R = jnp.zeros(len(targets_R), jnp.float32)
  start = zeros_R + LOWEST, zeros_R, zeros_R
  tiles = head_ref.shape[1] // columns
  highest_R, total_R, target_R = jax.lax.fori_loop(0, tiles, step, start)
  log_sum_ref[...] = highest_R + jnp.log(total_R)
  log_prob_ref[...] = target_R - log_sum_ref[...]


def _d_products(options: Head, hidden_RD, head_DC, per_row: _PerRow, first):
  """Gradient of a tile of plain products, which are recomputed."""
  logits_RC, slope_RC = apply_soft_cap(options, product(hidden_RD, head_DC, AB))
  hits_RC = _hits(per_row.target, first, head_DC.shape[1])
  softmax_RC = jnp.exp(logits_RC - per_row.log_sum[:, None])
  of_softmax_RC = softmax_RC * per_row.d_softmax[:, None]
  of_target_RC = jnp.where(hits_RC, per_row.d_log_prob[:, None], 0.0)
  return ((of_softmax_RC + of_target_RC) * slope_RC).astype(head_DC.dtype)


def _rows_kernel(*refs, tiling: _Tiling):
  """The gradient of a block of rows, over all columns."""
  hidden_ref, head_ref, *row_refs, d_hidden_ref = refs
  hidden_RD = hidden_ref[...]
  per_row = _PerRow(*(ref[...] for ref in row_refs))

  def step(j, d_hidden_RD):
    first = j * tiling.columns
    head_DC = head_ref[:, pl.ds(first, tiling.columns)]
    d_products_RC = _d_products(tiling.options, hidden_RD, head_DC, per_row, first)
    return d_hidden_RD + product(d_products_RC, head_DC, ABT)

  tiles = head_ref.shape[1] // tiling.columns
  d_hidden_ref[...] = jax.lax.fori_loop(0, tiles, step, jnp.zeros(hidden_RD.shape, jnp.float32))


def _columns_kernel(*refs, tiling: _Tiling):
  """The gradient of a block of columns, over all rows."""
  hidden_ref, head_ref, *row_refs, d_head_ref = refs
  head_DC = head_ref[...]
  first = pl.program_id(0) * head_DC.shape[1]

  def step(i, d_head_DC):
    at = pl.ds(i * tiling.rows, tiling.rows)
    per_row = _PerRow(*(ref[at] for ref in row_refs))
    d_products_RC = _d_products(tiling.options, hidden_ref[at, :], head_DC, per_row, first)
    return d_head_DC + product(hidden_ref[at, :], d_products_RC, ATB)

  tiles = hidden_ref.shape[0] // tiling.rows
  d_head_ref[...] = jax.lax.fori_loop(0, tiles, step, jnp.zeros(head_DC.shape, jnp.float32))
