"""Log-probs of targets under a linear output head, without ever holding the logits.

The vocabulary is walked in blocks with a running log-sum-exp; the backward pass walks it again and recomputes each block (a loop under
ordinary autodiff would keep every block and save nothing). Logits, sums and gradients accumulate in float32 whatever the inputs' type.

Shapes: N rows (positions that have a target), D model, V vocabulary, C columns of a block, S segments.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

# Columns of a block. Measured on 2 CPU cores at N = 4096, D = 512: 1024, 2048 and 4096 are equally fast, and memory grows with them.
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
  """A mesh over which rows and vocabulary are split; the head's vocabulary divides evenly."""

  mesh: Mesh
  rows: tuple[str, ...] = ("replica", "fsdp", "context")
  vocabulary: str = "tensor"


class LogProbs(NamedTuple):
  """Of every row, float32 [N]."""

  log_prob: jax.Array  # of the target
  log_sum_exp: jax.Array  # the logits' normaliser, for a z-loss
  entropy: (
    jax.Array | None
  )  # of the distribution, nats, where `Head.entropy` asks for it; carries no gradient


def linear_logprob(
  hidden_ND: jax.Array,
  head: jax.Array,
  targets_N: jax.Array,
  how: Head | None = None,
  split: Split | None = None,
) -> LogProbs:
  """Log-prob of each row's target: log softmax(hidden @ head)[target].

  Args:
    hidden_ND: float32 or bfloat16.
    head: [D, V], or [V, D] where `how.transposed`; of the hidden states' type, products accumulate in float32.
    targets_N: int32, 0..V-1 (see `check_targets`).
    how: block, soft cap, layout of the head, entropy.
    split: mesh over which the rows and the vocabulary are split.

  Returns:
    LogProbs; gradients flow through `log_prob` and `log_sum_exp`.
  """
  how = how or Head()
  log_prob_N, log_sum_exp_N, entropy_N = _linear_logprob(how, split, hidden_ND, head, targets_N)
  return LogProbs(
    log_prob_N, log_sum_exp_N, jax.lax.stop_gradient(entropy_N) if how.entropy else None
  )


def segment_sums(log_prob_N: jax.Array, segment_N: jax.Array, segments: int) -> jax.Array:
  """Sums of log-probs by segment (a step, or a response): float32 [S]. Rows with a segment of S and more belong to none."""
  return jax.ops.segment_sum(log_prob_N.astype(jnp.float32), segment_N, num_segments=segments)


def check_targets(targets: np.ndarray, vocabulary: int, name: str = "targets") -> None:
  """Raises ValueError with the row and the value of an id outside 0..V-1, in an array of any shape that the message calls `name`."""
  targets = np.asarray(targets)
  bad = np.argwhere((targets < 0) | (targets >= vocabulary))
  if len(bad):
    where = tuple(int(i) for i in bad[0])
    raise ValueError(
      f"{name}[{', '.join(map(str, where))}] is {targets[where]}; expected 0 to {vocabulary - 1}"
    )


