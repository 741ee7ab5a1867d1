"""State and step: one jitted initialisation and one jitted step, both laid out over the mesh.

Shapes: B sequences, T tokens, D model, V vocabulary.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from synthjax.config import schema
from synthjax.kernels.interval_attention import check_until
from synthjax.kernels.linear_logprob import LogProbs, check_targets
from synthjax.losses.registry import TOKEN_LOSSES
from synthjax.model.transformer import Params, Transformer
from synthjax.sharding import Layout

# "params", "opt_state" and "step": a plain dict, so that checkpoints are read without our classes.
State = dict[str, Any]
Batch = dict[str, jax.Array]
# Metrics of a step, float32; they stay on the device until a line is due.
Scalars = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Trainer:
  """Model, optimizer and mesh; its functions are pure, and the loop compiles them once."""

  model: Transformer
  optimizer: optax.GradientTransformation
  layout: Layout
  cfg: schema.Train

  def init(self, key: jax.Array) -> State:
    """A fresh state, created in place on the mesh by one jitted function."""
    return jax.jit(self._init, out_shardings=self.shardings())(key)

  def start_from(self, params: Params) -> State:
    """A fresh optimizer around given parameters, whose buffers the state takes over."""
    build = jax.jit(self._around, out_shardings=self.shardings(), donate_argnums=0)
    return build(params)

  def _init(self, key: jax.Array) -> State:
    return self._around(self.model.init(key))

  def _around(self, params: Params) -> State:
    return {
      "params": params,
      "opt_state": self.optimizer.init(params),
      "step": jnp.zeros((), jnp.int32),
    }

  def abstract(self) -> State:
    """Shapes, types and shardings of the state: what a checkpoint is restored into."""

    def place(x, sharding):
      return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    shapes = jax.eval_shape(self._init, jax.random.key(0))
    return jax.tree.map(place, shapes, self.shardings())

  def shardings(self) -> State:
    """The optimizer's moments lie where their parameters lie; everything else is replicated."""
    params = self.layout.of(self.model.leaves)
    # optax knows which leaves of its state mirror parameters and which are counters.
    moments = optax.tree_map_params(
      self.optimizer,
      lambda _, sharding: sharding,
      jax.eval_shape(self.optimizer.init, self.model.abstract()),
      params,
      transform_non_params=lambda _: self.layout.replicated,
    )
    return {"params": params, "opt_state": moments, "step": self.layout.replicated}

  def check(self, batch: dict[str, np.ndarray]) -> None:
    """Checks a batch on the host that would otherwise be trained on silently.

    Raises:
      ValueError: what `check_sequences` finds, or a negative weight; with its index and value.
    """
    check_sequences(batch, self.model.cfg.vocab_size)
    negative = np.argwhere(batch["weights"] < 0)
    if len(negative):
      sequence, position = negative[0]
      weight = batch["weights"][sequence, position]
      raise ValueError(
        f"weights[{sequence}, {position}] is {weight}; expected 0 or more: it is how much a target "
        "counts"
      )

  def compile(self, batch: Any):
    """The step for batches of these shapes: (state, batch) -> (state, metrics).

    It is compiled ahead of time, and the state is donated.
    """
    out_shardings = (self.shardings(), self.layout.replicated)
    step = jax.jit(self.step, donate_argnums=0, out_shardings=out_shardings)
    return step.lower(self.abstract(), batch).compile()

  def step(self, state: State, batch: Batch) -> tuple[State, Scalars]:
    """One update from a batch of [B, T] arrays."""
    target_tokens = batch["weights"].sum()
    # At least 1: the loss of a batch without targets is 0, not a division by 0.
    weight = jnp.maximum(target_tokens, 1.0)
    grads, metrics = self.gradients(state["params"], batch, weight)
    return self.update(state, grads, metrics | {"target_tokens": target_tokens})

  def update(self, state: State, grads: Params, metrics: Scalars) -> tuple[State, Scalars]:
    """The optimizer's part of a step."""
    with jax.named_scope("optimizer"):
      updates, opt_state = self.optimizer.update(grads, state["opt_state"], state["params"])
      params = optax.apply_updates(state["params"], updates)
    new_state = {
      "params": params,
      "opt_state": opt_state,
      "step": state["step"] + 1,
    }
    # Of the gradient before it is clipped: clipping is the optimizer's first part.
    return new_state, metrics | {"grad_norm": optax.global_norm(grads)}

  def gradients(self, params: Params, batch: Batch, weight: jax.Array) -> tuple[Params, Scalars]:
    """(gradient of the loss, metrics), summed over micro-batches.

    Accumulation changes memory, not the result.

    Args:
      params: the parameters.
      batch: arrays [B, T].
      weight: sum of the target weights of the whole batch.
    """
    grad = jax.grad(self.loss, has_aux=True)
    if self.cfg.accumulate == 1:
      return grad(params, batch, weight)

    def split(x):
      # Every n-th sequence, not a run of them: so each device's sequences stay on that device.
      return jnp.moveaxis(x.reshape(-1, self.cfg.accumulate, x.shape[-1]), 1, 0)

    def add_micro(total, micro_batch):
      return jax.tree.map(jnp.add, total, grad(params, micro_batch, weight)), None

    micro_batches = jax.tree.map(split, batch)
    first = jax.tree.map(lambda x: x[0], micro_batches)
    # The scan's carry starts with the types that the first micro-batch would give.
    shapes = jax.eval_shape(grad, params, first, weight)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(add_micro, zeros, micro_batches)
    return total

  def loss(self, params: Params, batch: Batch, weight: jax.Array) -> tuple[jax.Array, Scalars]:
    """The configured loss of a (micro-)batch, and its metrics.

    It is this batch's share of a whole whose target weights sum to `weight`.
    """
    targets = self._target_log_probs(params, batch)
    loss = TOKEN_LOSSES[self.cfg.loss]
    return loss(targets.log_prob, targets.log_sum_exp, batch["weights"] / weight, self.cfg)

  def held_out(self, params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """(sum of negative log-likelihoods, number of target tokens) of a batch."""
    targets = self._target_log_probs(params, batch)
    return -jnp.sum(targets.log_prob * batch["weights"]), batch["weights"].sum()

  def _target_log_probs(self, params: Params, batch: Batch) -> LogProbs:
    hidden_BTD = self.model.hidden(params, batch["tokens"], batch["positions"], batch["until"])
    with jax.named_scope("head"):
      return self.model.log_prob(params, hidden_BTD, batch["targets"], self.layout.split)


def check_sequences(batch: dict[str, np.ndarray], vocabulary: int) -> None:
  """Checks the arrays [B, T] that the model reads.

  Raises:
    ValueError: an id outside the vocabulary (a gather would clip it), or an `until` that is not
      beyond its index.
  """
  for name in ("tokens", "targets"):
    check_targets(batch[name], vocabulary, name)
  check_until(batch["until"])
