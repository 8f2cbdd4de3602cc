"""What all commands share: arguments from dataclasses, help with examples, a context from a file."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import tyro

from regtune.config import RunConfig, to_dict
from regtune.errors import CheckpointError, ConfigError, printable
from regtune.recipes import plain_value
from regtune.records import is_local
from regtune.typed import hints_of

ArgsT = TypeVar("ArgsT")
_METHODS_HELP = (
    "Methods beside registers, with their settings: linear_probe, warm_up:steps=100,trainable=all. All there are: "
    "regtune methods."
)


class CommandHelp(NamedTuple):
    """What the overview and the end of a command's own help say of it."""

    name: str
    sentence: str
    examples: tuple[str, ...]


def parse(help_: CommandHelp, kind: type[ArgsT], argv: Sequence[str], default: ArgsT | None = None) -> ArgsT:
    """The command's arguments; help ends with examples."""
    prog = f"regtune {help_.name}"
    try:
        if default is None:
            return tyro.cli(kind, prog=prog, args=list(argv))
        return tyro.cli(kind, prog=prog, args=list(argv), default=default)
    except SystemExit as stop:
        if stop.code in (0, None):
            say("\n".join(["Examples:", *(f"  {example}" for example in help_.examples)]))
        raise


def say(text: object, *, error: bool = False, colours: bool = False) -> None:
    """Prints what a command found, the only way that one does: nothing in a text acts on the terminal.

    Args:
        text: what to say; JSON stays the same JSON.
        error: on standard error.
        colours: leave sequences that choose a colour.
    """
    parts = re.split(r"(\x1b\[[0-9;]*m)", str(text)) if colours else [str(text)]
    shown = "".join(part if number % 2 else printable(part) for number, part in enumerate(parts))
    print(shown, file=sys.stderr if error else sys.stdout, flush=True)


def first_argument(argv: Sequence[str]) -> str | None:
    """The argument that the defaults of all others depend on, if it stands where it belongs."""
    return argv[0] if argv and not argv[0].startswith("-") else None


def value_of(flag: str, argv: Sequence[str]) -> str | None:
    """The value of a flag that the defaults of others depend on, before they are parsed; None if it isn't there."""
    found = None
    for index, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") == flag:
            found = value if equals else next(iter(argv[index + 1 :]), None)
    return found


def require_there(name: str) -> None:
    """Refuses a model's name that must have meant a folder and isn't one, before anything slow is imported.

    Raises:
        CheckpointError: it isn't there.
    """
    if is_local(name) and not Path(name).expanduser().is_dir():
        raise CheckpointError(f"{name} doesn't exist: no such run directory or model folder.")


def with_settings(config: RunConfig, argv: Sequence[str]) -> tuple[type, Any]:
    """The class of run configs whose `settings` are the task's own, as flags, and the config as one of them.

    Methods are flags as well, a text each: `linear_probe`, `warm_up:steps=100,trainable=all`.

    The task is the one that `--task` names, or the config's.
    """
    from regtune.recipes import settings_of

    task = value_of("--task", argv) or config.task
    if task != config.task:
        config = dataclasses.replace(config, task=task, settings={})
    settings = with_flags(settings_of(config))
    typed = dataclasses.make_dataclass(
        "RunConfig",
        [("settings", type(settings)), ("methods", Annotated[tuple[str, ...], tyro.conf.arg(help=_METHODS_HELP)])],
        bases=(RunConfig,),
        frozen=True,
        kw_only=True,
    )
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    values |= {"settings": settings, "methods": tuple(map(_method_text, config.methods.items()))}
    return typed, typed(**values)


def with_flags(settings: Any) -> Any:
    """A task's settings as an object whose class makes flags of those that are the task's own."""
    from regtune.recipes import own_settings

    kind: Any = type(settings)
    hidden = [
        (name, _hidden(hint), dataclasses.field(default=getattr(settings, name)))
        for name, hint in hints_of(kind).items()
        if name not in own_settings(kind)
    ]
    made = dataclasses.make_dataclass("Settings", hidden, bases=(kind,), frozen=True, kw_only=True)
    return made(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)})


def without_flags(settings: Any) -> dict[str, Any]:
    """The task's own settings as plain values, for `RunConfig.settings`."""
    from regtune.recipes import own_settings

    plain = to_dict(settings)
    return {name: plain[name] for name in own_settings(type(settings))}


def _hidden(kind: Any) -> Any:
    """A type that makes no flag. It is the field's own: tyro remembers types by defaults, and 0.0 equals False."""
    return tyro.conf.Suppress[tyro.conf.Fixed[kind]]  # type: ignore[misc]


def without_types(config: Any) -> RunConfig:
    """The plain config of one that `with_settings` made."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    values["settings"] = without_flags(config.settings)
    values["methods"] = dict(map(_method, values["methods"]))
    return RunConfig(**values)


def _method_text(used: tuple[str, Mapping[str, Any]]) -> str:
    name, settings = used
    return f"{name}:{','.join(f'{key}={json.dumps(value)}' for key, value in settings.items())}" if settings else name


def _method(text: str) -> tuple[str, dict[str, Any]]:
    """A method's name and settings from `name:key=value,key=value`: numbers, true, false, null, or text."""
    name, _, rest = text.partition(":")
    settings: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"--methods {text}: {part!r} is no setting. Write {name}:key=value,key=value.")
        settings[key.strip()] = plain_value(value)
    return name, settings


def context_of(context: str | None, context_file: str | None) -> str:
    """The text given with `--context` or in the file of `--context-file`.

    Raises:
        ConfigError: neither or both, or a file that is no UTF-8 text.
    """
    if (context is None) == (context_file is None):
        raise ConfigError("Give the text with --context or with --context-file (one of them).")
    if context is not None:
        return context
    try:
        raw = sys.stdin.buffer.read() if context_file == "-" else Path(str(context_file)).read_bytes()
        return raw.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"--context-file {context_file} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--context-file {context_file} is not UTF-8 text (byte {error.start}).") from error


def quiet() -> None:
    """Only errors from transformers, and none of its progress bars; regtune shows its own."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
