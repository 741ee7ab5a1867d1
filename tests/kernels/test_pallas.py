"""The Pallas kernels in interpret mode: attention against a float64 oracle, and a model on them.

The log-probs are tested in test_linear_logprob.py.

Shapes: B batch, T tokens, H query heads, G key/value heads, K head dim.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synthjax.config import schema
from synthjax.kernels import choose, pallas_attention, pallas_logprob
from synthjax.kernels.linear_logprob import Head
from synthjax.kernels.pallas_attention import Flash
from synthjax.model.transformer import Transformer


def _until(random, B, T):
  """A random forest laid out depth first: intervals nest."""
  until = np.zeros((B, T), int)
  for row in until:
    ends = []
    for i in range(T):
      while ends and ends[-1] <= i:
        ends.pop()
      limit = ends[-1] if ends else T
      row[i] = random.integers(i + 1, limit + 1)
      ends.append(row[i])
  return until


def _ancestors(until):
  """Which keys every query sees, itself among them: bool [B, T, T]."""
  at = np.arange(until.shape[1])
  return (at <= at[:, None]) & (at[:, None] < until[:, None, :])


def _depths(until):
  """Position of every token: the number of its ancestors, without itself."""
  return _ancestors(until).sum(2) - 1


def _oracle(q, k, v, until, positions, options):
  """The output, and the gradients of its product with `d_out`, from the whole score matrix."""
  B, T, H, K = q.shape
  G = k.shape[2]
  seen = _ancestors(until)
  if options.window:
    seen &= positions[:, :, None] - positions[:, None, :] < options.window
  k_BTHK, v_BTHK = (np.repeat(x, H // G, axis=2) for x in (k, v))
  scores = np.einsum("bqhk,bshk->bhqs", q, k_BTHK) / np.sqrt(K)
  slope = np.ones_like(scores)
  if options.soft_cap:
    tanh = np.tanh(scores / options.soft_cap)
    scores, slope = tanh * options.soft_cap, 1 - tanh**2
  scores = np.where(seen[:, None], scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)

  def gradient(d_out):
    def over_group(x):
      return x.reshape(B, T, G, -1, K).sum(3)

    d_weights = np.einsum("bqhk,bshk->bhqs", d_out, v_BTHK)
    mean = (weights * d_weights).sum(-1, keepdims=True)
    d_scores = weights * (d_weights - mean) * slope / np.sqrt(K)
    d_q = np.einsum("bhqs,bshk->bqhk", d_scores, k_BTHK)
    d_k = over_group(np.einsum("bhqs,bqhk->bshk", d_scores, q))
    d_v = over_group(np.einsum("bhqs,bqhk->bshk", weights, d_out))
    return d_q, d_k, d_v

  return np.einsum("bhqs,bshk->bqhk", weights, v_BTHK), gradient


WINDOWS = [(0, 0.0), (1, 0.0), (5, 0.0), (0, 0.8), (3, 0.8), (100, 2.0)]
SHAPES = [(32, 8, 4, 2), (16, 16, 2, 2), (24, 8, 3, 1)]


@pytest.mark.parametrize(("window", "soft_cap"), WINDOWS)
@pytest.mark.parametrize(("T", "block", "H", "G"), SHAPES)
def test_flash_attention_equals_a_float64_oracle_forward_and_backward(
  T, block, H, G, window, soft_cap
):
  random = np.random.default_rng(T)
  options = Flash(block, window, soft_cap, interpret=True)
  arrays = [random.normal(size=(2, T, heads, 8)) for heads in (H, G, G)]
  d_out = random.normal(size=(2, T, H, 8))
  until = _until(random, 2, T)
  positions = _depths(until)
  until32, positions32 = jnp.asarray(until, jnp.int32), jnp.asarray(positions, jnp.int32)

  def flash(q, k, v):
    return pallas_attention.attention(q, k, v, until32, positions32, options)

  found, pull_back = jax.vjp(flash, *(jnp.asarray(x, jnp.float32) for x in arrays))
  expected, gradient = _oracle(*arrays, until, positions, options)
  np.testing.assert_allclose(found, expected, atol=2e-5)
  d_found = pull_back(jnp.asarray(d_out, jnp.float32))
  for one, other in zip(d_found, gradient(d_out), strict=True):
    np.testing.assert_allclose(one, other, atol=5e-5)


@pytest.mark.parametrize(("window", "visited"), [(0, 36), (8, 15), (1, 8)])
def test_blocks_of_keys_before_every_window_are_skipped(window, visited):
  """One document in eight blocks has 36 pairs of blocks on or below the diagonal.

  A window of a block leaves the diagonal and its neighbours.
  """
  T, options = 64, Flash(8, window)
  visibility = pallas_attention._Visibility(until=jnp.full(T, T), positions=jnp.arange(T))
  count = 0
  for query in range(0, T, 8):
    for key in range(0, query + 1, 8):
      count += bool(pallas_attention._any_visible(options, visibility, query, key))
  assert count == visited


def test_rows_that_do_not_divide_are_refused():
  qkv, row = jnp.zeros((1, 30, 1, 8)), jnp.ones((1, 30), jnp.int32)
  with pytest.raises(ValueError, match="rows of 30 tokens are not divisible into blocks of 8"):
    pallas_attention.attention(qkv, qkv, qkv, row, row, Flash(8))


CAPPED = {"window": 7, "attention_soft_cap": 1.5, "logit_soft_cap": 2.0}


@pytest.mark.parametrize("more", [{}, CAPPED])
def test_a_model_on_the_pallas_path_trains_as_on_the_xla_path(more, capsys):
  cfg = schema.Model(
    d_model=16,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=8,
    mlp_dim=32,
    vocab_size=64,
    mlp="relu",
    tie_embeddings=True,
    **more,
  )
  tokens = jnp.arange(32).reshape(1, 32) % 60
  until = _until(np.random.default_rng(0), 1, 32)
  positions, until = jnp.asarray(_depths(until)), jnp.asarray(until, jnp.int32)
  choose._path.cache_clear()

  def value_and_gradient(kernels):
    model = Transformer(dataclasses.replace(cfg, kernels=kernels))

    def loss(params):
      hidden = model.hidden(params, tokens, positions, until)
      return -model.log_prob(params, hidden, tokens).log_prob.mean()

    return jax.value_and_grad(loss)(model.init(jax.random.key(0)))

  xla, pallas = value_and_gradient("auto"), value_and_gradient("pallas")
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), xla, pallas)
  printed = capsys.readouterr().out
  assert "attention: xla, because no Pallas path has been timed on a cpu yet" in printed
  assert "head: interpret, because" in printed


def test_the_pallas_head_refuses_the_entropy():
  with pytest.raises(ValueError, match="neither a mesh nor the entropy; set it to 'xla'"):
    choose.head("pallas", Head(entropy=True), None)


def test_tiles_that_do_not_divide_are_refused():
  arrays = jnp.zeros((10, 8)), jnp.zeros((8, 30)), jnp.zeros(10, jnp.int32)
  with pytest.raises(ValueError, match="of 30 are not divisible into tiles of 4 x 10"):
    pallas_logprob.linear_logprob(*arrays, tile=(4, 10))
