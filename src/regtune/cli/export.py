"""`regtune export`: its arguments, its help, and the one library call that it makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from regtune.cli.parsing import CommandHelp, parse, quiet, require_there, say

HELP = CommandHelp(
    name="export",
    sentence="Write a model so that it runs without regtune, and prove that it computes the same.",
    examples=(
        "regtune export runs/n8 served/n8 --format onnx",
        "regtune export runs/chat served/chat --format plain",
    ),
)


@dataclass(frozen=True, kw_only=True)
class ExportArgs:
    """Writes a model so that it runs without regtune: as an ONNX file, a torch.export program or a plain model.

    What was written is loaded and run on several batches, lengths and paddings, and kept only if its outputs are those
    of the model.
    """

    model: Annotated[Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run directory, a model's folder or a hub name."""
    folder: Annotated[Positional[Path], tyro.conf.arg(metavar="OUT")]
    """The folder that is made."""
    format: Literal["onnx", "torch", "plain"] = "onnx"
    """onnx and torch hold the registers inside; plain turns them into words or into a prefix for peft."""
    tolerance: float = 1e-4
    """Largest difference of any output."""
    data: tuple[str, ...] = ()
    """Data sets on which an encoder's registers are audited for plain; the run's first evaluation set if none."""
    limit: int = 64
    """Examples of them."""


def run(argv: Sequence[str]) -> int:
    """Runs `regtune export`."""
    args = parse(HELP, ExportArgs, argv)
    require_there(args.model)
    quiet()
    from regtune.serving.export import export

    say(export(args.model, args.folder, format=args.format, tolerance=args.tolerance, data=args.data, limit=args.limit))
    return 0
