"""`regtune evaluate`: its arguments, its help, and the one library call that it makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from regtune.cli.parsing import CommandHelp, first_argument, parse, quiet, say, value_of, with_flags, without_flags
from regtune.config import RunConfig
from regtune.errors import ConfigError
from regtune.registry import TASKS

HELP = CommandHelp(
    name="evaluate",
    sentence="Score a run, or any model with a task's head, on evaluation sets, by language.",
    examples=(
        "regtune evaluate runs/first",
        "regtune evaluate runs/first --data xquad:de xquad:zh my.dev.json.gz",
        "regtune evaluate runs/v2 --data squad_v2:dev --settings.null-answers",
    ),
)


@dataclass(frozen=True, kw_only=True)
class EvaluateArgs:
    """Scores a run's model, or any model with a task's head: its metrics, set by set and by language.

    A run's own settings are the defaults. Writes evaluation.json and every example's prediction.
    """

    target: Annotated[Positional[str], tyro.conf.arg(metavar="DIR")]
    """A run directory, a model's folder or a hub name; comes first."""
    data: tuple[str, ...] = ()
    """Evaluation sets: files that the task reads, or names like `xquad:de`; the run's own if none are given."""
    output_dir: Path | None = None
    """Where the results go: `evaluation` in the run directory, or runs/evaluation for other models."""
    max_length: int = 384
    """Longest row in text tokens; lengths among the task's settings become shorter with it."""
    on_bad_record: Literal["raise", "skip", "mend"] = "raise"
    """Stop at the first bad record; leave it out, count it and list it; or also mend what the task can mend."""
    max_examples: int | None = None
    """Use only the first so many examples of each set."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 where the device has it (`auto`), or a fixed choice."""
    settings: Any
    """The task's own."""


def run(argv: Sequence[str]) -> int:
    """Runs `regtune evaluate`."""
    from regtune.recipes import settings_of
    from regtune.session import open_target

    target = first_argument(argv)
    if target is None and not {"-h", "--help"} & set(argv):
        raise ConfigError("Name the run directory or model first: regtune evaluate DIR --data NAME ...")
    base = RunConfig() if target is None else open_target(target).config
    length = value_of("--max-length", argv) or ""
    settings = settings_of(base)
    settings = TASKS.get(base.task).shortened(settings, int(length)) if length.isdecimal() else settings
    flags = with_flags(settings)
    arguments = dataclasses.make_dataclass(
        "EvaluateArgs", [("settings", type(flags))], bases=(EvaluateArgs,), frozen=True, kw_only=True
    )
    arguments.__doc__ = EvaluateArgs.__doc__
    default = arguments(
        target=str(target),
        max_length=base.data.max_length,
        on_bad_record=base.data.on_bad_record,
        max_examples=base.data.max_eval_examples,
        precision=base.training.precision,
        settings=flags,
    )
    args: EvaluateArgs = parse(HELP, arguments, argv, default)
    quiet()
    from regtune.sweeps.evaluate import evaluate as run_evaluation
    from regtune.sweeps.evaluate import evaluation_text

    data = dataclasses.replace(
        base.data,
        max_length=args.max_length,
        on_bad_record=args.on_bad_record,
        max_eval_examples=args.max_examples,
    )
    training = dataclasses.replace(base.training, precision=args.precision)
    config = dataclasses.replace(base, data=data, training=training, settings=without_flags(args.settings))
    found, path = run_evaluation(args.target, args.data, config=config, output_dir=args.output_dir)
    say(f"{evaluation_text(found)}\nDetails: {path}")
    return 0
