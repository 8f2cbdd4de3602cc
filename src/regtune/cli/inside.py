"""`regtune inside`: its arguments, its help, and the one library call that it makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from regtune.cli.parsing import CommandHelp, parse, quiet

HELP = CommandHelp(
    name="inside",
    sentence="Measure everything inside a model; `regtune report` then draws it.",
    examples=(
        "regtune inside runs/n8",
        "regtune inside runs/n8 --parts audit --limit 400",
    ),
)


@dataclass(frozen=True, kw_only=True)
class InsideArgs:
    """Measures everything inside one model: attention, artefacts, 8-bit loss, explanations, faithfulness, registers.

    The files go into `inside` in the run directory, where `regtune report` finds and draws them.
    """

    target: Annotated[Positional[str], tyro.conf.arg(metavar="DIR")]
    """A run directory, a model's folder, a hub name or `minilm`; comes first."""
    data: tuple[str, ...] = ()
    """Questions or a .txt file; the run's first evaluation set if none, the embedded questions without a run."""
    limit: int = 200
    """Questions, spread evenly over the data."""
    parts: tuple[str, ...] = ()
    """attention, artefacts, int8, explanations, audit, faithfulness; all if none are named."""
    output_dir: Path | None = None
    """Where the files go instead."""


def run(argv: Sequence[str]) -> int:
    """Runs `regtune inside`."""
    args = parse(HELP, InsideArgs, argv)
    quiet()
    from regtune.analyses.inside import PARTS, look_inside

    found = look_inside(
        args.target,
        data=args.data,
        limit=args.limit,
        parts=args.parts or tuple(PARTS),
        output_dir=args.output_dir,
    )
    print("\n\n".join(found.texts))
    print(f"Numbers: {found.folder}")
    return 0
