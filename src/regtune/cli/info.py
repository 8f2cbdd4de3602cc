"""`regtune info`: its arguments, its help, and the one library call that it makes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from tyro.conf import Positional

from regtune.cli.parsing import CommandHelp, parse, quiet, say

HELP = CommandHelp(
    name="info",
    sentence="Tell what a model or a run directory is.",
    examples=(
        "regtune info runs/first",
        "regtune info minilm",
    ),
)


@dataclass(frozen=True, kw_only=True)
class InfoArgs:
    """Tells what a model or a run is: architecture, registers, parameters; for a run its scores, versions and times."""

    target: Annotated[Positional[str], tyro.conf.arg(metavar="DIR")]
    """A run directory, a model's folder, a hub name or `minilm`."""
    json: bool = False
    """Print JSON instead of lines."""


def run(argv: Sequence[str]) -> int:
    """Runs `regtune info`."""
    args = parse(HELP, InfoArgs, argv)
    quiet()
    from regtune.sweeps.describe import describe, describe_text

    facts = describe(args.target)
    say(json.dumps(facts, ensure_ascii=False, indent=1) if args.json else describe_text(facts))
    return 0
