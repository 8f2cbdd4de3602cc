"""Causal models of texts."""
