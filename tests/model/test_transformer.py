"""The decoder: packing, decoding with a cache, attention against oracles, sizes of the presets.

Shapes: B batch, T tokens, H query heads, G key/value heads, K head dim.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synthjax import config, files
from synthjax.config.presets import PRESETS
from synthjax.config.schema import Model
from synthjax.kernels.interval_attention import check_until, interval_attention
from synthjax.model import count
from synthjax.model.decode import Seen, decode_step, empty_cache, prefill, unstack_layers
from synthjax.model.transformer import Transformer, sized
from synthjax.train import plan

TINY = Model(
  d_model=32,
  layers=2,
  heads=4,
  kv_heads=2,
  head_dim=8,
  mlp_dim=48,
  vocab_size=64,
  rope_theta=100.0,
)
CAPPED_AND_SCALED = dataclasses.replace(
  TINY,
  logit_soft_cap=5.0,
  rope_scaling="llama3",
  rope_factor=4.0,
  rope_original_context=64,
)
VARIANTS = {
  "swiglu": TINY,
  "tied relu": dataclasses.replace(TINY, mlp="relu", tie_embeddings=True),
  "qwen": dataclasses.replace(TINY, qkv_bias=True, qk_norm=True, mlp="relu2"),
  "capped, scaled": CAPPED_AND_SCALED,
  "recomputed": dataclasses.replace(TINY, remat="full"),
  "windowed, capped scores": dataclasses.replace(TINY, window=3, attention_soft_cap=0.5),
}


def _packed(lengths, total):
  """(until, positions) of documents one after the other, [1, total]; padding sees itself."""
  until = np.arange(1, total + 1)
  positions = np.zeros(total, int)
  start = 0
  for length in lengths:
    end = start + length
    until[start:end] = end
    positions[start:end] = np.arange(length)
    start = end
  return jnp.asarray(until[None], jnp.int32), jnp.asarray(positions[None], jnp.int32)


def _logits(model, params, tokens, lengths):
  """Logits of the training pass over documents of these lengths, one after the other."""
  until, positions = _packed(lengths, tokens.shape[1])
  return model.logits(params, model.hidden(params, tokens, positions, until))


@pytest.mark.parametrize("name", VARIANTS)
def test_packed_documents_give_the_log_probs_of_the_documents_apart(name):
  model = Transformer(VARIANTS[name])
  params = model.init(jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(1), (1, 16), 0, 64)
  packed = _logits(model, params, tokens, [5, 8])
  for start, end in ((0, 5), (5, 13)):
    alone = _logits(model, params, tokens[:, start:end], [end - start])
    np.testing.assert_allclose(packed[:, start:end], alone, atol=2e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_decoding_after_a_shared_prefix_gives_the_logits_of_training(name):
  """Two blocks of three sequences: each sees 4 or 6 of the 6 shared positions, then its own."""
  model = Transformer(VARIANTS[name])
  params = model.init(jax.random.key(0))
  unstacked = unstack_layers(model, params)
  own = 5
  prefix = jax.random.randint(jax.random.key(1), (2, 6), 0, 64)
  after = jax.random.randint(jax.random.key(2), (2, 3, own), 0, 64)
  known = jnp.array([[4, 6, 6], [6, 4, 4]])
  cache = _filled_cache(model, unstacked, prefix, own)
  # Token by token, against a training pass over what the token has before it.
  for number in range(own):
    seen = _seen(known, number, own, model.cfg.window or 100)
    token = after[..., number]
    hidden, cache = decode_step(
      model, unstacked, token, known + number, cache, seen, jnp.int32(number)
    )
    for block, sequence in np.ndindex(2, 3):
      shared = prefix[block, : known[block, sequence]]
      whole = jnp.concatenate([shared, after[block, sequence, : number + 1]])[None]
      expected = _logits(model, params, whole, [whole.shape[1]])[0, -1]
      found = model.logits(params, hidden[block, sequence])
      np.testing.assert_allclose(found, expected, atol=2e-5)


def _filled_cache(model, unstacked, prefix, own):
  """A cache of two blocks of three sequences, which holds the keys and values of `prefix`."""
  until, positions = _packed([6], 6)
  both_positions = jnp.repeat(positions, 2, 0)
  both_until = jnp.repeat(until, 2, 0)
  _, kept = prefill(model, unstacked, prefix, both_positions, both_until)
  layers = []
  for layer, (keys, values) in zip(empty_cache(model, 2, 3, 6, own), kept):
    layers.append(layer._replace(shared_k_BGWK=keys, shared_v_BGWK=values))
  return tuple(layers)


def _seen(known, number, own, window):
  """What the tokens see that come after `number` tokens of their own."""
  now = (known + number)[..., None]
  shared = jnp.arange(6)[None, None]
  own_age = number - jnp.arange(own)
  seen_shared = (shared < known[..., None]) & (now - shared < window)
  seen_own = (own_age > 0) & (own_age < window)
  return Seen(seen_shared, jnp.broadcast_to(seen_own, (2, 3, own)))


def _attention_oracle(q, k, v, sees, cap=None):
  """Attention in float64, a query at a time.

  Args:
    q: [B, T, H, K].
    k: [B, T, G, K].
    v: as `k`.
    sees: sees(b, i, j): whether query i of sequence b sees key j.
    cap: of the scores.
  """
  queries_per_group = q.shape[2] // k.shape[2]
  expected = np.zeros(q.shape)
  for b, i, h in np.ndindex(q.shape[:3]):
    group = h // queries_per_group
    seen = [j for j in range(i + 1) if sees(b, i, j)]
    scores = k[b, seen, group] @ q[b, i, h] / np.sqrt(q.shape[-1])
    if cap:
      scores = cap * np.tanh(scores / cap)
    weights = np.exp(scores - scores.max())
    expected[b, i, h] = (weights / weights.sum()) @ v[b, seen, group]
  return expected


def _random(random, *shapes):
  return [random.normal(size=shape) for shape in shapes]


def _float32(*arrays):
  return [jnp.asarray(array, jnp.float32) for array in arrays]


def test_interval_attention_equals_a_float64_oracle():
  B, T = 2, 9
  H, G, K = 4, 2, 8
  random = np.random.default_rng(0)
  q, k, v = _random(random, (B, T, H, K), (B, T, G, K), (B, T, G, K))
  # Every token is seen for one to four positions, itself included.
  until = np.minimum(np.arange(T) + random.integers(1, 5, (B, T)), T)

  def sees(b, i, j):
    return i < until[b, j]

  found = interval_attention(*_float32(q, k, v), jnp.asarray(until))
  np.testing.assert_allclose(found, _attention_oracle(q, k, v, sees), atol=1e-5)


def test_a_window_is_a_second_bound_on_the_same_rule_and_scores_are_capped():
  shape = (1, 80, 2, 8)
  window, cap = 4, 0.7
  q, k, v = _random(np.random.default_rng(0), shape, shape, shape)
  # Documents of 9 tokens: the window and the border between documents both hide keys.
  index = np.arange(80)
  until = np.minimum((index // 9 + 1) * 9, 80)[None]
  positions = (index % 9)[None]

  def sees(b, i, j):
    return i < until[b, j] and positions[b, i] - positions[b, j] < window

  arrays = _float32(q, k, v)
  found = interval_attention(*arrays, jnp.asarray(until), jnp.asarray(positions), window, cap)
  np.testing.assert_allclose(found, _attention_oracle(q, k, v, sees, cap), atol=1e-5)
  with pytest.raises(ValueError, match="a window of 4 needs positions_BT"):
    interval_attention(*arrays, jnp.asarray(until), window=window)


def test_until_that_is_not_beyond_its_index_is_named():
  with pytest.raises(ValueError, match=r"until\[1, 2\] is 2; expected more than its own index 2"):
    check_until(np.array([[1, 2, 3], [3, 3, 2]]))


@pytest.mark.parametrize(
  ("name", "millions"),
  [
    ("world_160k", 0.147),
    ("tiny_1m", 0.98),
    ("small_10m", 9.8),
    ("base_100m", 85),
  ],
)
def test_presets_have_the_size_that_they_are_named_for(name, millions):
  counts = count.parameters(Transformer(sized(PRESETS[name], 100)))
  assert counts["non_embedding"] / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize(
  ("name", "published"),
  [
    ("llama3_1b", 1_235_814_400),  # Llama-3.2-1B
    ("llama2_7b", 6_738_415_616),
    ("deepseek_7b", 6_910_365_696),  # DeepSeek-LLM-7B and DeepSeek-Math-7B
    ("qwen2_7b", 7_615_616_512),
    ("llama3_8b", 8_030_261_248),
    ("llama3_70b", 70_553_706_496),
  ],
)
def test_published_shapes_have_their_published_number_of_parameters(name, published):
  assert PRESETS[name].vocab_size
  assert count.parameters(Transformer(PRESETS[name]))["total"] == published


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused():
  with pytest.raises(ValueError, match="tokenizer has 200 ids"):
    sized(TINY, 200)


def test_the_7b_variant_of_the_gsm8k_config_plans_on_eight_devices_without_allocating():
  text = plan.describe(config.load("configs/gsm8k_sft.py", ["model=llama2_7b"]), simulated=True)
  assert text.startswith("6738.42M parameters")
  assert "of 32,000 ids" in text
  assert "computes in bfloat16" in text
  assert "'fsdp': 8" in text


def test_a_plan_counts_the_vocabulary_of_the_tokenizer_that_is_trained_in_the_run():
  small = ["model_overrides.layers=1", "model_overrides.d_model=64", "data.seq_len=32"]
  text = plan.describe(config.load("configs/gsm8k_sft.py", small))
  assert f"embedding and head: {2048 * 64:,} of 2,048 ids" in text
  assert "computes in float32" in text
  missing = ["data.tokenizer.kind=hf", "data.tokenizer.path=nowhere/tokenizer.json"]
  with pytest.raises(files.DataError, match="nowhere/tokenizer.json: no such tokenizer file"):
    plan.describe(config.load("configs/gsm8k_sft.py", [*small, *missing]))
