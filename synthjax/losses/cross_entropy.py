"""Next-token cross-entropy as a pure function of token log-probs.

Shapes: B sequences, T tokens.
"""

import jax
import jax.numpy as jnp

from synthjax.config.schema import Train


def cross_entropy(
  log_prob_BT: jax.Array, log_sum_exp_BT: jax.Array, weights_BT: jax.Array, cfg: Train
):
  """Weighted negative log-likelihood, plus `cfg.z_loss` times the squared log-normaliser.

  The second term keeps the normaliser near 1; source: PaLM, Chowdhery et al. 2022, section 5.

  Args:
    log_prob_BT: log-prob of each target, float32.
    log_sum_exp_BT: log-normaliser of each position, float32.
    weights_BT: 0 where nothing is predicted; they sum to 1 over the whole batch, so that the
      losses of micro-batches add up.
    cfg: `z_loss`.

  Returns:
    (loss, {"loss": cross-entropy in nats per target token}).
  """
  nll = -jnp.sum(log_prob_BT * weights_BT)
  z_loss: jax.Array | float = 0.0
  # Without the branch XLA would compute a sum that the default z_loss = 0 throws away.
  if cfg.z_loss:
    z_loss = cfg.z_loss * jnp.sum(jnp.square(log_sum_exp_BT) * weights_BT)
  return nll + z_loss, {"loss": nll}
