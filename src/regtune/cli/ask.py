"""`regtune ask`: its arguments, its help, and the one library call that it makes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from tyro.conf import Positional

from regtune.cli.parsing import CommandHelp, context_of, parse, quiet, say

HELP = CommandHelp(
    name="ask",
    sentence="Ask a fine-tuned model a question about a text.",
    examples=(
        'regtune ask --question "Who built it?" --context "It was built by Ada."',
        'regtune ask runs/first --question "Who built it?" --context "It was built by Ada."',
        'cat article.txt | regtune ask runs/first --question "When was it found?" --context-file - --json',
    ),
)


@dataclass(frozen=True, kw_only=True)
class AskArgs:
    """Asks a fine-tuned model one question about a text; shows its best answers with their probabilities."""

    target: Annotated[Positional[str], tyro.conf.arg(metavar="DIR")] = "minilm-questions"
    """A run directory, a model's folder or a hub name; comes first. By default the adapter for English questions that
    comes with regtune."""
    question: str
    """The question."""
    context: str | None = None
    """The text that holds the answer."""
    context_file: str | None = None
    """A UTF-8 file with that text instead; `-` reads standard input."""
    top_k: int = 5
    """How many answers."""
    json: bool = False
    """Print JSON instead of a table."""


def run(argv: Sequence[str]) -> int:
    """Runs `regtune ask`."""
    args = parse(HELP, AskArgs, argv)
    context = context_of(args.context, args.context_file)
    quiet()
    from regtune.tasks.qa.question_answerer import answers_text
    from regtune.tasks.qa.question_answerer import ask as put_question

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prediction = put_question(args.target, args.question, context, top_k=args.top_k)
    if prediction.question_cut:
        say("note: the question was too long for the model's windows and was cut.", error=True)
    say(json.dumps(prediction.to_json(), ensure_ascii=False) if args.json else answers_text(prediction))
    return 0
