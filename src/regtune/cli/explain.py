"""`regtune explain`: its arguments, its help, and the library calls that it makes, one a text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from regtune.cli.parsing import CommandHelp, context_of, parse, quiet, require_there, say
from regtune.errors import ConfigError

HELP = CommandHelp(
    name="explain",
    sentence="Show which words matter for an answer, a class, a tag or a next token.",
    examples=(
        'regtune explain runs/n8 --question "Who built it?" --context "It was built by Ada." --html why.html',
        'regtune explain runs/n8 --compare runs/n0 --question "Who built it?" --context-file article.txt',
        'regtune explain runs/moods "A stirring film." --target positive-negative --words',
        "regtune explain runs/moods --file reviews.csv --methods occlusion --baseline mask --json",
        "regtune explain runs/shapes picture.png --methods attnlrp occlusion --html why.html",
        'regtune explain HuggingFaceTB/SmolLM2-135M "The capital of France is" --write 3',
    ),
)


@dataclass(frozen=True, kw_only=True)
class ExplainArgs:
    """Shows which words matter for an answer, a class, a tag or a next token, on the terminal or as one HTML page.

    Explained is what the model itself says unless you name something else. What the numbers mean, and when not to trust
    them, is in docs/explaining.md.
    """

    model: Annotated[Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run directory, a model's folder or a hub name; comes first."""
    texts: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="[TEXT ...]")] = ()
    """Texts, or image files for a model of images. Write [MASK] where a masked language model is to find a word."""
    question: str | None = None
    """A question, for a model that answers questions."""
    context: str | None = None
    """The text that holds the answer."""
    context_file: str | None = None
    """A UTF-8 file with that text instead; `-` reads standard input."""
    file: Path | None = None
    """Many texts: JSON lines, CSV or TSV with a header, a text a line, or a folder with a text in each file."""
    data: tuple[str, ...] = ()
    """Data sets of the model's task instead."""
    limit: int = 10
    """At most so many examples of `--data`, spread evenly."""
    compare: str | None = None
    """Another model for the same texts, side by side: for example the one without registers."""
    targets: Annotated[tuple[str, ...], tyro.conf.arg(aliases=("--target",))] = ()
    """Of an answer: start, end (these two by default), answer, answer-minus-runner-up, answer-minus-null. Elsewhere:
    predicted (by default), a label, a word, or one minus another (positive-negative), with @ and a token's number or
    word where there are several (PER@Ada)."""
    methods: Annotated[tuple[str, ...], tyro.conf.arg(aliases=("--method",))] = ()
    """attnlrp, chefer and integrated-gradients by default; cp-lrp, gradient-input, attention-gradient, attention,
    rollout, occlusion, random."""
    words: bool = False
    """Scores by word instead of by token."""
    write: int = 1
    """So many tokens that a language model writes behind the text are explained one by one."""
    by: Literal["layer", "head", "neuron"] | None = None
    """For attnlrp and cp-lrp: also the relevance of every layer, head or neuron inside the model."""
    baseline: Literal["pad", "mask", "zero"] | None = None
    """For integrated-gradients and occlusion: what stands for "no text"; pad by default."""
    registers: Literal["held", "moved"] | None = None
    """For integrated-gradients: registers keep what they learned (by default), or come in with the text."""
    special_tokens: Literal["held", "moved"] | None = None
    """For integrated-gradients and occlusion: special tokens stay (by default), or are treated like all others."""
    max_steps: int | None = None
    """For integrated-gradients: most points of a path."""
    start_layer: int | None = None
    """For chefer: the first block that is rolled out; 0 by default."""
    layers: Literal["last", "all"] | None = None
    """For attention and attention-gradient."""
    seed: int | None = None
    """For random."""
    html: Path | None = None
    """Write a page there."""
    palette: Literal["green-red", "blue-orange"] = "green-red"
    """Colours; blue-orange suits colour-blind readers."""
    json: bool = False
    """Print JSON instead of text, a line for each text."""


_OPTIONS = ("by", "baseline", "registers", "special_tokens", "max_steps", "start_layer", "layers", "seed")


def run(argv: Sequence[str]) -> int:
    """Runs `regtune explain`."""
    args = parse(HELP, ExplainArgs, argv)
    if sum((args.question is not None, bool(args.texts), args.file is not None, bool(args.data))) != 1:
        raise ConfigError(
            "Give texts behind the model, a question with --question (and --context), --file or --data: one of them."
        )
    for name in filter(None, (args.model, args.compare)):
        require_there(name)
    context = context_of(args.context, args.context_file) if args.question is not None else None
    quiet()
    from regtune.analyses.attribution.explain import explain
    from regtune.progress import begin_stage, each, stages
    from regtune.report.overlays.page import write_overlay
    from regtune.report.overlays.terminal import overlay_text
    from regtune.session import open as open_session
    from regtune.sweeps.predict import read_records

    options = {name: getattr(args, name) for name in _OPTIONS if getattr(args, name) is not None}
    found: list[dict[str, Any]] = []
    with stages(2, shown=not args.texts and args.question is None):
        begin_stage(f"opening {args.model}")
        session = open_session(args.model)
        other = None if args.compare is None else open_session(args.compare)
        given: Sequence[Any] = args.texts or [{"question": args.question, "context": context}]
        if args.file is not None:
            given = read_records(args.file, session.task)
        elif args.data:
            given = session.sample(args.data, args.limit).items
        begin_stage(f"explaining {len(given)} texts")
        for one in each(given, "texts"):
            (made,) = explain(
                session,
                [one],
                target=args.targets,
                method=args.methods,
                words=args.words,
                write=args.write,
                compare=other,
                **options,
            )
            json_ = made.to_json()
            text = json.dumps(json_, ensure_ascii=False) if args.json else overlay_text(json_, palette=args.palette)
            say(text, colours=not args.json)
            found += [json_] if args.html is not None else []
    if args.html is not None:
        path = write_overlay(args.html, found, palette=args.palette)
        say(f"Page: {path}", error=args.json)
    return 0
