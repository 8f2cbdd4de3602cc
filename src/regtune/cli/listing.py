"""`regtune methods` and `regtune tasks`: their arguments, their help, and the one library call that each makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from tyro.conf import Positional

from regtune.cli.parsing import CommandHelp, parse, quiet, say

METHODS_HELP = CommandHelp(
    name="methods",
    sentence="List the methods of training, and where each works.",
    examples=("regtune methods", "regtune methods lora"),
)
TASKS_HELP = CommandHelp(name="tasks", sentence="List the tasks.", examples=("regtune tasks",))


@dataclass(frozen=True, kw_only=True)
class MethodsArgs:
    """Lists every method: what it changes, what it costs, when to use it, and on which families it was seen to work."""

    method: Annotated[Positional[str | None], tyro.conf.arg(metavar="[METHOD]")] = None
    """One method, with its settings and the reasons where it doesn't work."""


@dataclass(frozen=True, kw_only=True)
class TasksArgs:
    """Lists every task: what it is, the model's head, and its metrics."""


def run_methods(argv: Sequence[str]) -> int:
    """Runs `regtune methods`."""
    args = parse(METHODS_HELP, MethodsArgs, argv)
    quiet()
    from regtune.methods.listing import list_methods

    say("\n\n".join(table.text for table in list_methods(args.method)))
    return 0


def run_tasks(argv: Sequence[str]) -> int:
    """Runs `regtune tasks`."""
    parse(TASKS_HELP, TasksArgs, argv)
    from regtune.tasks.listing import list_tasks

    say(list_tasks().text)
    return 0
