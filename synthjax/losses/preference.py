"""Preference losses: pure functions of log-prob sums of whole responses. No model is called here.

Each takes `Pairs` and its config and returns (loss, metrics); the loss is the mean over pairs, weighted, in float32.

Shapes: P pairs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from synthjax.schema import Preference


class Pairs(NamedTuple):
  """Log-prob sums of chosen and rejected responses under the policy and the reference, float32 [P]."""

  chosen: jax.Array
  rejected: jax.Array
  reference_chosen: jax.Array
  reference_rejected: jax.Array
  chosen_tokens: jax.Array  # number of tokens in the sums
  rejected_tokens: jax.Array
  weights: jax.Array  # of the pairs; 0 for filler


Result = tuple[jax.Array, dict[str, jax.Array]]


def dpo(pairs: Pairs, cfg: Preference) -> Result:
  """-log sigma(beta h), h the difference of the log-ratios, with conservative label smoothing (Rafailov et al. 2023, eq. 7; cDPO)."""
  margin = _margin(pairs)
  return _finish(pairs, logistic(cfg.beta * margin, cfg.label_smoothing), cfg.beta * margin)


def ipo(pairs: Pairs, cfg: Preference) -> Result:
  """(h - 1/(2 beta))^2 with h a mean over tokens of each side (Azar et al. 2023, eq. 17; length-normalised as its authors advise)."""
  margin = (_ratio(pairs.chosen, pairs.reference_chosen) / _count(pairs.chosen_tokens)
            - _ratio(pairs.rejected, pairs.reference_rejected) / _count(pairs.rejected_tokens))
  return _finish(pairs, jnp.square(margin - 1 / (2 * cfg.beta)), cfg.beta * margin)


def dpop(pairs: Pairs, cfg: Preference) -> Result:
  """DPO with a penalty inside the sigmoid where the chosen log-prob falls below the reference's (Pal et al. 2024, eq. 3)."""
  fall = jnp.maximum(0.0, pairs.reference_chosen - pairs.chosen)
  margin = cfg.beta * (_margin(pairs) - cfg.dpop * fall)
  return _finish(pairs, logistic(margin, cfg.label_smoothing), margin)


def rpo(pairs: Pairs, cfg: Preference) -> Result:
  """DPO plus `cfg.nll` times the chosen response's NLL a token (Pang et al. 2024, eq. 1)."""
  loss = logistic(cfg.beta * _margin(pairs), cfg.label_smoothing) - cfg.nll * pairs.chosen / _count(pairs.chosen_tokens)
  return _finish(pairs, loss, cfg.beta * _margin(pairs))


def kto(pairs: Pairs, cfg: Preference) -> Result:
  """Each side on its own against the batch's mean log-ratio (Ethayarajh et al. 2024, eq. 8).

  The reference point is the mean log-ratio of all responses in the batch, not below 0 and without gradient: an estimate of the KL
  divergence that needs no mismatched pairs (our choice).
  """
  chosen, rejected = _ratio(pairs.chosen, pairs.reference_chosen), _ratio(pairs.rejected, pairs.reference_rejected)
  point = jax.lax.stop_gradient(jnp.maximum(0.0, _mean(pairs, (chosen + rejected) / 2)))
  loss = (cfg.kto_desirable * jax.nn.sigmoid(-cfg.beta * (chosen - point))
          + cfg.kto_undesirable * jax.nn.sigmoid(-cfg.beta * (point - rejected)))
  return _finish(pairs, loss, cfg.beta * (chosen - rejected))


def simpo(pairs: Pairs, cfg: Preference) -> Result:
  """-log sigma(beta (mean chosen log-prob - mean rejected one) - gamma): no reference (Meng et al. 2024, eq. 6)."""
  margin = cfg.beta * (pairs.chosen / _count(pairs.chosen_tokens) - pairs.rejected / _count(pairs.rejected_tokens)) - cfg.simpo_margin
  return _finish(pairs, -jax.nn.log_sigmoid(margin), margin)


def orpo(pairs: Pairs, cfg: Preference) -> Result:
  """NLL of the chosen response a token, minus beta log sigma(log odds ratio): no reference (Hong et al. 2024, eq. 6, 7)."""
  chosen, rejected = pairs.chosen / _count(pairs.chosen_tokens), pairs.rejected / _count(pairs.rejected_tokens)
  odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
  return _finish(pairs, -chosen - cfg.beta * jax.nn.log_sigmoid(odds), odds)


def logistic(margin: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
  """-(1 - s) log sigma(margin) - s log sigma(-margin)."""
  return -(1 - label_smoothing) * jax.nn.log_sigmoid(margin) - label_smoothing * jax.nn.log_sigmoid(-margin)


def _ratio(policy, reference) -> jax.Array:
  return policy.astype(jnp.float32) - reference.astype(jnp.float32)


def _margin(pairs: Pairs) -> jax.Array:
  return _ratio(pairs.chosen, pairs.reference_chosen) - _ratio(pairs.rejected, pairs.reference_rejected)


def _count(tokens) -> jax.Array:
  return jnp.maximum(tokens, 1).astype(jnp.float32)


def _log1mexp(log_prob: jax.Array) -> jax.Array:
  """log(1 - exp(x)) for x < 0, exact near 0 and far below it (Maechler 2012)."""
  x = jnp.minimum(log_prob, -1e-6)
  near = x > -0.6931472
  return jnp.where(near, jnp.log(-jnp.expm1(jnp.where(near, x, -1.0))), jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x))))


def _mean(pairs: Pairs, values: jax.Array) -> jax.Array:
  return jnp.sum(values * pairs.weights) / jnp.maximum(jnp.sum(pairs.weights), 1e-9)


def _finish(pairs: Pairs, losses: jax.Array, margin: jax.Array) -> Result:
  loss = _mean(pairs, losses)
  return loss, {"loss": loss, **metrics(pairs, margin)}


def metrics(pairs: Pairs, margin: jax.Array) -> dict[str, jax.Array]:
  """Margin, accuracy of the implicit reward, KL estimate, log-probs a token and their drift from the reference, the early sign of
  over-optimisation."""
  a_token = lambda sums, tokens: jnp.sum(sums * pairs.weights) / jnp.maximum(jnp.sum(tokens * pairs.weights), 1.0)
  return {
    "margin": _mean(pairs, margin), "accuracy": _mean(pairs, (margin > 0).astype(jnp.float32)),
    "chosen_log_prob": a_token(pairs.chosen, pairs.chosen_tokens), "rejected_log_prob": a_token(pairs.rejected, pairs.rejected_tokens),
    "chosen_drift": a_token(_ratio(pairs.chosen, pairs.reference_chosen), pairs.chosen_tokens),
    "rejected_drift": a_token(_ratio(pairs.rejected, pairs.reference_rejected), pairs.rejected_tokens),
    # KL(reference | policy) a token, as far as these responses are the reference's own samples.
    "kl": -a_token(_ratio(pairs.chosen + pairs.rejected, pairs.reference_chosen + pairs.reference_rejected),
                   pairs.chosen_tokens + pairs.rejected_tokens),
  }
