"""Every task of the registry."""

from __future__ import annotations

from regtune.registry import TASKS
from regtune.tables import Table


def list_tasks() -> Table:
    """Every task: what it is, the model's head, and the metrics, the first of which chooses a checkpoint."""
    tasks = [(name, TASKS.get(name)) for name in TASKS]
    rows = [
        (name, task.title, task.head.removeprefix("AutoModelFor"), ", ".join(metric.title for metric in task.metrics))
        for name, task in tasks
    ]
    return Table(columns=("task", "", "head", "metrics"), rows=tuple(rows))
