"""Seeds with names: draws for one purpose are independent of draws for any other."""

from synthjax import files


def named(seed: int, *names: str | int) -> int:
  """The seed of a purpose: 31 bits that depend on the experiment's seed and the names alone."""
  digits = files.value_hash([seed, *names])[:8]
  return int(digits, 16) >> 1
