"""Registers: how they get into a model and out of it again. Knows nothing of tasks."""
