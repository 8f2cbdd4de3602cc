"""`regtune predict`: its arguments, its help, and the one library call that it makes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from regtune.cli.parsing import CommandHelp, parse, quiet, say
from regtune.errors import ConfigError

HELP = CommandHelp(
    name="predict",
    sentence="Predict for a file of texts with a fine-tuned model of any task, JSON lines out.",
    examples=(
        "regtune predict runs/moods --file reviews.csv",
        'regtune predict runs/moods --text "A stirring film." "Rather dull."',
        "regtune predict runs/shapes --file photos/",
    ),
)


@dataclass(frozen=True, kw_only=True)
class PredictArgs:
    """Predicts with a model of any task; prints one JSON object a line, in the order of the texts."""

    target: Annotated[Positional[str], tyro.conf.arg(metavar="DIR")]
    """A run directory, a model's folder or a hub name; comes first."""
    file: Path | None = None
    """JSON lines, CSV or TSV with a header (the columns that the task reads, most often `text`), or a text a line; for
    a model of images an image file, or a folder of them."""
    text: tuple[str, ...] = ()
    """Texts, instead of a file."""


def run(argv: Sequence[str]) -> int:
    """Runs `regtune predict`."""
    args = parse(HELP, PredictArgs, argv)
    if (args.file is None) == (not args.text):
        raise ConfigError("Give texts with --file or with --text (one of them).")
    quiet()
    from regtune.sweeps.predict import predict

    for found in predict(args.target, args.file or [{"text": text} for text in args.text], progress=True):
        say(json.dumps(found, ensure_ascii=False))
    return 0
