"""Tunix's sampler on the shapes of `bench sample`: a Llama of the same size with fresh weights, and
prompts of bare ids.

Imported only where google-tunix is installed. It has requirements of its own, so it needs an
environment of its own.
"""

from collections.abc import Callable, Iterable
from typing import Any

from flax import nnx
from tunix.generate import sampler
from tunix.models.llama3 import model as llama

from synthjax.config.schema import Model


class _TunixIds:
  """A tokenizer of bare ids, with the methods that Tunix looks for.

  Nothing ends a sample but its length.
  """

  def encode(self, text: str, **_: Any) -> list[int]:
    return [int(i) for i in text.split()]

  def decode(self, ids: Iterable[int], **_: Any) -> str:
    return " ".join(str(int(i)) for i in ids)

  def bos_id(self) -> int:
    return 1

  def eos_id(self) -> int:
    return -1

  def pad_id(self) -> int:
    return 0


def generate(cfg: Model, prompt: list[int], samples: int, new: int) -> Callable[[], None]:
  """A function that draws `new` tokens for `samples` copies of the prompt, all in one call."""
  config = llama.ModelConfig(
    num_layers=cfg.layers,
    vocab_size=cfg.vocab_size,
    embed_dim=cfg.d_model,
    hidden_dim=cfg.mlp_dim,
    num_heads=cfg.heads,
    head_dim=cfg.head_dim,
    num_kv_heads=cfg.kv_heads,
    rope_theta=int(cfg.rope_theta),
    norm_eps=cfg.norm_epsilon,
    weight_tying=True,
  )
  cache = sampler.CacheConfig(
    cache_size=len(prompt) + new + 1,
    num_layers=cfg.layers,
    num_kv_heads=cfg.kv_heads,
    head_dim=cfg.head_dim,
  )
  model = llama.Llama3(config, rngs=nnx.Rngs(0))
  theirs = sampler.Sampler(model, _TunixIds(), cache)
  # Tunix puts its begin-of-text before the prompt, which then has the length it should have.
  text = [" ".join(map(str, prompt[1:]))] * samples

  def run() -> None:
    theirs(
      text,
      max_generation_steps=new,
      max_prompt_length=1 << (len(prompt) - 1).bit_length(),
      temperature=1.0,
      top_p=1.0,
      seed=0,
    )

  return run
