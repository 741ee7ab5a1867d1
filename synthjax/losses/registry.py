"""Every loss by its name, and the way from the log-prob sums of segments to a preference loss.

Shapes: S segments (steps), P pairs.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from synthjax.config.schema import Objective
from synthjax.losses import preference, stepwise
from synthjax.losses.cross_entropy import cross_entropy
from synthjax.losses.preference import Pairs, Result
from synthjax.losses.stepwise import Steps


class Segments(NamedTuple):
  """What a preference batch says about its segments, besides their log-probs under the policy."""

  reference_S: jax.Array  # log-prob sum under the reference
  tokens_S: jax.Array  # number of tokens; 0 for padding
  weight_S: jax.Array  # of the step in its loss; 0 for padding
  side_S: jax.Array  # +1 chosen, -1 rejected, 0 neither
  advantage_S: jax.Array  # of the step
  pair_S: jax.Array  # the pair that the segment belongs to; P for padding


def objective(log_prob_S: jax.Array, segments: Segments, pairs: int, cfg: Objective) -> Result:
  """The loss named by `cfg.loss` and its metrics, over all segments of a batch.

  Args:
    log_prob_S: log-prob sum of each segment under the policy.
    segments: of the same batch.
    pairs: P.
    cfg: names the loss and holds its settings.
  """
  steps = Steps(log_prob_S, segments.reference_S, segments.tokens_S, segments.weight_S)
  if cfg.loss in STEP_LOSSES:
    return STEP_LOSSES[cfg.loss](steps, segments, pairs, cfg)
  whole = whole_responses(steps, segments.pair_S, segments.side_S, pairs)
  return PAIR_LOSSES[cfg.loss](whole, cfg.preference)


def whole_responses(steps: Steps, pair_S: jax.Array, side_S: jax.Array, pairs: int) -> Pairs:
  """Sums the steps to the two responses of each pair; the weights of steps are not read.

  What the segments on neither side are depends on the loss that the trees were laid out for: KTO's
  mismatched responses, a segment each, or ORPO's prompt. `Pairs` gets both readings, and each loss
  takes its own.
  """

  def total(values_S, side):
    return jax.ops.segment_sum(jnp.where(side_S == side, values_S, 0.0), pair_S, num_segments=pairs)

  chosen_tokens = total(steps.tokens, 1)
  rejected_tokens = total(steps.tokens, -1)
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


def _step_dpo(steps: Steps, segments: Segments, pairs: int, cfg: Objective) -> Result:
  return stepwise.step_dpo(steps, segments.pair_S, segments.side_S, pairs, cfg.preference)


def _awr(steps: Steps, segments: Segments, pairs: int, cfg: Objective) -> Result:
  return stepwise.advantage_weighted(steps, segments.advantage_S, cfg.advantage)


def _filtered_sft(steps: Steps, segments: Segments, pairs: int, cfg: Objective) -> Result:
  return stepwise.filtered(steps, segments.advantage_S, cfg.advantage)


# Over the tokens of packed documents: (log_prob_BT, log_sum_exp_BT, weights_BT, cfg).
TOKEN_LOSSES: dict[str, Callable[..., Result]] = {
  "cross_entropy": cross_entropy,
}
# Over whole responses: (Pairs, cfg).
PAIR_LOSSES: dict[str, Callable[..., Result]] = {
  "dpo": preference.dpo,
  "ipo": preference.ipo,
  "dpop": preference.dpop,
  "rpo": preference.rpo,
  "kto": preference.kto,
  "simpo": preference.simpo,
  "orpo": preference.orpo,
}
# Over the steps of trees: (Steps, Segments, P, cfg).
STEP_LOSSES: dict[str, Callable[..., Result]] = {
  "step_dpo": _step_dpo,
  "awr": _awr,
  "filtered_sft": _filtered_sft,
}
# Losses that read the advantage of every step: their data need step values.
ADVANTAGE_LOSSES = ("awr", "filtered_sft")
