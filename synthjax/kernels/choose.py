"""Which path a kernel takes, said once with its reason.

`auto` is XLA on every platform today: the Pallas kernels are proven in interpret mode, but no GPU or TPU has timed them yet, and a path is
chosen for its measured speed. `pallas` asks for them: compiled on a GPU or TPU, interpreted (slowly) on a CPU.
"""

import functools
from collections.abc import Callable

import jax

from synthjax import progress
from synthjax.kernels import interval_attention, linear_logprob, pallas_attention, pallas_logprob
from synthjax.kernels.linear_logprob import Head, LogProbs, Split


@functools.cache
def _path(kernels: str, what: str) -> str:
  """`xla`, `pallas` or `interpret`; printed the first time."""
  platform = jax.default_backend()
  if kernels == "pallas":
    path, why = ("interpret", "a CPU runs Pallas in interpret mode") if platform == "cpu" else ("pallas", "the config asks for it")
  else:
    path, why = "xla", "the config asks for it" if kernels == "xla" else f"no Pallas path has been timed on a {platform} yet"
  progress.say(f"{what}: {path}, because {why}")
  return path


def attention(kernels: str, window: int, soft_cap: float) -> Callable:
  """`interval_attention(q, k, v, until, positions)` by the path of the config.

  Raises:
    ValueError: the Pallas path is asked for what it cannot express: a window, a soft cap.
  """
  path = _path(kernels, "attention")
  if path == "xla":
    return functools.partial(interval_attention.interval_attention, window=window, soft_cap=soft_cap)
  if window or soft_cap:
    raise ValueError("config.model.kernels is 'pallas', whose attention knows neither model.window nor model.attention_soft_cap; "
                     "set it to 'xla'")
  return lambda q, k, v, until, positions: pallas_attention.attention(q, k, v, until, interpret=path == "interpret")


def head(kernels: str, how: Head, split: Split | None) -> Callable[[jax.Array, jax.Array, jax.Array], LogProbs]:
  """`linear_logprob(hidden, head, targets)` by the path of the config.

  Raises:
    ValueError: the Pallas path is asked for what it cannot express: a mesh, a soft cap, a temperature.
  """
  path = _path(kernels, "head")
  if path == "xla":
    return lambda hidden_ND, head, targets_N: linear_logprob.linear_logprob(hidden_ND, head, targets_N, how, split)
  if split is not None or how.soft_cap or how.temperature != 1.0:
    raise ValueError("config.model.kernels is 'pallas', whose head knows neither a mesh nor a soft cap nor a temperature; set it to 'xla'")

  def log_probs(hidden_ND, head, targets_N):
    found = pallas_logprob.linear_logprob(hidden_ND, head.T if how.transposed else head, targets_N, interpret=path == "interpret",
                                          columns=_divisor(head.shape[0 if how.transposed else 1]), rows=_divisor(len(hidden_ND)))
    return LogProbs(*found, None)

  return log_probs


def _divisor(size: int) -> int:
  """The largest power of two up to 512 that divides a size."""
  return next(tile for tile in (512, 256, 128, 64, 32, 16, 8, 4, 2, 1) if size % tile == 0)
