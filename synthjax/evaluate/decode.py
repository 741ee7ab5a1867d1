"""Decoding with the KV cache, for evaluation: greedy or at a temperature.

Shapes: B prompts decoded together, T prompt tokens (padded), S cached positions, N new tokens, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from synthjax import progress
from synthjax.data.tokenizers import Tokenizer
from synthjax.model.transformer import Params, Transformer

_BUCKET = 64  # prompt lengths are padded to multiples of this: few compilations


@dataclasses.dataclass(frozen=True)
class Decoding:
  """How responses are drawn. A response depends on its prompt, its number, the temperature and the seed, not on its neighbours."""

  max_new_tokens: int
  temperature: float = 0.0  # 0: greedy
  seed: int = 0
  batch_size: int = 128


def decode(model: Transformer, params: Params, prompts: Sequence[Sequence[int]], tokenizer: Tokenizer,
           how: Decoding) -> list[tuple[list[int], bool]]:
  """(generated ids without end-of-text, whether it ended by itself) for every prompt, in order.

  Prompts of similar length are decoded together.

  Raises:
    ValueError: a prompt is empty.
  """
  for number, prompt in enumerate(prompts):
    if not prompt:
      raise ValueError(f"prompt {number} is empty; a prompt has at least one token")
  results: list[tuple[list[int], bool]] = [([], False)] * len(prompts)
  run: Any = _compiled(model, tokenizer, how)  # type: ignore[arg-type]
  order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
  eos_id = tokenizer.eos_id
  for batch in _batches(order, how.batch_size):
    width = -(-max(len(prompts[i]) for i in batch) // _BUCKET) * _BUCKET
    tokens_BT = np.zeros((how.batch_size, width), np.int32)
    lengths_B, number_B = np.ones(how.batch_size, np.int32), np.zeros(how.batch_size, np.int32)
    for row, i in enumerate(batch):
      tokens_BT[row, :len(prompts[i])] = prompts[i]
      lengths_B[row], number_B[row] = len(prompts[i]), i
    active_B = np.arange(how.batch_size) < len(batch)
    found_BN = np.asarray(run(params, tokens_BT, lengths_B, number_B, active_B))
    for row, i in enumerate(batch):
      ids = found_BN[row].tolist()
      end = ids.index(eos_id) if eos_id in ids else len(ids)
      results[i] = (ids[:end], end < len(ids))
  return results


@functools.lru_cache(8)
def _compiled(model: Transformer, tokenizer: Any, how: Decoding):
  """One compilation for all checkpoints of a run that are evaluated one after the other."""
  return jax.jit(functools.partial(_generate, model, how=how, tokenizer=tokenizer))


def _batches(order: list[int], size: int) -> Iterator[list[int]]:
  with progress.bar("decode", len(order), "responses") as advance:
    for k in range(0, len(order), size):
      yield order[k:k + size]
      advance(len(order[k:k + size]))


def _generate(model: Transformer, params: Params, tokens_BT, lengths_B, number_B, active_B, how: Decoding, tokenizer: Tokenizer):
  """New tokens [B, N]; after end-of-text a row repeats it. Stops when all rows have ended."""
  B, T = tokens_BT.shape
  eos_id = tokenizer.eos_id
  key_B = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(how.seed)))(number_B)

  def pick(hidden_BD, n):
    # The vocabulary is rounded up; the ids beyond the tokenizer's mean nothing.
    logits_BV = model.logits(params, hidden_BD)[:, :tokenizer.size]
    if how.temperature > 0:
      noise = lambda key: jax.random.gumbel(jax.random.fold_in(key, n), (tokenizer.size,))
      logits_BV = logits_BV / how.temperature + jax.vmap(noise)(key_B)
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)

  hidden_BTD, cache = model.prefill(params, tokens_BT, lengths_B, T + how.max_new_tokens)
  last_BD = hidden_BTD[jnp.arange(B), lengths_B - 1]
  first_B = jnp.where(active_B, pick(last_BD, 0), eos_id)

  def unfinished(carry):
    n, token_B, _, _ = carry
    return (n < how.max_new_tokens) & jnp.any(token_B != eos_id)

  def one(carry):
    n, token_B, found_BN, cache = carry
    hidden_BD, cache = model.decode(params, token_B, lengths_B + n - 1, cache, T + n - 1)
    next_B = jnp.where(token_B == eos_id, eos_id, pick(hidden_BD, n))
    return n + 1, next_B, found_BN.at[:, n].set(next_B), cache

  found_BN = jnp.full((B, how.max_new_tokens), eos_id, jnp.int32).at[:, 0].set(first_B)
  return jax.lax.while_loop(unfinished, one, (jnp.ones((), jnp.int32), first_B, found_BN, cache))[2]
