"""`synthjax bench logprob`: the blocked head beside log_softmax over whole logits, forward and
backward; JSON.

Shapes: N positions, B sequences, T tokens, D model, V vocabulary.
"""

import json
from typing import Any

import jax
import jax.numpy as jnp

from synthjax.bench import beside
from synthjax.kernels.linear_logprob import linear_logprob, segment_sums

_N, _D = 4096, 512
_VOCABULARIES = (32_768, 131_072)
# Of the DPO head: pairs, tokens of a sequence, those of its response.
_PAIRS, _LENGTH, _RESPONSE = 8, 256, 76


def run(seconds: float) -> None:
  """Prints seconds, temporary memory by the compiler's own analysis, and ratios.

  First the head alone for two vocabularies, then DPO's head.
  """
  results = [_compare(vocabulary, seconds / 3) for vocabulary in _VOCABULARIES]
  results.append(_compare_dpo_head(seconds / 3))
  print(json.dumps(results, indent=2))


def _compare(vocabulary: int, seconds: float) -> dict[str, Any]:
  keys = jax.random.split(jax.random.key(0), 3)
  hidden_ND = jax.random.normal(keys[0], (_N, _D))
  head_DV = jax.random.normal(keys[1], (_D, vocabulary)) * _D**-0.5
  targets_N = jax.random.randint(keys[2], (_N,), 0, vocabulary)

  def naive(hidden_ND, head_DV):
    log_prob_NV = jax.nn.log_softmax(hidden_ND @ head_DV, axis=-1)
    return -jnp.take_along_axis(log_prob_NV, targets_N[:, None], axis=1)[:, 0].mean()

  def blocked(hidden_ND, head_DV):
    return -linear_logprob(hidden_ND, head_DV, targets_N).log_prob.mean()

  losses = {"naive": naive, "blocked": blocked}
  return {
    "rows": _N,
    "d_model": _D,
    "vocabulary": vocabulary,
    "peer": f"log_softmax of whole logits, jax {jax.__version__}",
    **beside.gradients(losses, (hidden_ND, head_DV), seconds),
  }


def _compare_dpo_head(seconds: float, vocabulary: int = 32_768) -> dict[str, Any]:
  """DPO from hidden states.

  The peer computes whole logits at every position, for the reference too. Ours takes the positions
  of responses alone, with cached sums of the reference.
  """
  B = 2 * _PAIRS
  keys = jax.random.split(jax.random.key(1), 4)
  hidden_BTD = jax.random.normal(keys[0], (B, _LENGTH, _D))
  head_DV = jax.random.normal(keys[1], (_D, vocabulary)) * _D**-0.5
  reference_DV = head_DV + 0.01 * jax.random.normal(keys[2], head_DV.shape)
  targets_BT = jax.random.randint(keys[3], (B, _LENGTH), 0, vocabulary)
  mask_BT = jnp.broadcast_to(jnp.arange(_LENGTH) >= _LENGTH - _RESPONSE, targets_BT.shape)
  position_N = jnp.flatnonzero(mask_BT.ravel(), size=B * _RESPONSE)
  segment_N = position_N // _LENGTH

  def response_sums(hidden_BTD, head_DV):
    log_prob_BTV = jax.nn.log_softmax(hidden_BTD @ head_DV, axis=-1)
    log_prob_BT = jnp.take_along_axis(log_prob_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return (log_prob_BT * mask_BT).sum(axis=1)

  def dpo(policy_B, reference_B):
    ratio_B = policy_B - reference_B
    return -jax.nn.log_sigmoid(0.1 * (ratio_B[:_PAIRS] - ratio_B[_PAIRS:])).mean()

  cached_B = jax.jit(response_sums)(hidden_BTD, reference_DV)

  def naive(hidden_BTD, head_DV):
    policy_B = response_sums(hidden_BTD, head_DV)
    reference_B = jax.lax.stop_gradient(response_sums(hidden_BTD, reference_DV))
    return dpo(policy_B, reference_B)

  def blocked(hidden_BTD, head_DV):
    hidden_ND = hidden_BTD.reshape(-1, _D)[position_N]
    scored = linear_logprob(hidden_ND, head_DV, targets_BT.ravel()[position_N])
    return dpo(segment_sums(scored.log_prob, segment_N, B), cached_B)

  losses = {"naive": naive, "blocked": blocked}
  return {
    "pairs": _PAIRS,
    "tokens": _LENGTH,
    "response": _RESPONSE,
    "vocabulary": vocabulary,
    "peer": (
      f"DPO over whole logits of all positions with the reference recomputed, jax {jax.__version__}"
    ),
    **beside.gradients(losses, (hidden_BTD, head_DV), seconds),
  }
