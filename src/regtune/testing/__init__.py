"""Conformance checks: does a family, a task, a method or an analysis keep what its noun promises?

The project's own tests call them on everything that is built in; call them on what you add (docs/extending.md).
"""

from regtune.testing.analysis import check_analysis
from regtune.testing.broken import BrokenInvariantError
from regtune.testing.family import check_family
from regtune.testing.method import check_method
from regtune.testing.task import check_task

__all__ = ["BrokenInvariantError", "check_analysis", "check_family", "check_method", "check_task"]
