"""The Pallas kernels in interpret mode: attention against a float64 oracle (log-probs: test_linear_logprob.py), and a model on their path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synthjax.kernels import choose, pallas_attention, pallas_logprob
from synthjax.kernels.linear_logprob import Head
from synthjax.kernels.pallas_attention import Flash


def _until(random, B, T):
  """A random forest laid out depth first: intervals nest."""
  until = np.zeros((B, T), int)
  for b in range(B):
    ends = []
    for i in range(T):
      while ends and ends[-1] <= i:
        ends.pop()
      limit = ends[-1] if ends else T
      end = int(random.integers(i + 1, limit + 1))
      until[b, i] = end
      ends.append(end)
  return jnp.asarray(until, jnp.int32)


def _depths(until):
  """Position of every place: the number of its ancestors."""
  at = np.arange(until.shape[1])
  return ((at < at[:, None]) & (at[:, None] < until[:, None, :])).sum(2)


def _oracle(q, k, v, until, positions, how):
  """Output and the gradients of its product with `d_out`, in float64, head by head over the whole score matrix."""
  at, (B, T, H, K) = np.arange(q.shape[1]), q.shape
  seen = (at <= at[:, None]) & (at[:, None] < until[:, None, :])
  if how.window:
    seen &= positions[:, :, None] - positions[:, None, :] < how.window
  repeated = [np.repeat(x, H // x.shape[2], axis=2) for x in (k, v)]
  plain = np.einsum("bqhk,bshk->bhqs", q, repeated[0]) / np.sqrt(K)
  bent = np.tanh(plain / how.soft_cap) if how.soft_cap else plain
  scores = np.where(seen[:, None], bent * (how.soft_cap or 1.0), -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)

  def gradient(d_out):
    d_weights = np.einsum("bqhk,bshk->bhqs", d_out, repeated[1])
    d_plain = weights * (d_weights - (weights * d_weights).sum(-1, keepdims=True)) / np.sqrt(K)
    d_plain *= 1 - bent**2 if how.soft_cap else 1.0
    over_group = lambda x: x.reshape(B, T, k.shape[2], -1, K).sum(3)
    return (
      np.einsum("bhqs,bshk->bqhk", d_plain, repeated[0]),
      over_group(np.einsum("bhqs,bqhk->bshk", d_plain, q)),
      over_group(np.einsum("bhqs,bqhk->bshk", weights, d_out)),
    )

  return np.einsum("bhqs,bshk->bqhk", weights, repeated[1]), gradient


@pytest.mark.parametrize(
  ("window", "soft_cap"), [(0, 0.0), (1, 0.0), (5, 0.0), (0, 0.8), (3, 0.8), (100, 2.0)]
)
@pytest.mark.parametrize(("T", "block", "H", "G"), [(32, 8, 4, 2), (16, 16, 2, 2), (24, 8, 3, 1)])
def test_flash_attention_equals_a_float64_oracle_forward_and_backward(
  T, block, H, G, window, soft_cap
):
  random, how = np.random.default_rng(T), Flash(block, window, soft_cap, interpret=True)
  arrays, d_out = (
    [random.normal(size=(2, T, n, 8)) for n in (H, G, G)],
    random.normal(size=(2, T, H, 8)),
  )
  until = np.asarray(_until(random, 2, T))
  positions = _depths(until)
  flash = lambda q, k, v: pallas_attention.attention(
    q, k, v, jnp.asarray(until), jnp.asarray(positions), how
  )
  found, pull = jax.vjp(flash, *(jnp.asarray(x, jnp.float32) for x in arrays))
  expected, gradient = _oracle(*arrays, until, positions, how)
  np.testing.assert_allclose(found, expected, atol=2e-5)
  for a, b in zip(pull(jnp.asarray(d_out, jnp.float32)), gradient(d_out)):
    np.testing.assert_allclose(a, b, atol=5e-5)


@pytest.mark.parametrize(("T", "window", "visited"), [(64, 0, 36), (64, 8, 15), (64, 1, 8)])
def test_blocks_of_keys_before_every_window_are_skipped(T, window, visited):
  """One document in eight blocks: of the 36 pairs of blocks on or below the diagonal, a window of a block leaves the diagonal and its neighbours."""
  how, marks = Flash(8, window), (jnp.full(T, T), jnp.arange(T))
  assert (
    sum(
      bool(pallas_attention._any_visible(how, marks, i, j))
      for i in range(0, T, 8)
      for j in range(0, i + 1, 8)
    )
    == visited
  )


def test_rows_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match="rows of 30 tokens are not divisible into blocks of 8"):
    pallas_attention.attention(
      *[jnp.zeros((1, 30, 1, 8))] * 3, *[jnp.ones((1, 30), jnp.int32)] * 2, Flash(8)
    )


@pytest.mark.parametrize(
  "more", [{}, {"window": 7, "attention_soft_cap": 1.5, "logit_soft_cap": 2.0}]
)
def test_a_model_on_the_pallas_path_trains_as_on_the_xla_path(more, capsys):
  import dataclasses

  from synthjax.config import schema
  from synthjax.model.transformer import Transformer

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
  tokens, until, choices = (
    jnp.arange(32).reshape(1, 32) % 60,
    _until(np.random.default_rng(0), 1, 32),
    {},
  )
  positions = jnp.asarray(_depths(np.asarray(until)))
  choose._path.cache_clear()
  for kernels in ("auto", "pallas"):
    model = Transformer(dataclasses.replace(cfg, kernels=kernels))
    params = model.init(jax.random.key(0))
    loss = lambda p, model=model: (
      -model.log_prob(p, model.hidden(p, tokens, positions, until), tokens).log_prob.mean()
    )
    choices[kernels] = jax.value_and_grad(loss)(params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *choices.values())
  said = capsys.readouterr().out
  assert (
    "attention: xla, because no Pallas path has been timed on a cpu yet" in said
    and "head: interpret, because" in said
  )


def test_the_pallas_head_refuses_what_it_cannot_express_and_tiles_that_do_not_divide():
  with pytest.raises(
    ValueError, match="head knows neither a mesh nor the entropy; set it to 'xla'"
  ):
    choose.head("pallas", Head(entropy=True), None)
  with pytest.raises(
    ValueError, match="10 rows and a vocabulary of 30 are not divisible into tiles of 4 x 10"
  ):
    pallas_logprob.linear_logprob(
      jnp.zeros((10, 8)), jnp.zeros((8, 30)), jnp.zeros(10, jnp.int32), tile=(4, 10)
    )
