"""Blocks as plain text, for a terminal. Figures need a page, so they are left out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from regtune.interfaces import Block

WIDTH = 120


def as_text(blocks: Sequence[Block]) -> str:
    """Tables with aligned columns and texts, one after the other."""
    return "\n\n".join("\n".join(_lines(block)) for block in blocks if block.kind != "figure")


def _lines(block: Block) -> Iterator[str]:
    if block.kind == "text":
        yield block.title
        if not block.text:
            yield "=" * len(block.title)
    else:
        yield f"{block.title}:"
        yield text_table(block.columns, [["" if cell is None else str(cell) for cell in row] for row in block.rows])
    for paragraph in block.text.split("\n") if block.text else ():
        yield textwrap.fill(paragraph, WIDTH)


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain text columns: words to the left, numbers to the right."""
    columns = list(zip(*[head, *rows], strict=True))
    widths = [max(map(len, column)) for column in columns]
    numeric = [all(_is_number(cell) for cell in column[1:]) for column in columns]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in [head, *rows]
    )


def _is_number(cell: Any) -> bool:
    return not cell or cell[0] in "+-.0123456789"
