"""Next-token cross-entropy as a pure function of token log-probs.

Shapes: B rows, T tokens.
"""

import jax
import jax.numpy as jnp

from synthjax.config.schema import Train


def cross_entropy(
  log_prob_BT: jax.Array, log_sum_exp_BT: jax.Array, weights_BT: jax.Array, cfg: Train
):
  """Weighted negative log-likelihood, plus `cfg.z_loss` times the squared log-normaliser (PaLM, Chowdhery et al. 2022).

  Args:
    log_prob_BT: log-prob of each target, float32.
    log_sum_exp_BT: log-normaliser of each position, float32.
    weights_BT: weights that sum to 1 over the whole batch, so that micro-batches add up; 0 where nothing is predicted.
    cfg: `z_loss`.

  Returns:
    (loss, {"loss": cross-entropy in nats a target token}).
  """
  nll = -jnp.sum(log_prob_BT * weights_BT)
  z = cfg.z_loss * jnp.sum(jnp.square(log_sum_exp_BT) * weights_BT) if cfg.z_loss else 0.0
  return nll + z, {"loss": nll}
