"""`regtune evaluate`: its arguments, its help, and the one library call that it makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from regtune.cli.parsing import CommandHelp, first_argument, parse, quiet, say
from regtune.config import AnswerConfig
from regtune.errors import ConfigError
from regtune.registry import TASKS

HELP = CommandHelp(
    name="evaluate",
    sentence="Score a run or any question-answering model on evaluation sets, by language.",
    examples=(
        "regtune evaluate runs/first",
        "regtune evaluate runs/first --data xquad:de xquad:zh my.dev.json.gz",
        "regtune evaluate runs/v2 --data squad_v2:dev --answers.null-answers",
    ),
)


@dataclass(frozen=True, kw_only=True)
class EvaluateArgs:
    """Scores a run's model, or any question-answering model: EM and F1 in percent, set by set and by language.

    A run's own settings are the defaults. Writes evaluation.json and every question's n-best answers.
    """

    target: Annotated[Positional[str], tyro.conf.arg(metavar="DIR")]
    """A run directory, a model's folder or a hub name; comes first."""
    data: tuple[str, ...] = ()
    """Evaluation sets: SQuAD-format files or names like `xquad:de`; the run's own if none are given."""
    output_dir: Path | None = None
    """Where the results go: `evaluation` in the run directory, or runs/evaluation for other models."""
    max_length: int = 384
    """Longest window in text tokens."""
    stride: int | None = None
    """Overlap between two windows of one context, in tokens; the run's own, or a third of a shorter window."""
    max_question_length: int | None = None
    """Longer questions, in tokens, are cut and counted; the run's own, or half of a shorter window."""
    on_bad_record: Literal["raise", "skip", "mend"] = "raise"
    """Stop at the first bad record; leave it out, count it and list it; or also move near offsets to their answer."""
    max_examples: int | None = None
    """Use only the first so many questions of each set."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 where the device has it (`auto`), or a fixed choice."""
    answers: AnswerConfig = field(default_factory=AnswerConfig)


def run(argv: Sequence[str]) -> int:
    """Runs `regtune evaluate`."""
    from regtune.session import open_target

    target = first_argument(argv)
    if target is None:
        if not {"-h", "--help"} & set(argv):
            raise ConfigError("Name the run directory or model first: regtune evaluate DIR --data NAME ...")
        parse(HELP, EvaluateArgs, argv)
    base = open_target(str(target)).config
    default = EvaluateArgs(
        target=str(target),
        max_length=base.data.max_length,
        on_bad_record=base.data.on_bad_record,
        max_examples=base.data.max_eval_examples,
        precision=base.training.precision,
        answers=base.answers,
    )
    args = parse(HELP, EvaluateArgs, argv, default)
    quiet()
    from regtune.sweeps.evaluate import evaluate as run_evaluation
    from regtune.sweeps.evaluate import evaluation_text

    fitted = TASKS.get(base.task).shortened(base.data, args.max_length)
    data = dataclasses.replace(
        fitted,
        max_length=args.max_length,
        stride=fitted.stride if args.stride is None else args.stride,
        max_question_length=args.max_question_length or fitted.max_question_length,
        on_long_question="truncate",
        on_bad_record=args.on_bad_record,
        max_eval_examples=args.max_examples,
    )
    training = dataclasses.replace(base.training, precision=args.precision)
    config = dataclasses.replace(base, data=data, training=training, answers=args.answers)
    found, path = run_evaluation(args.target, args.data, config=config, output_dir=args.output_dir)
    say(f"{evaluation_text(found)}\nDetails: {path}")
    return 0
