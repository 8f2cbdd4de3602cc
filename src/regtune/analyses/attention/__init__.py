"""Attention by class of token."""
