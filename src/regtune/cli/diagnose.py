"""`regtune diagnose`: its arguments, its help, and the one library call that it makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from regtune.cli.parsing import CommandHelp, parse, quiet

HELP = CommandHelp(
    name="diagnose",
    sentence="Tell which known artefacts a model has, how strong, and where.",
    examples=(
        "regtune diagnose minilm",
        "regtune diagnose runs/n0 --compare runs/n8 --data my.dev.json",
    ),
)


@dataclass(frozen=True, kw_only=True)
class DiagnoseArgs:
    """Tells which known artefacts a model has (high norms, massive activations, sinks, ...), how strong, and where.

    Any supported Hugging Face model, with or without registers, trained or not. Several stand side by side.
    """

    models: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="MODEL")]
    """Run directories, checkpoints, model folders, hub names or `minilm`."""
    data: tuple[str, ...] = ()
    """Questions (SQuAD-format files or names) or a .txt file with a paragraph a line; embedded questions if none."""
    compare: str | None = None
    """Another model; what differs gets intervals over texts."""
    checkpoints: bool = False
    """Look at each run's checkpoints too, in the order of training."""
    output_dir: Path | None = None
    """Where the numbers go: `inside` in the run directory, or runs/diagnosis/MODEL for other models."""
    limit: int = 100
    """Texts, spread evenly over the data."""
    max_length: int = 256
    """Longest text in tokens."""
    probes: bool = True
    """Probe outlier tokens for what they know."""
    quantise: bool = True
    """Measure what rounding weights and activations to 8 bits costs."""


def run(argv: Sequence[str]) -> int:
    """Runs `regtune diagnose`."""
    args = parse(HELP, DiagnoseArgs, argv)
    quiet()
    from regtune.analyses.artefacts.diagnose import DIAGNOSIS_FILE, DiagnosisSettings
    from regtune.analyses.artefacts.diagnose import diagnose as examine
    from regtune.analyses.artefacts.diagnose_text import diagnosis_text

    settings = DiagnosisSettings(
        limit=args.limit, max_length=args.max_length, probes=args.probes, quantise=args.quantise
    )
    found = examine(
        *args.models,
        data=args.data,
        compare=args.compare,
        checkpoints=args.checkpoints,
        output_dir=args.output_dir,
        settings=settings,
    )
    print(diagnosis_text(found))
    print(f"Numbers: {found.folder / DIAGNOSIS_FILE}")
    return 0
