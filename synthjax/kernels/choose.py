"""Which path a kernel takes, said once with its reason.

`auto` is XLA on every platform today: the Pallas kernels are proven in interpret mode, but no GPU or TPU has timed them yet, and a path is
chosen for its measured speed. `pallas` asks for them: compiled on a GPU or TPU, interpreted (slowly) on a CPU.
"""

import functools
from collections.abc import Callable

import jax

from synthjax import progress
from synthjax.errors import ConfigError
from synthjax.kernels import interval_attention, linear_logprob, pallas_attention, pallas_logprob
from synthjax.kernels.linear_logprob import Head, LogProbs, Split
from synthjax.kernels.pallas_attention import Flash


@functools.cache
def _path(kernels: str, what: str) -> str:
  """`xla`, `pallas` or `interpret`; printed the first time."""
  platform = jax.default_backend()
  if kernels == "pallas":
    path, why = (
      ("interpret", "a CPU runs Pallas in interpret mode")
      if platform == "cpu"
      else ("pallas", "the config asks for it")
    )
  else:
    path, why = (
      "xla",
      "the config asks for it"
      if kernels == "xla"
      else f"no Pallas path has been timed on a {platform} yet",
    )
  progress.say(f"{what}: {path}, because {why}")
  return path


def attention(kernels: str, window: int, soft_cap: float) -> Callable:
  """`interval_attention(q, k, v, until, positions)` by the path of the config."""
  path = _path(kernels, "attention")
  if path == "xla":
    return functools.partial(
      interval_attention.interval_attention, window=window, soft_cap=soft_cap
    )
  return functools.partial(
    pallas_attention.attention,
    how=Flash(window=window, soft_cap=soft_cap, interpret=path == "interpret"),
  )


def head(
  kernels: str, how: Head, split: Split | None
) -> Callable[[jax.Array, jax.Array, jax.Array], LogProbs]:
  """`linear_logprob(hidden, head, targets)` by the path of the config.

  Raises:
    ValueError: the Pallas path is asked for what it cannot express: a mesh, the entropy.
  """
  path = _path(kernels, "head")
  if path == "xla":
    return lambda hidden_ND, head, targets_N: linear_logprob.linear_logprob(
      hidden_ND, head, targets_N, how, split
    )
  if split is not None or how.entropy:
    raise ConfigError(
      "config.model.kernels is 'pallas', whose head knows neither a mesh nor the entropy; set it to 'xla'"
    )

  def log_probs(hidden_ND, head, targets_N):
    head_DV = head.T if how.transposed else head
    tile = _divisor(len(hidden_ND)), _divisor(head_DV.shape[1])
    return LogProbs(
      *pallas_logprob.linear_logprob(hidden_ND, head_DV, targets_N, how, tile, path == "interpret"),
      None,
    )

  return log_probs


def _divisor(size: int) -> int:
  """The largest power of two up to 512 that divides a size."""
  return next(tile for tile in (512, 256, 128, 64, 32, 16, 8, 4, 2, 1) if size % tile == 0)
