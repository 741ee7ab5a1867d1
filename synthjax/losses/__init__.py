"""Losses: pure functions of log-probs, by name in one place."""

from synthjax.losses.cross_entropy import cross_entropy

LOSSES = {"cross_entropy": cross_entropy}
