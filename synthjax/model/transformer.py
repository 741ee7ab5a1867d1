"""The decoder as pure functions of a parameter tree: what the rest of the project calls.

`Transformer` splits the NNX module once; `params` is then a plain nested dict of arrays for `jax.jit`, `jax.grad` and Orbax.

Shapes: B batch, T tokens, S cached positions, D model, H query heads, G key/value heads, K head dim, V vocabulary, L layers.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from synthjax.kernels import choose
from synthjax.kernels.linear_logprob import Head, LogProbs, Split
from synthjax.model import rotary
from synthjax.model.decoder import Attend, Constrain, Decoder, rms_norm
from synthjax.schema import Model

Params = dict[str, Any]


class Leaf(NamedTuple):
  """What is known of a parameter before it exists."""

  shape: tuple[int, ...]
  axes: tuple[str, ...]  # logical axis names, one a dimension


class Cache(NamedTuple):
  """Keys and values of a batch of sequences, time-major within a head because that is 5x faster to read on CPU."""

  k_LBGSK: jax.Array
  v_LBGSK: jax.Array
  visible_BS: jax.Array  # bool: this slot holds a token of the sequence
  position_BS: jax.Array  # int32: of that token


def unconstrained(x: jax.Array, *_: str) -> jax.Array:
  """The layout of a single device: none."""
  return x


class Transformer:
  """Pure functions of `cfg`; holds no parameters.

  Args:
    cfg: the decoder's shape, `vocab_size` set.
    constrain: lays an activation out over the mesh (`sharding.Layout.constrain`); none on a single device.
  """

  def __init__(self, cfg: Model, constrain: Constrain = unconstrained):
    if cfg.vocab_size < 1:
      raise ValueError(f"model.vocab_size is {cfg.vocab_size}; set it from the tokenizer (model.sized) before building")
    self.cfg, self.constrain = cfg, constrain
    abstract = nnx.eval_shape(lambda: Decoder(cfg, nnx.Rngs(0)))
    # The stacked layers' graph: merged with one slice of their parameters inside the scan, it is one layer.
    self._block_graphdef = nnx.graphdef(abstract.blocks)
    self.leaves: Params = nnx.to_pure_dict(jax.tree.map(
      lambda p: Leaf(p.shape, p.get_metadata("axes")), nnx.state(abstract), is_leaf=lambda p: isinstance(p, nnx.Variable)))
    self.dtype = _compute_dtype(cfg)
    self._attention = choose.attention(cfg.kernels, cfg.window, cfg.attention_soft_cap)

  def abstract(self) -> Params:
    """Shapes and types of the parameters (float32 masters), for planning, sharding and restoring."""
    return self.map_leaves(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32))

  def map_leaves(self, function) -> Params:
    """`function(Leaf)` for every parameter, in the tree of the parameters."""
    return jax.tree.map(function, self.leaves, is_leaf=lambda x: isinstance(x, Leaf))

  def init(self, key: jax.Array) -> Params:
    """Fresh parameters; jit it with `out_shardings` to create them in place on a mesh."""
    return nnx.to_pure_dict(nnx.split(Decoder(self.cfg, nnx.Rngs(key)))[1])

  def hidden(self, params: Params, tokens_BT: jax.Array, positions_BT: jax.Array, until_BT: jax.Array) -> jax.Array:
    """Final hidden states [B, T, D] under the one mask: key j is visible to query i iff j <= i < until[j]."""
    def attend(q_BTHK, k_BTGK, v_BTGK):
      return self._attention(q_BTHK, k_BTGK, v_BTGK, until_BT, positions_BT), None

    return self._run(params, tokens_BT, positions_BT, lambda _: attend)[0]

  def prefill(self, params: Params, tokens_BT: jax.Array, lengths_B: jax.Array, slots: int) -> tuple[jax.Array, Cache]:
    """Reads right-padded prompts. Returns hidden states [B, T, D] and a cache of `slots` >= T positions."""
    B, T = tokens_BT.shape
    index_T = jnp.arange(T)
    inside_BT = index_T < lengths_B[:, None]
    until_BT = jnp.where(inside_BT, lengths_B[:, None], index_T + 1)
    positions_BT = jnp.broadcast_to(index_T, (B, T))

    def attend(q_BTHK, k_BTGK, v_BTGK):
      return self._attention(q_BTHK, k_BTGK, v_BTGK, until_BT, positions_BT), (k_BTGK, v_BTGK)

    hidden_BTD, kept = self._run(params, tokens_BT, positions_BT, lambda _: attend)
    room = ((0, 0), (0, 0), (0, 0), (0, slots - T), (0, 0))
    k, v = (jnp.pad(jnp.moveaxis(x_LBTGK, 2, 3), room) for x_LBTGK in kept)
    more = ((0, 0), (0, slots - T))
    return hidden_BTD, Cache(k, v, jnp.pad(inside_BT, more), jnp.pad(positions_BT, more))

  def decode(self, params: Params, token_B: jax.Array, position_B: jax.Array, cache: Cache, slot: jax.Array):
    """One token a sequence. Returns hidden states [B, D] and the cache with the token's keys and values at `slot`."""
    seen_BS = cache.visible_BS
    if self.cfg.window:
      seen_BS &= position_B[:, None] - cache.position_BS < self.cfg.window

    def layer_attend(cache_layer) -> Attend:
      k_BGSK, v_BGSK = cache_layer
      return lambda q, k, v: (_attend_cached((q, k, v), k_BGSK, v_BGSK, seen_BS, self.cfg.attention_soft_cap), (k, v))

    hidden_B1D, (k, v) = self._run(
      params, token_B[:, None], position_B[:, None], layer_attend, (cache.k_LBGSK, cache.v_LBGSK))
    start = (0, 0, 0, slot, 0)
    k_LBGSK = jax.lax.dynamic_update_slice(cache.k_LBGSK, jnp.moveaxis(k, 2, 3), start)
    v_LBGSK = jax.lax.dynamic_update_slice(cache.v_LBGSK, jnp.moveaxis(v, 2, 3), start)
    seen = jnp.ones((len(token_B), 1), bool)
    visible_BS = jax.lax.dynamic_update_slice(cache.visible_BS, seen, (0, slot))
    position_BS = jax.lax.dynamic_update_slice(cache.position_BS, position_B[:, None], (0, slot))
    return hidden_B1D[:, 0], Cache(k_LBGSK, v_LBGSK, visible_BS, position_BS)

  def head_DV(self, params: Params) -> jax.Array:
    """The output matrix in float32; with hidden states it gives logits."""
    return params["embedding"].T if self.cfg.tie_embeddings else params["head"]

  def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
    """Logits [..., V] in float32."""
    head_DV = self.head_DV(params).astype(self.dtype)
    logits = jnp.einsum("...d,dv->...v", hidden, head_DV, preferred_element_type=jnp.float32)
    cap = self.cfg.logit_soft_cap
    return cap * jnp.tanh(logits / cap) if cap else logits

  def log_prob(self, params: Params, hidden: jax.Array, targets: jax.Array, split: Split | None = None) -> LogProbs:
    """Log-prob of the targets and what comes with it, float32 [...], of hidden states [..., D]; logits are never held."""
    head = (params["embedding"] if self.cfg.tie_embeddings else params["head"]).astype(self.dtype)
    how = Head(soft_cap=self.cfg.logit_soft_cap, transposed=self.cfg.tie_embeddings)
    log_prob = choose.head(self.cfg.kernels, how, split)
    found = log_prob(hidden.reshape(-1, hidden.shape[-1]), head, targets.reshape(-1))
    return jax.tree.map(lambda x: x.reshape(targets.shape), found)

  def _run(self, params, tokens_BT, positions_BT, layer_attend, cache=None):
    """Embedding, the scanned blocks, the final norm. Returns hidden states and what `attend` kept, stacked by layer."""
    x_BTD = params["embedding"].astype(self.dtype)[tokens_BT]
    x_BTD = self.constrain(x_BTD, "batch", "sequence", "embed")
    turns = rotary.turns(self.cfg, positions_BT)

    def layer(x_BTD, inputs):
      layer_params, cache_layer = inputs
      block = nnx.merge(self._block_graphdef, layer_params)
      return block(x_BTD, turns, layer_attend(cache_layer), self.constrain)

    with jax.named_scope("blocks"):
      x_BTD, kept = jax.lax.scan(self._remat(layer), x_BTD, (params["blocks"], cache))
    return rms_norm(x_BTD, params["final_norm"], self.cfg.norm_epsilon), kept

  def _remat(self, layer):
    policies = {
      "full": jax.checkpoint_policies.nothing_saveable,
      "dots": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
    }
    if self.cfg.remat == "none":
      return layer
    # prevent_cse is for code outside a scan; inside one it only costs.
    return jax.checkpoint(layer, policy=policies[self.cfg.remat], prevent_cse=False)


