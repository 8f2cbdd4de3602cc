"""What lies in an `inside` folder: read, and refused with words where it is broken or of another schema."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regtune.errors import DataError
from regtune.records import read_json
from regtune.report.collect import Sweep

FOLDER = "inside"
KINDS = ("attention", "artefacts", "audit", "faithfulness", "explanations")
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Inside:
    """The measurements of one model (or of a whole sweep)."""

    title: str
    folder: Path
    contents: dict[str, Any]
    """Kind to what its file holds."""
    refused: tuple[tuple[str, str], ...]
    """File and reason of every file that can't be used."""
    note: str = ""
    """Which others have such files and are not shown."""


def has_inside(folder: Path) -> bool:
    """Whether a run's or a sweep's folder holds measurements."""
    return any((folder / FOLDER / f"{kind}.json").is_file() for kind in KINDS)


def read_inside(folder: Path, title: str, note: str = "") -> Inside:
    """Reads every file that is there."""
    contents: dict[str, Any] = {}
    refused = []
    for kind in KINDS:
        path = folder / FOLDER / f"{kind}.json"
        if path.is_file():
            try:
                contents[kind] = _checked(read_json(path), kind)
            except DataError as error:
                refused.append((f"{folder.name}/{FOLDER}/{path.name}", str(error)))
    return Inside(title=title, folder=folder, contents=contents, refused=tuple(refused), note=note)


def find_inside(sweep: Sweep) -> Iterator[Inside]:
    """The sweep's own measurements, then those of one run of each arm: the first by seed that has any."""
    if len(sweep.cells) == 1 and sweep.cells[0].folder == sweep.folder:
        if has_inside(sweep.folder):
            yield read_inside(sweep.folder, sweep.cells[0].arm.label)
        return
    if has_inside(sweep.folder):
        yield read_inside(sweep.folder, "the whole sweep")
    for group in sweep.groups:
        for arm in group.arms:
            cells = [cell for cell in group.of(arm) if has_inside(cell.folder)]
            if cells:
                others = ", ".join(str(cell.seed) for cell in cells[1:])
                note = f"Measured as well and not shown: seed {others} of this arm." if others else ""
                name = f"{group.train_name}: " if group.train_name and len(sweep.groups) > 1 else ""
                yield read_inside(cells[0].folder, f"{name}{arm.label}, seed {cells[0].seed}", note)


def _checked(content: Any, kind: str) -> Any:
    if kind == "explanations" and isinstance(content, list):
        return content  # each entry has its own schema version
    if not isinstance(content, dict):
        raise DataError(f"It holds no JSON object but a {type(content).__name__}. Measure again.")
    if content.get("kind") != kind or content.get("schema_version") != SCHEMA_VERSION:
        raise DataError(
            f"kind={content.get('kind')!r}, schema_version={content.get('schema_version')!r}; this regtune reads "
            f"{kind!r}, {SCHEMA_VERSION}. Measure again to renew it."
        )
    return content
