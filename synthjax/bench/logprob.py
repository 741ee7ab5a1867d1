"""`synthjax bench logprob`: the blocked head beside log_softmax over whole logits, forward and backward; JSON."""

import json
from typing import Any

import jax
import jax.numpy as jnp

from synthjax.bench import beside
from synthjax.kernels.linear_logprob import linear_logprob, segment_sums

_N, _D = 4096, 512


def run(seconds: float) -> None:
  """Prints seconds, temporary memory by the compiler's own analysis, and ratios: the head alone for two vocabularies, and DPO's head."""
  print(
    json.dumps(
      [
        *(_compare(vocabulary, seconds / 3) for vocabulary in (32_768, 131_072)),
        _dpo_head(seconds / 3),
      ],
      indent=2,
    )
  )


def _naive(hidden_ND, head_DV, targets_N):
  log_prob_NV = jax.nn.log_softmax(hidden_ND @ head_DV, axis=-1)
  return jnp.take_along_axis(log_prob_NV, targets_N[:, None], axis=1)[:, 0]


def _compare(vocabulary: int, seconds: float) -> dict[str, Any]:
  keys = jax.random.split(jax.random.key(0), 3)
  hidden_ND, head_DV = (
    jax.random.normal(keys[0], (_N, _D)),
    jax.random.normal(keys[1], (_D, vocabulary)) * _D**-0.5,
  )
  targets_N = jax.random.randint(keys[2], (_N,), 0, vocabulary)
  ways = {"naive": _naive, "blocked": lambda *arguments: linear_logprob(*arguments).log_prob}
  losses = {name: lambda h, w, way=way: -way(h, w, targets_N).mean() for name, way in ways.items()}
  return {
    "rows": _N,
    "d_model": _D,
    "vocabulary": vocabulary,
    "peer": f"log_softmax of whole logits, jax {jax.__version__}",
    **beside.gradients(losses, (hidden_ND, head_DV), seconds),
  }


def _dpo_head(
  seconds: float, pairs: int = 8, length: int = 256, response: int = 76, vocabulary: int = 32_768
) -> dict[str, Any]:
  """DPO from hidden states: whole logits of every place, the reference's too, against the response's places with cached reference sums."""
  keys = jax.random.split(jax.random.key(1), 4)
  hidden_BTD = jax.random.normal(keys[0], (2 * pairs, length, _D))
  head_DV = jax.random.normal(keys[1], (_D, vocabulary)) * _D**-0.5
  reference_DV = head_DV + 0.01 * jax.random.normal(keys[2], head_DV.shape)
  targets_BT = jax.random.randint(keys[3], (2 * pairs, length), 0, vocabulary)
  mask_BT = jnp.arange(length) >= length - response
  rows_N = jnp.flatnonzero(
    jnp.broadcast_to(mask_BT, targets_BT.shape).ravel(), size=2 * pairs * response
  )
  segment_N = rows_N // length

  def sums_of_all(hidden_BTD, head_DV):
    log_prob_BTV = jax.nn.log_softmax(hidden_BTD @ head_DV, axis=-1)
    return (
      jnp.take_along_axis(log_prob_BTV, targets_BT[..., None], axis=-1)[..., 0] * mask_BT
    ).sum(axis=1)

  def dpo(policy_B, reference_B):
    ratio_B = policy_B - reference_B
    return -jax.nn.log_sigmoid(0.1 * (ratio_B[:pairs] - ratio_B[pairs:])).mean()

  cached_B = jax.jit(sums_of_all)(hidden_BTD, reference_DV)

  def blocked(hidden_BTD, head_DV):
    found = linear_logprob(hidden_BTD.reshape(-1, _D)[rows_N], head_DV, targets_BT.ravel()[rows_N])
    return dpo(segment_sums(found.log_prob, segment_N, 2 * pairs), cached_B)

  losses = {
    "naive": lambda h, w: dpo(
      sums_of_all(h, w), jax.lax.stop_gradient(sums_of_all(h, reference_DV))
    ),
    "blocked": blocked,
  }
  return {
    "pairs": pairs,
    "tokens": length,
    "response": response,
    "vocabulary": vocabulary,
    "peer": f"DPO over whole logits of all places with the reference recomputed, jax {jax.__version__}",
    **beside.gradients(losses, (hidden_BTD, head_DV), seconds),
  }
