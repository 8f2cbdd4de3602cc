"""Every architecture of the registry, and what was seen to work on it.

`support.json` is written by `tests/families/conformance.py`, which tries heads, places, caches, relevance and looks
inside on a tiny model of each, and a decoder's own registers where it stands beside an encoder; nobody types it.
"""

from __future__ import annotations

import json
from pathlib import Path

from regtune.registry import FAMILIES
from regtune.tables import Table

SUPPORT = Path(__file__).parent / "support.json"
WORKS, NOT_TRIED, REFUSED = "works", "not tried", "refused"
KINDS = ("heads", "places", "depths", "caches", "decoder_registers", "relevance", "looks")


def list_families() -> Table:
    """A row for each, with what worked."""
    found = json.loads(SUPPORT.read_text(encoding="utf-8"))["families"]
    rows: list[tuple[str, ...]] = []
    for name in FAMILIES:
        refused = FAMILIES.get(name).refusal is not None
        if refused or name not in found:
            rows.append((name, REFUSED if refused else NOT_TRIED, *[""] * (len(KINDS) - 1)))
            continue
        cells = [found[name].get(kind, {}) for kind in KINDS]
        good = (", ".join(each for each, said in cell.items() if said == WORKS) for cell in cells)
        rows.append((name, *good))
    return Table(columns=("architecture", *KINDS), rows=tuple(rows))
