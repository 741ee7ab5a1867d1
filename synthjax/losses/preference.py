"""Preference losses: pure functions of log-prob sums of whole responses.

Each takes `Pairs` and its config and returns (loss, metrics); the loss is the weighted mean over
pairs, in float32. Each docstring gives the formula, its source, and where TRL 1.16 differs by
default; tests/losses/test_trl.py compares loss and gradient with TRL's own code.

In the formulas r_w and r_l are the log-ratios log pi(y|x) - log pi_ref(y|x) of the chosen and the
rejected response, sums over their tokens, h = r_w - r_l, and |y| is a response's number of tokens.

Shapes: P pairs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from synthjax.config.schema import Preference


class Pairs(NamedTuple):
  """Log-prob sums of both responses under the policy and the reference, float32 [P]."""

  chosen: jax.Array
  rejected: jax.Array
  reference_chosen: jax.Array
  reference_rejected: jax.Array
  chosen_tokens: jax.Array  # number of tokens in the sums
  rejected_tokens: jax.Array
  weights: jax.Array  # of the pairs; 0 for padding
  # KTO: responses to other problems after this pair's prefix. None where the caller has none.
  mismatched_ratio: jax.Array | None = None  # sum of their log-ratios
  mismatched: jax.Array | None = None  # their number
  # ORPO with `orpo_prompt`: the prefix but its first token. None where it is not predicted.
  prompt: jax.Array | None = None  # log-prob sum
  prompt_tokens: jax.Array | None = None


Result = tuple[jax.Array, dict[str, jax.Array]]


def dpo(pairs: Pairs, cfg: Preference) -> Result:
  """-(1 - s) log sigma(beta h) - s log sigma(-beta h), s = `label_smoothing`.

  Source: Rafailov et al. 2023, eq. 7; s > 0 is cDPO (Mitchell 2023), which assumes that a label is
  flipped with probability s. TRL: loss type `sigmoid`, the same for s = 0; it has no s there, and
  its `robust` is another loss (Chowdhury et al. 2024), which debiases instead of smoothing.
  """
  margin = cfg.beta * _margin(pairs)
  return _finish(pairs, logistic(margin, cfg.label_smoothing), margin)


def ipo(pairs: Pairs, cfg: Preference) -> Result:
  """(h - 1 / (2 beta))^2; beta is the paper's tau.

  Source: Azar et al. 2023, eq. 17, where h is a sum over tokens: `ipo_length_normalised=False`. By
  default h = r_w / |y_w| - r_l / |y_l|, a mean over tokens, as in TRL's `ipo`, which reports that
  the paper's authors confirmed it. The two differ in scale by the length of a response, so beta
  does not carry over from one to the other.
  """
  if cfg.ipo_length_normalised:
    chosen = _ratio(pairs.chosen, pairs.reference_chosen) / _count(pairs.chosen_tokens)
    rejected = _ratio(pairs.rejected, pairs.reference_rejected) / _count(pairs.rejected_tokens)
    margin = chosen - rejected
  else:
    margin = _margin(pairs)
  return _finish(pairs, jnp.square(margin - 1 / (2 * cfg.beta)), cfg.beta * margin)


def dpop(pairs: Pairs, cfg: Preference) -> Result:
  """-log sigma(beta (h - lambda max(0, -r_w))), lambda = `dpop`: no fall of the chosen log-prob.

  Source: Pal et al. 2024, eq. 3. TRL has no such loss. `label_smoothing` acts as in `dpo` (our
  choice).
  """
  fall = jnp.maximum(0.0, pairs.reference_chosen - pairs.chosen)
  margin = cfg.beta * (_margin(pairs) - cfg.dpop * fall)
  return _finish(pairs, logistic(margin, cfg.label_smoothing), margin)


def rpo(pairs: Pairs, cfg: Preference) -> Result:
  """-log sigma(beta h) - alpha log pi(y_w|x) / |y_w|, alpha = `rpo_alpha`.

  Source: Pang et al. 2024, eq. 1, with alpha = 1 as there. TRL: loss types `sigmoid` and `sft` with
  weights 1 and alpha; its `sft` is the mean over all chosen tokens of a batch, which is
  `nll_mean="tokens"` here. `label_smoothing` acts as in `dpo`.
  """
  margin = cfg.beta * _margin(pairs)
  preference = _mean(pairs, logistic(margin, cfg.label_smoothing))
  return _result(pairs, preference + cfg.rpo_alpha * _chosen_nll(pairs, cfg), margin)


def kto(pairs: Pairs, cfg: Preference) -> Result:
  """Mean over both sides of lambda_D sigma(beta (z - r_w)) and lambda_U sigma(beta (r_l - z)).

  Source: Ethayarajh et al. 2024, eq. 7 (in its first version eq. 8): lambda - value, a mean over
  examples; a pair is a desirable and an undesirable example. The reference point z estimates
  KL(policy | reference), is at least 0 and carries no gradient; `kto_reference` says how:

  - "mismatched" (the paper, and TRL's `kto`): the batch's mean log-ratio of responses to other
    problems after this pair's prefix. They are branches of the pair's tree, both responses of the
    file's next pair of another problem (data/pair_trees.py). TRL rotates responses by one within a
    batch, in the order of its file.
  - "matched": the batch's mean log-ratio of the pairs' own responses. No further tokens to compute;
    biased, since chosen responses are what the policy is trained towards (our choice).
  - "zero": z = 0, TRL's `apo_zero_unpaired` (D'Oosterlinck et al. 2024, eq. 7).

  Raises:
    ValueError: "mismatched", and `pairs` has no mismatched responses.
  """
  chosen = _ratio(pairs.chosen, pairs.reference_chosen)
  rejected = _ratio(pairs.rejected, pairs.reference_rejected)
  point = _reference_point(pairs, (chosen + rejected) / 2, cfg)
  desirable = cfg.kto_desirable * jax.nn.sigmoid(cfg.beta * (point - chosen))
  undesirable = cfg.kto_undesirable * jax.nn.sigmoid(cfg.beta * (rejected - point))
  losses = (desirable + undesirable) / 2
  loss, logged = _finish(pairs, losses, cfg.beta * (chosen - rejected))
  return loss, {**logged, "reference_point": point}


def simpo(pairs: Pairs, cfg: Preference) -> Result:
  """-log sigma(beta (log pi(y_w|x) / |y_w| - log pi(y_l|x) / |y_l|) - gamma): no reference.

  Source: Meng et al. 2024, eq. 6; beta = `simpo_beta`, gamma = `simpo_margin`, whose defaults are
  the paper's for Llama-3-Base. TRL: CPOTrainer with loss type `simpo` and `cpo_alpha=0`; its
  defaults are beta 0.1, gamma 0.5 and an NLL of weight `cpo_alpha=1`. `label_smoothing` as there.
  """
  chosen, rejected = _per_token(pairs)
  margin = cfg.simpo_beta * (chosen - rejected) - cfg.simpo_margin
  return _finish(pairs, logistic(margin, cfg.label_smoothing), margin)


def orpo(pairs: Pairs, cfg: Preference) -> Result:
  """NLL(y_w) - lambda log sigma(log odds(y_w) - log odds(y_l)): no reference.

  odds = P / (1 - P) with log P = log pi(y|x) / |y|; lambda = `orpo_lambda`. Source: Hong et al.
  2024, eq. 3, 4, 6 and 7. The NLL is that of the chosen response, a mean over responses of a mean
  over tokens. TRL's ORPOTrainer takes the mean over all tokens of a batch and counts those of the
  prompt as well, which is `nll_mean="tokens"` and `orpo_prompt=True` here.

  Raises:
    ValueError: `orpo_prompt`, and `pairs` has no log-probs of prompts.
  """
  chosen, rejected = _per_token(pairs)
  log_odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
  preference = -cfg.orpo_lambda * _mean(pairs, jax.nn.log_sigmoid(log_odds))
  learned = pairs
  if cfg.orpo_prompt:
    learned = _with_prompt(pairs)
  return _result(pairs, _chosen_nll(learned, cfg) + preference, log_odds)


def logistic(margin: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
  """-(1 - s) log sigma(margin) - s log sigma(-margin)."""
  correct = jax.nn.log_sigmoid(margin)
  flipped = jax.nn.log_sigmoid(-margin)
  return -(1 - label_smoothing) * correct - label_smoothing * flipped


def _ratio(policy, reference) -> jax.Array:
  return policy.astype(jnp.float32) - reference.astype(jnp.float32)


def _margin(pairs: Pairs) -> jax.Array:
  chosen = _ratio(pairs.chosen, pairs.reference_chosen)
  return chosen - _ratio(pairs.rejected, pairs.reference_rejected)


def _count(tokens) -> jax.Array:
  # Padding has no tokens: dividing by 1 keeps its gradient finite.
  return jnp.maximum(tokens, 1).astype(jnp.float32)


def _per_token(pairs: Pairs) -> tuple[jax.Array, jax.Array]:
  """Log-probs per token of the chosen and the rejected responses, [P] each."""
  chosen = pairs.chosen / _count(pairs.chosen_tokens)
  return chosen, pairs.rejected / _count(pairs.rejected_tokens)


def _chosen_nll(pairs: Pairs, cfg: Preference) -> jax.Array:
  if cfg.nll_mean == "tokens":
    return -_sum_per_token(pairs, pairs.chosen, pairs.chosen_tokens)
  return -_mean(pairs, pairs.chosen / _count(pairs.chosen_tokens))


def _with_prompt(pairs: Pairs) -> Pairs:
  """The pairs with the prompt's tokens as the first ones of the chosen responses."""
  if pairs.prompt is None or pairs.prompt_tokens is None:
    raise ValueError(
      "orpo_prompt=True, but these pairs have no log-probs of their prompts; lay the "
      "prompts out as predicted, or use orpo_prompt=False"
    )
  return pairs._replace(
    chosen=pairs.chosen + pairs.prompt, chosen_tokens=pairs.chosen_tokens + pairs.prompt_tokens
  )


