"""The command line: finds the command, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 it failed, 2 used wrongly, 130 interrupted (143 by SIGTERM, 129 by SIGHUP).
Each command is a file of this room.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from regtune.cli import (
    ask,
    compare,
    demo,
    doctor,
    evaluate,
    explain,
    explore,
    export,
    info,
    inspect,
    listing,
    neurons,
    predict,
    report,
    sweep,
    train,
)
from regtune.cli.parsing import say
from regtune.errors import ConfigError, RegtuneError, bounded, unknown_name
from regtune.tables import Table


class Command(NamedTuple):
    """A subcommand: what runs it, and what the overview and the end of its own help say."""

    run: Callable[[Sequence[str]], int]
    sentence: str
    examples: tuple[str, ...]


_MODULES = (
    demo,
    train,
    sweep,
    report,
    compare,
    evaluate,
    predict,
    ask,
    info,
    doctor,
    explain,
    explore,
    inspect,
    neurons,
)
COMMANDS = {
    module.HELP.name: Command(module.run, module.HELP.sentence, module.HELP.examples) for module in _MODULES
} | {
    help_.name: Command(run, help_.sentence, help_.examples)
    for help_, run in (
        (export.HELP, export.run),
        (inspect.FAITHFULNESS_HELP, inspect.run_faithfulness),
        (listing.METHODS_HELP, listing.run_methods),
        (listing.TASKS_HELP, listing.run_tasks),
    )
}
"""In the order of the overview."""
_OPTIONS = (
    ("--version", "Print the version."),
    ("--debug", "Show the traceback of an error."),
    ("--plugin FILE", "Run a Python file that registers tasks, families, methods or analyses of your own."),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("REGTUNE_DEBUG", "0") not in ("", "0")
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        with _signals_as_interrupts():
            return _dispatch(_load_plugins(arguments))
    except KeyboardInterrupt as stop:
        resume = " The same command continues the run." if arguments[:1] in (["train"], ["demo"], ["sweep"]) else ""
        say(f"\nInterrupted.{resume}", error=True)
        return stop.args[0] if isinstance(stop, _Stopped) else 130
    except BrokenPipeError:  # the reader of our output has seen enough (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        say(_message(error), error=True)
        return 2 if isinstance(error, ConfigError) else 1


class _Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP: the same words and the same state as after Ctrl-C, and the code that a shell gives."""


@contextlib.contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    def stop(number: int, _: object) -> None:
        raise _Stopped(128 + number)

    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    known = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {each: signal.getsignal(each) for each in known}
    for each, handler in before.items():
        if handler is not signal.SIG_IGN:  # nohup
            signal.signal(each, stop)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _load_plugins(arguments: list[str]) -> list[str]:
    """Runs the files of `--plugin FILE` (it may stand anywhere, more than once) and gives the other arguments."""
    from regtune.registry import load_plugin

    left: list[str] = []
    given = iter(arguments)
    for argument in given:
        name, equals, path = argument.partition("=")
        if name != "--plugin":
            left.append(argument)
            continue
        path = path if equals else next(given, "")
        if not path:
            raise ConfigError("--plugin names no file. Give a Python file: --plugin mine.py")
        load_plugin(path)
    return left


def _dispatch(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "help"):
        say(_overview())
        return 0 if arguments else 2
    if name in ("--version", "-V"):
        from importlib.metadata import version

        say(f"regtune {version('regtune')}")
        return 0
    if name not in COMMANDS:
        options = ("--help", "--version", "--debug", "--plugin")
        raise unknown_name("option", name, options) if name.startswith("-") else unknown_name("command", name, COMMANDS)
    try:
        return COMMANDS[name].run(arguments[1:])
    except SystemExit as stop:  # tyro has printed its message
        return stop.code if isinstance(stop.code, int) else 0


def _overview() -> str:
    lines = ["usage: regtune COMMAND [OPTIONS]", "", "Register-augmented fine-tuning of pretrained encoders.", ""]
    lines += ["Commands (regtune COMMAND --help tells all its options):"]
    lines += [_listed([(name, command.sentence) for name, command in COMMANDS.items()]), "", "Options:"]
    lines += [_listed(_OPTIONS)]
    lines += ["", "Exit codes: 0 done, 1 it failed, 2 used wrongly, 130 interrupted.", "", "Examples:"]
    return "\n".join(lines + [f"  {command.examples[0]}" for command in COMMANDS.values()])


def _listed(rows: Sequence[tuple[str, str]]) -> str:
    return textwrap.indent(Table(columns=("", ""), rows=tuple(rows)).text, "  ")


def _message(error: Exception) -> str:
    if isinstance(error, RegtuneError):
        return f"error: {bounded(str(error))}"
    kind, text = type(error).__name__, bounded(str(error))
    if isinstance(error, OSError) and error.strerror:
        return f"error: {error.strerror}: {bounded(str(error.filename or kind))}"
    return f"error: {kind}: {text} (this is not one of regtune's own errors; --debug shows where it comes from)"


if __name__ == "__main__":
    sys.exit(main())
