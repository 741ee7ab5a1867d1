"""Losses over steps: per-step DPO with a weight for every step, offline advantage-weighted RL, filtered cross-entropy.

A step is a segment; its log-prob sum, its reference sum and its weight come in, nothing else. `pair_S` says to which pair a step belongs
and `sign_S` on which side it stands, so one form covers plain DPO (all weights 1), Step-DPO (1 at the pit, 0 elsewhere) and
advantage-weighted DPO (|advantage|), in the modes `paper`, `branch` and `step` alike: the modes differ in what the steps are, not in the
loss.

Shapes: S steps, P pairs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from synthjax.losses.preference import Result, logistic
from synthjax.schema import Advantage, Preference


class Steps(NamedTuple):
  """Steps of all pairs, or of all traces, float32 [S] unless said."""

  log_prob: jax.Array  # sum over the step's tokens under the policy
  reference: jax.Array  # the same under the reference
  tokens: jax.Array  # number of them
  weight: jax.Array  # how much the step counts; 0 for filler


def step_dpo(steps: Steps, pair_S: jax.Array, sign_S: jax.Array, pairs: int, cfg: Preference, pair_weights_P: jax.Array | None = None,
             anchor_S: jax.Array | None = None) -> Result:
  """-log sigma(beta h_p), h_p = sum over the pair's steps of sign * weight * (log-prob - reference).

  With all weights 1 it is DPO; with 1 on the pit alone Step-DPO (Lai et al. 2024, eq. 4); with |advantage| the advantage-weighted form.

  Args:
    steps: their weights say how much each log-ratio enters the margin; not negative (the side is `sign_S`).
    pair_S: int32, the pair of each step; P and more for none.
    sign_S: +1 for the chosen side, -1 for the rejected one.
    pairs: P.
    cfg: `beta`, `label_smoothing`, and `nll`: the weight of the NLL anchor.
    pair_weights_P: of the pairs; None where each counts 1 if it has a step.
    anchor_S: 1 for steps of verified full traces, whose NLL a token is added `cfg.nll` times; None where there are none.

  Returns:
    (loss, metrics).
  """
  ratio_S = steps.log_prob.astype(jnp.float32) - steps.reference.astype(jnp.float32)
  of_pair = lambda values_S: jax.ops.segment_sum(values_S, pair_S, num_segments=pairs)
  margin_P = cfg.beta * of_pair(sign_S * steps.weight * ratio_S)
  if pair_weights_P is None:
    pair_weights_P = (of_pair(steps.weight) > 0).astype(jnp.float32)
  count = jnp.maximum(pair_weights_P.sum(), 1e-9)
  mean = lambda values_P: jnp.sum(values_P * pair_weights_P) / count
  loss = mean(logistic(margin_P, cfg.label_smoothing))
  if anchor_S is not None:
    loss = loss + cfg.nll * nll(steps, anchor_S)
  return loss, {"loss": loss, "margin": mean(margin_P), "accuracy": mean((margin_P > 0).astype(jnp.float32)),
                "kl": -jnp.sum(ratio_S * (sign_S != 0)) / jnp.maximum(jnp.sum(steps.tokens * (sign_S != 0)), 1.0),
                **_sides(steps, ratio_S, sign_S)}


def advantage_weighted(steps: Steps, advantage_S: jax.Array, cfg: Advantage) -> Result:
  """-sum exp(A_i / beta) log pi(step_i), weights clipped, a mean over the steps' tokens (Peng et al. 2019, eq. 9, step by step).

  Args:
    steps: `weight` is 1 for a step, 0 for filler; on a tree every node is there once.
    advantage_S: of each step.
    cfg: `beta`, `clip`, `normalise`.
  """
  raw_S = jnp.exp(advantage_S / cfg.beta)
  weight_S = jnp.minimum(raw_S, cfg.clip)
  real_S = (steps.weight > 0).astype(jnp.float32)
  if cfg.normalise:
    weight_S = weight_S / jnp.maximum(jnp.sum(weight_S * real_S) / jnp.maximum(real_S.sum(), 1.0), 1e-9)
  tokens = jnp.maximum(jnp.sum(steps.tokens * real_S), 1.0)
  loss = -jnp.sum(weight_S * steps.weight * steps.log_prob) / tokens
  clipped = jnp.sum((raw_S > cfg.clip) * real_S) / jnp.maximum(real_S.sum(), 1.0)
  ratio_S = steps.log_prob - steps.reference
  return loss, {"loss": loss, "clipped": clipped, "step_weight": jnp.sum(weight_S * real_S) / jnp.maximum(real_S.sum(), 1.0),
                "kl": -jnp.sum(ratio_S * real_S) / tokens}


def filtered(steps: Steps, advantage_S: jax.Array, cfg: Advantage) -> Result:
  """Cross-entropy a token over the steps with an advantage above `cfg.threshold`, also those of wrong traces."""
  kept_S = ((advantage_S > cfg.threshold) & (steps.weight > 0)).astype(jnp.float32)
  loss = nll(steps, kept_S)
  return loss, {"loss": loss, "kept": kept_S.sum() / jnp.maximum((steps.weight > 0).sum(), 1)}


def nll(steps: Steps, which_S: jax.Array) -> jax.Array:
  """Negative log-likelihood a token of the steps that are marked 1."""
  return -jnp.sum(which_S * steps.log_prob) / jnp.maximum(jnp.sum(which_S * steps.tokens), 1.0)


def _sides(steps, ratio_S, sign_S) -> dict[str, jax.Array]:
  """Log-probs a token of both sides and their drift from the reference; the drift of chosen steps is watched for over-optimisation."""
  found: dict[str, jax.Array] = {}
  for name, side_S in (("chosen", sign_S > 0), ("rejected", sign_S < 0)):
    real_S = (side_S & (steps.tokens > 0)).astype(jnp.float32)
    tokens = jnp.maximum(jnp.sum(steps.tokens * real_S), 1.0)
    found |= {f"{name}_log_prob": jnp.sum(steps.log_prob * real_S) / tokens, f"{name}_drift": jnp.sum(ratio_S * real_S) / tokens}
  return found
