"""Verification: extracting a final answer and comparing it with the known one. Model text is data, never code."""
