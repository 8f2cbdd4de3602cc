"""A sweep's records small enough for a repository: everything a report reads, predictions cut to what it reads."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from regtune.errors import DataError, RegtuneError
from regtune.records import (
    CURVE_FILE,
    RUN_FILE,
    compact_predictions,
    ids_file,
    inside,
    load_record,
    read_predictions,
    write_bytes,
)

CELLS = "cells"


class Exported(NamedTuple):
    """What an export has written, and what it could not.

    Attributes:
        cells: the folders of the cells, below the target.
        left_out: by the name of its run directory, what is wrong with a cell and what to do.
    """

    cells: list[Path]
    left_out: dict[str, str]


def export_cells(folder: Path, target: Path, *, texts_up_to: int = 1000) -> Exported:
    """Copies every finished cell to `target/cells/KEY`: record, curve, and compact predictions.

    Predictions become columns of the task's scores (four decimals), without n-best lists, and without texts in sets of
    more than `texts_up_to` examples; their ids, which are most of the bytes and the same in every cell, are
    written once, to `target/examples`. `sweep.json` and `search.json` come along. Files that have not changed are left
    alone, so a sweep can be exported again while it grows. A broken cell is left out whole and listed.
    """
    done, left_out = [], {}
    for path in sorted(folder.glob(f"*/{RUN_FILE}")):
        run_dir = path.parent
        try:
            files = list(_files(run_dir, target, texts_up_to))
        except RegtuneError as error:
            left_out[run_dir.name] = str(error)
            continue
        for place, content in files:
            _write_changed(place, content)
        done.append(target / CELLS / run_dir.name)
    if not done:
        wrong = "".join(f"\n{name}: {why}" for name, why in left_out.items())
        raise DataError(f"{folder} holds no finished cell to export.{wrong}")
    for name in ("sweep.json", "search.json"):
        if (folder / name).is_file():
            _write_changed(target / name, (folder / name).read_bytes())
    return Exported(done, left_out)


def _files(run_dir: Path, target: Path, texts_up_to: int) -> Iterator[tuple[Path, bytes]]:
    """Every file of a cell's export and what it holds; the record comes last."""
    record, cell = load_record(run_dir), target / CELLS / run_dir.name
    sums: dict[str, str] = {}
    for name, file in record.predictions.items():
        rows = read_predictions(run_dir, record, name)
        content = compact_predictions(rows, texts=len(rows) <= texts_up_to)
        yield ids_file(target, content["examples"]), _packed([row["id"] for row in rows])
        place = inside(cell, file)
        raw = _packed(content) if place.suffix == ".gz" else _plain(content)
        sums[file] = hashlib.sha256(raw).hexdigest()
        yield place, raw
    if (run_dir / CURVE_FILE).is_file():
        yield cell / CURVE_FILE, (run_dir / CURVE_FILE).read_bytes()
    text = json.dumps(dataclasses.asdict(dataclasses.replace(record, files=sums)), indent=1, ensure_ascii=False)
    yield cell / RUN_FILE, f"{text}\n".encode(errors="backslashreplace")


def _plain(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode(errors="backslashreplace")


def _packed(content: Any) -> bytes:
    return gzip.compress(_plain(content), 9, mtime=0)


def _write_changed(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        write_bytes(path, content)
