"""Traces the steps that `train.profile` names."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from synthjax import config as config_lib
from synthjax.config import schema


@contextlib.contextmanager
def profiling(
  cfg: schema.Train, folder: pathlib.Path, say: Callable[[str], None]
) -> Iterator[Callable[[int, Any], None]]:
  """Yields a function to call before every step, with the step and the state.

  It traces the steps that `cfg.profile` names, as far as this run has them.
  """
  first, last = config_lib.profile_steps(cfg) or (0, -1)
  tracing = False

  def before(step: int, state: Any) -> None:
    nonlocal tracing
    wanted = first <= step <= last
    if wanted == tracing:
      return
    # The host runs ahead of the device, and a trace has to begin and end between two steps.
    jax.block_until_ready(state)
    if wanted:
      jax.profiler.start_trace(str(folder / "profile"))
    else:
      end()
    tracing = wanted

  def end() -> None:
    jax.profiler.stop_trace()
    say(f"{folder / 'profile'}: xprof trace of steps {cfg.profile}")

  try:
    yield before
  finally:
    if tracing:
      end()
