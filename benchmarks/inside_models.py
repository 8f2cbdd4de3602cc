"""What registers change inside trained models: inspects every model of a sweep, and MiniLM before fine-tuning.

    python benchmarks/inside_models.py runs/ablation [--num-registers 0 4] [--limit 120]

The records go to docs/results/inside/SET/MODEL, from where `make results` makes the tables. A part that is there is not
measured again, so the script can be stopped and started.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from tyro.conf import Positional

from regtune.analyses.inspection import inspect
from regtune.errors import DataError
from regtune.records import load_record
from regtune.registry import ANALYSES

TARGET = Path(__file__).resolve().parents[1] / "docs" / "results" / "inside"


@dataclass(frozen=True, kw_only=True)
class Args:
    """Inspects every model of a sweep."""

    folder: Positional[Path]
    """The sweep's folder; its runs must have kept their models."""
    num_registers: tuple[int, ...] = ()
    """Only runs with so many; all if none."""
    limit: int = 120
    """Examples of each set."""
    sets: tuple[str, ...] = (
        "tydiqa-en=../shared/data/tydiqa-goldp/en.dev.json.gz",
        "squad=../shared/data/squad-v1.1/dev.json.gz",
    )
    """NAME=PATH of each set. The first one gets `parts`, the others `quick`."""
    parts: tuple[str, ...] = ()
    """All if none."""
    quick: tuple[str, ...] = ("attention", "artefacts")
    """Parts of the other sets."""
    before: str = "minilm"
    """The model before fine-tuning; empty leaves it out."""
    rationales: Path | None = None
    """A folder of documents with marked words, for faithfulness."""
    target: Path = TARGET
    """Where the records go."""


def main(args: Args) -> None:
    models = {"before": args.before} if args.before else {}
    for path in sorted(args.folder.glob("*/run.json")):
        config = load_record(path.parent).config
        n, seed = config["registers"]["num_registers"], config["training"]["seed"]
        if (path.parent / "model").is_dir() and (not args.num_registers or n in args.num_registers):
            models[f"n{n}-seed{seed}"] = str(path.parent)
    for number, entry in enumerate(args.sets):
        name, _, data = entry.partition("=")
        for label, model in models.items():
            folder = args.target / name / label
            wanted = args.quick if number else args.parts or tuple(ANALYSES)
            missing = [part for part in wanted if not (folder / f"{part}.json").is_file()]
            if missing:
                settings = {"faithfulness": {"rationales": args.rationales}} if "faithfulness" in missing else {}
                try:
                    found = inspect(
                        model, parts=missing, data=(data,), limit=args.limit, settings=settings, output_dir=folder
                    )
                except DataError as error:  # nothing is left that this model can have
                    print(name, label, error, flush=True)
                    continue
                print(name, label, ", ".join(record.part for record in found.records), *found.notes, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
