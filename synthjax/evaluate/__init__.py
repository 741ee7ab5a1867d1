"""Evaluation: decoding, exact match, standard errors."""
