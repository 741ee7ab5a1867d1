"""synthjax measures what synthetic data is worth: generate, verify, mix, train, evaluate and fit, in JAX."""

__version__ = "0.1.0"
