"""Small sentiment classifiers to measure explanations on: MiniLM on SST-2, N registers × seeds, one folder each.

Finished cells are kept, so that the script can be stopped and started again. About 1 to 3 minutes a cell on two cores.

    python benchmarks/sentiment_models.py --data ../shared/data/sst2 --folder runs/sentiment
    python benchmarks/sentiment_models.py --rehearse          # 20 steps on 640 sentences, in another folder
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro
from record import write_result

from regtune.config import TrainConfig
from regtune.tasks.classify.sentiment import SentimentConfig, train_sentiment


def main(
    data: Path = Path("../shared/data/sst2"),
    folder: Path = Path("runs/sentiment"),
    num_registers: tuple[int, ...] = (0, 8),
    seeds: tuple[int, ...] = (0, 1, 2),
    epochs: float = 2.0,
    learning_rate: float = 2e-4,
    register_learning_rate: float = 1e-2,
    rehearse: bool = False,
) -> None:
    config = SentimentConfig()
    rates = TrainConfig(
        epochs=epochs, batch_size=32, learning_rate=learning_rate, register_learning_rate=register_learning_rate
    )
    config = dataclasses.replace(config, training=rates)
    if rehearse:
        config = dataclasses.replace(config, max_steps=20, max_sentences=640)
        folder, seeds = folder.with_name(f"{folder.name}-rehearsal"), seeds[:1]
    rows = []
    for seed in seeds:
        for registers in num_registers:
            record = train_sentiment(registers, seed, data, folder / f"n{registers}-seed{seed}", config=config)
            rows.append(
                {
                    "num_registers": registers,
                    "seed": seed,
                    "dev_accuracy": round(record["metrics"]["dev"]["accuracy"], 4),
                    "test_accuracy": round(record["metrics"]["test"]["accuracy"], 4),
                    "seconds": record["seconds"],
                    "steps": record["training"]["steps"],
                }
            )
            print(rows[-1], flush=True)
    if not rehearse:
        print(write_result("sentiment_models", {"config": record["config"], "rows": rows}))


if __name__ == "__main__":
    tyro.cli(main)
