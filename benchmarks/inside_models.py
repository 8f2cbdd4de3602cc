"""What registers change inside trained models: looks into every model of a sweep, and into MiniLM before fine-tuning.

    python benchmarks/inside_models.py runs/ablation [--num-registers 0 4] [--questions 120]

Each model is looked into once (`regtune inside`); started again, it continues. The headline numbers of every question
and the register audits go to docs/results/inside, from where `make results` makes the tables.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from regtune.analyses.inside import PARTS, look_inside

from regtune.records import load_record

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "results" / "inside"
KEPT = ("measures.json", "audit.json", "faithfulness.json")
SETS = {"tydiqa-en": "../shared/data/tydiqa-goldp/en.dev.json.gz", "squad": "../shared/data/squad-v1.1/dev.json.gz"}


def models(folder: Path, counts: list[int] | None) -> dict[str, str]:
    """Label to run directory of every finished run that kept its model, baselines and registers only."""
    found = {"before": "minilm"}
    for path in sorted(folder.glob("*/run.json")):
        record = load_record(path.parent)
        n, seed = record.config["registers"]["num_registers"], record.config["training"]["seed"]
        if (path.parent / "model").is_dir() and (counts is None or n in counts):
            found[f"n{n}-seed{seed}"] = str(path.parent)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num-registers", type=int, nargs="+")
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--sets", nargs="+", choices=sorted(SETS), default=sorted(SETS, reverse=True))
    args = parser.parse_args()
    for name in args.sets:
        for label, model in models(args.folder, args.num_registers).items():
            kept = TARGET / name / label
            if (kept / "measures.json").is_file():
                continue
            place = args.folder / label / "inside" if model == "minilm" else Path(model) / "inside"
            parts = [part for part in PARTS if name == "tydiqa-en" or part in ("attention", "artefacts")]
            look_inside(model, data=(SETS[name],), limit=args.questions, parts=parts, output_dir=place / name)
            kept.mkdir(parents=True, exist_ok=True)
            for file in KEPT:
                if (place / name / file).is_file():
                    shutil.copyfile(place / name / file, kept / file)
            print(name, label, flush=True)


if __name__ == "__main__":
    main()
