"""Sweep recipes: one YAML file with the base config (its difference from the defaults) and the axes of the grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from regtune.config import RunConfig, to_dict
from regtune.errors import ConfigError, unknown_name
from regtune.recipes import config_from_dict, find_recipe, read_recipe
from regtune.sweeps.grid import LearningRates, SearchConfig, SweepConfig

_LISTS = {"arms": str, "at_best": str, "evaluation_sets": str, "num_registers": int, "seeds": int}


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
    """The sweep that a YAML file or `sweep.json` describes; `where` names it in errors.

    Raises:
        ConfigError: as `load_sweep`.
    """
    known = [f.name for f in dataclasses.fields(SweepConfig)]
    required = [
        f.name for f in dataclasses.fields(SweepConfig) if f.default is f.default_factory is dataclasses.MISSING
    ]
    for key in content:
        if key not in known:
            raise unknown_name(f"setting in {where}:", str(key), known)
    for key in required:
        if key not in content:
            raise ConfigError(f"{where}: {key} is missing. A sweep needs {', '.join(required)}.")
    settings = {key: _convert(key, value, f"{where}: {key}") for key, value in content.items()}
    try:
        return SweepConfig(**settings)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def sweep_to_dict(sweep: SweepConfig) -> dict[str, Any]:
    """The sweep as plain JSON types; `sweep_from_dict` gives it back."""
    plain = to_dict(sweep)
    plain["base"]["data"]["train"] = list(RunConfig().data.train)
    return plain


def _convert(key: str, value: Any, where: str) -> Any:  # noqa: PLR0911
    if key == "base":
        return config_from_dict(_mapping(value, where), where)
    if key == "training_sets":
        return {str(name): _list(sets, str, f"{where}.{name}") for name, sets in _mapping(value, where).items()}
    if key == "own_arms":
        return {str(name): _methods(given, f"{where}.{name}") for name, given in _mapping(value, where).items()}
    if key == "methods":
        return _methods(value, where)
    if key == "learning_rates":
        rates = _mapping(value, where).items()
        return {str(arm): _rates(LearningRates, given, f"{where}.{arm}") for arm, given in rates}
    if key == "search":
        return None if value is None else _rates(SearchConfig, value, where)
    if key == "keep_models":
        if value not in ("none", "first_seed", "all"):
            raise unknown_name(f"value for {where}:", str(value), ("none", "first_seed", "all"))
        return value
    return _list(value, _LISTS[key], where)


def _list(value: Any, kind: type, where: str) -> tuple[Any, ...]:
    words = {str: "texts, like [a, b]", int: "whole numbers, like [0, 4]", float: "numbers, like [1e-4, 2e-4]"}
    items = [_number(item) for item in value] if kind is float and isinstance(value, list) else value
    if not isinstance(items, list) or not all(isinstance(i, kind) and not isinstance(i, bool) for i in items):
        raise ConfigError(f"{where} is {value!r}, but must be a list of {words[kind]}.")
    return tuple(items)


def _mapping(value: Any, where: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is {value!r}, but must hold settings of its own, indented below it.")
    return value


def _methods(value: Any, where: str) -> dict[str, dict[str, Any]]:
    return {str(name): _mapping(settings, f"{where}.{name}") for name, settings in _mapping(value, where).items()}


def _number(value: Any) -> Any:
    try:  # PyYAML follows YAML 1.1, where 2e-5 is text
        return value if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return value


def _rates(kind: type, value: Any, where: str) -> Any:
    """A small dataclass of numbers and lists of numbers."""
    hints = get_type_hints(kind)
    settings: dict[str, Any] = {}
    for key, given in _mapping(value, where).items():
        if key not in hints:
            raise unknown_name(f"setting in {where}:", str(key), hints)
        settings[key] = _field(hints[key], given, f"{where}.{key}")
    try:
        return kind(**settings)
    except TypeError as error:
        raise ConfigError(f"{where}: {str(error).partition(') ')[2] or error}.") from error


def _field(hint: Any, given: Any, where: str) -> Any:
    if hint == tuple[float, ...]:
        return _list(given, float, where)
    if hint is int:
        return _list([given], int, where)[0]
    if given is None and hint == float | None:
        return None
    return _list([given], float, where)[0]