def _reference_point(pairs: Pairs, matched_P: jax.Array, cfg: Preference) -> jax.Array:
  if cfg.kto_reference == "zero":
    return jnp.float32(0.0)
  if cfg.kto_reference == "matched":
    mean = _mean(pairs, matched_P)
  elif pairs.mismatched_ratio is None or pairs.mismatched is None:
    raise ValueError(
      "kto_reference='mismatched', but these pairs have no mismatched responses; "
      "lay them out as branches of the pairs' trees, or use kto_reference='matched'"
    )
  else:
    mean = jnp.sum(pairs.mismatched_ratio) / jnp.maximum(jnp.sum(pairs.mismatched), 1.0)
  # The paper's z: clipped at 0, since a KL divergence is not negative, and without a gradient.
  return jax.lax.stop_gradient(jnp.maximum(0.0, mean))


def _log1mexp(log_prob: jax.Array) -> jax.Array:
  """log(1 - exp(x)) for x < 0, exact near 0 and far below it (Maechler 2012)."""
  # At 0, a response of probability 1, the logarithm would be minus infinity.
  x = jnp.minimum(log_prob, -1e-6)
  near = x > -0.6931472  # -log 2, where both forms lose equally few digits
  # Each branch is given a harmless value where the other is taken, so that its gradient is finite.
  of_near = jnp.log(-jnp.expm1(jnp.where(near, x, -1.0)))
  of_far = jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x)))
  return jnp.where(near, of_near, of_far)


