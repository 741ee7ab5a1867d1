"""AdamW and its schedules."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from synthjax.config.schema import Optimizer

# The fields that the schedule alone reads: two optimizers that differ in nothing else have the same
# state.
_WITHOUT_SCHEDULE: dict[str, Any] = {
  "learning_rate": 1.0,
  "schedule": "constant",
  "warmup": 0.0,
  "decay": 0.0,
  "final": 0.0,
}


def make(cfg: Optimizer, steps: int) -> optax.GradientTransformation:
  """Clipping, then AdamW (Loshchilov & Hutter 2019) with decay on matrices only."""
  adamw = optax.adamw(
    schedule(cfg, steps),
    b1=cfg.beta1,
    b2=cfg.beta2,
    eps=cfg.epsilon,
    weight_decay=cfg.weight_decay,
    mask=_matrices,
  )
  if not cfg.clip:
    return adamw
  return optax.chain(optax.clip_by_global_norm(cfg.clip), adamw)


def schedule(cfg: Optimizer, steps: int) -> optax.Schedule:
  """Learning rate of each update 0, 1, ..., steps - 1.

  It rises linearly to the peak, which the last update of the warm-up has, and the last update of
  all has `final` of the peak, unless the schedule is constant. `wsd` (warm-up, stable, decay; Hu et
  al. 2024) stays at the peak until its last `decay` updates: up to there it is a trunk, from whose
  checkpoints a longer schedule or another decay can go on.
  """
  warmup = _steps(cfg.warmup, steps)
  peak_at = max(warmup - 1, 0)
  last = steps - 1
  decay = min(max(_steps(cfg.decay, steps), 1), last)  # a short run has a decay too
  span = max(last - peak_at, 1)

  def rate(count: jax.typing.ArrayLike) -> jax.Array:
    count = jnp.asarray(count, jnp.float32)
    # Update 0 has a rate above 0: a first step without effect would be wasted.
    rise = jnp.minimum((count + 1) / max(warmup, 1), 1.0)
    if cfg.schedule == "constant":
      fall = jnp.zeros(())
    elif cfg.schedule == "wsd":
      fall = (count - (last - decay)) / max(decay, 1)
    else:
      fall = (count - peak_at) / span
    fall = jnp.clip(fall, 0.0, 1.0)
    if cfg.schedule == "cosine":
      fall = 0.5 - 0.5 * jnp.cos(jnp.pi * fall)
    return cfg.learning_rate * rise * (1.0 - (1.0 - cfg.final) * fall)

  return rate


def common_steps(one: tuple[Optimizer, int], other: tuple[Optimizer, int]) -> int:
  """How many first updates two trainings (optimizer, steps) have in common.

  A checkpoint up to there belongs to both.
  """
  (one_cfg, one_steps), (other_cfg, other_steps) = one, other
  one_state = dataclasses.replace(one_cfg, **_WITHOUT_SCHEDULE)
  if one_state != dataclasses.replace(other_cfg, **_WITHOUT_SCHEDULE):
    return 0
  count = np.arange(min(one_steps, other_steps))
  # Compared as numbers, not as settings: a share of the steps means another number for each.
  one_rates = np.asarray(schedule(one_cfg, one_steps)(count))
  other_rates = np.asarray(schedule(other_cfg, other_steps)(count))
  differ = np.flatnonzero(one_rates != other_rates)
  if len(differ):
    return int(differ[0])
  return len(count)


def trunk_steps(cfg: Optimizer, steps: int) -> int:
  """Up to which step a longer training with the same settings has the same updates.

  0 where it differs from the start.
  """
  if cfg.schedule not in ("wsd", "constant"):
    return 0
  # Twice as long stands for any longer training.
  return common_steps((cfg, steps), (cfg, 2 * steps))


def _steps(amount: float, steps: int) -> int:
  """A share of the steps (below 1) or their number."""
  if amount < 1:
    return round(amount * steps)
  return round(amount)


def _matrices(params: Any) -> Any:
  """True where weight decay applies: norms and biases are left alone."""

  def is_matrix(path, _):
    return not any(word in path[-1].key for word in ("norm", "bias"))

  return jax.tree_util.tree_map_with_path(is_matrix, params)
