"""`regtune compare`: its arguments, its help, and the one library call that it makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from regtune.cli.parsing import CommandHelp, parse, say

HELP = CommandHelp(
    name="compare",
    sentence="Compare two runs example by example.",
    examples=("regtune compare runs/first runs/second",),
)


@dataclass(frozen=True, kw_only=True)
class CompareArgs:
    """Compares two runs on the same examples: scores, their difference with its interval, and what flipped.

    Two single runs say nothing about other seeds; for that, train several and use `regtune report`.
    """

    run_a: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN_A")]
    """A run directory."""
    run_b: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN_B")]
    """Another one, evaluated on the same sets."""
    delta: float | None = None
    """Largest difference that does not matter: 0.01 is one point of a ratio. The metric's own by default."""
    resamples: int = 10_000
    """Bootstrap draws."""
    flips: int = 5
    """Flipped examples shown of each kind and set."""


def run(argv: Sequence[str]) -> int:
    """Runs `regtune compare`."""
    args = parse(HELP, CompareArgs, argv)
    from regtune.report.compare import compare_two, comparison_text

    found = compare_two(args.run_a, args.run_b, delta=args.delta, resamples=args.resamples)
    say(comparison_text(found, flips=args.flips))
    return 0
