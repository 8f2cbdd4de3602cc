"""The settings of a run's task: its own, and those that it shares with the run's data. Light: no model, no tensors."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from regtune.config import DataConfig, RunConfig, to_dict
from regtune.errors import unknown_name
from regtune.registry import TASKS
from regtune.typed import hints_of, typed

if TYPE_CHECKING:
    from regtune.interfaces import Task


def settings_of(config: RunConfig, task: Task | None = None) -> Any:
    """The task's settings in a run: its own (`RunConfig.settings`), and those of `data` that it has by the same name.

    Raises:
        ConfigError: a setting that the task doesn't have, or one that can't be.
    """
    task = TASKS.get(config.task) if task is None else task
    assert task is not None
    own = own_settings(task.settings)
    unknown = [name for name in config.settings if name not in own]
    if unknown and task.name == config.task:
        raise unknown_name(f"setting of the task {task.name}:", unknown[0], own)
    plain: dict[str, Any] = to_dict(config)
    given = {name: value for name, value in plain["settings"].items() if name in own}
    shared = {name: value for name, value in plain["data"].items() if name in hints_of(task.settings)}
    return typed(task.settings, given | shared, "settings")


def own_settings(kind: type) -> list[str]:
    """Names of a task's settings that are its own; the others take the values of the run's `data`."""
    return [name for name in hints_of(kind) if name not in hints_of(DataConfig)]


def resolved(config: RunConfig) -> RunConfig:
    """The config with every setting that its task has, as records and hashes of configs hold it."""
    settings = settings_of(config)
    plain = to_dict(settings)
    return dataclasses.replace(config, settings={name: plain[name] for name in own_settings(type(settings))})
