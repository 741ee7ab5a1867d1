"""Counting parameters and floating-point operations."""

import math

import jax

from synthjax.config.schema import Model
from synthjax.model.transformer import Transformer

# Dense bfloat16 peak of one device, FLOP/s, from the vendors' data sheets; by a part of `device_kind`.
_PEAK = {
  "H100": 989e12,
  "H200": 989e12,
  "A100": 312e12,
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5p": 459e12,
  "TPU v6": 918e12,
}


def parameters(model: Transformer) -> dict[str, int]:
  """Number of parameters by kind; `non_embedding` is the N of the scaling laws (without embedding and output head)."""
  total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.abstract()))
  embedding = model.cfg.vocab_size * model.cfg.d_model * (1 if model.cfg.tie_embeddings else 2)
  return {"total": total, "embedding": embedding, "non_embedding": total - embedding}


def forward_flops(cfg: Model, context: float, head: bool = True) -> float:
  """Forward FLOPs a token: 2 for every weight in a matrix product, and attention.

  Args:
    cfg: the decoder's shape, `vocab_size` set.
    context: positions that the token sees, on average; a window bounds them.
    head: False where a token's logits are not computed (a prompt that is only read).
  """
  projections = cfg.d_model * cfg.head_dim * (2 * cfg.heads + 2 * cfg.kv_heads)
  mlp = cfg.d_model * cfg.mlp_dim * (3 if cfg.mlp == "swiglu" else 2)
  weights = cfg.layers * (projections + mlp)
  if head:
    weights += cfg.d_model * cfg.vocab_size
  # scores and the mix of values, 2 FLOPs each for every position and entry of a query
  attention = 4.0 * cfg.layers * cfg.heads * cfg.head_dim * min(context, cfg.window or context)
  return 2.0 * weights + attention


def training_flops(cfg: Model, seq_len: int) -> float:
  """Forward and backward FLOPs a token (a backward pass is two forward ones), with causal attention over half a row."""
  return 3.0 * forward_flops(cfg, seq_len / 2)


def peak_flops(device: jax.Device) -> float:
  """Peak of a device, or 0 where it is not known (a CPU): utilisation is then not reported."""
  return next((peak for name, peak in _PEAK.items() if name in device.device_kind), 0.0)


def describe(model: Transformer) -> str:
  """One line: parameters by kind."""
  found = parameters(model)
  return f"{found['total'] / 1e6:.2f}M parameters ({found['non_embedding'] / 1e6:.2f}M without embedding and head)"
