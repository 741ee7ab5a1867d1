"""Fused kernels: one definition each."""