def _mean(pairs: Pairs, values: jax.Array) -> jax.Array:
  return jnp.sum(values * pairs.weights) / jnp.maximum(jnp.sum(pairs.weights), 1e-9)


def _sum_per_token(pairs: Pairs, sums: jax.Array, tokens: jax.Array) -> jax.Array:
  """Sum over the batch's pairs divided by the number of their tokens."""
  return jnp.sum(sums * pairs.weights) / jnp.maximum(jnp.sum(tokens * pairs.weights), 1.0)


def _finish(pairs: Pairs, losses: jax.Array, margin: jax.Array) -> Result:
  return _result(pairs, _mean(pairs, losses), margin)


def _result(pairs: Pairs, loss: jax.Array, margin: jax.Array) -> Result:
  return loss, {"loss": loss, **metrics(pairs, margin)}


def metrics(pairs: Pairs, margin: jax.Array) -> dict[str, jax.Array]:
  """What is logged beside a loss.

  `margin` and `accuracy` are those of the implicit reward. `*_log_prob` are log-probs per token of
  both sides and `*_drift` their distance from the reference, the early sign of over-optimisation.
  `kl` estimates KL(reference | policy) per token, as far as these responses are the reference's own
  samples. `kept` is the share of the batch's pairs that count in the loss.
  """
  chosen_ratio = _ratio(pairs.chosen, pairs.reference_chosen)
  rejected_ratio = _ratio(pairs.rejected, pairs.reference_rejected)
  tokens = pairs.chosen_tokens + pairs.rejected_tokens
  return {
    "margin": _mean(pairs, margin),
    "accuracy": _mean(pairs, (margin > 0).astype(jnp.float32)),
    "chosen_log_prob": _sum_per_token(pairs, pairs.chosen, pairs.chosen_tokens),
    "rejected_log_prob": _sum_per_token(pairs, pairs.rejected, pairs.rejected_tokens),
    "chosen_drift": _sum_per_token(pairs, chosen_ratio, pairs.chosen_tokens),
    "rejected_drift": _sum_per_token(pairs, rejected_ratio, pairs.rejected_tokens),
    "kl": -_sum_per_token(pairs, chosen_ratio + rejected_ratio, tokens),
    "kept": jnp.sum(pairs.weights > 0) / jnp.maximum(jnp.sum(tokens > 0), 1),
  }
