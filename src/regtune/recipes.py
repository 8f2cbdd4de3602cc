"""Recipes: YAML files that hold the difference from the defaults of `RunConfig`, read strictly."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from regtune.config import RunConfig
from regtune.errors import ConfigError, unknown_name

_FOLDER = Path("recipes")
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}


def load_recipe(name: str | Path) -> RunConfig:
    """Reads a recipe.

    Paths in it mean what they would mean on the command line: they are relative to the current directory.

    Args:
        name: the file, or the bare name of one in `./recipes`, with or without `.yaml`.

    Raises:
        ConfigError: no such file, broken YAML, a key that doesn't exist or occurs twice, a value of the wrong type or
            one that can't work, or an `output_dir` that leaves the current directory. The message names file and key.
    """
    path = find_recipe(name)
    content = read_recipe(path)
    config: RunConfig = _build(RunConfig, content, str(path), "")
    if "output_dir" in content:
        _refuse_outside(path, config.output_dir)
    return config


def config_from_dict(content: Mapping[str, Any], where: str) -> RunConfig:
    """The config that `to_dict` made plain, for example from a run directory's `config.json`.

    Raises:
        ConfigError: as `load_recipe`; `where` names the file.
    """
    config: RunConfig = _build(RunConfig, upgraded(content), where, "")
    return config


def settings_from_dict(kind: type, content: Mapping[str, Any], where: str) -> Any:
    """Settings of a method, a task or an analysis from plain values; `where` names them in errors.

    Raises:
        ConfigError: a key that doesn't exist, or a value of the wrong type or one that can't work.
    """
    return _build(kind, dict(content), where, "")


def upgraded(content: Mapping[str, Any]) -> dict[str, Any]:
    """A config of an earlier regtune in today's words: `warm_up` and `training.freeze_backbone` became methods."""
    plain = dict(content)
    methods = dict(plain.get("methods", {}))
    training = plain.get("training")
    if isinstance(training, Mapping) and "freeze_backbone" in training:
        plain["training"] = {key: value for key, value in training.items() if key != "freeze_backbone"}
        if training["freeze_backbone"] is True:
            methods["linear_probe"] = {}
    warm_up = plain.pop("warm_up", None)
    if isinstance(warm_up, Mapping) and warm_up.get("steps"):
        methods["warm_up"] = dict(warm_up)
    return plain | ({"methods": methods} if methods else {})


def find_recipe(name: str | Path) -> Path:
    """The file that a recipe's name means: itself, or the one of that bare name in `./recipes`.

    Raises:
        ConfigError: there is none; the nearest name is suggested.
    """
    given = Path(name)
    bare = given.name == str(name)
    candidates = [given, *([_FOLDER / given, _FOLDER / f"{name}.yaml"] if bare else [])]
    for path in candidates:
        if path.is_file():
            return path
    if given.is_dir():
        raise ConfigError(f"The recipe {name} is a folder. Give a YAML file.")
    folder = _FOLDER if bare else given.parent
    there = [file.name if bare else str(file) for file in sorted(folder.glob("*.y*ml"))]
    if there:
        raise unknown_name(f"recipe in {folder or '.'}:", str(name), there)
    raise ConfigError(f"The recipe {name} doesn't exist. Give the path of a YAML file.")


class _StrictLoader(yaml.SafeLoader):
    """YAML without tags that make objects, in which every key must be unique."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuses a key that occurs twice, where YAML would take the last one."""
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} occurs twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def read_recipe(path: Path) -> dict[Any, Any]:
    """A YAML file's settings as plain values; an empty file has none.

    Raises:
        ConfigError: not UTF-8, no valid YAML, a key that occurs twice, or something else than settings.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: this is not valid YAML: {error.problem or error.context}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from error
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {_shown(content)}, not settings. Write lines like `model: minilm`.")
    return content


def _build(kind: type, content: dict[Any, Any], where: str, prefix: str) -> Any:
    """A config dataclass from plain values, checked field by field."""
    hints = get_type_hints(kind)
    known = {field.name for field in dataclasses.fields(kind)}
    settings: dict[str, Any] = {}
    for key, value in content.items():
        if key not in known:
            raise unknown_name(f"setting in {where}:", f"{prefix}{key}", {prefix + name for name in known})
        settings[key] = _convert(hints[key], value, where, f"{prefix}{key}")
    try:
        return kind(**settings)
    except ConfigError as error:
        raise ConfigError(f"{where}: {prefix}{error}" if prefix else f"{where}: {error}") from error


def _convert(hint: Any, value: Any, where: str, key: str) -> Any:
    """The value as the annotation wants it; refuses what would need guessing."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise ConfigError(
                f"{where}: {key} is {_shown(value)}, but must hold settings of its own, indented below it."
            )
        return _build(hint, value, where, f"{key}.")
    origin = get_origin(hint)
    if origin is Mapping:
        nested = get_args(hint)[1] is not Any
        if not isinstance(value, dict) or (nested and not all(isinstance(item, dict) for item in value.values())):
            names = "names with settings below them" if nested else "settings, indented below it"
            raise ConfigError(f"{where}: {key} is {_shown(value)}, but must hold {names}.")
        return value
    if origin in (Union, types.UnionType):
        inner = next(option for option in get_args(hint) if option is not type(None))
        return None if value is None else _convert(inner, value, where, key)
    if origin is Literal:
        choices = get_args(hint)
        if value not in choices:
            raise unknown_name(f"value for {key} in {where}:", str(value), choices)
        return value
    if origin is tuple:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f"{where}: {key} is {_shown(value)}, but must be a list of texts, like [embedded:dev].")
        return tuple(value)
    return _scalar(hint, value, where, key)


def _scalar(hint: Any, value: Any, where: str, key: str) -> Any:
    if hint is float and isinstance(value, str):  # PyYAML follows YAML 1.1, where 2e-5 is text
        try:
            return float(value)
        except ValueError:
            pass
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where}: {key} is {_shown(value)}, but must be {_WORDS[hint]}.")
    return value


def _shown(value: Any) -> str:
    return "empty" if value is None else f"{value!r}"


def _refuse_outside(path: Path, output_dir: Path) -> None:
    text = output_dir.as_posix()
    absolute = PurePosixPath(text).is_absolute() or PureWindowsPath(text).anchor != "" or text.startswith("~")
    if absolute or ".." in PureWindowsPath(text).parts:
        raise ConfigError(
            f"{path}: output_dir={text!r} leaves the current directory, and a recipe may not choose that. "
            "Write a relative path without `..`, or give the flag --output-dir yourself."
        )
