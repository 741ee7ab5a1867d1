"""Log-probs of targets under a linear output head, without ever holding the logits.

The vocabulary is walked in blocks with a running log-sum-exp; the backward pass walks it again and
recomputes each block (a loop under ordinary autodiff would keep every block and save nothing).
Logits, sums and gradients accumulate in float32 whatever the inputs' type.

Shapes: N rows (positions that have a target), D model, V vocabulary, C columns of a block,
S segments.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

# Columns of a block. Measured on 2 CPU cores at N = 4096, D = 512: 1024, 2048 and 4096 are equally
# fast, and memory grows with them.
BLOCK = 1024


@dataclasses.dataclass(frozen=True)
class Head:
  """How logits are made of hidden states and the head, and how they are walked."""

  block: int = BLOCK  # columns at a time
  soft_cap: float = 0.0  # cap * tanh(logits / cap); 0: none
  transposed: bool = False  # the head is [V, D], such as a tied embedding
  entropy: bool = False  # also compute the entropy of every row, for a tenth more time


@dataclasses.dataclass(frozen=True)
class Split:
  """A mesh over which rows and vocabulary are split; it must divide the vocabulary evenly."""

  mesh: Mesh
  rows: tuple[str, ...] = ("replica", "fsdp", "context")
  vocabulary: str = "tensor"


class LogProbs(NamedTuple):
  """Of every row, float32 [N]."""

  log_prob: jax.Array  # of the target
  log_sum_exp: jax.Array  # the logits' normaliser, for a z-loss
  # In nats, without a gradient; None unless `Head.entropy` asks for it.
  entropy: jax.Array | None


def linear_logprob(
  hidden_ND: jax.Array,
  head: jax.Array,
  targets_N: jax.Array,
  options: Head | None = None,
  split: Split | None = None,
) -> LogProbs:
  """Log-prob of each row's target: log softmax(hidden @ head)[target].

  Args:
    hidden_ND: float32 or bfloat16.
    head: [D, V], or [V, D] where `options.transposed`; of the hidden states' type, products
      accumulate in float32.
    targets_N: int32, 0..V-1 (see `check_targets`).
    options: block, soft cap, layout of the head, entropy.
    split: mesh over which the rows and the vocabulary are split.

  Returns:
    LogProbs; gradients flow through `log_prob` and `log_sum_exp`.
  """
  options = options or Head()
  result = LogProbs(*_linear_logprob(options, split, hidden_ND, head, targets_N))
  if not options.entropy:
    return result._replace(entropy=None)
  return result._replace(entropy=jax.lax.stop_gradient(result.entropy))


def segment_sums(log_prob_N: jax.Array, segment_N: jax.Array, segments: int) -> jax.Array:
  """Sums of log-probs by segment (a step, or a response): float32 [S].

  Rows of segment S and above belong to none.
  """
  return jax.ops.segment_sum(log_prob_N.astype(jnp.float32), segment_N, num_segments=segments)


def check_targets(targets: np.ndarray, vocabulary: int, name: str = "targets") -> None:
  """Raises ValueError, with the index and the value, for an id outside 0..V-1.

  The array may have any shape; the message calls it `name`.
  """
  targets = np.asarray(targets)
  bad = np.argwhere((targets < 0) | (targets >= vocabulary))
  if len(bad):
    where = tuple(int(i) for i in bad[0])
    raise ValueError(
      f"{name}[{', '.join(map(str, where))}] is {targets[where]}; expected 0 to {vocabulary - 1}"
    )


def check_segments(segment_N: np.ndarray) -> None:
  """Raises ValueError, with the row, unless ids in order of first appearance count 0, 1, 2, ..."""
  segment_N = np.asarray(segment_N)
  next_N = np.append(0, np.maximum.accumulate(segment_N) + 1)[:-1]
  bad = np.flatnonzero((segment_N < 0) | (segment_N > next_N))
  if len(bad):
    row = bad[0]
    raise ValueError(
      f"segment[{row}] is {segment_N[row]}; expected 0 to {next_N[row]}: segment ids count up from "
      "0 and skip none"
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _linear_logprob(options, split, hidden_ND, head, targets_N):
  return _forward(options, split, hidden_ND, head, targets_N)[0]


def _forward(options, split, hidden_ND, head, targets_N):
  if split is None:
    result = _finish(_walk(options, hidden_ND, head, targets_N))
  else:
    result = _split_forward(options, split)(hidden_ND, head, targets_N)
  _, log_sum_exp_N, _ = result
  return result, (hidden_ND, head, targets_N, log_sum_exp_N)


def _backward(options, split, residuals, gradients):
  hidden_ND, head, targets_N, log_sum_exp_N = residuals
  d_log_prob_N, d_log_sum_exp_N, _ = gradients
  walk_back = _walk_back
  if split is not None:
    walk_back = _split_backward(split)
  d_hidden_ND, d_head = walk_back(
    options, hidden_ND, head, targets_N, log_sum_exp_N, d_log_prob_N, d_log_sum_exp_N
  )
  return d_hidden_ND.astype(hidden_ND.dtype), d_head.astype(head.dtype), None


_linear_logprob.defvjp(_forward, _backward)


class _Running(NamedTuple):
  """What the walk over the vocabulary keeps of the columns behind it, float32 [N] each."""

  highest_N: jax.Array  # logit
  total_N: jax.Array  # sum of exp(logit - highest)
  target_N: jax.Array  # logit of the target, 0 before it is met
  mean_N: jax.Array  # sum of logit * exp(logit - highest)


def _finish(running: _Running):
  """(log-prob of the target, log-sum-exp, entropy)."""
  log_sum_exp_N = running.highest_N + jnp.log(running.total_N)
  log_prob_N = running.target_N - log_sum_exp_N
  return log_prob_N, log_sum_exp_N, log_sum_exp_N - running.mean_N / running.total_N


@jax.named_scope("linear_logprob")
def _walk(options: Head, hidden_ND, head, targets_N) -> _Running:
  """The running sums over this head's whole vocabulary."""
  N = len(hidden_ND)

  def block(start, size, before: _Running) -> _Running:
    logits_NC, _ = _logits(options, hidden_ND, _columns(options, head, start, size))
    highest_N = jnp.maximum(before.highest_N, logits_NC.max(axis=1))
    shrink_N = jnp.exp(before.highest_N - highest_N)
    weight_NC = jnp.exp(logits_NC - highest_N[:, None])
    # A target of another block is clipped into this one, and its logit then left out.
    local_N = targets_N - start
    inside_N = (local_N >= 0) & (local_N < size)
    clipped_N1 = jnp.clip(local_N, 0, size - 1)[:, None]
    picked_N = jnp.take_along_axis(logits_NC, clipped_N1, axis=1)[:, 0]
    total_N = before.total_N * shrink_N + weight_NC.sum(axis=1)
    target_N = before.target_N + jnp.where(inside_N, picked_N, 0.0)
    mean_N = before.mean_N
    if options.entropy:
      mean_N = mean_N * shrink_N + (weight_NC * logits_NC).sum(axis=1)
    return _Running(highest_N, total_N, target_N, mean_N)

  zeros_N = jnp.zeros(N, jnp.float32)
  # Finite, since -inf - -inf would be NaN.
  lowest_N = jnp.full(N, jnp.finfo(jnp.float32).min)
  start = _Running(lowest_N, zeros_N, zeros_N, zeros_N)
  return _over_blocks(options, _vocabulary(options, head), block, start)


