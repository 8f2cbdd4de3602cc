"""The part of a report that looks inside a model: attention, registers, norms, faithfulness, overlays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from regtune.errors import DataError
from regtune.report.figures import Figure
from regtune.report.inside.blocks import Block, artefact_blocks, attention_blocks, faithfulness_blocks
from regtune.report.inside.files import Inside
from regtune.report.inside.registers import register_blocks
from regtune.report.overlays.page import Overlay, make_overlays
from regtune.report.table import Table


@dataclass(frozen=True, kw_only=True)
class InsideSection:
    """One model's measurements, drawn."""

    title: str
    note: str
    blocks: tuple[Block, ...]
    overlays: tuple[Overlay, ...]

    @property
    def figures(self) -> tuple[Figure, ...]:
        """All drawings."""
        return tuple(figure for block in self.blocks for figure in (*block.figures, *block.details))

    @property
    def tables(self) -> tuple[Table, ...]:
        """All tables."""
        return tuple(table for block in self.blocks for table in block.tables)


def inside_sections(found: Sequence[Inside]) -> tuple[tuple[InsideSection, ...], tuple[tuple[str, str], ...]]:
    """Draws what can be drawn.

    Args:
        found: the folders' contents, in the page's order.

    Returns:
        The sections that hold anything, and file and reason of everything that was refused.
    """
    sections: list[InsideSection] = []
    refused: list[tuple[str, str]] = []
    for number, one in enumerate(found, start=1):
        refused += one.refused
        blocks: list[Block] = []
        overlays: tuple[Overlay, ...] = ()
        for kinds, make in _PARTS:
            if any(kind in one.contents for kind in kinds):
                try:
                    blocks += make(one.contents, f"inside-{number}")
                except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                    refused.append(_refusal(one, kinds, error))
        if "explanations" in one.contents:
            try:
                overlays = make_overlays(one.contents["explanations"], prefix=f"inside-{number}-overlay")
            except DataError as error:
                refused.append((f"{one.folder.name}/inside/explanations.json", str(error)))
        if blocks or overlays:
            sections.append(
                InsideSection(title=one.title, note=one.note, blocks=tuple(blocks), overlays=tuple(overlays))
            )
    return tuple(sections), tuple(refused)


def _refusal(one: Inside, kinds: Sequence[str], error: Exception) -> tuple[str, str]:
    files = ", ".join(f"{kind}.json" for kind in kinds if kind in one.contents)
    return f"{one.folder.name}/inside/{files}", (
        f"It can't be understood ({type(error).__name__}: {error}). Measure again to renew it."
    )


def _drawn(kind: str, make: Callable[[Any, str], Iterator[Block]]) -> Callable[[dict[str, Any], str], list[Block]]:
    return lambda contents, prefix: list(make(contents[kind], prefix))


def _registers(contents: dict[str, Any], prefix: str) -> list[Block]:
    return list(register_blocks(contents.get("attention"), contents.get("audit"), prefix))


_PARTS: tuple[tuple[tuple[str, ...], Callable[[dict[str, Any], str], list[Block]]], ...] = (
    (("attention",), _drawn("attention", attention_blocks)),
    (("attention", "audit"), _registers),
    (("artefacts",), _drawn("artefacts", artefact_blocks)),
    (("faithfulness",), _drawn("faithfulness", faithfulness_blocks)),
)
