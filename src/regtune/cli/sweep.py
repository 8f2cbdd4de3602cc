"""`regtune sweep`: its arguments, its help, and the one library call that it makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from regtune.cli.parsing import CommandHelp, parse, quiet, say
from regtune.sweeps.ray import ClusterConfig

HELP = CommandHelp(
    name="sweep",
    sentence="Run a grid of arms, numbers of registers, seeds and training sets; a stopped sweep continues.",
    examples=(
        "regtune sweep recipes/ablation-minilm-cpu.yaml",
        "regtune sweep recipes/ablation-minilm-cpu.yaml --dry-run",
        "regtune sweep recipes/ablation-minilm-full.yaml --engine ray --cluster.num-gpus 0.25",
    ),
)


@dataclass(frozen=True, kw_only=True)
class SweepArgs:
    """Runs every cell of a sweep recipe once: arms x numbers of registers x seeds x training sets.

    Finished cells are never run again, a killed sweep continues, a failed cell doesn't stop the others. Several
    processes may work on one folder. Exit code 1 if a cell failed, or if `--export` left one out.
    """

    recipe: Annotated[Positional[str], tyro.conf.arg(metavar="RECIPE")]
    """A YAML file, or the name of one in ./recipes."""
    folder: Path | None = None
    """Gets a run directory for each cell; runs/NAME-OF-THE-RECIPE by default."""
    dry_run: bool = False
    """List the cells and how long they will take, and do nothing."""
    search: bool = False
    """Search for every arm's learning rates first, as the recipe's `search` says."""
    search_only: bool = False
    """Search for them and do nothing else."""
    export: Path | None = None
    """Copy the finished cells' records there, small enough for a repository, and do nothing else."""
    engine: Literal["local", "ray"] = "local"
    """One cell after the other here, or on a Ray cluster (extra `cluster`)."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


def run(argv: Sequence[str]) -> int:
    """Runs `regtune sweep`."""
    args = parse(HELP, SweepArgs, argv)
    quiet()
    from regtune.sweeps.sweep_actions import carry_out

    report = carry_out(**{field.name: getattr(args, field.name) for field in dataclasses.fields(args)})
    say(report.text)
    return 0 if report.healthy else 1
