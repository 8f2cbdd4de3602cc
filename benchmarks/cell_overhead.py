"""What does a cell of a sweep cost beside its training steps and evaluations? MiniLM on the embedded questions.

Two cells in one process: the first makes the tokenised data, the second finds them. Overhead is
the cell's whole time without training steps and without the model's answering of questions: loading, tokenising,
checkpoints, scoring, writing. Times are wall-clock, so run it on a machine that does nothing else.

    python benchmarks/cell_overhead.py
"""

from __future__ import annotations

import functools
import tempfile
import time
from pathlib import Path
from typing import Any

import tyro

from regtune.config import DataConfig, RunConfig, TrainConfig
from regtune.records import load_record, machine, versions, write_json
from regtune.session import Session
from regtune.sweeps.cell_run import run_cell
from regtune.sweeps.grid import SweepConfig

RESULTS = Path(__file__).parent / "results" / "cell_overhead.json"
LIMIT_SECONDS = 5.0


def main(cells: int = 3, max_length: int = 384, epochs: float = 1.0) -> None:
    answering = Answering()
    Session.predict = answering.timed(Session.predict)  # type: ignore[method-assign]
    sweep = SweepConfig(
        arms=("registers",),
        num_registers=(8,),
        seeds=tuple(range(cells)),
        training_sets={"embedded": ("embedded:train",)},
        evaluation_sets=("embedded:dev",),
        base=RunConfig(data=DataConfig(max_length=max_length), training=TrainConfig(epochs=epochs)),
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for cell in sweep.cells():
            answering.seconds, began = 0.0, time.perf_counter()
            run_cell(cell, Path(folder), progress=False)
            whole = time.perf_counter() - began
            training = load_record(Path(folder) / cell.key).training["seconds"]
            rows.append(
                {
                    "cell": cell.label,
                    "seconds": round(whole, 2),
                    "training_seconds": round(training, 2),
                    "answering_seconds": round(answering.seconds, 2),
                    "overhead_seconds": round(whole - training - answering.seconds, 2),
                }
            )
            print(rows[-1])
    later = [row["overhead_seconds"] for row in rows[1:]]
    summary = {"first": rows[0]["overhead_seconds"], "later_mean": round(sum(later) / max(len(later), 1), 2)}
    limits = {"limit_seconds": LIMIT_SECONDS, "within": max(later, default=0.0) <= LIMIT_SECONDS}
    write_json(RESULTS, {"machine": machine(), "versions": versions(), "rows": rows} | summary | limits)
    print(summary, limits, RESULTS, sep="\n")


class Answering:
    """Adds up the time of a function's calls."""

    seconds = 0.0

    def timed(self, function: Any) -> Any:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began

        return call


if __name__ == "__main__":
    tyro.cli(main)
