"""Shapes: B batch, T tokens, H query heads, G key/value heads, K head dim."""

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
from synthjax.model.transformer import Seen, Transformer, sized

TINY = Model(
  d_model=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_dim=48, vocab_size=64, rope_theta=100.0
)
VARIANTS = {
  "swiglu": TINY,
  "tied relu": dataclasses.replace(TINY, mlp="relu", tie_embeddings=True),
  "qwen": dataclasses.replace(TINY, qkv_bias=True, qk_norm=True, mlp="relu2"),
  "capped, scaled": dataclasses.replace(
    TINY, logit_soft_cap=5.0, rope_scaling="llama3", rope_factor=4.0, rope_original_context=64
  ),
  "recomputed": dataclasses.replace(TINY, remat="full"),
  "windowed, capped scores": dataclasses.replace(TINY, window=3, attention_soft_cap=0.5),
}


def _packed(lengths, total):
  until, positions, start = np.arange(1, total + 1), np.zeros(total, int), 0
  for n in lengths:
    until[start : start + n], positions[start : start + n] = start + n, np.arange(n)
    start += n
  return jnp.asarray(until[None], jnp.int32), jnp.asarray(positions[None], jnp.int32)


@pytest.mark.parametrize("name", VARIANTS)
def test_packed_documents_give_the_log_probs_of_the_documents_apart(name):
  model = Transformer(VARIANTS[name])
  params = model.init(jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(1), (1, 16), 0, 64)
  until, positions = _packed([5, 8], 16)
  packed = model.logits(params, model.hidden(params, tokens, positions, until))
  for start, n in ((0, 5), (5, 8)):
    alone_until, alone_positions = _packed([n], n)
    alone = model.logits(
      params, model.hidden(params, tokens[:, start : start + n], alone_positions, alone_until)
    )
    np.testing.assert_allclose(packed[:, start : start + n], alone, atol=2e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_decoding_after_a_shared_prefix_gives_the_logits_of_training(name):
  """Two blocks of three sequences: a sequence sees 4 or 6 of the 6 shared positions, then its own."""
  model, own = Transformer(VARIANTS[name]), 5
  params = model.init(jax.random.key(0))
  prefix = jax.random.randint(jax.random.key(1), (2, 6), 0, 64)
  after = jax.random.randint(jax.random.key(2), (2, 3, own), 0, 64)
  until, positions = _packed([6], 6)
  unstacked = model.unstacked(params)
  _, kept = model.prefill(unstacked, prefix, jnp.repeat(positions, 2, 0), jnp.repeat(until, 2, 0))
  cache = model.empty_cache(2, 3, 6, own)
  cache = tuple(
    layer._replace(shared_k_BGWK=k, shared_v_BGWK=v) for layer, (k, v) in zip(cache, kept)
  )
  known = jnp.array([[4, 6, 6], [6, 4, 4]])
  window = model.cfg.window or 100
  for n in range(own):
    now = known + n
    places = jnp.arange(6)[None, None]
    seen = Seen(
      (places < known[..., None]) & (now[..., None] - places < window),
      jnp.broadcast_to((jnp.arange(own) < n) & (n - jnp.arange(own) < window), (2, 3, own)),
    )
    hidden, cache = model.decode(unstacked, after[..., n], now, cache, seen, jnp.int32(n))
    for b, s in np.ndindex(2, 3):
      row = jnp.concatenate([prefix[b, : known[b, s]], after[b, s, : n + 1]])[None]
      whole_until, whole_positions = _packed([row.shape[1]], row.shape[1])
      whole = model.logits(params, model.hidden(params, row, whole_positions, whole_until))[0, -1]
      np.testing.assert_allclose(model.logits(params, hidden[b, s]), whole, atol=2e-5)


def test_interval_attention_equals_a_float64_oracle():
  B, T, H, G, K = 2, 9, 4, 2, 8
  random = np.random.default_rng(0)
  q, k, v = (random.normal(size=(B, T, n, K)) for n in (H, G, G))
  until = np.minimum(np.arange(T) + random.integers(1, 5, (B, T)), T)
  expected = np.zeros((B, T, H, K))
  for b, i, h in np.ndindex(B, T, H):
    seen = [j for j in range(i + 1) if i < until[b, j]]
    scores = np.array([q[b, i, h] @ k[b, j, h // (H // G)] / np.sqrt(K) for j in seen])
    weights = np.exp(scores - scores.max())
    expected[b, i, h] = (weights / weights.sum()) @ np.array([v[b, j, h // (H // G)] for j in seen])
  found = interval_attention(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), jnp.asarray(until))
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_window_is_a_second_bound_on_the_same_rule_and_scores_are_capped():
  B, T, H, K, window, cap = 1, 80, 2, 8, 4, 0.7
  random = np.random.default_rng(0)
  q, k, v = (random.normal(size=(B, T, H, K)) for _ in range(3))
  until = np.minimum((np.arange(T) // 9 + 1) * 9, T)[None]
  positions = (np.arange(T) % 9)[None]
  expected = np.zeros((B, T, H, K))
  for i, h in np.ndindex(T, H):
    seen = [
      j for j in range(i + 1) if i < until[0, j] and positions[0, i] - positions[0, j] < window
    ]
    scores = cap * np.tanh(np.array([q[0, i, h] @ k[0, j, h] / np.sqrt(K) for j in seen]) / cap)
    weights = np.exp(scores) / np.exp(scores).sum()
    expected[0, i, h] = weights @ np.array([v[0, j, h] for j in seen])
  arrays = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
  found = interval_attention(*arrays, jnp.asarray(until), jnp.asarray(positions), window, cap)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  with pytest.raises(ValueError, match="a window of 4 needs positions_BT"):
    interval_attention(*arrays, jnp.asarray(until), window=window)


def test_until_that_is_not_beyond_its_index_is_named():
  with pytest.raises(ValueError, match=r"until\[1, 2\] is 2; expected more than its own index 2"):
    check_until(np.array([[1, 2, 3], [3, 3, 2]]))


@pytest.mark.parametrize(
  ("name", "millions"),
  [("world_160k", 0.147), ("tiny_1m", 0.98), ("small_10m", 9.8), ("base_100m", 85)],
)
def test_presets_have_the_size_that_they_are_named_for(name, millions):
  found = count.parameters(Transformer(sized(PRESETS[name], 100)))["non_embedding"] / 1e6
  assert found == pytest.approx(millions, rel=0.02)


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
  from synthjax.train import plan

  experiment = config.load("configs/gsm8k_sft.py", ["model=llama2_7b"])
  text = plan.describe(experiment, simulated=True)
  assert text.startswith("6738.42M parameters") and "of 32,000 ids" in text
  assert "computes in bfloat16" in text and "'fsdp': 8" in text


def test_a_plan_counts_the_vocabulary_of_the_tokenizer_that_is_trained_in_the_run():
  from synthjax.train import plan

  small = ["model_overrides.layers=1", "model_overrides.d_model=64", "data.seq_len=32"]
  text = plan.describe(config.load("configs/gsm8k_sft.py", small))
  assert f"embedding and head: {2048 * 64:,} of 2,048 ids" in text and "computes in float32" in text
  missing = ["data.tokenizer.kind=hf", "data.tokenizer.path=nowhere/tokenizer.json"]
  with pytest.raises(files.DataError, match="nowhere/tokenizer.json: no such tokenizer file"):
    plan.describe(config.load("configs/gsm8k_sft.py", [*small, *missing]))
