"""Seeds with names: what is drawn for one purpose has nothing to do with what is drawn for another."""

from synthjax import files


def named(seed: int, *names: str | int) -> int:
  """The seed of a purpose: 31 bits that follow from the experiment's seed and the names alone."""
  return int(files.value_hash([seed, *names])[:8], 16) >> 1
