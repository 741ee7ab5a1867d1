"""Eight simulated devices for sharding; shapes never broadcast by accident."""

import os
import pathlib

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Processes that tests start compile the same programs again and again.
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".pytest_cache/xla")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def shared_data() -> pathlib.Path:
  """The real public data of ../shared/data; see README, 'Data'."""
  folder = pathlib.Path(
    os.environ.get("SYNTHJAX_DATA") or pathlib.Path(__file__).parents[2] / "shared/data"
  )
  if not folder.is_dir():
    pytest.skip(f"real data is not here: {folder} (set SYNTHJAX_DATA)")
  return folder
