"""What all commands share: arguments from dataclasses, help with examples, the text of a question from a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import tyro

from regtune.errors import ConfigError

ArgsT = TypeVar("ArgsT")


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
            print("Examples:")
            print("\n".join(f"  {example}" for example in help_.examples))
        raise


def first_argument(argv: Sequence[str]) -> str | None:
    """The argument that the defaults of all others depend on, if it stands where it belongs."""
    return argv[0] if argv and not argv[0].startswith("-") else None


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
