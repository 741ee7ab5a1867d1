"""Losses over steps: per-step DPO, offline advantage-weighted RL, filtered cross-entropy.

A step is a segment: the losses see its log-prob sum, its reference sum and its weight, nothing
else. `pair_S` names the pair of each step and `sign_S` its side, so one form covers plain DPO (all
weights 1), Step-DPO (1 at the pit, 0 elsewhere) and advantage-weighted DPO (|advantage|), in the
modes `paper`, `branch` and `step` alike: the modes differ in what the steps are, not in the loss.
TRL 1.16 has none of these losses.

Shapes: S steps, P pairs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from synthjax.config.schema import Advantage, Preference
from synthjax.losses.preference import Result, logistic


class Steps(NamedTuple):
  """Steps of all pairs, or of all traces, float32 [S]."""

  log_prob: jax.Array  # sum over the step's tokens under the policy
  reference: jax.Array  # the same under the reference
  tokens: jax.Array  # number of them; 0 for padding
  weight: jax.Array  # how much the step counts; 0 for padding


def step_dpo(
  steps: Steps, pair_S: jax.Array, sign_S: jax.Array, pairs: int, cfg: Preference
) -> Result:
  """-log sigma(beta h_p) + nll * anchor, h_p = sum over the pair's steps of sign * weight * r_i.

  r_i = log pi(y_i|x, y_<i) - log pi_ref(y_i|x, y_<i) is the log-ratio of a step. With all weights 1
  the loss is DPO (Rafailov et al. 2023, eq. 7), with 1 on the pit alone Step-DPO (Lai et al. 2024,
  eq. 4), with |advantage| the advantage-weighted form (after Setlur et al. 2024). It is a mean over
  the pairs that have a step with a weight.

  The anchor holds up the chosen log-probs: it is the NLL per token of all steps of the chosen sides
  in the batch, whatever their weights and whether the side is a whole trace or, in mode `step`, one
  step of it (our choice; it is what RPO, Pang et al. 2024, adds for whole responses).

  Args:
    steps: their weights say how much each log-ratio enters the margin; not negative (the side is
      `sign_S`).
    pair_S: int32, the pair of each step; P and more for none.
    sign_S: +1 for the chosen side, -1 for the rejected one, 0 for neither.
    pairs: P.
    cfg: `beta`, `label_smoothing`, and `nll`: the weight of the anchor.

  Returns:
    (loss, metrics); `kept` is the share of the batch's pairs that count in the margin's loss.
  """

  def total(values_S):
    return jax.ops.segment_sum(values_S, pair_S, num_segments=pairs)

  def mean(values_P):
    return jnp.sum(values_P * counts_P) / jnp.maximum(counts_P.sum(), 1e-9)

  ratio_S = steps.log_prob.astype(jnp.float32) - steps.reference.astype(jnp.float32)
  sided_S = jnp.abs(sign_S)
  margin_P = cfg.beta * total(sign_S * steps.weight * ratio_S)
  counts_P = (total(steps.weight * sided_S) > 0).astype(jnp.float32)
  loss = mean(logistic(margin_P, cfg.label_smoothing))
  # Read at trace time, so that the default, no anchor, costs nothing.
  if cfg.nll:
    loss = loss + cfg.nll * nll(steps, (sign_S > 0).astype(jnp.float32))
  real_P = total(steps.tokens * sided_S) > 0
  return loss, {
    "loss": loss,
    "margin": mean(margin_P),
    "accuracy": mean((margin_P > 0).astype(jnp.float32)),
    "kl": -jnp.sum(ratio_S * sided_S) / jnp.maximum(jnp.sum(steps.tokens * sided_S), 1.0),
    "kept": counts_P.sum() / jnp.maximum(real_P.sum(), 1),
    **_sides(steps, ratio_S, sign_S),
  }


def advantage_weighted(steps: Steps, advantage_S: jax.Array, cfg: Advantage) -> Result:
  """-sum_i w_i min(exp(A_i / beta), clip) log pi(y_i|x, y_<i) / number of tokens.

  Source: Peng et al. 2019 (AWR), eq. 9, step by step with the advantages of Setlur et al. 2024; the
  clip is Peng et al.'s. `normalise` divides the exponentials by their mean over the batch (our
  choice). The side of a step is not read: a step is as good as its advantage.

  Args:
    steps: `weight`, the w_i above, is 1 for a step unless its pair says otherwise, 0 for padding;
      on a tree every node is there once.
    advantage_S: of each step.
    cfg: `beta`, `clip`, `normalise`.

  Returns:
    (loss, metrics); `kept` is the share of the batch's steps with a weight above 0.
  """
  exponential_S = jnp.exp(advantage_S / cfg.beta)
  weight_S = jnp.minimum(exponential_S, cfg.clip)
  real_S = (steps.weight > 0).astype(jnp.float32)
  count = jnp.maximum(real_S.sum(), 1.0)
  if cfg.normalise:
    weight_S = weight_S / jnp.maximum(jnp.sum(weight_S * real_S) / count, 1e-9)
  tokens = jnp.maximum(jnp.sum(steps.tokens * real_S), 1.0)
  loss = -jnp.sum(weight_S * steps.weight * steps.log_prob) / tokens
  ratio_S = steps.log_prob - steps.reference
  return loss, {
    "loss": loss,
    "clipped": jnp.sum((exponential_S > cfg.clip) * real_S) / count,
    "step_weight": jnp.sum(weight_S * real_S) / count,
    "kl": -jnp.sum(ratio_S * real_S) / tokens,
    "kept": _share(steps, weight_S * steps.weight > 0),
  }


def filtered(steps: Steps, advantage_S: jax.Array, cfg: Advantage) -> Result:
  """NLL per token over the steps with an advantage above `threshold`, of incorrect traces as well.

  Filtering by the advantages of Setlur et al. 2024; the threshold is our choice. Steps of weight 0
  are left out; other weights are not read.

  Returns:
    (loss, metrics); `kept` is the share of the batch's steps that are trained on.
  """
  kept_S = (advantage_S > cfg.threshold) & (steps.weight > 0)
  loss = nll(steps, kept_S.astype(jnp.float32))
  return loss, {"loss": loss, "kept": _share(steps, kept_S)}


def nll(steps: Steps, kept_S: jax.Array) -> jax.Array:
  """Negative log-likelihood per token of the steps where `kept_S` is 1."""
  tokens = jnp.maximum(jnp.sum(kept_S * steps.tokens), 1.0)
  return -jnp.sum(kept_S * steps.log_prob) / tokens


def _share(steps: Steps, kept_S: jax.Array) -> jax.Array:
  return jnp.sum(kept_S) / jnp.maximum(jnp.sum(steps.tokens > 0), 1)


def _sides(steps, ratio_S, sign_S) -> dict[str, jax.Array]:
  """Log-probs per token of both sides and their drift from the reference.

  The drift of the chosen steps is watched for over-optimisation.
  """
  metrics: dict[str, jax.Array] = {}
  for name, side_S in (("chosen", sign_S > 0), ("rejected", sign_S < 0)):
    real_S = (side_S & (steps.tokens > 0)).astype(jnp.float32)
    tokens = jnp.maximum(jnp.sum(steps.tokens * real_S), 1.0)
    metrics[f"{name}_log_prob"] = jnp.sum(steps.log_prob * real_S) / tokens
    metrics[f"{name}_drift"] = jnp.sum(ratio_S * real_S) / tokens
  return metrics
