"""Conformance checks: does a family, a task, a method or an analysis keep what its noun promises?

The project's own tests call them on everything built in; call them on what you add (docs/extending.md).
"""

from regtune.testing.family import check_family

__all__ = ["check_family"]
