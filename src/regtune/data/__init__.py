"""Data sets, tasks and windows. Knows nothing of models."""
