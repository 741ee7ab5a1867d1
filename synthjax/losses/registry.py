"""Every preference loss by its name, and the way from segment sums to it.

Shapes: S segments (steps), P pairs.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from synthjax.config.schema import Objective
from synthjax.losses import preference, stepwise
from synthjax.losses.preference import Pairs, Result
from synthjax.losses.stepwise import Steps

Batch = dict[str, jax.Array]

ADVANTAGE_LOSSES = ("awr", "filtered_sft")  # losses that read the advantage of every step


def objective(log_prob_S: jax.Array, batch: Batch, pairs: int, cfg: Objective) -> Result:
  """The loss that `cfg.loss` names and its metrics, from the sums of all segments of a batch.

  Args:
    log_prob_S: log-prob sum of each segment under the policy.
    batch: of `data.trees.layout`, with the reference's sums in `batch["reference"]`.
    pairs: P.
    cfg: names the loss and holds its knobs.
  """
  steps = Steps(log_prob_S, batch["reference"], batch["segment_tokens"], batch["weight"])
  if cfg.loss in STEP_LOSSES:
    return STEP_LOSSES[cfg.loss](steps, batch, pairs, cfg)
  whole = whole_responses(steps, batch["tree"], batch["side"], pairs)
  return PAIR_LOSSES[cfg.loss](whole, cfg.preference)


def whole_responses(steps: Steps, tree_S: jax.Array, side_S: jax.Array, pairs: int) -> Pairs:
  """Steps summed to the two responses of each pair; weights of steps are not read.

  What a pair's tree predicts on neither side depends on the loss that it is laid out for: KTO's
  mismatched responses, a segment each, or ORPO's prompt.
  """

  def total(values_S, side):
    return jax.ops.segment_sum(jnp.where(side_S == side, values_S, 0.0), tree_S, num_segments=pairs)

  chosen_tokens, rejected_tokens = total(steps.tokens, 1), total(steps.tokens, -1)
  ratio_S = steps.log_prob - steps.reference
  is_pair = (chosen_tokens > 0) & (rejected_tokens > 0)
  return Pairs(
    chosen=total(steps.log_prob, 1),
    rejected=total(steps.log_prob, -1),
    reference_chosen=total(steps.reference, 1),
    reference_rejected=total(steps.reference, -1),
    chosen_tokens=chosen_tokens,
    rejected_tokens=rejected_tokens,
    weights=is_pair.astype(jnp.float32),
    mismatched_ratio=total(ratio_S, 0),
    mismatched=total((steps.tokens > 0).astype(jnp.float32), 0),
    prompt=total(steps.log_prob, 0),
    prompt_tokens=total(steps.tokens, 0),
  )


def _step_dpo(steps, batch, pairs, cfg):
  return stepwise.step_dpo(steps, batch["tree"], batch["side"], pairs, cfg.preference)


def _awr(steps, batch, pairs, cfg):
  return stepwise.advantage_weighted(steps, batch["advantage"], cfg.advantage)


def _filtered_sft(steps, batch, pairs, cfg):
  return stepwise.filtered(steps, batch["advantage"], cfg.advantage)


PAIR_LOSSES: dict[str, Callable[..., Result]] = {
  "dpo": preference.dpo,
  "ipo": preference.ipo,
  "dpop": preference.dpop,
  "rpo": preference.rpo,
  "kto": preference.kto,
  "simpo": preference.simpo,
  "orpo": preference.orpo,
}
STEP_LOSSES: dict[str, Callable[..., Result]] = {
  "step_dpo": _step_dpo,
  "awr": _awr,
  "filtered_sft": _filtered_sft,
}