@jax.named_scope("linear_logprob_backward")
def _walk_back(
  options: Head, hidden_ND, head, targets_N, log_sum_exp_N, d_log_prob_N, d_log_sum_exp_N
):
  """(gradient of the hidden states, gradient of the head), float32."""
  d_softmax_N = (d_log_sum_exp_N - d_log_prob_N).astype(jnp.float32)

  def block(start, size, carry):
    d_hidden_ND, d_head = carry
    columns = _columns(options, head, start, size)
    logits_NC, slope_NC = _logits(options, hidden_ND, columns)
    hit_NC = (targets_N - start)[:, None] == jnp.arange(size)[None]
    of_softmax_NC = jnp.exp(logits_NC - log_sum_exp_N[:, None]) * d_softmax_N[:, None]
    d_logits_NC = of_softmax_NC + jnp.where(hit_NC, d_log_prob_N[:, None], 0.0)
    # Products are of the inputs' type, as in the forward pass; only sums are float32.
    d_logits_NC = (d_logits_NC * slope_NC).astype(hidden_ND.dtype)
    if options.transposed:
      d_hidden_ND += _product("nc,cd->nd", d_logits_NC, columns)
      d_columns, axis = _product("nc,nd->cd", d_logits_NC, hidden_ND), 0
    else:
      d_hidden_ND += _product("nc,dc->nd", d_logits_NC, columns)
      d_columns, axis = _product("nd,nc->dc", hidden_ND, d_logits_NC), 1
    d_head = jax.lax.dynamic_update_slice_in_dim(d_head, d_columns, start, axis=axis)
    return d_hidden_ND, d_head

  zeros = jnp.zeros(hidden_ND.shape, jnp.float32), jnp.zeros(head.shape, jnp.float32)
  return _over_blocks(options, _vocabulary(options, head), block, zeros)


