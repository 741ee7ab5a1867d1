"""The decoder as Flax NNX modules. Outside `model/` nobody sees these: `transformer.py` splits them into pure functions.

Every parameter is described once, by `_weight` or `_scale`: shape, logical axes, initialiser. The blocks are declared stacked (a leading
`layers` axis) and used one slice at a time inside `jax.lax.scan`, so a module's code reads as for one layer.

Shapes: B batch, T tokens, D model, H query heads, G key/value heads, K head dim, F hidden width of the MLP, V vocabulary, L layers.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from synthjax.config.schema import Model
from synthjax.model import rotary

# attend(q_BTHK, k_BTGK, v_BTGK) -> (out_BTHK, what the caller wants kept of this layer)
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, object]]
# constrain(array, *logical axes) -> the array, laid out over the mesh
Constrain = Callable[..., jax.Array]


def _weight(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str, ...], std: float) -> nnx.Param:
  """A matrix drawn from a normal distribution cut at two standard deviations."""
  return nnx.Param(
    std * jax.random.truncated_normal(rngs.params(), -2, 2, shape, jnp.float32), axes=axes
  )


def _filled(shape: tuple[int, ...], axes: tuple[str, ...], value: float) -> nnx.Param:
  """A norm's scale (ones) or a bias (zeros)."""
  return nnx.Param(jnp.full(shape, value, jnp.float32), axes=axes)


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
  """x / rms(x) * scale over the last axis, in float32 (Zhang & Sennrich 2019)."""
  wide = x.astype(jnp.float32)
  inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)
  scale = jnp.expand_dims(scale.astype(jnp.float32), tuple(range(x.ndim - 1)))
  return (wide * inverse * scale).astype(x.dtype)


class Attention(nnx.Module):
  """Grouped-query attention with rotary positions; how keys are found is the caller's `attend`."""

  def __init__(self, cfg: Model, rngs: nnx.Rngs):
    L, D, H, G, K = cfg.layers, cfg.d_model, cfg.heads, cfg.kv_heads, cfg.head_dim
    self.cfg = cfg
    std = D**-0.5
    self.query = _weight(rngs, (L, D, H, K), ("layers", "embed", "heads", "head_dim"), std)
    self.key = _weight(rngs, (L, D, G, K), ("layers", "embed", "kv_heads", "head_dim"), std)
    self.value = _weight(rngs, (L, D, G, K), ("layers", "embed", "kv_heads", "head_dim"), std)
    self.out = _weight(
      rngs, (L, H, K, D), ("layers", "heads", "head_dim", "embed"), (2 * L * H * K) ** -0.5
    )
    if cfg.qkv_bias:
      self.query_bias = _filled((L, H, K), ("layers", "heads", "head_dim"), 0.0)
      self.key_bias = _filled((L, G, K), ("layers", "kv_heads", "head_dim"), 0.0)
      self.value_bias = _filled((L, G, K), ("layers", "kv_heads", "head_dim"), 0.0)
    if cfg.qk_norm:
      self.query_norm = _filled((L, K), ("layers", "head_dim"), 1.0)
      self.key_norm = _filled((L, K), ("layers", "head_dim"), 1.0)

  @jax.named_scope("attention")
  def __call__(self, x_BTD, turns, attend: Attend, constrain: Constrain):
    cfg, dtype = self.cfg, x_BTD.dtype
    q_BTHK = jnp.einsum("btd,dhk->bthk", x_BTD, self.query.astype(dtype))
    k_BTGK = jnp.einsum("btd,dgk->btgk", x_BTD, self.key.astype(dtype))
    v_BTGK = jnp.einsum("btd,dgk->btgk", x_BTD, self.value.astype(dtype))
    if cfg.qkv_bias:
      q_BTHK += self.query_bias.astype(dtype)[None, None]
      k_BTGK += self.key_bias.astype(dtype)[None, None]
      v_BTGK += self.value_bias.astype(dtype)[None, None]
    if cfg.qk_norm:
      q_BTHK = rms_norm(q_BTHK, self.query_norm[...], cfg.norm_epsilon)
      k_BTGK = rms_norm(k_BTGK, self.key_norm[...], cfg.norm_epsilon)
    q_BTHK, k_BTGK = rotary.turn(q_BTHK, turns), rotary.turn(k_BTGK, turns)
    q_BTHK = constrain(q_BTHK, "batch", "sequence", "heads", "head_dim")
    out_BTHK, kept = attend(q_BTHK, k_BTGK, v_BTGK)
    return jnp.einsum("bthk,hkd->btd", out_BTHK, self.out.astype(dtype)), kept


