"""A sweep's records small enough for a repository: everything a report reads, predictions cut to what it reads."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regtune.errors import DataError
from regtune.records import CURVE_FILE, RUN_FILE, inside, load_record, read_json

CELLS = "cells"


def export_cells(folder: Path, target: Path, *, texts_up_to: int = 1000) -> list[Path]:
    """Copies every finished cell to `target/cells/KEY`: record, curve, and compact predictions.

    A compact predictions file has a row `{id, text, exact_match, f1}` for each question: F1 with four decimals, no
    n-best list, and an empty text in sets of more than `texts_up_to` questions. `sweep.json` and `search.json` come
    along. Cells that are there already and have not changed are left alone.

    Args:
        folder: a sweep's folder.
        target: where to; for example `docs/results/ablation`.
        texts_up_to: largest set whose answers are kept as text.

    Returns:
        The folders of the cells.

    Raises:
        DataError: nothing is finished, or a predictions file can't be read.
        CheckpointError: a record of another schema.
    """
    exported = [
        _export(path.parent, target / CELLS / path.parent.name, texts_up_to=texts_up_to)
        for path in sorted(folder.glob(f"*/{RUN_FILE}"))
    ]
    if not exported:
        raise DataError(f"{folder} holds no finished cell to export.")
    for name in ("sweep.json", "search.json"):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    return exported


def _export(run_dir: Path, target: Path, *, texts_up_to: int) -> Path:
    record = load_record(run_dir)
    finished = (run_dir / RUN_FILE).read_bytes()
    if (target / RUN_FILE).is_file() and (target / RUN_FILE).read_bytes() == finished:
        return target
    target.mkdir(parents=True, exist_ok=True)
    for file in record.predictions.values():
        rows = read_json(inside(run_dir, file))
        _write_rows(inside(target, file), compact_rows(rows, texts=len(rows) <= texts_up_to))
    if (run_dir / CURVE_FILE).is_file():
        shutil.copyfile(run_dir / CURVE_FILE, target / CURVE_FILE)
    (target / RUN_FILE).write_bytes(finished)
    return target


def compact_rows(rows: Sequence[dict[str, Any]], *, texts: bool) -> list[dict[str, Any]]:
    """The rows with id, text, exact match (0 or 1) and F1 (four decimals) alone."""
    return [
        {
            "id": row["id"],
            "text": row["text"] if texts else "",
            "exact_match": int(row["exact_match"]),
            "f1": round(row["f1"], 4),
        }
        for row in rows
    ]


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode()
    path.write_bytes(gzip.compress(raw, 9, mtime=0) if path.suffix == ".gz" else raw)
