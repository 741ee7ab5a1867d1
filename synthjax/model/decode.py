"""Decoding with a cache of keys and values: one token at a time, after prefixes that are shared.

Shapes: B blocks, N sequences of a block, S = B * N, T tokens, W shared and C own cached positions,
D model, H query heads, G key/value heads, R = H / G, K head dim.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from synthjax.model import rotary
from synthjax.model.decoder import Attend, rms_norm
from synthjax.model.transformer import Params, Transformer


class KeysValues(NamedTuple):
  """What a layer computes for new tokens, as `prefill` returns it: [B, G, T, K]."""

  k_BGTK: jax.Array
  v_BGTK: jax.Array


class LayerCache(NamedTuple):
  """A layer's keys and values; what the sequences of a block share is held and read once.

  Time is the last axis but one, within a head, because that is 5x faster to read on CPU. Layers
  are apart, not stacked: a slice of a stack is copied at every token.
  """

  shared_k_BGWK: jax.Array
  shared_v_BGWK: jax.Array
  own_k_BNGCK: jax.Array
  own_v_BNGCK: jax.Array


Cache = tuple[LayerCache, ...]


class Seen(NamedTuple):
  """Which cached positions the next token of each sequence sees, bool."""

  shared_BNW: jax.Array
  own_BNC: jax.Array


def unstack_layers(model: Transformer, params: Params) -> Params:
  """The parameters as `prefill` and `decode_step` take them.

  Layers are apart, matrices have the type that they are computed in, and the head is laid out to be
  read.
  """
  layers = []
  for number in range(model.cfg.layers):
    of_layer = functools.partial(_of_layer, model, number)
    layers.append(jax.tree.map(of_layer, params["blocks"]))
  head_DV = model.head_DV(params).astype(model.dtype)
  return {**params, "blocks": layers, "head": head_DV}


def _of_layer(model: Transformer, number: int, stacked: jax.Array) -> jax.Array:
  if stacked.ndim > 2:
    return stacked[number].astype(model.dtype)
  return stacked[number]  # norm scales stay float32, as in training


def empty_cache(model: Transformer, blocks: int, sequences: int, shared: int, own: int) -> Cache:
  """Room for `blocks` of `sequences` each: `shared` positions a block, `own` ones a sequence."""
  heads, head_dim = model.cfg.kv_heads, model.cfg.head_dim
  shared_shape = (blocks, heads, shared, head_dim)
  own_shape = (blocks, sequences, heads, own, head_dim)
  return tuple(
    LayerCache(
      shared_k_BGWK=jnp.zeros(shared_shape, model.dtype),
      shared_v_BGWK=jnp.zeros(shared_shape, model.dtype),
      own_k_BNGCK=jnp.zeros(own_shape, model.dtype),
      own_v_BNGCK=jnp.zeros(own_shape, model.dtype),
    )
    for _ in range(model.cfg.layers)
  )


def prefill(
  model: Transformer,
  params: Params,
  tokens_BT: jax.Array,
  positions_BT: jax.Array,
  until_BT: jax.Array,
) -> tuple[jax.Array, list[KeysValues]]:
  """As `Transformer.hidden`, with the keys and values of every layer.

  Args:
    model: the decoder.
    params: from `unstack_layers`.
    tokens_BT: ids.
    positions_BT: of the tokens.
    until_BT: key j is visible to query i iff j <= i < until[j].

  Returns:
    (hidden states [B, T, D], keys and values by layer).
  """

  def attend(q_BTHK, k_BTGK, v_BTGK):
    out_BTHK = model.attention(q_BTHK, k_BTGK, v_BTGK, until_BT, positions_BT)
    return out_BTHK, (k_BTGK, v_BTGK)

  attends = [attend] * model.cfg.layers
  hidden_BTD, kept = _run_layers(model, params, tokens_BT, positions_BT, attends)
  by_layer = []
  for k_BTGK, v_BTGK in kept:
    by_layer.append(KeysValues(jnp.moveaxis(k_BTGK, 1, 2), jnp.moveaxis(v_BTGK, 1, 2)))
  return hidden_BTD, by_layer


def decode_step(
  model: Transformer,
  params: Params,
  token_BN: jax.Array,
  position_BN: jax.Array,
  cache: Cache,
  seen: Seen,
  index: jax.Array,
) -> tuple[jax.Array, Cache]:
  """Runs one token of every sequence.

  Args:
    model: the decoder.
    params: from `unstack_layers`.
    token_BN: ids.
    position_BN: of the tokens.
    cache: read by all, written at `index` of every own part.
    seen: cached positions that the tokens see besides themselves.
    index: below C.

  Returns:
    (hidden states [B, N, D], cache).
  """
  tokens_S1, positions_S1 = token_BN.reshape(-1, 1), position_BN.reshape(-1, 1)
  attends = [_attend_over(layer, seen, model.cfg.attention_soft_cap) for layer in cache]
  hidden_S1D, kept = _run_layers(model, params, tokens_S1, positions_S1, attends)
  # The index depends on the outcome (a normalised value is never that large): XLA then writes the
  # cache after all have read it, in place, instead of copying it at every token. It drops an
  # optimization barrier before it decides this.
  is_huge = hidden_S1D[0, 0, 0] > jnp.finfo(hidden_S1D.dtype).max / 2
  index = index + is_huge.astype(jnp.int32)

  def write(old_BNGCK, new_S1GK):
    new_BNG1K = new_S1GK.reshape(*token_BN.shape, -1, 1, new_S1GK.shape[-1])
    return jax.lax.dynamic_update_slice(old_BNGCK, new_BNG1K, (0, 0, 0, index, 0))

  written = []
  for layer, (k_S1GK, v_S1GK) in zip(cache, kept):
    # What sequences share was written by `prefill`; each adds to its own part alone.
    own_k_BNGCK = write(layer.own_k_BNGCK, k_S1GK)
    own_v_BNGCK = write(layer.own_v_BNGCK, v_S1GK)
    written.append(layer._replace(own_k_BNGCK=own_k_BNGCK, own_v_BNGCK=own_v_BNGCK))
  return hidden_S1D.reshape(*token_BN.shape, -1), tuple(written)


def _run_layers(
  model: Transformer,
  params: Params,
  tokens_BT: jax.Array,
  positions_BT: jax.Array,
  attends: Sequence[Attend],
) -> tuple[jax.Array, list[Any]]:
  """Embedding, the blocks one by one, final norm: (hidden states, what each `attend` kept)."""
  x_BTD = model.embed(params, tokens_BT)
  rotation = rotary.rotation(model.cfg, positions_BT)
  # Unrolled, not scanned: each layer's cache is an array of its own.
  kept = []
  for layer_params, attend in zip(params["blocks"], attends):
    x_BTD, of_layer = model.block(layer_params)(x_BTD, rotation, attend, model.constrain)
    kept.append(of_layer)
  return rms_norm(x_BTD, params["final_norm"], model.cfg.norm_epsilon), kept


def _attend_over(cached: LayerCache, seen: Seen, soft_cap: float) -> Attend:
  """Attention of one new token per sequence to the cache and itself; keeps its key and value."""

  def attend(q_S1HK, k_S1GK, v_S1GK):
    B, N, G, _, K = cached.own_k_BNGCK.shape
    q_BNGRK = q_S1HK.reshape(B, N, G, -1, K) * K**-0.5
    k_BNGK = k_S1GK.reshape(B, N, G, K)
    v_BNGK = v_S1GK.reshape(B, N, G, K)
    mixed_BNGRK = _attend_cached(q_BNGRK, KeysValues(k_BNGK, v_BNGK), cached, seen, soft_cap)
    return mixed_BNGRK.reshape(q_S1HK.shape), (k_S1GK, v_S1GK)

  return attend


@jax.named_scope("cached_attention")
def _attend_cached(
  q_BNGRK: jax.Array, new: KeysValues, cached: LayerCache, seen: Seen, soft_cap: float
) -> jax.Array:
  """Attention to shared positions, own positions and the token itself, [B, N, G, R, K].

  The cache is only read. The shared part is one matrix product over all sequences of a block.
  Softmax in float32.
  """
  k_BNGK, v_BNGK = new
  dtype = v_BNGK.dtype
  shared_BNGRW = _product("bngrk,bgwk->bngrw", q_BNGRK, cached.shared_k_BGWK)
  own_BNGRC = _product("bngrk,bngck->bngrc", q_BNGRK, cached.own_k_BNGCK)
  itself_BNGR = _product("bngrk,bngk->bngr", q_BNGRK, k_BNGK)
  if soft_cap:
    shared_BNGRW = soft_cap * jnp.tanh(shared_BNGRW / soft_cap)
    own_BNGRC = soft_cap * jnp.tanh(own_BNGRC / soft_cap)
    itself_BNGR = soft_cap * jnp.tanh(itself_BNGR / soft_cap)
  shared_BNGRW = jnp.where(seen.shared_BNW[:, :, None, None], shared_BNGRW, -jnp.inf)
  own_BNGRC = jnp.where(seen.own_BNC[:, :, None, None], own_BNGRC, -jnp.inf)

  # One softmax over the three parts: a maximum and a sum that they have in common.
  # The token always sees itself, so the maximum is finite.
  highest_BNGR = jnp.maximum(shared_BNGRW.max(-1), own_BNGRC.max(-1))
  highest_BNGR = jnp.maximum(highest_BNGR, itself_BNGR)
  shared_BNGRW = jnp.exp(shared_BNGRW - highest_BNGR[..., None])
  own_BNGRC = jnp.exp(own_BNGRC - highest_BNGR[..., None])
  itself_BNGR = jnp.exp(itself_BNGR - highest_BNGR)
  total_BNGR = shared_BNGRW.sum(-1) + own_BNGRC.sum(-1) + itself_BNGR

  # The sum is divided by last: one division an entry of the output, not one a cached position.
  mixed_BNGRK = _product("bngrw,bgwk->bngrk", shared_BNGRW.astype(dtype), cached.shared_v_BGWK)
  mixed_BNGRK += _product("bngrc,bngck->bngrk", own_BNGRC.astype(dtype), cached.own_v_BNGCK)
  mixed_BNGRK += itself_BNGR[..., None] * v_BNGK[:, :, :, None]
  return (mixed_BNGRK / total_BNGR[..., None]).astype(dtype)


def _product(subscripts: str, left: jax.Array, right: jax.Array) -> jax.Array:
  """An einsum with its sums in float32."""
  return jnp.einsum(subscripts, left, right, preferred_element_type=jnp.float32)
