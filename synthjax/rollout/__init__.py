"""Sampling: the engine, other engines behind the same protocol, step values, pits and pairs."""
