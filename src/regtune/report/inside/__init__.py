"""Sections of the report about one model."""
