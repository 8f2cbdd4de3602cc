"""What a sweep's own `sweep.json` says: names of training sets, and which cells are planned."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regtune.records import read_json

SWEEP_FILE = "sweep.json"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cells of a sweep, and the short names of its training sets."""

    training_sets: dict[tuple[str, ...], str]
    cells: tuple[dict[str, Any], ...]

    def open_cells(self, begun: Collection[str]) -> list[str]:
        """A line for each arm that has planned cells without a run directory, with their seeds."""
        seeds: dict[tuple[str, int, str], list[int]] = {}
        for cell in self.cells:
            if cell["key"] not in begun:
                seeds.setdefault((cell["arm"], cell["num_registers"], cell["training_set"]), []).append(cell["seed"])
        return [
            f"{arm}, N = {count}, trained on {name}: seed{'s' if len(found) > 1 else ''} {', '.join(map(str, found))}"
            for (arm, count, name), found in seeds.items()
        ]


def read_plan(folder: Path) -> Plan | None:
    """The plan of the sweep whose cells lie in `folder` or in a folder in it; None if there is none to be read.

    A plan only adds to what the records say, so one that can't be understood is left alone.
    """
    for place in (folder, folder.parent):
        path = place / SWEEP_FILE
        if path.is_file():
            content = read_json(path)
            try:
                return Plan(
                    training_sets={tuple(v): str(k) for k, v in content["sweep"]["training_sets"].items()},
                    cells=tuple(_cell(cell) for cell in content["cells"]),
                )
            except (KeyError, TypeError, AttributeError):
                return None
    return None


def _cell(cell: dict[str, Any]) -> dict[str, Any]:
    return {name: cell[name] for name in ("key", "arm", "num_registers", "seed", "training_set")}
