"""How far the engine's log-probs are from the trainer's, for the same tokens and parameters.

Shapes: B sequences, T tokens.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from synthjax.model.transformer import Params, Transformer
from synthjax.rollout.requests import Request, Result

_BATCH = 16  # sequences that are recomputed together


class Parity(NamedTuple):
  """Differences of log-probs."""

  tokens: int
  largest: float
  mean: float


class Bounds(NamedTuple):
  """What the differences stay below where engine and trainer compute the same."""

  dtype: str
  largest: float
  mean: float


def bounds(dtype: jax.typing.DTypeLike) -> Bounds:
  """The bounds for a type that the model computes in.

  float32: 1e-4, as another order of summation changes a log-prob by about 1e-5.

  bfloat16 has 8 significant bits, so a hidden state, and with it a logit z, is off by some 0.4 %
  of |z|, and the two paths round at different places: with logits of up to 30, single tokens
  differ by 0.1 to 0.2 (bound, our choice: 1), while the mean stays near 0.01 even where the policy
  is unsure (bound, our choice: 0.03). A wrong mask or position still shows: on the shipped base
  policy positions that are off by one give 14 at most and 0.07 on average. Subtler errors show in
  float32 (`--config.model_overrides.dtype=float32`).
  """
  name = jnp.dtype(dtype).name
  if name == "float32":
    return Bounds(name, largest=1e-4, mean=1e-4)
  return Bounds(name, largest=1.0, mean=0.03)


def measure(
  model: Transformer, params: Params, sampled: Iterable[tuple[Request, Result]], eos_id: int
) -> Parity:
  """Recomputes the log-probs of sampled tokens with the trainer's forward pass.

  Args:
    model: the engine's.
    params: the engine's, as the trainer has them.
    sampled: requests with `prompt_ids`, and their samples; no stop ids.
    eos_id: ends the samples that have one log-prob more than ids.
  """
  sequences = []
  for request, result in sampled:
    for sample in result.samples:
      ids = (*request.prompt_ids, *sample.ids, eos_id)
      length = len(request.prompt_ids) + len(sample.log_probs)
      sequences.append((ids[:length], sample.log_probs))
  T = -(-max(len(ids) for ids, _ in sequences) // 64) * 64

  @jax.jit
  def log_probs(params, tokens_BT):
    positions_BT = jnp.broadcast_to(jnp.arange(T), tokens_BT.shape)
    hidden_BTD = model.hidden(params, tokens_BT, positions_BT, jnp.full_like(tokens_BT, T))
    return model.log_prob(params, hidden_BTD[:, :-1], tokens_BT[:, 1:]).log_prob

  differences = []
  for start in range(0, len(sequences), _BATCH):
    batch = sequences[start : start + _BATCH]
    tokens_BT = np.zeros((_BATCH, T), np.int32)
    for row, (ids, _) in enumerate(batch):
      tokens_BT[row, : len(ids)] = ids
    trainer_BT = np.asarray(log_probs(params, tokens_BT))
    for row, (ids, engine) in enumerate(batch):
      last = len(ids) - 1  # the log-prob of a token stands at the position before it
      differences.append(np.abs(trainer_BT[row, last - len(engine) : last] - engine))
  joined = np.concatenate(differences)
  return Parity(tokens=len(joined), largest=float(joined.max()), mean=float(joined.mean()))
