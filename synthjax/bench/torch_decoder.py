"""The same decoder in PyTorch, as a user would write it: the peer of `bench train`.

Imported only where torch is installed.

Shapes: B batch, T tokens, D model, H heads, K head dim (half of it in cos and sin), F hidden width
of the MLP, V vocabulary.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from synthjax.config.schema import Model
from synthjax.model import rotary


class TorchBlock(nn.Module):
  """Pre-norm attention (PyTorch's fused kernel) and a squared-ReLU MLP."""

  def __init__(self, cfg: Model):
    super().__init__()
    D, heads_dim = cfg.d_model, cfg.heads * cfg.head_dim
    self.heads = cfg.heads
    self.attention_norm = nn.RMSNorm(D, cfg.norm_epsilon)
    self.mlp_norm = nn.RMSNorm(D, cfg.norm_epsilon)
    self.query = nn.Linear(D, heads_dim, bias=False)
    self.key = nn.Linear(D, heads_dim, bias=False)
    self.value = nn.Linear(D, heads_dim, bias=False)
    self.out = nn.Linear(heads_dim, D, bias=False)
    self.up = nn.Linear(D, cfg.mlp_dim, bias=False)
    self.down = nn.Linear(cfg.mlp_dim, D, bias=False)

  def forward(self, x_BTD, cos_TK, sin_TK):
    """The hidden states after this layer."""
    B, T, _ = x_BTD.shape
    normed_BTD = self.attention_norm(x_BTD)
    q_BHTK = apply_rope(self._split_heads(self.query(normed_BTD)), cos_TK, sin_TK)
    k_BHTK = apply_rope(self._split_heads(self.key(normed_BTD)), cos_TK, sin_TK)
    v_BHTK = self._split_heads(self.value(normed_BTD))
    # A flag is enough here: the benchmark has one document a sequence.
    mixed_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
    mixed_BTD = mixed_BHTK.transpose(1, 2).reshape(B, T, -1)
    x_BTD = x_BTD + self.out(mixed_BTD)
    hidden_BTF = F.relu(self.up(self.mlp_norm(x_BTD)))
    return x_BTD + self.down(hidden_BTF.square())

  def _split_heads(self, x_BTD):
    B, T, _ = x_BTD.shape
    return x_BTD.view(B, T, self.heads, -1).transpose(1, 2)


class TorchDecoder(nn.Module):
  """`small_10m`: tied embeddings, every head with its own keys and values."""

  def __init__(self, cfg: Model, seq_len: int):
    super().__init__()
    self.embedding = nn.Embedding(cfg.vocab_size, cfg.d_model)
    self.blocks = nn.ModuleList(TorchBlock(cfg) for _ in range(cfg.layers))
    self.final_norm = nn.RMSNorm(cfg.d_model, cfg.norm_epsilon)
    angles = np.arange(seq_len)[:, None] * rotary.frequencies(cfg)
    angles = torch.tensor(angles, dtype=torch.float32)
    self.register_buffer("cos", angles.cos(), persistent=False)
    self.register_buffer("sin", angles.sin(), persistent=False)

  def forward(self, tokens_BT, targets_BT):
    """The mean next-token loss."""
    x_BTD = self.embedding(tokens_BT)
    for block in self.blocks:
      x_BTD = block(x_BTD, self.cos, self.sin)
    logits_BTV = self.final_norm(x_BTD) @ self.embedding.weight.T
    return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())

  @torch.no_grad()
  def load(self, params: Mapping) -> "TorchDecoder":
    """Copies the parameters of the JAX decoder.

    There a kernel is [inputs, outputs], with heads as axes of their own; here [outputs, inputs].
    """
    self.embedding.weight.copy_(_tensor(params["embedding"]))
    self.final_norm.weight.copy_(_tensor(params["final_norm"]))
    blocks = params["blocks"]
    attention, mlp = blocks["attention"], blocks["mlp"]
    for i, block in enumerate(self.blocks):
      for name in ("query", "key", "value"):
        weight_DHK = _tensor(attention[name][i])
        getattr(block, name).weight.copy_(weight_DHK.flatten(1).T)
      block.out.weight.copy_(_tensor(attention["out"][i]).flatten(0, 1).T)
      block.up.weight.copy_(_tensor(mlp["up"][i]).T)
      block.down.weight.copy_(_tensor(mlp["down"][i]).T)
      block.attention_norm.weight.copy_(_tensor(blocks["attention_norm"][i]))
      block.mlp_norm.weight.copy_(_tensor(blocks["mlp_norm"][i]))
    return self


def _tensor(x: Any) -> torch.Tensor:
  return torch.tensor(np.asarray(x))


def apply_rope(x_BHTK, cos_TK, sin_TK):
  """Rotates queries or keys; the two halves of a head are the two coordinates."""
  first, second = x_BHTK.chunk(2, dim=-1)
  rotated_first = first * cos_TK - second * sin_TK
  rotated_second = second * cos_TK + first * sin_TK
  return torch.cat([rotated_first, rotated_second], dim=-1)


def steps(cfg: Model, params: Mapping, batch: Mapping, threads: int) -> dict[str, Callable]:
  """Training steps of PyTorch by name, eager and compiled.

  Args:
    cfg: the model.
    params: of the JAX decoder.
    batch: `tokens` and `targets`, both [B, T].
    threads: of PyTorch.

  Returns:
    name -> function that takes one step and returns the loss.
  """
  torch.set_num_threads(threads)
  tokens_BT = torch.tensor(np.asarray(batch["tokens"]), dtype=torch.long)
  targets_BT = torch.tensor(np.asarray(batch["targets"]), dtype=torch.long)
  seq_len = tokens_BT.shape[1]
  # Each trains parameters of its own.
  eager = TorchDecoder(cfg, seq_len).load(params)
  compiled = TorchDecoder(cfg, seq_len).load(params)
  return {
    "PyTorch eager": _make_step(eager, eager, tokens_BT, targets_BT),
    "PyTorch compiled": _make_step(compiled, torch.compile(compiled), tokens_BT, targets_BT),
  }


def _make_step(model, forward, tokens_BT, targets_BT) -> Callable[[], float]:
  optimizer = torch.optim.AdamW(
    model.parameters(),
    lr=1e-3,
    betas=(0.9, 0.95),
    weight_decay=0.1,
    fused=True,
  )

  def step() -> float:
    loss = forward(tokens_BT, targets_BT)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())

  return step
