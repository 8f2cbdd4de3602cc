"""Which learning rates suit the backbone and the registers? Searched on held-out training questions, never on dev.

Every seventh paragraph of the training file is held out. Each cell trains MiniLM on the rest for one epoch and is
scored on the held-out questions. N=0 and N=8 get the same backbone rates; the registers' own rate is searched on top.
Finished cells are kept, so the search can be stopped and started again.

    python benchmarks/search_learning_rates.py --data ../shared/data/tydiqa-goldp/en.train.json.gz
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from regtune.config import DataConfig, RegisterConfig, RunConfig, TrainConfig
from regtune.records import machine, write_json
from regtune.sweeps.run import run_experiment
from regtune.tasks.qa.data.sources import load_questions
from regtune.tasks.qa.data.squad import write_squad

RESULTS = Path(__file__).parent / "results" / "learning_rate_search.json"
HELD_OUT = 7


def split(data: Path, folder: Path) -> tuple[Path, Path]:
    """Writes the training questions without every seventh paragraph, and those."""
    examples = load_questions(data).items
    paragraphs = {context: number for number, context in enumerate(dict.fromkeys(e.context for e in examples))}
    kept = [e for e in examples if paragraphs[e.context] % HELD_OUT]
    held = [e for e in examples if paragraphs[e.context] % HELD_OUT == 0]
    write_squad(kept, folder / "train.json")
    write_squad(held, folder / "held-out.json")
    return folder / "train.json", folder / "held-out.json"


def main(
    data: Annotated[Path, tyro.conf.arg(help="SQuAD-format training file")] = Path(
        "../shared/data/tydiqa-goldp/en.train.json.gz"
    ),
    folder: Path = Path("runs/search"),
    learning_rates: tuple[float, ...] = (1e-4, 2e-4, 4e-4),
    register_learning_rates: tuple[float, ...] = (1e-3, 1e-2),
    num_registers: int = 8,
    epochs: float = 1.0,
    seed: int = 0,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = split(data, folder)
    base = RunConfig(
        registers=RegisterConfig(num_registers=0),
        data=DataConfig(train=(str(train),), eval=(str(held_out),)),
        training=TrainConfig(epochs=epochs, seed=seed, data_seed=seed),
    )
    cells = [(0, rate, 0.0) for rate in learning_rates]
    rows = [run(base, folder, *cell) for cell in cells]
    best = max(rows, key=lambda row: row["f1"])["learning_rate"]
    rows += [run(base, folder, num_registers, best, rate) for rate in register_learning_rates]
    best_own = max((r for r in rows if r["num_registers"]), key=lambda row: row["f1"])["register_learning_rate"]
    others = [rate for rate in learning_rates if rate != best]
    rows += [run(base, folder, num_registers, rate, best_own) for rate in others]
    held = f"every {HELD_OUT}th paragraph of {data.name}"
    write_json(RESULTS, {"machine": machine(), "held_out": held, "seed": seed, "rows": rows})
    for row in rows:
        print(row)
    print(RESULTS)


def run(base: RunConfig, folder: Path, registers: int, rate: float, own: float) -> dict[str, float]:
    config = dataclasses.replace(
        base,
        output_dir=folder / f"n{registers}-lr{rate:g}-reg{own:g}",
        registers=RegisterConfig(num_registers=registers),
        training=dataclasses.replace(base.training, learning_rate=rate, register_learning_rate=own or 1e-3),
    )
    record = run_experiment(config)
    (scores,) = record.metrics.values()
    return {
        "num_registers": registers,
        "learning_rate": rate,
        "register_learning_rate": own if registers else None,
        "epochs": base.training.epochs,
        "exact_match": round(scores["exact_match"], 4),
        "f1": round(scores["f1"], 4),
    }


if __name__ == "__main__":
    tyro.cli(main)
