"""`regtune explain`: its arguments, its help, and the one library call that it makes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from regtune.cli.parsing import CommandHelp, context_of, parse, quiet

HELP = CommandHelp(
    name="explain",
    sentence="Show which words an answer rests on.",
    examples=(
        'regtune explain runs/n8 --question "Who built it?" --context "It was built by Ada." --html why.html',
        'regtune explain runs/n8 --compare runs/n0 --question "Who built it?" --context-file article.txt',
    ),
)


@dataclass(frozen=True, kw_only=True)
class ExplainArgs:
    """Shows which words an answer rests on, by several methods, on the terminal or as one HTML page.

    Explained are the start and the end of the model's own answer, in the window that holds it. What the numbers mean,
    and when not to trust them, is in docs/explaining.md.
    """

    target: Annotated[Positional[str], tyro.conf.arg(metavar="DIR")]
    """A run directory, a model's folder or a hub name; comes first."""
    question: str
    """The question."""
    context: str | None = None
    """The text that holds the answer."""
    context_file: str | None = None
    """A UTF-8 file with that text instead; `-` reads standard input."""
    compare: str | None = None
    """Another model for the same question, side by side: for example the one without registers."""
    methods: tuple[str, ...] = ()
    """attnlrp, cp-lrp, chefer, integrated-gradients, gradient-input, attention-gradient, attention, rollout,
    occlusion, random; the first, third and fourth if none are named."""
    targets: tuple[str, ...] = ("start", "end")
    """start, end, answer, answer-minus-runner-up or answer-minus-null."""
    html: Path | None = None
    """Write a page there."""
    palette: Literal["green-red", "blue-orange"] = "green-red"
    """Colours; blue-orange suits colour-blind readers."""
    json: bool = False
    """Print JSON instead of text."""


def run(argv: Sequence[str]) -> int:
    """Runs `regtune explain`."""
    args = parse(HELP, ExplainArgs, argv)
    context = context_of(args.context, args.context_file)
    quiet()
    from regtune.analyses.attribution.explain_question import explain_question
    from regtune.report.overlays.page import write_overlay
    from regtune.report.overlays.terminal import overlay_text

    found = explain_question(
        args.target,
        args.question,
        context,
        methods=args.methods or None,
        targets=args.targets,
        compare=args.compare,
    ).to_json()
    print(json.dumps(found, ensure_ascii=False) if args.json else overlay_text(found, palette=args.palette))
    if args.html is not None:
        path = write_overlay(args.html, found, palette=args.palette)
        print(f"Page: {path}", file=sys.stderr if args.json else sys.stdout)
    return 0
