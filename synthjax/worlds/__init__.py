"""Procedural worlds that need no download and are exactly verifiable."""
