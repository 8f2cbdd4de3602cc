"""How many cells of a sweep does a machine finish in an hour: one process alone, and several side by side?

A small model leaves most of a GPU idle, so several seeds are trained at once, each by a process of its own. Every count
of processes gets a folder of its own and cells of the recipe's first training set that differ in the seed alone.
Time runs from the start of the first cell to the end of the last; the start of Python is left out.

    python benchmarks/cells_per_hour.py recipes/ablation-minilm-full.yaml --processes 1 4
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Annotated

import tyro
import yaml
from record import write_result
from tyro.conf import Positional

from regtune.errors import TrainingError
from regtune.records import RunRecord, load_record
from regtune.sweeps.grid import SweepConfig, load_sweep, sweep_to_dict


def main(
    recipe: Annotated[Positional[str], tyro.conf.arg(help="sweep recipe")] = "recipes/ablation-minilm-full.yaml",
    processes: tuple[int, ...] = (1, 4),
    cells_each: Annotated[int, tyro.conf.arg(help="cells for each process")] = 2,
    num_registers: int = 8,
) -> None:
    rows = []
    for count in processes:
        with tempfile.TemporaryDirectory() as name:
            seconds = run(part_of(recipe, count * cells_each, num_registers), Path(name), processes=count)
        cells = count * cells_each
        rows.append(
            {
                "processes": count,
                "cells": cells,
                "seconds": round(seconds, 1),
                "cells_per_hour": round(3600 * cells / seconds, 2),
            }
        )
        print(rows[-1])
    ratio = round(rows[-1]["cells_per_hour"] / rows[0]["cells_per_hour"], 2)
    print(f"{processes[-1]} processes against {processes[0]}: {ratio} x")
    print(write_result("cells_per_hour", {"recipe": Path(recipe).name, "rows": rows, "ratio": ratio}))


def part_of(recipe: str, cells: int, num_registers: int) -> SweepConfig:
    """So many cells of a recipe, alike but for their seeds."""
    sweep = load_sweep(recipe)
    name, sets = next(iter(sweep.training_sets.items()))
    return dataclasses.replace(
        sweep,
        arms=("registers",),
        at_best=(),
        search=None,
        num_registers=(num_registers,),
        seeds=tuple(range(cells)),
        training_sets={name: sets},
        keep_models="none",
    )


def run(sweep: SweepConfig, folder: Path, *, processes: int) -> float:
    """Seconds from the start of the first cell to the end of the last."""
    content = sweep_to_dict(sweep)
    content["base"].pop("output_dir")
    (folder / "part.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    command = [sys.executable, "-m", "regtune", "sweep", str(folder / "part.yaml"), "--folder", str(folder / "cells")]
    children = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(processes)]
    codes = [child.wait() for child in children]
    records = [load_record(path.parent) for path in sorted((folder / "cells").glob("*/run.json"))]
    if any(codes) or len(records) != len(sweep.cells()):
        raise TrainingError(f"{len(records)} of {len(sweep.cells())} cells finished; exit codes {codes}.")
    return max(map(end_of, records)) - min(map(start_of, records))


def start_of(record: RunRecord) -> float:
    return datetime.fromisoformat(record.started).timestamp()


def end_of(record: RunRecord) -> float:
    return start_of(record) + record.seconds


if __name__ == "__main__":
    tyro.cli(main)
