"""`regtune report`: its arguments, its help, and the one library call that it makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from regtune.cli.parsing import CommandHelp, parse, say

HELP = CommandHelp(
    name="report",
    sentence="Write one HTML page about a sweep: verdict, figures, tables, flipped examples.",
    examples=(
        "regtune report runs/ablation",
        "regtune report docs/results/ablation --output-dir runs/report",
    ),
)


@dataclass(frozen=True, kw_only=True)
class ReportArgs:
    """Writes a page about a sweep, or one run, from its records: verdict, figures, tables, flipped examples.

    The page is one HTML file that needs no network; its tables (Markdown, CSV) and figures (SVG) lie beside it. Cells
    that aren't finished are listed and left out. Needs neither model nor GPU, but the extra `report`.
    """

    folder: Annotated[Positional[Path], tyro.conf.arg(metavar="DIR")]
    """A folder with run directories in it, or one run directory."""
    output_dir: Path | None = None
    """Gets report.html and the rest; `report` in DIR by default."""
    delta: float | None = None
    """Largest difference that does not matter: 0.01 is one point of a ratio. The metric's own by default."""
    resamples: int = 10_000
    """Bootstrap draws."""


def run(argv: Sequence[str]) -> int:
    """Runs `regtune report`."""
    args = parse(HELP, ReportArgs, argv)
    from regtune.report.page import write_report

    told: list[str] = []
    page = write_report(
        args.folder, output=args.output_dir, delta=args.delta, resamples=args.resamples, tell=told.append
    )
    say("\n".join([f"Report: {page}", *told]))
    return 0
