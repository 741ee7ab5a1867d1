"""The peers of the benchmarks compute what we compute. Skipped where they are not installed (`make parity`)."""

import dataclasses

import jax
import numpy as np
import pytest

from synthjax.bench import train as bench_train
from synthjax.config.presets import PRESETS
from synthjax.model.transformer import Transformer, sized


def test_the_pytorch_decoder_has_our_loss_and_our_gradient():
  torch = pytest.importorskip("torch")
  from synthjax.bench import torch_decoder

  cfg = sized(dataclasses.replace(PRESETS["small_10m"], layers=2), 4096)
  model = Transformer(cfg)
  params = model.init(jax.random.key(0))
  batch = bench_train._batch(2, 64)

  def loss(params):
    hidden = model.hidden(params, batch["tokens"], batch["positions"], batch["until"])
    return -model.log_prob(params, hidden, batch["targets"]).log_prob.mean()

  ours, gradient = jax.value_and_grad(loss)(params)
  peer = torch_decoder.TorchDecoder(cfg, 64).load(params)
  theirs = peer(
    *(torch.tensor(np.asarray(batch[k]), dtype=torch.long) for k in ("tokens", "targets"))
  )
  theirs.backward()
  assert float(theirs.detach()) == pytest.approx(float(ours), abs=1e-5)
  np.testing.assert_allclose(peer.embedding.weight.grad, gradient["embedding"], atol=1e-6)
  np.testing.assert_allclose(
    peer.blocks[1].up.weight.grad.T, gradient["blocks"]["mlp"]["up"][1], atol=1e-6
  )
