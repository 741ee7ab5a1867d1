"""The decoder as pure functions of a parameter tree: what the rest of the project calls.

`Transformer` splits the NNX module once; `params` is then a plain nested dict of arrays for
`jax.jit`, `jax.grad` and Orbax. `decode.py` runs the same parameters with a cache.

Shapes: B batch, T tokens, D model, V vocabulary, L layers.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from synthjax.config.schema import Model
from synthjax.errors import ConfigError
from synthjax.kernels import choose
from synthjax.kernels.linear_logprob import Head, LogProbs, Split
from synthjax.model import rotary
from synthjax.model.decoder import Block, Constrain, Decoder, rms_norm

Params = dict[str, Any]

# Vocabularies are rounded up to a multiple, so that a mesh's `tensor` axis divides them.
_VOCABULARY_MULTIPLE = 64


class Leaf(NamedTuple):
  """What is known of a parameter before it exists."""

  shape: tuple[int, ...]
  axes: tuple[str, ...]  # logical axis names, one a dimension


def unconstrained(x: jax.Array, *_: str) -> jax.Array:
  """The layout of a single device: none."""
  return x


class Transformer:
  """Pure functions of `cfg`; holds no parameters.

  Args:
    cfg: the decoder's shape, `vocab_size` set.
    constrain: lays an activation out over the mesh (`sharding.Layout.constrain`); by default
      nothing is laid out, as a single device wants it.

  Raises:
    ValueError: `vocab_size` is not set.
  """

  def __init__(self, cfg: Model, constrain: Constrain = unconstrained):
    if cfg.vocab_size < 1:
      raise ValueError(
        f"model.vocab_size is {cfg.vocab_size}; set it from the tokenizer (`sized`) before building"
      )
    self.cfg = cfg
    self.constrain = constrain
    self.dtype = _compute_dtype(cfg)
    self.attention = choose.attention(cfg.kernels, cfg.window, cfg.attention_soft_cap)
    # Shapes alone: a model that fits no memory here can still be planned.
    abstract = nnx.eval_shape(lambda: Decoder(cfg, nnx.Rngs(0)))
    # The graph of the stacked layers: merged with one slice of their parameters, it is one layer.
    self._block_graphdef = nnx.graphdef(abstract.blocks)
    self.leaves: Params = nnx.to_pure_dict(
      jax.tree.map(_leaf, nnx.state(abstract), is_leaf=lambda p: isinstance(p, nnx.Variable))
    )

  def abstract(self) -> Params:
    """Shapes and types of the parameters (float32 masters), for planning and restoring."""
    return self.map_leaves(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32))

  def map_leaves(self, function: Callable[[Leaf], Any]) -> Params:
    """`function(leaf)` for every parameter, in the tree of the parameters."""
    return jax.tree.map(function, self.leaves, is_leaf=lambda x: isinstance(x, Leaf))

  def init(self, key: jax.Array) -> Params:
    """Fresh parameters; jit it with `out_shardings` to create them in place on a mesh."""
    _, state = nnx.split(Decoder(self.cfg, nnx.Rngs(key)))
    return nnx.to_pure_dict(state)

  def hidden(
    self, params: Params, tokens_BT: jax.Array, positions_BT: jax.Array, until_BT: jax.Array
  ) -> jax.Array:
    """Final hidden states [B, T, D] under the one mask.

    Key j is visible to query i iff j <= i < until[j].
    """

    def attend(q_BTHK, k_BTGK, v_BTGK):
      return self.attention(q_BTHK, k_BTGK, v_BTGK, until_BT, positions_BT), None

    x_BTD = self.embed(params, tokens_BT)
    x_BTD = self.constrain(x_BTD, "batch", "sequence", "embed")
    rotation = rotary.rotation(self.cfg, positions_BT)

    def layer(x_BTD, layer_params):
      return self.block(layer_params)(x_BTD, rotation, attend, self.constrain)

    with jax.named_scope("blocks"):
      x_BTD, _ = jax.lax.scan(self._rematerialized(layer), x_BTD, params["blocks"])
    return rms_norm(x_BTD, params["final_norm"], self.cfg.norm_epsilon)

  def embed(self, params: Params, tokens_BT: jax.Array) -> jax.Array:
    """The rows of the embedding, [B, T, D]."""
    return params["embedding"].astype(self.dtype)[tokens_BT]

  def block(self, layer_params: Params) -> Block:
    """One layer with its parameters, a slice of the stacked ones."""
    return nnx.merge(self._block_graphdef, layer_params)

  def head_DV(self, params: Params) -> jax.Array:
    """The output matrix; with hidden states it gives logits."""
    if "head" in params:
      return params["head"]
    return params["embedding"].T

  def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
    """Logits [..., V] in float32, of hidden states [..., D]."""
    head_DV = self.head_DV(params).astype(self.dtype)
    logits = jnp.einsum("...d,dv->...v", hidden, head_DV, preferred_element_type=jnp.float32)
    cap = self.cfg.logit_soft_cap
    # In float32, before anything is normalised (Gemma Team 2024).
    if cap:
      return cap * jnp.tanh(logits / cap)
    return logits

  def log_prob(
    self, params: Params, hidden: jax.Array, targets: jax.Array, split: Split | None = None
  ) -> LogProbs:
    """Log-probs of the targets and what comes with them, float32 [...]; logits are never held.

    Args:
      params: the parameters.
      hidden: hidden states [..., D].
      targets: ids [...].
      split: of the vocabulary over a mesh; None on a single device.
    """
    # A tied head is read as the embedding lies, [V, D]: a transpose would be a copy.
    tied = self.cfg.tie_embeddings
    matrix = params["embedding" if tied else "head"].astype(self.dtype)
    head = Head(soft_cap=self.cfg.logit_soft_cap, transposed=tied)
    log_prob = choose.head(self.cfg.kernels, head, split)
    flat = log_prob(hidden.reshape(-1, hidden.shape[-1]), matrix, targets.reshape(-1))
    return jax.tree.map(lambda x: x.reshape(targets.shape), flat)

  def _rematerialized(self, layer):
    policies = {
      "full": jax.checkpoint_policies.nothing_saveable,
      "dots": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
    }
    if self.cfg.remat == "none":
      return layer
    # prevent_cse is for code outside a scan; inside one it only costs.
    return jax.checkpoint(layer, policy=policies[self.cfg.remat], prevent_cse=False)


def _leaf(variable: nnx.Variable) -> Leaf:
  return Leaf(variable.shape, variable.get_metadata("axes"))


def _compute_dtype(cfg: Model):
  if cfg.dtype != "auto":
    return jnp.dtype(cfg.dtype)
  if jax.default_backend() == "cpu":
    return jnp.float32  # a CPU emulates bfloat16, slowly
  return jnp.bfloat16


def sized(cfg: Model, tokenizer_size: int) -> Model:
  """`cfg` with a vocabulary that holds the tokenizer's ids.

  Raises:
    ConfigError: the preset's own vocabulary is smaller than the tokenizer's.
  """
  if cfg.vocab_size == 0:
    multiples = -(-tokenizer_size // _VOCABULARY_MULTIPLE)
    return dataclasses.replace(cfg, vocab_size=multiples * _VOCABULARY_MULTIPLE)
  if cfg.vocab_size < tokenizer_size:
    raise ConfigError(
      f"config.model.vocab_size is {cfg.vocab_size}, but the tokenizer has {tokenizer_size} ids; "
      "set config.model_overrides.vocab_size=0 or choose the model's own tokenizer"
    )
  return cfg
