"""Sampling: the engine, and other engines behind the same protocol."""
