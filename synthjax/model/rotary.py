"""Rotary position embedding (Su et al. 2021), with linear and Llama-3 scaling.

Shapes: B batch, T tokens, H heads, K head dim.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from synthjax.config.schema import Model


def frequencies(cfg: Model) -> np.ndarray:
  """Radians a position, one per pair of channels: float64 [K/2], scaled as `cfg.rope_scaling` says."""
  found = cfg.rope_theta ** (-np.arange(0, cfg.head_dim, 2) / cfg.head_dim)
  if cfg.rope_scaling == "linear":
    return found / cfg.rope_factor
  if cfg.rope_scaling == "llama3":
    # Llama 3.1: slow turns are stretched, fast ones kept, those between interpolated by the turns in the old context.
    turns = cfg.rope_original_context * found / (2 * math.pi)
    keep = (turns - cfg.rope_low_freq_factor) / (
      cfg.rope_high_freq_factor - cfg.rope_low_freq_factor
    )
    keep = np.clip(keep, 0.0, 1.0)
    return keep * found + (1 - keep) * found / cfg.rope_factor
  return found


def turns(cfg: Model, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(cos, sin) of every position's angles, float32 [B, T, 1, K/2]: computed once, used by every layer."""
  radians_111K = jnp.asarray(frequencies(cfg), jnp.float32)[None, None, None]
  angles = positions_BT.astype(jnp.float32)[..., None, None] * radians_111K
  return jnp.cos(angles), jnp.sin(angles)


def turn(x_BTHK: jax.Array, turns: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotates channel k against channel k + K/2 (the layout of Llama checkpoints on Hugging Face), in float32."""
  cos, sin = turns
  first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(
    x_BTHK.dtype
  )