def check_segments(segment_N: np.ndarray) -> None:
  """Raises ValueError with the row where segment ids, in order of first appearance, do not count 0, 1, 2, ..."""
  segment_N = np.asarray(segment_N)
  next_N = np.append(0, np.maximum.accumulate(segment_N) + 1)[:-1]
  bad = np.flatnonzero((segment_N < 0) | (segment_N > next_N))
  if len(bad):
    row = bad[0]
    raise ValueError(
      f"segment[{row}] is {segment_N[row]}; expected 0 to {next_N[row]}: segment ids count up from 0 and skip none"
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _linear_logprob(how, split, hidden_ND, head, targets_N):
  return _forward(how, split, hidden_ND, head, targets_N)[0]


def _forward(how, split, hidden_ND, head, targets_N):
  if split is None:
    found = _finish(*_walk(how, hidden_ND, head, targets_N))
  else:
    found = _split_forward(how, split)(hidden_ND, head, targets_N)
  return found, (hidden_ND, head, targets_N, found[1])


def _backward(how, split, kept, gradients):
  hidden_ND, head, targets_N, log_sum_exp_N = kept
  d_log_prob_N, d_log_sum_exp_N, _ = gradients
  walk_back = _walk_back if split is None else _split_backward(split)
  d_hidden_ND, d_head = walk_back(
    how, hidden_ND, head, targets_N, log_sum_exp_N, d_log_prob_N, d_log_sum_exp_N
  )
  return d_hidden_ND.astype(hidden_ND.dtype), d_head.astype(head.dtype), None


_linear_logprob.defvjp(_forward, _backward)


def _finish(highest_N, total_N, target_N, mean_N):
  """Running maximum, sum, target logit and expected logit -> (log-prob, log-sum-exp, entropy)."""
  log_sum_exp_N = highest_N + jnp.log(total_N)
  return target_N - log_sum_exp_N, log_sum_exp_N, log_sum_exp_N - mean_N / total_N


@jax.named_scope("linear_logprob")
def _walk(how, hidden_ND, head, targets_N):
  """(maximum, sum of exp(logit - maximum), target logit, sum of logit * exp(logit - maximum)) over this head's vocabulary."""
  N = len(hidden_ND)

  def block(start, size, carry):
    highest_N, total_N, target_N, mean_N = carry
    logits_NC, _ = _logits(how, hidden_ND, _columns(how, head, start, size))
    new_N = jnp.maximum(highest_N, logits_NC.max(axis=1))
    shrink_N, weight_NC = jnp.exp(highest_N - new_N), jnp.exp(logits_NC - new_N[:, None])
    local_N = targets_N - start
    inside_N = (local_N >= 0) & (local_N < size)
    picked_N = jnp.take_along_axis(logits_NC, jnp.clip(local_N, 0, size - 1)[:, None], axis=1)[:, 0]
    return (
      new_N,
      total_N * shrink_N + weight_NC.sum(axis=1),
      target_N + jnp.where(inside_N, picked_N, 0.0),
      mean_N * shrink_N + (weight_NC * logits_NC).sum(axis=1) if how.entropy else mean_N,
    )

  zeros_N = jnp.zeros(N, jnp.float32)
  lowest_N = jnp.full(N, jnp.finfo(jnp.float32).min)
  return _over_blocks(how, _vocabulary(how, head), block, (lowest_N, zeros_N, zeros_N, zeros_N))


@jax.named_scope("linear_logprob_backward")
def _walk_back(how, hidden_ND, head, targets_N, log_sum_exp_N, d_log_prob_N, d_log_sum_exp_N):
  """(gradient of the hidden states, gradient of the head), float32."""
  d_softmax_N = (d_log_sum_exp_N - d_log_prob_N).astype(jnp.float32)

  def block(start, size, carry):
    d_hidden_ND, d_head = carry
    columns = _columns(how, head, start, size)
    logits_NC, slope_NC = _logits(how, hidden_ND, columns)
    hit_NC = (targets_N - start)[:, None] == jnp.arange(size)[None]
    d_logits_NC = jnp.exp(logits_NC - log_sum_exp_N[:, None]) * d_softmax_N[:, None] + jnp.where(
      hit_NC, d_log_prob_N[:, None], 0.0
    )
    d_logits_NC = (d_logits_NC * slope_NC).astype(hidden_ND.dtype)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    if how.transposed:
      d_hidden_ND += product("nc,cd->nd", d_logits_NC, columns)
      d_head = jax.lax.dynamic_update_slice_in_dim(
        d_head, product("nc,nd->cd", d_logits_NC, hidden_ND), start, axis=0
      )
    else:
      d_hidden_ND += product("nc,dc->nd", d_logits_NC, columns)
      d_head = jax.lax.dynamic_update_slice_in_dim(
        d_head, product("nd,nc->dc", hidden_ND, d_logits_NC), start, axis=1
      )
    return d_hidden_ND, d_head

  zeros = jnp.zeros(hidden_ND.shape, jnp.float32), jnp.zeros(head.shape, jnp.float32)
  return _over_blocks(how, _vocabulary(how, head), block, zeros)


def _over_blocks(how, vocabulary, block, carry):
  """`block(start, size, carry)` over whole blocks in a loop, then over what is left."""
  size = min(how.block, vocabulary)
  whole = vocabulary // size
  carry = (
    block(0, size, carry)
    if whole == 1
    else jax.lax.fori_loop(0, whole, lambda i, carry: block(i * size, size, carry), carry)
  )
  left = vocabulary - whole * size
  return block(whole * size, left, carry) if left else carry


def _vocabulary(how, head) -> int:
  return head.shape[0 if how.transposed else 1]


def _columns(how, head, start, size):
  return jax.lax.dynamic_slice_in_dim(head, start, size, axis=0 if how.transposed else 1)


def _logits(how, hidden_ND, columns):
  """(logits [N, C] in float32, their slope against the plain product)."""
  plain_NC = jnp.einsum(
    "nd,cd->nc" if how.transposed else "nd,dc->nc",
    hidden_ND,
    columns,
    preferred_element_type=jnp.float32,
  )
  return bend(how, plain_NC)


def bend(how: Head, plain_NC: jax.Array) -> tuple[jax.Array, jax.Array | float]:
  """(logits, their slope) of plain products under the soft cap. The Pallas path bends alike."""
  if not how.soft_cap:
    return plain_NC, 1.0
  bent_NC = jnp.tanh(plain_NC / how.soft_cap)
  return how.soft_cap * bent_NC, 1.0 - jnp.square(bent_NC)


def _specs(how, split):
  head = (split.vocabulary, None) if how.transposed else (None, split.vocabulary)
  return PartitionSpec(split.rows), PartitionSpec(*head)


def _split_forward(how, split):
  """Every device walks its part of the vocabulary; then one reduction of the maxima and one of the sums."""
  rows, columns = _specs(how, split)

  def local(hidden_ND, head, targets_N):
    first = jax.lax.axis_index(split.vocabulary) * _vocabulary(how, head)
    highest_N, total_N, target_N, mean_N = _walk(how, hidden_ND, head, targets_N - first)
    top_N = jax.lax.pmax(highest_N, split.vocabulary)
    scale_N = jnp.exp(highest_N - top_N)
    sums = jax.lax.psum((total_N * scale_N, target_N, mean_N * scale_N), split.vocabulary)
    return _finish(top_N, *sums)

  return jax.shard_map(
    local, mesh=split.mesh, in_specs=(rows, columns, rows), out_specs=(rows,) * 3, check_vma=False
  )


def _split_backward(split):
  def walk_back(how, *arguments):
    rows, columns = _specs(how, split)

    def local(hidden_ND, head, targets_N, *gradients):
      first = jax.lax.axis_index(split.vocabulary) * _vocabulary(how, head)
      d_hidden_ND, d_head = _walk_back(how, hidden_ND, head, targets_N - first, *gradients)
      return jax.lax.psum(d_hidden_ND, split.vocabulary), jax.lax.psum(d_head, split.rows)

    return jax.shard_map(
      local,
      mesh=split.mesh,
      in_specs=(rows, columns, *(rows,) * 4),
      out_specs=(rows, columns),
      check_vma=False,
    )(*arguments)

  return walk_back
