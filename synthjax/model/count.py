"""Counts of parameters and floating-point operations."""

import math

import jax

from synthjax.config.schema import Model
from synthjax.model.transformer import Transformer

# Dense bfloat16 peak of one device in FLOP/s, by a part of `device_kind`; from the vendors' data
# sheets.
_PEAK_FLOPS = {
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
  """Number of parameters by kind.

  `non_embedding` is the N of the scaling laws, without embedding and output head.
  """
  total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.abstract()))
  embedding = model.cfg.vocab_size * model.cfg.d_model
  if not model.cfg.tie_embeddings:
    embedding *= 2
  return {"total": total, "embedding": embedding, "non_embedding": total - embedding}


def forward_flops(cfg: Model, context: float, head: bool = True) -> float:
  """Forward FLOPs per token: 2 for every weight in a matrix product, and attention.

  Args:
    cfg: the decoder's shape, `vocab_size` set.
    context: positions that the token sees, on average; a window bounds them.
    head: False where a token's logits are not computed (a prompt that is only read).
  """
  mlp_matrices = 2
  if cfg.mlp == "swiglu":
    mlp_matrices = 3
  projections = cfg.d_model * cfg.head_dim * (2 * cfg.heads + 2 * cfg.kv_heads)
  mlp = cfg.d_model * cfg.mlp_dim * mlp_matrices
  weights = cfg.layers * (projections + mlp)
  if head:
    weights += cfg.d_model * cfg.vocab_size
  seen = min(context, cfg.window or context)
  # Scores and the mix of values cost 2 FLOPs each for every position and entry of a query.
  attention = 4.0 * cfg.layers * cfg.heads * cfg.head_dim * seen
  return 2.0 * weights + attention


def training_flops(cfg: Model, seq_len: int) -> float:
  """Forward and backward FLOPs per token.

  A backward pass is counted as two forward passes, and causal attention as half a sequence.
  """
  return 3.0 * forward_flops(cfg, seq_len / 2)


def peak_flops(device: jax.Device) -> float:
  """Peak of a device; 0 where it is unknown (a CPU), and then no utilisation is reported."""
  for name, peak in _PEAK_FLOPS.items():
    if name in device.device_kind:
      return peak
  return 0.0


def describe(model: Transformer) -> str:
  """One line: parameters by kind."""
  counts = parameters(model)
  total = counts["total"] / 1e6
  non_embedding = counts["non_embedding"] / 1e6
  return f"{total:.2f}M parameters ({non_embedding:.2f}M without embedding and head)"
