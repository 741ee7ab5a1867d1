"""synthjax measures what synthetic data is worth, in JAX.

It generates, verifies, mixes, trains, evaluates and fits.
"""

__version__ = "0.1.0"
