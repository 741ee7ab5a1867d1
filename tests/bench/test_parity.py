"""The peers of the benchmarks compute what we compute.

Skipped where they are not installed (`make parity`).
"""

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
    hidden_BTD = model.hidden(params, batch["tokens"], batch["positions"], batch["until"])
    return -model.log_prob(params, hidden_BTD, batch["targets"]).log_prob.mean()

  ours, gradient = jax.value_and_grad(loss)(params)
  peer = torch_decoder.TorchDecoder(cfg, 64).load(params)
  tokens_BT = torch.tensor(np.asarray(batch["tokens"]), dtype=torch.long)
  targets_BT = torch.tensor(np.asarray(batch["targets"]), dtype=torch.long)
  theirs = peer(tokens_BT, targets_BT)
  theirs.backward()
  assert float(theirs.detach()) == pytest.approx(float(ours), abs=1e-5)
  np.testing.assert_allclose(peer.embedding.weight.grad, gradient["embedding"], atol=1e-6)
  up_gradient = peer.blocks[1].up.weight.grad.T
  np.testing.assert_allclose(up_gradient, gradient["blocks"]["mlp"]["up"][1], atol=1e-6)
