"""Which path a kernel takes, said once with its reason.

`auto` is XLA on every platform today: the Pallas kernels are proven in interpret mode, but no GPU
or TPU has timed them yet, and a path is chosen for its measured speed. `pallas` asks for them:
compiled on a GPU or TPU, interpreted (slowly) on a CPU.
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
def _path(kernels: str, name: str) -> str:
  """`xla`, `pallas` or `interpret` for the kernel of that name; printed the first time."""
  platform = jax.default_backend()
  path, reason = "xla", f"no Pallas path has been timed on a {platform} yet"
  if kernels == "xla":
    reason = "the config asks for it"
  elif kernels == "pallas" and platform == "cpu":
    path, reason = "interpret", "a CPU runs Pallas in interpret mode"
  elif kernels == "pallas":
    path, reason = "pallas", "the config asks for it"
  progress.say(f"{name}: {path}, because {reason}")
  return path


def attention(kernels: str, window: int, soft_cap: float) -> Callable:
  """`interval_attention(q, k, v, until, positions)` by the path of the config."""
  path = _path(kernels, "attention")
  if path == "xla":
    return functools.partial(
      interval_attention.interval_attention, window=window, soft_cap=soft_cap
    )
  options = Flash(window=window, soft_cap=soft_cap, interpret=path == "interpret")
  return functools.partial(pallas_attention.attention, options=options)


def head(
  kernels: str, options: Head, split: Split | None
) -> Callable[[jax.Array, jax.Array, jax.Array], LogProbs]:
  """`linear_logprob(hidden, head, targets)` by the path of the config.

  Raises:
    ConfigError: the Pallas path is asked for what it cannot express: a mesh, the entropy.
  """
  path = _path(kernels, "head")
  if path == "xla":
    return functools.partial(linear_logprob.linear_logprob, options=options, split=split)
  if split is not None or options.entropy:
    raise ConfigError(
      "config.model.kernels is 'pallas', whose head knows neither a mesh nor the entropy; set it "
      "to 'xla'"
    )

  def log_probs(hidden_ND, head, targets_N):
    head_DV = head
    if options.transposed:
      head_DV = head.T
    tile = _divisor(len(hidden_ND)), _divisor(head_DV.shape[1])
    log_prob_N, log_sum_exp_N = pallas_logprob.linear_logprob(
      hidden_ND, head_DV, targets_N, options, tile, interpret=path == "interpret"
    )
    return LogProbs(log_prob_N, log_sum_exp_N, entropy=None)

  return log_probs


def _divisor(size: int) -> int:
  """The largest power of two up to 512 that divides a size."""
  return next(tile for tile in (512, 256, 128, 64, 32, 16, 8, 4, 2, 1) if size % tile == 0)
