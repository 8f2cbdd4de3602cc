"""Whole runs: one, or many."""
