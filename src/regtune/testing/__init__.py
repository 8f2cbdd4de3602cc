"""Conformance checks."""