def _over_blocks(options: Head, vocabulary: int, block, carry):
  """`block(start, size, carry)` over whole blocks in a loop, then over what is left."""
  size = min(options.block, vocabulary)
  whole = vocabulary // size
  if whole == 1:
    carry = block(0, size, carry)
  else:
    carry = jax.lax.fori_loop(0, whole, lambda i, carry: block(i * size, size, carry), carry)
  left = vocabulary - whole * size
  if left:
    carry = block(whole * size, left, carry)
  return carry


def _product(contraction: str, a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.einsum(contraction, a, b, preferred_element_type=jnp.float32)


def _vocabulary_axis(options: Head) -> int:
  if options.transposed:
    return 0
  return 1


def _vocabulary(options: Head, head) -> int:
  return head.shape[_vocabulary_axis(options)]


def _columns(options: Head, head, start, size):
  return jax.lax.dynamic_slice_in_dim(head, start, size, axis=_vocabulary_axis(options))


def _logits(options: Head, hidden_ND, columns):
  """(logits [N, C] in float32, their slope against the plain product)."""
  contraction = "nd,dc->nc"
  if options.transposed:
    contraction = "nd,cd->nc"
  return apply_soft_cap(options, _product(contraction, hidden_ND, columns))


def apply_soft_cap(options: Head, plain_NC: jax.Array) -> tuple[jax.Array, jax.Array | float]:
  """(logits, their slope) of plain products under the soft cap; shared with the Pallas path."""
  if not options.soft_cap:
    return plain_NC, 1.0
  tanh_NC = jnp.tanh(plain_NC / options.soft_cap)
  return options.soft_cap * tanh_NC, 1.0 - jnp.square(tanh_NC)


def _specs(options: Head, split: Split) -> tuple[PartitionSpec, PartitionSpec]:
  """How rows and the head lie on the mesh."""
  head: list[str | None] = [None, None]
  head[_vocabulary_axis(options)] = split.vocabulary
  return PartitionSpec(split.rows), PartitionSpec(*head)


def _split_forward(options: Head, split: Split):
  """Every device walks its part of the vocabulary; then the maxima are reduced, and the sums."""
  rows, columns = _specs(options, split)

  def local(hidden_ND, head, targets_N):
    first = jax.lax.axis_index(split.vocabulary) * _vocabulary(options, head)
    mine = _walk(options, hidden_ND, head, targets_N - first)
    highest_N = jax.lax.pmax(mine.highest_N, split.vocabulary)
    scale_N = jnp.exp(mine.highest_N - highest_N)
    parts = mine.total_N * scale_N, mine.target_N, mine.mean_N * scale_N
    return _finish(_Running(highest_N, *jax.lax.psum(parts, split.vocabulary)))

  return jax.shard_map(
    local, mesh=split.mesh, in_specs=(rows, columns, rows), out_specs=(rows,) * 3, check_vma=False
  )


def _split_backward(split: Split):
  def walk_back(options: Head, *arguments):
    rows, columns = _specs(options, split)

    def local(hidden_ND, head, targets_N, *gradients):
      first = jax.lax.axis_index(split.vocabulary) * _vocabulary(options, head)
      d_hidden_ND, d_head = _walk_back(options, hidden_ND, head, targets_N - first, *gradients)
      # Each device has its columns' share of every row, and its rows' share of every column.
      return jax.lax.psum(d_hidden_ND, split.vocabulary), jax.lax.psum(d_head, split.rows)

    mapped = jax.shard_map(
      local,
      mesh=split.mesh,
      in_specs=(rows, columns, *(rows,) * 4),
      out_specs=(rows, columns),
      check_vma=False,
    )
    return mapped(*arguments)

  return walk_back
