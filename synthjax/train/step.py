"""State and step: one jitted initialisation and one jitted step, both laid out over the mesh.

Shapes: B rows, T tokens, A micro-batches, D model, V vocabulary.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from synthjax.config import schema
from synthjax.kernels.interval_attention import check_until
from synthjax.kernels.linear_logprob import check_targets
from synthjax.losses.registry import TOKEN_LOSSES
from synthjax.model.transformer import Params, Transformer
from synthjax.sharding import Layout

State = dict[str, Any]  # params, opt_state, step
Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Trainer:
  """What a run is made of; its functions are pure and are compiled once by the loop."""

  model: Transformer
  optimizer: optax.GradientTransformation
  layout: Layout
  cfg: schema.Train

  def init(self, key: jax.Array) -> State:
    """A fresh state, created in place on the mesh by one jitted function."""
    return jax.jit(self._init, out_shardings=self.shardings())(key)

  def start_from(self, params: Params) -> State:
    """A fresh optimizer around given parameters, whose buffers the state takes over."""
    build = lambda params: {
      "params": params,
      "opt_state": self.optimizer.init(params),
      "step": jnp.zeros((), jnp.int32),
    }
    return jax.jit(build, out_shardings=self.shardings(), donate_argnums=0)(params)

  def _init(self, key):
    params = self.model.init(key)
    return {
      "params": params,
      "opt_state": self.optimizer.init(params),
      "step": jnp.zeros((), jnp.int32),
    }

  def abstract(self) -> State:
    """Shapes, types and shardings of the state: what a checkpoint is restored into."""
    shapes = jax.eval_shape(self._init, jax.random.key(0))
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, self.shardings()
    )

  def shardings(self) -> State:
    """The optimizer's moments lie where their parameters lie; everything else is replicated."""
    params = self.layout.of(self.model.leaves)
    opt_state = jax.eval_shape(self.optimizer.init, self.model.abstract())
    moments = optax.tree_map_params(
      self.optimizer,
      lambda _, sharding: sharding,
      opt_state,
      params,
      transform_non_params=lambda _: self.layout.replicated,
    )
    return {"params": params, "opt_state": moments, "step": self.layout.replicated}

  def check(self, batch: dict[str, np.ndarray]) -> None:
    """Raises ValueError, with the row and the value, for a batch on the host that makes no sense but would be trained on in silence."""
    check_rows(batch, self.model.cfg.vocab_size)
    bad = np.argwhere(batch["weights"] < 0)
    if len(bad):
      row, place = bad[0]
      raise ValueError(
        f"weights[{row}, {place}] is {batch['weights'][row, place]}; expected 0 or more: it is how much a target counts"
      )

  def compile(self, batch: Any):
    """The step for batches of these shapes: (state, batch) -> (state, metrics), compiled ahead, the state donated."""
    step = jax.jit(
      self.step, donate_argnums=0, out_shardings=(self.shardings(), self.layout.replicated)
    )
    return step.lower(self.abstract(), batch).compile()

  def step(self, state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
    """One update from a batch of [B, T] arrays; metrics are float32 scalars."""
    weight = jnp.maximum(batch["weights"].sum(), 1.0)
    grads, metrics = self.gradients(state["params"], batch, weight)
    return self.update(state, grads, metrics | {"target_tokens": batch["weights"].sum()})

  def update(
    self, state: State, grads: Params, metrics: dict[str, jax.Array]
  ) -> tuple[State, dict[str, jax.Array]]:
    """The optimizer's part of a step."""
    with jax.named_scope("optimizer"):
      updates, opt_state = self.optimizer.update(grads, state["opt_state"], state["params"])
      params = optax.apply_updates(state["params"], updates)
    return {"params": params, "opt_state": opt_state, "step": state["step"] + 1}, metrics | {
      "grad_norm": optax.global_norm(grads)
    }

  def gradients(
    self, params: Params, batch: Batch, weight: jax.Array
  ) -> tuple[Params, dict[str, jax.Array]]:
    """Gradient of the loss over `weight`, summed over micro-batches: accumulation changes memory, not the result."""
    grad = jax.grad(self.loss, has_aux=True)
    if self.cfg.accumulate == 1:
      return grad(params, batch, weight)

    def micro(total, batch):
      return jax.tree.map(jnp.add, total, grad(params, batch, weight)), None

    # Strided rows keep every device's rows on that device.
    split = lambda x: jnp.moveaxis(x.reshape(-1, self.cfg.accumulate, x.shape[-1]), 1, 0)
    batches = jax.tree.map(split, batch)
    first = jax.tree.map(lambda x: x[0], batches)
    zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(grad, params, first, weight)
    )
    return jax.lax.scan(micro, zeros, batches)[0]

  def loss(
    self, params: Params, batch: Batch, weight: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The configured loss of a (micro-)batch, as its share of a whole whose target weights sum to `weight`."""
    hidden_BTD = self.model.hidden(params, batch["tokens"], batch["positions"], batch["until"])
    with jax.named_scope("head"):
      found = self.model.log_prob(params, hidden_BTD, batch["targets"], self.layout.split)
    return TOKEN_LOSSES[self.cfg.loss](
      found.log_prob, found.log_sum_exp, batch["weights"] / weight, self.cfg
    )

  def held_out(self, params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """(sum of negative log-likelihoods, number of target tokens) of a batch."""
    hidden_BTD = self.model.hidden(params, batch["tokens"], batch["positions"], batch["until"])
    found = self.model.log_prob(params, hidden_BTD, batch["targets"], self.layout.split)
    return -jnp.sum(found.log_prob * batch["weights"]), batch["weights"].sum()


def check_rows(batch: dict[str, np.ndarray], vocabulary: int) -> None:
  """Raises ValueError for ids outside the vocabulary (a gather would clip them) and for an `until` that is not beyond its index."""
  for name in ("tokens", "targets"):
    check_targets(batch[name], vocabulary, name)
  check_until(batch["until"])
