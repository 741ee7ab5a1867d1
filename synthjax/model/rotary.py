"""Rotary position embedding (Su et al. 2021), with linear and Llama-3 scaling.

Shapes: B batch, T tokens, H heads, K head dim.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from synthjax.config.schema import Model


class Rotation(NamedTuple):
  """Cosine and sine of every position's angles, float32 [B, T, 1, K/2]."""

  cos: jax.Array
  sin: jax.Array


def frequencies(cfg: Model) -> np.ndarray:
  """Radians per position, one for each pair of channels: float64 [K/2].

  They are scaled as `cfg.rope_scaling` says.
  """
  exponents = -np.arange(0, cfg.head_dim, 2) / cfg.head_dim
  plain = cfg.rope_theta**exponents
  if cfg.rope_scaling == "linear":
    return plain / cfg.rope_factor
  if cfg.rope_scaling == "llama3":
    return _llama3_scaled(cfg, plain)
  return plain


def _llama3_scaled(cfg: Model, plain: np.ndarray) -> np.ndarray:
  """Llama 3.1 stretches low frequencies, keeps high ones and interpolates between the two.

  What decides is how often a channel pair turns within the context of the original training.
  """
  turns = cfg.rope_original_context * plain / (2 * math.pi)
  # `low` turns or fewer are stretched, `high` or more are kept.
  low, high = cfg.rope_low_freq_factor, cfg.rope_high_freq_factor
  keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
  return keep * plain + (1 - keep) * plain / cfg.rope_factor


def rotation(cfg: Model, positions_BT: jax.Array) -> Rotation:
  """The rotation of every position; computed once and used by every layer."""
  # The angles are float32 whatever the model computes in: bfloat16 cannot tell position 257 from
  # 256.
  radians_111K = jnp.asarray(frequencies(cfg), jnp.float32)[None, None, None]
  angles = positions_BT.astype(jnp.float32)[..., None, None] * radians_111K
  return Rotation(jnp.cos(angles), jnp.sin(angles))


def apply_rope(x_BTHK: jax.Array, rotation: Rotation) -> jax.Array:
  """Rotates channel k against channel k + K/2, in float32.

  Llama checkpoints on Hugging Face pair their channels like this; the original paper pairs
  neighbours.
  """
  cos, sin = rotation
  first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
  rotated = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(rotated, axis=-1).astype(x_BTHK.dtype)
