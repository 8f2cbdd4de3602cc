"""Sweep recipes: one YAML file with the base config (its difference from the defaults) and the axes of the grid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regtune.config import RunConfig, to_dict
from regtune.recipes import find_recipe, read_recipe, refuse_task_settings
from regtune.sweeps.grid import SweepConfig
from regtune.typed import typed


def load_sweep(name: str | Path) -> SweepConfig:
    """Reads a sweep recipe.

    Args:
        name: the file, or the bare name of one in `./recipes`, with or without `.yaml`.

    Raises:
        ConfigError: as `load_recipe`, and for axes that are empty, repeated or of the wrong type.
    """
    path = find_recipe(name)
    return sweep_from_dict(read_recipe(path), str(path))


def sweep_from_dict(content: Mapping[str, Any], where: str) -> SweepConfig:
    """The sweep that a YAML file or `sweep.json` describes; `where` names it in errors."""
    refuse_task_settings(content.get("base"), f"{where}: base")
    return typed(SweepConfig, dict(content), where)


def sweep_to_dict(sweep: SweepConfig) -> dict[str, Any]:
    """The sweep as plain JSON types; `sweep_from_dict` gives it back."""
    plain = to_dict(sweep)
    plain["base"]["data"]["train"] = list(RunConfig().data.train)
    return plain
