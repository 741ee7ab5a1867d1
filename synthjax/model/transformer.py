"""The decoder as pure functions of a parameter tree: what the rest of the project calls.

`Transformer` splits the NNX module once; `params` is then a plain nested dict of arrays for `jax.jit`, `jax.grad` and Orbax.

Shapes: B batch or blocks, N sequences of a block, S = B * N, T tokens, W shared and C own cached positions, D model, H query heads,
G key/value heads, R = H / G, K head dim, V vocabulary, L layers.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from synthjax.config.schema import Model
from synthjax.errors import ConfigError
from synthjax.kernels import choose
from synthjax.kernels.linear_logprob import Head, LogProbs, Split
from synthjax.model import rotary
from synthjax.model.decoder import Attend, Constrain, Decoder, rms_norm

Params = dict[str, Any]


class Leaf(NamedTuple):
  """What is known of a parameter before it exists."""

  shape: tuple[int, ...]
  axes: tuple[str, ...]  # logical axis names, one a dimension


class LayerCache(NamedTuple):
  """A layer's keys and values for B blocks of N sequences: what a block's sequences share is held and read once.

  Time is the last axis but one, within a head, because that is 5x faster to read on CPU. Layers are apart, not stacked: a slice of a stack
  is copied at every token.
  """

  shared_k_BGWK: jax.Array
  shared_v_BGWK: jax.Array
  own_k_BNGCK: jax.Array
  own_v_BNGCK: jax.Array


Cache = tuple[LayerCache, ...]


class Seen(NamedTuple):
  """Which cached positions each sequence's next token sees, bool."""

  shared_BNW: jax.Array
  own_BNC: jax.Array


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
      raise ValueError(
        f"model.vocab_size is {cfg.vocab_size}; set it from the tokenizer (model.sized) before building"
      )
    self.cfg, self.constrain = cfg, constrain
    abstract = nnx.eval_shape(lambda: Decoder(cfg, nnx.Rngs(0)))
    # The stacked layers' graph: merged with one slice of their parameters inside the scan, it is one layer.
    self._block_graphdef = nnx.graphdef(abstract.blocks)
    self.leaves: Params = nnx.to_pure_dict(
      jax.tree.map(
        lambda p: Leaf(p.shape, p.get_metadata("axes")),
        nnx.state(abstract),
        is_leaf=lambda p: isinstance(p, nnx.Variable),
      )
    )
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

  def hidden(
    self, params: Params, tokens_BT: jax.Array, positions_BT: jax.Array, until_BT: jax.Array
  ) -> jax.Array:
    """Final hidden states [B, T, D] under the one mask: key j is visible to query i iff j <= i < until[j]."""

    def attend(q_BTHK, k_BTGK, v_BTGK):
      return self._attention(q_BTHK, k_BTGK, v_BTGK, until_BT, positions_BT), None

    return self._run(params, tokens_BT, positions_BT, attend)[0]

  def prefill(
    self, params: Params, tokens_BT: jax.Array, positions_BT: jax.Array, until_BT: jax.Array
  ):
    """As `hidden`, with parameters from `unstacked`: (hidden, [(keys, values) of every layer]), keys and values [B, G, T, K]."""

    def attend(q_BTHK, k_BTGK, v_BTGK):
      return self._attention(q_BTHK, k_BTGK, v_BTGK, until_BT, positions_BT), (k_BTGK, v_BTGK)

    hidden_BTD, kept = self._unrolled(params, tokens_BT, positions_BT, [attend] * self.cfg.layers)
    return hidden_BTD, [tuple(jnp.moveaxis(x_BTGK, 1, 2) for x_BTGK in layer) for layer in kept]

  def empty_cache(self, blocks: int, sequences: int, shared: int, own: int) -> Cache:
    """Room for `blocks` of `sequences` each: `shared` positions a block, `own` ones a sequence."""
    cfg = self.cfg
    shapes = (
      (blocks, cfg.kv_heads, shared, cfg.head_dim),
      (blocks, sequences, cfg.kv_heads, own, cfg.head_dim),
    )
    return tuple(
      LayerCache(*(jnp.zeros(shapes[part], self.dtype) for part in (0, 0, 1, 1)))
      for _ in range(cfg.layers)
    )

  def unstacked(self, params: Params) -> Params:
    """The parameters as `prefill` and `decode` take them: layers apart, in the type they are computed in, the head laid out to be read."""

    def layer(i):
      # Norm scales stay float32, as in training.
      return jax.tree.map(
        lambda x: x[i].astype(self.dtype) if x.ndim > 2 else x[i], params["blocks"]
      )

    return {
      **params,
      "blocks": [layer(i) for i in range(self.cfg.layers)],
      "head": self.head_DV(params).astype(self.dtype),
    }

  def decode(
    self,
    params: Params,
    token_BN: jax.Array,
    position_BN: jax.Array,
    cache: Cache,
    seen: Seen,
    place: jax.Array,
  ):
    """One token a sequence.

    Args:
      params: from `unstacked`.
      token_BN: ids.
      position_BN: of the tokens.
      cache: read by all, written at `place` of every own part.
      seen: cached positions that the tokens see besides themselves.
      place: below C.

    Returns:
      (hidden states [B, N, D], cache).
    """

    def attend(cached: LayerCache) -> Attend:
      return lambda q, k, v: (
        _attend_cached((q, k, v), cached, seen, self.cfg.attention_soft_cap),
        (k, v),
      )

    def put(old_BNGCK, new_S1GK):
      return jax.lax.dynamic_update_slice(
        old_BNGCK, new_S1GK.reshape(*token_BN.shape, -1, 1, new_S1GK.shape[-1]), (0, 0, 0, place, 0)
      )

    hidden_S1D, kept = self._unrolled(
      params,
      token_BN.reshape(-1, 1),
      position_BN.reshape(-1, 1),
      [attend(cached) for cached in cache],
    )
    # The place depends on the outcome (a normalised value is never that large): XLA then writes the cache after all have read it, in place,
    # instead of copying it at every token. A barrier is dropped before XLA decides this.
    place = place + (hidden_S1D[0, 0, 0] > jnp.finfo(hidden_S1D.dtype).max / 2).astype(jnp.int32)
    written = tuple(
      cached._replace(
        own_k_BNGCK=put(cached.own_k_BNGCK, k), own_v_BNGCK=put(cached.own_v_BNGCK, v)
      )
      for cached, (k, v) in zip(cache, kept)
    )
    return hidden_S1D.reshape(*token_BN.shape, -1), written

  def head_DV(self, params: Params) -> jax.Array:
    """The output matrix; with hidden states it gives logits."""
    return params["head"] if "head" in params else params["embedding"].T

  def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
    """Logits [..., V] in float32."""
    head_DV = self.head_DV(params).astype(self.dtype)
    logits = jnp.einsum("...d,dv->...v", hidden, head_DV, preferred_element_type=jnp.float32)
    cap = self.cfg.logit_soft_cap
    return cap * jnp.tanh(logits / cap) if cap else logits

  def log_prob(
    self, params: Params, hidden: jax.Array, targets: jax.Array, split: Split | None = None
  ) -> LogProbs:
    """Log-prob of the targets and what comes with it, float32 [...], of hidden states [..., D]; logits are never held."""
    head = (params["embedding"] if self.cfg.tie_embeddings else params["head"]).astype(self.dtype)
    how = Head(soft_cap=self.cfg.logit_soft_cap, transposed=self.cfg.tie_embeddings)
    log_prob = choose.head(self.cfg.kernels, how, split)
    found = log_prob(hidden.reshape(-1, hidden.shape[-1]), head, targets.reshape(-1))
    return jax.tree.map(lambda x: x.reshape(targets.shape), found)

  def _run(self, params, tokens_BT, positions_BT, attend: Attend):
    """Embedding, the scanned blocks, the final norm. Returns hidden states and what `attend` kept, stacked by layer."""
    x_BTD = params["embedding"].astype(self.dtype)[tokens_BT]
    x_BTD = self.constrain(x_BTD, "batch", "sequence", "embed")
    turns = rotary.turns(self.cfg, positions_BT)

    def layer(x_BTD, layer_params):
      return nnx.merge(self._block_graphdef, layer_params)(x_BTD, turns, attend, self.constrain)

    with jax.named_scope("blocks"):
      x_BTD, kept = jax.lax.scan(self._remat(layer), x_BTD, params["blocks"])
    return rms_norm(x_BTD, params["final_norm"], self.cfg.norm_epsilon), kept

  def _unrolled(self, params, tokens_BT, positions_BT, attends):
    """As `_run`, layer by layer with an `attend` each; kept values in a list."""
    x_BTD, kept = params["embedding"].astype(self.dtype)[tokens_BT], []
    turns = rotary.turns(self.cfg, positions_BT)
    for layer_params, attend in zip(params["blocks"], attends):
      x_BTD, found = nnx.merge(self._block_graphdef, layer_params)(
        x_BTD, turns, attend, self.constrain
      )
      kept.append(found)
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
def _attend_cached(new, cached: LayerCache, seen: Seen, soft_cap: float):
  """Attention of one new token of every sequence to the shared positions, its own ones and itself; the cache is only read.

  The shared part is one matrix product over all sequences of a block. Softmax in float32.
  """
  q_S1HK, k_S1GK, v_S1GK = new
  shared_k_BGWK, shared_v_BGWK, own_k_BNGCK, own_v_BNGCK = cached
  B, N, G, _, K = own_k_BNGCK.shape
  q_BNGRK = q_S1HK.reshape(B, N, G, -1, K) * K**-0.5
  k_BNGK, v_BNGK = k_S1GK.reshape(B, N, G, K), v_S1GK.reshape(B, N, G, K)
  scores = [
    jnp.einsum(how, q_BNGRK, keys, preferred_element_type=jnp.float32)
    for how, keys in (
      ("bngrk,bgwk->bngrw", shared_k_BGWK),
      ("bngrk,bngck->bngrc", own_k_BNGCK),
      ("bngrk,bngk->bngr", k_BNGK),
    )
  ]
  if soft_cap:
    scores = [soft_cap * jnp.tanh(x / soft_cap) for x in scores]
  shared_BNGRW = jnp.where(seen.shared_BNW[:, :, None, None], scores[0], -jnp.inf)
  own_BNGRC = jnp.where(seen.own_BNC[:, :, None, None], scores[1], -jnp.inf)
  highest_BNGR = jnp.maximum(jnp.maximum(shared_BNGRW.max(-1), own_BNGRC.max(-1)), scores[2])
  shared_BNGRW, own_BNGRC = (
    jnp.exp(x - highest_BNGR[..., None]) for x in (shared_BNGRW, own_BNGRC)
  )
  itself_BNGR = jnp.exp(scores[2] - highest_BNGR)
  total_BNGR = shared_BNGRW.sum(-1) + own_BNGRC.sum(-1) + itself_BNGR
  dtype = v_BNGK.dtype
  mixed_BNGRK = (
    jnp.einsum(
      "bngrw,bgwk->bngrk",
      shared_BNGRW.astype(dtype),
      shared_v_BGWK,
      preferred_element_type=jnp.float32,
    )
    + jnp.einsum(
      "bngrc,bngck->bngrk", own_BNGRC.astype(dtype), own_v_BNGCK, preferred_element_type=jnp.float32
    )
    + itself_BNGR[..., None] * v_BNGK[:, :, :, None]
  )
  return (mixed_BNGRK / total_BNGR[..., None]).astype(dtype).reshape(q_S1HK.shape)


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
    raise ConfigError(
      f"config.model.vocab_size is {cfg.vocab_size}, but the tokenizer has {tokenizer_size} ids; "
      "set config.model_overrides.vocab_size=0 or choose the model's own tokenizer"
    )
  return cfg
