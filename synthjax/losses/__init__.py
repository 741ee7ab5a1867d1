"""Losses: pure functions of log-probs. `registry.py` finds each of them by its name."""
