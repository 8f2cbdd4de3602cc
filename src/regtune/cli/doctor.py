"""`regtune doctor`: its arguments, its help, and the one library call that it makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro
from tyro.conf import Positional

from regtune.cli.parsing import CommandHelp, parse, quiet, say
from regtune.config import RegisterConfig

HELP = CommandHelp(
    name="doctor",
    sentence="Prove on your own checkpoint that registers do what they promise.",
    examples=(
        "regtune doctor minilm",
        "regtune doctor my/model --registers.placement suffix",
        "regtune doctor unlisted/architecture --write family.py",
    ),
)


@dataclass(frozen=True, kw_only=True)
class DoctorArgs:
    """Proves on your own checkpoint that registers do what they promise, each promise with a measured number.

    Runs in float32 on the CPU and only reads the model's files. Exit code 1 if anything fails. Of an architecture that
    regtune doesn't list, it finds where the parts are and proves the promises on that.
    """

    model: Annotated[Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A folder, a hub name or `minilm`; with registers in it, those are examined."""
    registers: RegisterConfig = field(default_factory=RegisterConfig)
    write: str | None = None
    """A new Python file for the family that was found, for --plugin; nothing is overwritten."""


def run(argv: Sequence[str]) -> int:
    """Runs `regtune doctor`."""
    args = parse(HELP, DoctorArgs, argv)
    quiet()
    from regtune.testing.doctor import examine

    report = examine(args.model, args.registers, write=args.write)
    say(report)
    return 0 if report.healthy else 1
