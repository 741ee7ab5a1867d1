"""The Pallas kernels in interpret mode against the XLA paths, which have float64 oracles of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synthjax.kernels import interval_attention, linear_logprob, pallas_attention, pallas_logprob


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


@pytest.mark.parametrize(("T", "block", "H", "G"), [(32, 8, 4, 2), (16, 16, 2, 2), (24, 8, 3, 1)])
def test_flash_attention_equals_the_xla_path_forward_and_backward(T, block, H, G):
  random = np.random.default_rng(T)
  q, k, v = (jnp.asarray(random.normal(size=(2, T, n, 8)), jnp.float32) for n in (H, G, G))
  until = _until(random, 2, T)
  flash = lambda q, k, v: pallas_attention.attention(q, k, v, until, block, interpret=True)
  plain = lambda q, k, v: interval_attention.interval_attention(q, k, v, until)
  np.testing.assert_allclose(flash(q, k, v), plain(q, k, v), atol=2e-5)
  gradients = [jax.grad(lambda q, k, v, f=f: jnp.sin(f(q, k, v)).sum(), (0, 1, 2))(q, k, v) for f in (flash, plain)]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5), *gradients)


def test_rows_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match="rows of 30 tokens are not divisible into blocks of 8"):
    pallas_attention.attention(*[jnp.zeros((1, 30, 1, 8))] * 3, jnp.ones((1, 30), jnp.int32), 8, interpret=True)


@pytest.mark.parametrize(("N", "D", "V", "rows", "columns"), [(16, 8, 64, 8, 16), (8, 16, 48, 8, 48), (12, 8, 30, 4, 10)])
def test_tiled_log_probs_equal_the_xla_path_forward_and_backward(N, D, V, rows, columns):
  random = np.random.default_rng(V)
  hidden, head = (jnp.asarray(random.normal(size=s), jnp.float32) for s in ((N, D), (D, V)))
  targets, d1, d2 = jnp.asarray(random.integers(0, V, N)), *(jnp.asarray(random.normal(size=N), jnp.float32) for _ in range(2))

  def tiled(hidden, head):
    return pallas_logprob.linear_logprob(hidden, head, targets, rows, columns, interpret=True)

  def plain(hidden, head):
    return linear_logprob.linear_logprob(hidden, head, targets)[:2]

  for a, b in zip(tiled(hidden, head), plain(hidden, head)):
    np.testing.assert_allclose(a, b, atol=2e-5)
  gradients = [jax.grad(lambda h, w, f=f: (lambda lp, ls: d1 @ lp + d2 @ ls)(*f(h, w)), (0, 1))(hidden, head) for f in (tiled, plain)]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5), *gradients)


def test_a_model_on_the_pallas_path_trains_as_on_the_xla_path(capsys):
  import dataclasses

  from synthjax import schema
  from synthjax.kernels import choose
  from synthjax.model.transformer import Transformer

  cfg = schema.Model(d_model=16, layers=2, heads=2, kv_heads=1, head_dim=8, mlp_dim=32, vocab_size=64, mlp="relu", tie_embeddings=True)
  tokens, until = jnp.arange(32).reshape(1, 32) % 60, _until(np.random.default_rng(0), 1, 32)
  positions, choices = jnp.arange(32)[None], {}
  choose._path.cache_clear()
  for kernels in ("auto", "pallas"):
    model = Transformer(dataclasses.replace(cfg, kernels=kernels))
    params = model.init(jax.random.key(0))
    loss = lambda p, model=model: -model.log_prob(p, model.hidden(p, tokens, positions, until), tokens).log_prob.mean()
    choices[kernels] = jax.value_and_grad(loss)(params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *choices.values())
  said = capsys.readouterr().out
  assert "attention: xla, because no Pallas path has been timed on a cpu yet" in said and "head: interpret, because" in said
