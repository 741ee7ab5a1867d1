"""AdamW and its schedules."""

import jax
import optax

from synthjax.schema import Optimizer


def make(cfg: Optimizer, steps: int) -> optax.GradientTransformation:
  """Clipping, then AdamW (Loshchilov & Hutter 2019) with decay on matrices only."""
  adamw = optax.adamw(schedule(cfg, steps), b1=cfg.beta1, b2=cfg.beta2, eps=cfg.epsilon,
                      weight_decay=cfg.weight_decay, mask=_matrices)
  return optax.chain(optax.clip_by_global_norm(cfg.clip), adamw) if cfg.clip else adamw


def schedule(cfg: Optimizer, steps: int) -> optax.Schedule:
  """Learning rate at each step: linear warm-up, then the named shape down to `final` of the peak at the last step."""
  warmup, decay = _steps(cfg.warmup, steps), _steps(cfg.decay, steps)
  peak, end = cfg.learning_rate, cfg.learning_rate * cfg.final
  rest = max(steps - warmup, 1)
  shapes = {
    "constant": lambda: optax.constant_schedule(peak),
    "linear": lambda: optax.linear_schedule(peak, end, rest),
    "cosine": lambda: optax.cosine_decay_schedule(peak, rest, cfg.final),
    # Warm-up, stable, decay (Hu et al. 2024): the trunk can be continued from before its decay.
    "wsd": lambda: optax.join_schedules(
      [optax.constant_schedule(peak), optax.linear_schedule(peak, end, max(decay, 1))], [max(rest - decay, 0)]),
  }
  if not warmup:
    return shapes[cfg.schedule]()
  return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1)), shapes[cfg.schedule]()], [warmup])


def _steps(amount: float, steps: int) -> int:
  """A share of the steps (below 1) or their number."""
  return round(amount * steps) if amount < 1 else round(amount)


def _matrices(params):
  """True where weight decay applies: norms and biases are left alone."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: not any(word in path[-1].key for word in ("norm", "bias")), params)
