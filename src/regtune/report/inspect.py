"""The part of a report that looks inside models: records of `regtune inspect`, drawn from their blocks.

Nothing here knows an analysis: each makes its blocks itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from regtune.errors import DataError
from regtune.inspection import FOLDER, PartRecord, read_records
from regtune.interfaces import Block
from regtune.registry import ANALYSES
from regtune.report.collect import Sweep
from regtune.report.figures import Figure, drawn
from regtune.report.overlays.page import Overlay, make_overlays
from regtune.tables import Table


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What stands together on the page: a text, figures side by side, a table, overlays, or HTML made by a plugin."""

    title: str = ""
    text: str = ""
    figures: tuple[Figure, ...] = ()
    table: Table | None = None
    overlays: tuple[Overlay, ...] = ()
    html: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Part:
    """One analysis of one model."""

    title: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, kw_only=True)
class InspectSection:
    """One model's records, drawn."""

    title: str
    note: str = ""
    parts: tuple[Part, ...] = field(default=())

    @property
    def figures(self) -> tuple[Figure, ...]:
        """All drawings."""
        return tuple(figure for part in self.parts for piece in part.pieces for figure in piece.figures)

    @property
    def tables(self) -> tuple[Table, ...]:
        """All tables."""
        return tuple(piece.table for part in self.parts for piece in part.pieces if piece.table is not None)


def has_records(folder: Path) -> bool:
    """Whether a run's or a sweep's folder holds records of `regtune inspect`."""
    return any((folder / FOLDER).glob("*.json"))


def sections_of(sweep: Sweep) -> tuple[tuple[InspectSection, ...], tuple[tuple[str, str], ...]]:
    """The sweep's own records, then those of one run of each arm: the first by seed that has any.

    Returns:
        The sections that hold anything, and file and reason of every record that can't be used.
    """
    sections: list[InspectSection] = []
    refused: list[tuple[str, str]] = []
    for number, (folder, title, note) in enumerate(_folders(sweep), start=1):
        section, wrong = section_of(folder, title, f"inspect-{number}", note)
        sections += [section] if section.parts else []
        refused += wrong
    return tuple(sections), tuple(refused)


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


def section_of(folder: Path, title: str, prefix: str, note: str = "") -> tuple[InspectSection, list[tuple[str, str]]]:
    """Draws the records in a folder.

    Args:
        folder: holds `inspect`.
        title: of the section.
        prefix: starts the names of its figures and tables.
        note: beneath the title.

    Returns:
        The section, and file and reason of everything that can't be used.
    """
    records, wrong = read_records(folder / FOLDER)
    refused = [(f"{folder.name}/{FOLDER}/{name}", reason) for name, reason in wrong]
    parts = []
    for record in records:
        try:
            pieces = tuple(_pieces(record.blocks(), f"{prefix}-{record.part}"))
        except DataError as error:
            refused.append((f"{folder.name}/{FOLDER}/{record.part}.json", str(error)))
            continue
        parts.append(Part(title=ANALYSES.get(record.part).title, pieces=pieces))
    sample = _sample(records)
    return InspectSection(title=title, note=" ".join(filter(None, (sample, note))), parts=tuple(parts)), refused


def _sample(records: Sequence[PartRecord]) -> str:
    """What was read, said once where all parts read the same."""
    seen = {(tuple(record.data["names"]), tuple(record.data["ids"])) for record in records}
    if len(seen) != 1:
        shown = [f"{record.part}: {len(record.data['ids'])}" for record in records]
        return f"The parts were measured on different examples ({', '.join(shown)})." if records else ""
    ((names, ids),) = seen
    return (
        f"All parts saw the same {len(ids)} examples of {', '.join(names)}. Layers, heads and registers count from 0."
    )


def _pieces(blocks: Sequence[Block], prefix: str) -> Iterator[Piece]:
    number = 0
    for kind, group in groupby(blocks, key=_kind):
        found = list(group)
        if kind == "figure":
            figures = []
            for block in found:
                number += 1
                assert block.draw is not None
                figures.append(drawn(f"{prefix}-{number}", block.title, block.text or block.title, block.draw))
            yield Piece(figures=tuple(figures))
            continue
        for block in found:
            number += 1
            if kind == "table":
                yield Piece(title=block.title, table=block.table(f"{prefix}-{number}"))
            elif kind == "overlay":
                yield Piece(title=block.title, overlays=make_overlays(block.data, prefix=f"{prefix}-{number}"))
            elif kind == "html":
                yield Piece(title=block.title, text=block.text, html=(block.html or "",))
            else:
                yield Piece(title=block.title, text=block.text)


def _kind(block: Block) -> str:
    if block.kind != "figure" or block.draw is not None:
        return block.kind
    return "html" if block.html is not None else "overlay"
