"""The same decoder in PyTorch, as a user would write it: the peer of `bench train`. Imported only where torch is installed.

Shapes: B batch, T tokens, D model, H heads, K head dim, F hidden width of the MLP, V vocabulary.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from synthjax.config.schema import Model
from synthjax.model import rotary


class Block(nn.Module):
  """Pre-norm attention (PyTorch's fused kernel) and squared-ReLU MLP."""

  def __init__(self, cfg: Model):
    super().__init__()
    D, H, K = cfg.d_model, cfg.heads, cfg.head_dim
    self.heads = H
    self.attention_norm, self.mlp_norm = (
      nn.RMSNorm(D, cfg.norm_epsilon),
      nn.RMSNorm(D, cfg.norm_epsilon),
    )
    self.query, self.key, self.value = (nn.Linear(D, H * K, bias=False) for _ in range(3))
    self.out = nn.Linear(H * K, D, bias=False)
    self.up, self.down = (
      nn.Linear(D, cfg.mlp_dim, bias=False),
      nn.Linear(cfg.mlp_dim, D, bias=False),
    )

  def forward(self, x_BTD, cos, sin):
    B, T, _ = x_BTD.shape
    normed = self.attention_norm(x_BTD)
    q, k, v = (
      m(normed).view(B, T, self.heads, -1).transpose(1, 2)
      for m in (self.query, self.key, self.value)
    )
    mixed = F.scaled_dot_product_attention(
      _turn(q, cos, sin), _turn(k, cos, sin), v, is_causal=True
    )
    x_BTD = x_BTD + self.out(mixed.transpose(1, 2).reshape(B, T, -1))
    return x_BTD + self.down(F.relu(self.up(self.mlp_norm(x_BTD))).square())


class TorchDecoder(nn.Module):
  """`small_10m`'s shape: tied embeddings, every head with its own keys and values. Returns the mean next-token loss."""

  def __init__(self, cfg: Model, row_length: int):
    super().__init__()
    self.embedding = nn.Embedding(cfg.vocab_size, cfg.d_model)
    self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.layers))
    self.final_norm = nn.RMSNorm(cfg.d_model, cfg.norm_epsilon)
    angles = torch.tensor(
      np.arange(row_length)[:, None] * rotary.frequencies(cfg), dtype=torch.float32
    )
    self.register_buffer("cos", angles.cos(), persistent=False)
    self.register_buffer("sin", angles.sin(), persistent=False)

  def forward(self, tokens_BT, targets_BT):
    x_BTD = self.embedding(tokens_BT)
    for block in self.blocks:
      x_BTD = block(x_BTD, self.cos, self.sin)
    logits_BTV = self.final_norm(x_BTD) @ self.embedding.weight.T
    return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())

  @torch.no_grad()
  def load(self, params) -> "TorchDecoder":
    """Takes over the parameters of the JAX decoder."""
    flat = lambda x: torch.tensor(np.asarray(x))
    self.embedding.weight.copy_(flat(params["embedding"]))
    self.final_norm.weight.copy_(flat(params["final_norm"]))
    blocks = params["blocks"]
    for i, block in enumerate(self.blocks):
      attention, mlp = blocks["attention"], blocks["mlp"]
      for name in ("query", "key", "value"):
        getattr(block, name).weight.copy_(flat(attention[name][i]).flatten(1).T)
      block.out.weight.copy_(flat(attention["out"][i]).flatten(0, 1).T)
      block.up.weight.copy_(flat(mlp["up"][i]).T)
      block.down.weight.copy_(flat(mlp["down"][i]).T)
      block.attention_norm.weight.copy_(flat(blocks["attention_norm"][i]))
      block.mlp_norm.weight.copy_(flat(blocks["mlp_norm"][i]))
    return self


def _turn(x_BHTK, cos, sin):
  first, second = x_BHTK.chunk(2, dim=-1)
  return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def steps(cfg: Model, params, batch, threads: int):
  """{"PyTorch eager", "PyTorch compiled"} -> (function that does one training step and returns the loss)."""
  torch.set_num_threads(threads)
  tokens_BT, targets_BT = (
    torch.tensor(np.asarray(batch[k]), dtype=torch.long) for k in ("tokens", "targets")
  )
  found = {}
  for name in ("PyTorch eager", "PyTorch compiled"):
    model = TorchDecoder(cfg, tokens_BT.shape[1]).load(params)
    optimizer = torch.optim.AdamW(
      model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    forward = torch.compile(model) if name == "PyTorch compiled" else model
    found[name] = lambda model=model, forward=forward, optimizer=optimizer: _step(
      model, forward, optimizer, tokens_BT, targets_BT
    )
  return found


def _step(model, forward, optimizer, tokens_BT, targets_BT) -> float:
  loss = forward(tokens_BT, targets_BT)
  loss.backward()
  nn.utils.clip_grad_norm_(model.parameters(), 1.0)
  optimizer.step()
  optimizer.zero_grad(set_to_none=True)
  return float(loss.detach())
