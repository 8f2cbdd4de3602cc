"""`regtune explain`: its arguments, its help, and the one library call that it makes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from regtune.cli.parsing import CommandHelp, context_of, parse, quiet
from regtune.errors import ConfigError

HELP = CommandHelp(
    name="explain",
    sentence="Show which words an answer or a class rests on.",
    examples=(
        'regtune explain runs/n8 --question "Who built it?" --context "It was built by Ada." --html why.html',
        'regtune explain runs/n8 --compare runs/n0 --question "Who built it?" --context-file article.txt',
        'regtune explain runs/moods --text "A stirring film." --target positive-negative',
    ),
)


@dataclass(frozen=True, kw_only=True)
class ExplainArgs:
    """Shows which words an answer or a class rests on, by several methods, on the terminal or as one HTML page.

    Explained is what the model itself says: the start and the end of its answer, or its class, unless you name others.
    What the numbers mean, and when not to trust them, is in docs/explaining.md.
    """

    target: Annotated[Positional[str], tyro.conf.arg(metavar="DIR")]
    """A run directory, a model's folder or a hub name; comes first."""
    question: str | None = None
    """The question, for a model that answers questions."""
    context: str | None = None
    """The text that holds the answer."""
    context_file: str | None = None
    """A UTF-8 file with that text instead; `-` reads standard input."""
    text: tuple[str, ...] = ()
    """Texts, for a model of another task."""
    file: Path | None = None
    """A file of them: JSON lines, CSV or TSV with a header, or a text a line."""
    compare: str | None = None
    """Another model for the same question, side by side: for example the one without registers."""
    methods: tuple[str, ...] = ()
    """attnlrp, cp-lrp, chefer, integrated-gradients, gradient-input, attention-gradient, attention, rollout,
    occlusion, random; the first, third and fourth if none are named."""
    targets: Annotated[tuple[str, ...], tyro.conf.arg(aliases=("--target",))] = ()
    """Of an answer start, end (these two by default), answer, answer-minus-runner-up or answer-minus-null; of a class
    predicted (by default), a label, or one label minus another: positive-negative."""
    html: Path | None = None
    """Write a page there."""
    palette: Literal["green-red", "blue-orange"] = "green-red"
    """Colours; blue-orange suits colour-blind readers."""
    json: bool = False
    """Print JSON instead of text, a line for each text."""


def run(argv: Sequence[str]) -> int:
    """Runs `regtune explain`."""
    args = parse(HELP, ExplainArgs, argv)
    given = (args.question is not None) + bool(args.text) + (args.file is not None)
    if given != 1:
        raise ConfigError("Give a question with --question (and --context), or texts with --text or --file.")
    context = context_of(args.context, args.context_file) if args.question is not None else ""
    quiet()
    from regtune.report.overlays.page import write_overlay
    from regtune.report.overlays.terminal import overlay_text

    found: list[dict[str, Any]] = []
    for one in _explained(args, context):
        print(json.dumps(one, ensure_ascii=False) if args.json else overlay_text(one, palette=args.palette), flush=True)
        found += [one] if args.html is not None else []
    if args.html is not None:
        path = write_overlay(args.html, found, palette=args.palette)
        print(f"Page: {path}", file=sys.stderr if args.json else sys.stdout)
    return 0


def _explained(args: ExplainArgs, context: str) -> Iterator[dict[str, Any]]:
    methods = args.methods or None
    if args.question is not None:
        from regtune.analyses.attribution.explain_question import explain_question

        targets = args.targets or ("start", "end")
        yield explain_question(
            args.target, args.question, context, methods=methods, targets=targets, compare=args.compare
        ).to_json()
        return
    from regtune.analyses.attribution.explain_texts import explain_texts
    from regtune.sweeps.predict import read_records

    records = read_records(args.file) if args.file is not None else [{"text": text} for text in args.text]
    yield from explain_texts(args.target, records, targets=args.targets, methods=methods, compare=args.compare)
