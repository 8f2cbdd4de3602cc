"""What every benchmark writes down: its figures, the machine and the versions, as a JSON file in `benchmarks/results/`.

Files that were written earlier name the machine in other words (`cpu` for `processor`, versions inside `machine`);
what reads them looks at the figures alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from regtune import records

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """The machine as run records describe it, and the threads that torch uses."""
    return records.machine() | {"torch_threads": torch.get_num_threads()}


def write_result(name: str, result: dict[str, Any], *, folder: Path = RESULTS) -> Path:
    """Writes `folder/name.json` whole or not at all: the result, the date (UTC), the machine and the versions."""
    content = {
        "benchmark": name,
        "date": records.now(),
        **result,
        "machine": machine(),
        "versions": records.versions(),
    }
    return records.write_json(folder / f"{name}.json", content)
