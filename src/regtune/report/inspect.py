"""The part of a report about the inside of models: records of `regtune inspect`, drawn from their blocks.

Nothing here knows an analysis: each makes its blocks itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from regtune.analyses.inspection import FOLDER, PartRecord, read_records
from regtune.errors import DataError
from regtune.registry import ANALYSES
from regtune.report.collect import Sweep
from regtune.report.sections import Part, Section

Refused = tuple[tuple[str, str], ...]
"""File and reason of every record that can't be used."""


def has_records(folder: Path) -> bool:
    """Whether a run's or a sweep's folder holds records of `regtune inspect`."""
    return any((folder / FOLDER).glob("*.json"))


def sections_of(sweep: Sweep) -> tuple[tuple[Section, ...], Refused]:
    """The sweep's own records, then those of one run of each arm: the first by seed that has any."""
    found = [section_of(folder, title, note) for folder, title, note in _folders(sweep)]
    return tuple(section for section, _ in found if section.parts), tuple(one for _, wrong in found for one in wrong)


def _folders(sweep: Sweep) -> Iterator[tuple[Path, str, str]]:
    alone = len(sweep.cells) == 1 and sweep.cells[0].folder == sweep.folder
    if has_records(sweep.folder):
        yield sweep.folder, sweep.cells[0].arm.label if alone else "the whole sweep", ""
    if alone:
        return
    for group in sweep.groups:
        for arm in group.arms:
            cells = [cell for cell in group.of(arm) if has_records(cell.folder)]
            if cells:
                others = ", ".join(str(cell.seed) for cell in cells[1:])
                note = f"Measured as well and not shown: seed {others} of this arm." if others else ""
                name = f"{group.train_name}: " if group.train_name and len(sweep.groups) > 1 else ""
                yield cells[0].folder, f"{name}{arm.label}, seed {cells[0].seed}", note


def section_of(folder: Path, title: str, note: str = "") -> tuple[Section, Refused]:
    """The records in a folder."""
    records, wrong = read_records(folder / FOLDER)
    refused = [(f"{folder.name}/{FOLDER}/{name}", reason) for name, reason in wrong]
    parts = []
    for record in records:
        try:
            blocks = tuple(replace(block, folded=block.kind == "table") for block in record.blocks())
        except DataError as error:
            refused.append((f"{folder.name}/{FOLDER}/{record.part}.json", str(error)))
            continue
        parts.append(Part(title=ANALYSES.get(record.part).title, blocks=blocks, note=record.sample))
    said = " ".join(filter(None, (_sample(records), note)))
    return Section(title=f"Inside: {title}", note=said, parts=tuple(parts)), tuple(refused)


def _sample(records: Sequence[PartRecord]) -> str:
    """What was read, said once where all parts read the same."""
    seen = {(tuple(record.data["names"]), tuple(record.data["ids"])) for record in records}
    if len(seen) != 1:
        shown = [f"{record.part}: {len(record.data['ids'])}" for record in records]
        return f"The parts were measured on different examples ({', '.join(shown)})." if records else ""
    ((names, ids),) = seen
    return (
        f"All parts were given the same {len(ids)} examples of {', '.join(names)}. Layers, heads and registers count "
        "from 0."
    )