@jax.named_scope("cached_attention")
def _attend_cached(new, k_BGSK, v_BGSK, visible_BS, soft_cap):
  """Attention of one new token to the cached ones and itself; the cache is only read. Softmax in float32."""
  q_B1HK, k_B1GK, v_B1GK = new
  B, _, H, K = q_B1HK.shape
  G = k_BGSK.shape[1]
  q_BGRK = q_B1HK.reshape(B, G, H // G, K) * K**-0.5
  k_BGK, v_BGK = k_B1GK[:, 0], v_B1GK[:, 0]
  old_BGRS = jnp.einsum("bgrk,bgsk->bgrs", q_BGRK, k_BGSK, preferred_element_type=jnp.float32)
  own_BGR1 = jnp.einsum("bgrk,bgk->bgr", q_BGRK, k_BGK, preferred_element_type=jnp.float32)[..., None]
  if soft_cap:
    old_BGRS, own_BGR1 = soft_cap * jnp.tanh(old_BGRS / soft_cap), soft_cap * jnp.tanh(own_BGR1 / soft_cap)
  old_BGRS = jnp.where(visible_BS[:, None, None], old_BGRS, -jnp.inf)
  weights = jax.nn.softmax(jnp.concatenate([old_BGRS, own_BGR1], axis=-1), axis=-1).astype(q_B1HK.dtype)
  out_BGRK = jnp.einsum("bgrs,bgsk->bgrk", weights[..., :-1], v_BGSK) + weights[..., -1:] * v_BGK[:, :, None]
  return out_BGRK.reshape(B, 1, H, K)


def _compute_dtype(cfg: Model):
  if cfg.dtype == "auto":
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
  return jnp.dtype(cfg.dtype)


def sized(cfg: Model, tokenizer_size: int) -> Model:
  """`cfg` with a vocabulary that holds the tokenizer's ids.

  Raises:
    ValueError: the preset's own vocabulary is smaller than the tokenizer's.
  """
  if cfg.vocab_size == 0:
    return dataclasses.replace(cfg, vocab_size=-(-tokenizer_size // 64) * 64)
  if cfg.vocab_size < tokenizer_size:
    raise ValueError(f"config.model.vocab_size is {cfg.vocab_size}, but the tokenizer has {tokenizer_size} ids; "
                     "set config.model_overrides.vocab_size=0 or choose the model's own tokenizer")
  return cfg
