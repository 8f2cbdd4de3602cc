"""`regtune inspect` and `regtune faithfulness`: arguments, help, and the one library call that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from regtune.cli.parsing import CommandHelp, first_argument, parse, quiet, require_there, say
from regtune.errors import ConfigError
from regtune.recipes import plain_value

HELP = CommandHelp(
    name="inspect",
    sentence="Inspect a model: attention, artefacts, 8 bits, registers, heads, explanations.",
    examples=(
        "regtune inspect minilm --parts attention artefacts",
        "regtune inspect runs/n8 --compare runs/n0 --limit 100",
        "regtune inspect runs/n8 --parts registers --set registers.hows=mask,mean",
    ),
)


@dataclass(frozen=True, kw_only=True)
class InspectArgs:
    """Inspects any supported model, trained or not, with or without registers and head.

    Every part is measured on the same examples and leaves one record in `inspect` in the run directory, which `regtune
    report` draws. What the model or the data can't have is left out with a note.
    """

    model: Annotated[Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run directory, a checkpoint, a model's folder, a hub name or `minilm`; comes first."""
    parts: tuple[str, ...] = ()
    """attention, artefacts, int8, registers, heads, explanations, faithfulness, or those of a plugin; if none,
    all but faithfulness, which takes minutes."""
    data: tuple[str, ...] = ()
    """Data sets of the model's task, or a .txt file with a paragraph a line; the run's first evaluation set if none."""
    limit: int = 48
    """Examples, spread evenly over the data. The costly parts look at some of them (`--set heads.examples=48`), and
    every part says how many it measured."""
    compare: tuple[str, ...] = ()
    """Other models, inspected alike; what differs gets intervals over examples."""
    checkpoints: bool = False
    """Inspect the run's checkpoints too, in the order of training."""
    set: tuple[str, ...] = ()
    """Settings of parts: PART.FIELD=VALUE, lists with commas."""
    output_dir: Path | None = None
    """Where the records go: `inspect` in the run directory, or runs/inspect/MODEL for other models."""


def run(argv: Sequence[str]) -> int:
    """Runs `regtune inspect`."""
    args = parse(HELP, InspectArgs, argv)
    for name in (args.model, *args.compare):
        require_there(name)
    return _inspect(args, args.parts, settings_of(args.set), checkpoints=args.checkpoints)


def _inspect(args: Any, parts: Sequence[str], settings: dict[str, Any], *, checkpoints: bool = False) -> int:
    quiet()
    from regtune.analyses.inspection import inspect

    found = inspect(
        args.model,
        parts=parts,
        data=args.data,
        limit=args.limit,
        compare=args.compare,
        checkpoints=checkpoints,
        settings=settings,
        output_dir=args.output_dir,
    )
    say(f"{found}\n\nRecords: {found.folder}")
    return 0


def settings_of(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """PART.FIELD=VALUE as mappings; a value is read as JSON where it is JSON, and parted at commas.

    Raises:
        ConfigError: one that isn't of this form.
    """
    found: dict[str, dict[str, Any]] = {}
    for entry in given:
        place, equals, value = entry.partition("=")
        part, dot, field = place.partition(".")
        if not (equals and dot and part and field):
            raise ConfigError(f"--set {entry} must be PART.FIELD=VALUE, for example --set registers.hows=mask,mean.")
        values = [plain_value(each) for each in value.split(",")] if "," in value else plain_value(value)
        found.setdefault(part, {})[field] = values
    return found


FAITHFULNESS_HELP = CommandHelp(
    name="faithfulness",
    sentence="Measure whether explanations are true to a model.",
    examples=(
        "regtune faithfulness runs/n8 --settings.methods attnlrp chefer --limit 60",
        "regtune faithfulness runs/classifier --settings.rationales movies",
    ),
)


def run_faithfulness(argv: Sequence[str]) -> int:
    """Runs `regtune faithfulness`."""
    named = first_argument(argv)
    if named is not None:
        require_there(named)
    from regtune.analyses.faithfulness.analysis import FaithfulnessSettings

    @dataclass(frozen=True, kw_only=True)
    class FaithfulnessArgs:
        """Takes tokens away in the order that each method gives them, and watches the model's probability.

        The same as `regtune inspect --parts faithfulness`, with its settings as flags.
        """

        model: Annotated[Positional[str], tyro.conf.arg(metavar="MODEL")]
        """A run directory, a model's folder or a hub name; comes first."""
        data: tuple[str, ...] = ()
        """Data sets of the model's task; the run's first evaluation set if none."""
        limit: int = 200
        """Examples, spread evenly over the data; `--settings.texts` of them are taken apart."""
        compare: tuple[str, ...] = ()
        """Other models, measured alike."""
        settings: FaithfulnessSettings = field(default_factory=FaithfulnessSettings)
        output_dir: Path | None = None
        """Where the record goes: `inspect` in the run directory, or runs/inspect/MODEL for other models."""

    # tyro reads the annotations of a class in a function from its module
    FaithfulnessArgs.__annotations__ |= {"settings": FaithfulnessSettings}
    args = parse(FAITHFULNESS_HELP, FaithfulnessArgs, argv)
    return _inspect(args, ("faithfulness",), {"faithfulness": args.settings})
