"""Explanations drawn on their text."""
