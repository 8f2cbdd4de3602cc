"""Runs, and grids of runs."""