class Mlp(nnx.Module):
  """SwiGLU (Shazeer 2020), squared ReLU (So et al. 2021) or ReLU."""

  def __init__(self, cfg: Model, rngs: nnx.Rngs):
    L, D, F = cfg.layers, cfg.d_model, cfg.mlp_dim
    self.cfg = cfg
    self.up = _weight(rngs, (L, D, F), ("layers", "embed", "mlp"), D**-0.5)
    self.down = _weight(rngs, (L, F, D), ("layers", "mlp", "embed"), (2 * L * F) ** -0.5)
    if cfg.mlp == "swiglu":
      self.gate = _weight(rngs, (L, D, F), ("layers", "embed", "mlp"), D**-0.5)

  @jax.named_scope("mlp")
  def __call__(self, x_BTD, constrain: Constrain):
    dtype = x_BTD.dtype
    hidden_BTF = constrain(x_BTD @ self.up.astype(dtype), "batch", "sequence", "mlp")
    if self.cfg.mlp == "swiglu":
      hidden_BTF *= jax.nn.silu(x_BTD @ self.gate.astype(dtype))
    elif self.cfg.mlp == "relu2":
      hidden_BTF = jnp.square(jax.nn.relu(hidden_BTF))
    else:
      hidden_BTF = jax.nn.relu(hidden_BTF)
    return hidden_BTF @ self.down.astype(dtype)


class Block(nnx.Module):
  """Pre-norm attention and MLP."""

  def __init__(self, cfg: Model, rngs: nnx.Rngs):
    self.cfg = cfg
    self.attention_norm = _filled((cfg.layers, cfg.d_model), ("layers", "embed"), 1.0)
    self.attention = Attention(cfg, rngs)
    self.mlp_norm = _filled((cfg.layers, cfg.d_model), ("layers", "embed"), 1.0)
    self.mlp = Mlp(cfg, rngs)

  def __call__(self, x_BTD, turns, attend: Attend, constrain: Constrain):
    normed = rms_norm(x_BTD, self.attention_norm[...], self.cfg.norm_epsilon)
    mixed, kept = self.attention(normed, turns, attend, constrain)
    x_BTD = constrain(x_BTD + mixed, "batch", "sequence", "embed")
    x_BTD = x_BTD + self.mlp(rms_norm(x_BTD, self.mlp_norm[...], self.cfg.norm_epsilon), constrain)
    return constrain(x_BTD, "batch", "sequence", "embed"), kept


class Decoder(nnx.Module):
  """Embedding, stacked blocks, final norm and output head."""

  def __init__(self, cfg: Model, rngs: nnx.Rngs):
    V, D = cfg.vocab_size, cfg.d_model
    self.cfg = cfg
    # Small against the width, so that a tied head starts with logits near 0 and a loss near log V.
    self.embedding = _weight(rngs, (V, D), ("vocab", "embed"), 0.02)
    self.blocks = Block(cfg, rngs)
    self.final_norm = _filled((D,), ("embed",), 1.0)
    if not cfg.tie_embeddings:
      self.head = _weight(rngs, (D, V), ("embed", "vocab"), 0.02 / math.sqrt(D / 64))
