"""The decoder as Flax NNX modules, which nobody outside `model/` sees.

`transformer.py` splits them into pure functions of a parameter tree. Every parameter is described
once, by `_Parameters`: logical axes and initialiser. The blocks are declared stacked (a leading
`layers` axis) and used one slice at a time inside `jax.lax.scan`, so a module's code reads as for
one layer.

Shapes: B batch, T tokens, D model, H query heads, G key/value heads, K head dim, F hidden width of
the MLP, V vocabulary, L layers.
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


class _Parameters:
  """Makes parameters from the names of their axes; a name is a size and a rule of `sharding.py`."""

  def __init__(self, cfg: Model, rngs: nnx.Rngs):
    self._rngs = rngs
    self._sizes = {
      "layers": cfg.layers,
      "embed": cfg.d_model,
      "heads": cfg.heads,
      "kv_heads": cfg.kv_heads,
      "head_dim": cfg.head_dim,
      "mlp": cfg.mlp_dim,
      "vocab": cfg.vocab_size,
    }

  def matrix(self, axes: str, std: float) -> nnx.Param:
    """Drawn from a normal distribution cut at two standard deviations."""
    shape = self._shape(axes)
    unit = jax.random.truncated_normal(self._rngs.params(), -2, 2, shape, jnp.float32)
    return nnx.Param(std * unit, axes=tuple(axes.split()))

  def scale(self, axes: str) -> nnx.Param:
    """A norm's scale: ones."""
    return nnx.Param(jnp.full(self._shape(axes), 1.0, jnp.float32), axes=tuple(axes.split()))

  def bias(self, axes: str) -> nnx.Param:
    """Zeros."""
    return nnx.Param(jnp.full(self._shape(axes), 0.0, jnp.float32), axes=tuple(axes.split()))

  def _shape(self, axes: str) -> tuple[int, ...]:
    return tuple(self._sizes[name] for name in axes.split())


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
  """x / rms(x) * scale over the last axis, in float32 (Zhang & Sennrich 2019)."""
  wide = x.astype(jnp.float32)
  inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)
  # Tests forbid implicit rank promotion, so the scale gets the leading axes of x.
  scale = jnp.expand_dims(scale.astype(jnp.float32), tuple(range(x.ndim - 1)))
  return (wide * inverse * scale).astype(x.dtype)


class Attention(nnx.Module):
  """Grouped-query attention with rotary positions; where keys come from is up to `attend`."""

  def __init__(self, cfg: Model, rngs: nnx.Rngs):
    self.cfg = cfg
    make = _Parameters(cfg, rngs)
    std = cfg.d_model**-0.5
    # 2L layers add to the residual stream; 1 / sqrt(2L) keeps its variance (Radford et al. 2019).
    out_std = (2 * cfg.layers * cfg.heads * cfg.head_dim) ** -0.5
    self.query = make.matrix("layers embed heads head_dim", std)
    self.key = make.matrix("layers embed kv_heads head_dim", std)
    self.value = make.matrix("layers embed kv_heads head_dim", std)
    self.out = make.matrix("layers heads head_dim embed", out_std)
    if cfg.qkv_bias:
      self.query_bias = make.bias("layers heads head_dim")
      self.key_bias = make.bias("layers kv_heads head_dim")
      self.value_bias = make.bias("layers kv_heads head_dim")
    if cfg.qk_norm:
      self.query_norm = make.scale("layers head_dim")
      self.key_norm = make.scale("layers head_dim")

  @jax.named_scope("attention")
  def __call__(
    self,
    x_BTD: jax.Array,
    rotation: rotary.Rotation,
    attend: Attend,
    constrain: Constrain,
  ) -> tuple[jax.Array, object]:
    """(what attention adds to the residual stream [B, T, D], what `attend` keeps)."""
    cfg = self.cfg
    # Parameters are float32 masters; they are cast where they are used.
    dtype = x_BTD.dtype
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
    q_BTHK = rotary.apply_rope(q_BTHK, rotation)
    k_BTGK = rotary.apply_rope(k_BTGK, rotation)
    q_BTHK = constrain(q_BTHK, "batch", "sequence", "heads", "head_dim")
    out_BTHK, kept = attend(q_BTHK, k_BTGK, v_BTGK)
    return jnp.einsum("bthk,hkd->btd", out_BTHK, self.out.astype(dtype)), kept


class Mlp(nnx.Module):
  """SwiGLU (Shazeer 2020), squared ReLU (So et al. 2021) or ReLU."""

  def __init__(self, cfg: Model, rngs: nnx.Rngs):
    self.cfg = cfg
    make = _Parameters(cfg, rngs)
    std = cfg.d_model**-0.5
    self.up = make.matrix("layers embed mlp", std)
    self.down = make.matrix("layers mlp embed", (2 * cfg.layers * cfg.mlp_dim) ** -0.5)
    if cfg.mlp == "swiglu":
      self.gate = make.matrix("layers embed mlp", std)

  @jax.named_scope("mlp")
  def __call__(self, x_BTD: jax.Array, constrain: Constrain) -> jax.Array:
    """What the MLP adds to the residual stream, [B, T, D]."""
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
    make = _Parameters(cfg, rngs)
    self.attention_norm = make.scale("layers embed")
    self.attention = Attention(cfg, rngs)
    self.mlp_norm = make.scale("layers embed")
    self.mlp = Mlp(cfg, rngs)

  def __call__(
    self,
    x_BTD: jax.Array,
    rotation: rotary.Rotation,
    attend: Attend,
    constrain: Constrain,
  ) -> tuple[jax.Array, object]:
    """(the residual stream after this layer [B, T, D], what `attend` keeps)."""
    epsilon = self.cfg.norm_epsilon
    normed_BTD = rms_norm(x_BTD, self.attention_norm[...], epsilon)
    mixed_BTD, kept = self.attention(normed_BTD, rotation, attend, constrain)
    x_BTD = constrain(x_BTD + mixed_BTD, "batch", "sequence", "embed")
    normed_BTD = rms_norm(x_BTD, self.mlp_norm[...], epsilon)
    x_BTD = x_BTD + self.mlp(normed_BTD, constrain)
    return constrain(x_BTD, "batch", "sequence", "embed"), kept


class Decoder(nnx.Module):
  """Embedding, stacked blocks, final norm and output head."""

  def __init__(self, cfg: Model, rngs: nnx.Rngs):
    # The order of these lines is the order of the random draws: a seed's model depends on it.
    self.cfg = cfg
    make = _Parameters(cfg, rngs)
    # Small against the width, so that a tied head starts with logits near 0 and a loss near log V.
    self.embedding = make.matrix("vocab embed", 0.02)
    self.blocks = Block(cfg, rngs)
    self.final_norm = make.scale("embed")
    if not cfg.tie_embeddings:
      # A logit sums D products: the division gives the logits one spread, 0.16, at every width.
      self.head = make.matrix("embed vocab", 0.02 / math.sqrt(cfg.d_model / 64))
