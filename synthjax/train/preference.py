"""The step of preference training: trees in, per-step log-prob sums, a loss over them. The reference's sums come with the batch.

Shapes: B rows, T places, E predictions, S segments, P pairs, D model.
"""

import dataclasses

import jax
import jax.numpy as jnp

from synthjax.kernels.linear_logprob import segment_sums
from synthjax.losses import preference, stepwise
from synthjax.losses.preference import Pairs, Preference
from synthjax.losses.stepwise import Advantage, Steps
from synthjax.model.transformer import Params, Transformer

Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective:
  """A loss by name, with its knobs."""

  loss: str = "step_dpo"  # a name of PAIR_LOSSES or STEP_LOSSES
  preference: Preference = Preference()
  advantage: Advantage = Advantage()


def segment_log_probs(model: Transformer, params: Params, batch: Batch, split=None) -> jax.Array:
  """Log-prob sums of every segment, float32 [S]. Only predicted places meet the vocabulary."""
  hidden_BTD = model.hidden(params, batch["tokens"], batch["positions"], batch["until"])
  hidden_ED = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])[batch["source"]]
  found = model.log_prob(params, hidden_ED, batch["targets"], split)
  return segment_sums(found.log_prob, batch["segment"], len(batch["tree"]))


def objective(log_prob_S: jax.Array, batch: Batch, pairs: int, cfg: Objective):
  """(loss, metrics) of segment sums; `batch["reference"]` holds the reference's sums."""
  steps = Steps(log_prob_S, batch["reference"], batch["segment_tokens"], batch["weight"])
  if cfg.loss in STEP_LOSSES:
    return STEP_LOSSES[cfg.loss](steps, batch, pairs, cfg)
  return PAIR_LOSSES[cfg.loss](whole_responses(steps, batch["tree"], batch["side"], pairs), cfg.preference)


def whole_responses(steps: Steps, tree_S: jax.Array, side_S: jax.Array, pairs: int) -> Pairs:
  """Steps summed to the two responses of each pair; shared steps cancel in every margin and are left out."""
  def of(values_S, side):
    return jax.ops.segment_sum(jnp.where(side_S == side, values_S, 0.0), tree_S, num_segments=pairs)

  tokens = of(steps.tokens, 1), of(steps.tokens, -1)
  return Pairs(of(steps.log_prob, 1), of(steps.log_prob, -1), of(steps.reference, 1), of(steps.reference, -1), *tokens,
               ((tokens[0] > 0) & (tokens[1] > 0)).astype(jnp.float32))


def _step_dpo(steps, batch, pairs, cfg):
  anchor_S = batch["side"] > 0 if cfg.preference.nll else None
  return stepwise.step_dpo(steps, batch["tree"], batch["side"], pairs, cfg.preference, anchor_S=anchor_S)


PAIR_LOSSES = {"dpo": preference.dpo, "ipo": preference.ipo, "dpop": preference.dpop, "rpo": preference.rpo, "kto": preference.kto,
               "simpo": preference.simpo, "orpo": preference.orpo}
STEP_LOSSES = {
  "step_dpo": _step_dpo,
  "awr": lambda steps, batch, pairs, cfg: stepwise.advantage_weighted(steps, batch["advantage"], cfg.advantage),
  "filtered_sft": lambda steps, batch, pairs, cfg: stepwise.filtered(steps, batch["advantage"], cfg.advantage),
}
