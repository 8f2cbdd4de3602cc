"""`regtune train`: its arguments, its help, and the one library call that it makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro
from tyro.conf import Positional

from regtune.cli.parsing import CommandHelp, first_argument, parse, quiet, say, with_settings, without_types
from regtune.config import RunConfig
from regtune.errors import ConfigError

HELP = CommandHelp(
    name="train",
    sentence="Fine-tune a model with registers, from a recipe and flags; a stopped run continues.",
    examples=(
        "regtune train --model minilm --registers.num-registers 4 --output-dir runs/first",
        "regtune train recipes/minilm-tydiqa-en.yaml --training.seed 1 --output-dir runs/seed1",
        "regtune train --model roberta-base --data.train my.train.json --data.eval my.dev.json",
        "regtune train --task classify --data.train my.csv --data.eval dev.csv --settings.label-column mood",
    ),
)


@dataclass(frozen=True, kw_only=True)
class TrainArgs:
    """Fine-tunes a model as the recipe and the flags say, scores it, and writes a run directory.

    A recipe is a YAML file with the difference from the defaults; it comes first, and flags override it. Relative
    paths in it are relative to the current directory. A run that was interrupted continues with the same command.
    """

    recipe: Annotated[Positional[str | None], tyro.conf.arg(metavar="[RECIPE]")] = None
    """A YAML file, or the name of one in ./recipes."""
    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


def run(argv: Sequence[str]) -> int:
    """Runs `regtune train`."""
    from regtune.recipes import load_recipe

    recipe = first_argument(argv)
    config = RunConfig() if recipe is None else load_recipe(recipe)
    kind, typed = with_settings(config, argv)
    arguments = dataclasses.make_dataclass(
        "TrainArgs",
        [("config", Annotated[kind, tyro.conf.arg(name="")])],
        bases=(TrainArgs,),
        frozen=True,
        kw_only=True,
    )
    arguments.__doc__ = TrainArgs.__doc__
    args: TrainArgs = parse(HELP, arguments, argv, arguments(recipe=recipe, config=typed))
    if args.recipe != recipe:
        raise ConfigError(f"Put the recipe first: regtune train {args.recipe} ...")
    quiet()
    from regtune.sweeps.describe import scores_text
    from regtune.sweeps.run import data_lines, run_experiment

    record = run_experiment(without_types(args.config))
    for line in data_lines(record.data):
        say(f"note: {line}", error=True)
    say(f"{scores_text(record)}\nRun directory: {args.config.output_dir}")
    return 0
