"""Recipes: YAML files that hold the difference from `RunConfig`'s defaults, read strictly; and tasks' own settings.

Light: no model, no tensors.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import yaml

from regtune.config import DataConfig, RunConfig, to_dict
from regtune.errors import ConfigError, shown, unknown_name
from regtune.registry import TASKS
from regtune.typed import hints_of, typed

if TYPE_CHECKING:
    from regtune.interfaces import Task

_FOLDER = Path("recipes")
_LARGEST = 100_000
_DEEPEST = 20
"""Bytes and levels of a recipe; real ones have 2,000 and 4."""


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
    config = config_from_dict(content, path)
    if "output_dir" in content:
        _refuse_outside(path, config.output_dir)
    return config


def config_from_dict(content: Mapping[Any, Any], where: Path | str, *, remedy: str = "") -> RunConfig:
    """The config that `to_dict` made plain, for example from a run directory's `config.json`.

    Raises:
        ConfigError: as `load_recipe`; `where` names the file, `remedy` says what to do about it.
    """
    refuse_task_settings(content, where)
    return typed(RunConfig, content, where, remedy=remedy)


def refuse_task_settings(config: Any, where: Path | str) -> None:
    """Says where a task's own settings stand, to those who wrote them under `data` or, as once, under `answers`."""
    known = list(hints_of(DataConfig))
    for section in ("data", "answers"):
        given = config.get(section) if isinstance(config, Mapping) else None
        for name in given if isinstance(given, Mapping) else ():
            if section != "data" or not difflib.get_close_matches(str(name), known, cutoff=0.8):
                raise ConfigError(
                    f"{where}: {section}.{shown(name)[1:-1]} is none of the settings that all tasks have. If it is the "
                    f"task's own, write it under `settings`: settings.{shown(name)[1:-1]}."
                )


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


def find_recipe(name: str | Path) -> Path:
    """The file that a recipe's name means: itself, or the one of that bare name in `./recipes`."""
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


def plain_value(text: str) -> Any:
    """What an unquoted text stands for, as in JSON: a number, true, false, null; or itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _parsed(text: str) -> Any:
    """YAML with JSON's plain values alone: no tags, no aliases (of which a few lines make gigabytes), no key twice."""
    depth = 0
    event: Any
    for event in yaml.parse(text, Loader=yaml.BaseLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        problem = None
        if getattr(event, "anchor", None) is not None:
            problem = "anchors and aliases (&name, *name) are not read; write the value out"
        elif getattr(event, "tag", None) is not None:
            problem = f"the tag {shown(event.tag)} is not read; write plain values"
        elif depth > _DEEPEST:
            problem = f"more than {_DEEPEST} levels of nesting"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
    node = yaml.compose(text, Loader=yaml.BaseLoader)
    return None if node is None else _constructed(node)


def _constructed(node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_constructed(item) for item in node.value]
    if isinstance(node, yaml.ScalarNode):
        if node.style is not None:
            return node.value
        return None if node.value in ("", "~") else plain_value(node.value)
    found: dict[str, Any] = {}
    for key, value in node.value:
        named = isinstance(key, yaml.ScalarNode)
        if not named or key.value in found:
            problem = f"the key {shown(key.value)} occurs twice" if named else "a key that is no name"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        found[key.value] = _constructed(value)
    return found


def read_recipe(path: Path) -> dict[Any, Any]:
    """A YAML file's settings as plain values; an empty file has none."""
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST + 1)
        if len(raw) > _LARGEST:
            raise ConfigError(f"{path} has more than {_LARGEST:,} bytes; a recipe is a few lines of settings.")
        content = _parsed(raw.decode("utf-8-sig"))
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
        raise ConfigError(f"{path} holds {shown(content)}, not settings. Write lines like `model: minilm`.")
    return content


def _refuse_outside(path: Path, output_dir: Path) -> None:
    text = output_dir.as_posix()
    absolute = PurePosixPath(text).is_absolute() or PureWindowsPath(text).anchor != "" or text.startswith("~")
    if absolute or ".." in PureWindowsPath(text).parts:
        raise ConfigError(
            f"{path}: output_dir={text!r} leaves the current directory, and a recipe may not choose that. "
            "Write a relative path without `..`, or give the flag --output-dir yourself."
        )
