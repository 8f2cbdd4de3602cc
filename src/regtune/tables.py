"""The one table: columns and rows of values, from which terminal, Markdown, HTML and CSV are written.

print(Table(columns=("arm", Column("F1", ".1f")), rows=(("baseline", 61.62), ("N = 4", 62.1))).text)
"""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from itertools import zip_longest
from typing import Any, Literal

from regtune.errors import printable

WIDTH = 120
"""Notes are wrapped to so many columns of a terminal."""
_FORMULA = ("=", "+", "-", "@", "\t", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a cell starts with that a spreadsheet runs; the last four are their wide forms."""
_NUMBER = re.compile(r"[-+−<]? ?[\d.]|none$|$")


@dataclass(frozen=True)
class Column:
    """How a column's values are shown."""

    title: str
    form: str | Callable[[Any], str] = ""
    """A format such as `.1f`, or a function that makes text of a value. By default numbers are shown by `number`."""
    align: Literal["left", "right"] | None = None
    """None: to the right where every cell begins like a number."""
    strong: bool = False
    """Whether a page shows it in bold."""

    def cell(self, value: Any) -> str:
        """A value as text; None is an empty cell."""
        if value is None or isinstance(value, str):
            return value or ""
        if callable(self.form):
            return self.form(value)
        if self.form:
            return format(value, self.form)
        return number(value) if isinstance(value, float) else str(value)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of values under columns; a title alone is a column with no more to say."""

    columns: tuple[str | Column, ...]
    rows: tuple[tuple[Any, ...], ...]
    caption: str = ""
    notes: tuple[str, ...] = ()
    """What has to be known to read it."""
    name: str = ""
    """Of its file and its place on a page, for example `arms`."""

    @cached_property
    def header(self) -> tuple[str, ...]:
        """The columns' titles."""
        return tuple(column.title for column in self._columns)

    @cached_property
    def cells(self) -> tuple[tuple[str, ...], ...]:
        """Every row as text."""
        return tuple(tuple(c.cell(value) for c, value in zip(self._columns, row, strict=True)) for row in self.rows)

    @cached_property
    def _columns(self) -> tuple[Column, ...]:
        return tuple(Column(column) if isinstance(column, str) else column for column in self.columns)

    @cached_property
    def _left(self) -> tuple[bool, ...]:
        """Which columns hold words."""
        words = [not all(_NUMBER.match(row[place]) for row in self.cells) for place in range(len(self.columns))]
        return tuple(c.align == "left" or (c.align is None and w) for c, w in zip(self._columns, words, strict=True))

    @property
    def text(self) -> str:
        """For a terminal: caption, aligned columns (the header only where a column has a title), wrapped notes.

        Where a table is wider than `WIDTH`, cells of words are wrapped.
        """
        rows = [tuple(map(one_line, row)) for row in ((self.header, *self.cells) if any(self.header) else self.cells)]
        widths = _narrowed(rows, self._left)
        lines = [f"{one_line(self.caption)}:"] if self.caption else []
        for row in rows:
            wrapped = (_wrapped(cell, width) for cell, width in zip(row, widths, strict=True))
            for line in zip_longest(*wrapped, fillvalue=""):
                parts = zip(line, widths, self._left, strict=True)
                lines.append("  ".join(cell.ljust(w) if left else cell.rjust(w) for cell, w, left in parts).rstrip())
        return "\n".join([*lines, *(textwrap.fill(one_line(note), WIDTH) for note in self.notes)])

    def markdown(self, heading: int = 2) -> str:
        """The table under its caption as a heading of that level (0: without), and its notes."""
        lines = [f"{'#' * heading} {escaped(self.caption)}", ""] if heading and self.caption else []
        rule = "|" + "".join("---|" if left else "--:|" for left in self._left)
        rows = ["| " + " | ".join(map(escaped, row)) + " |" for row in (self.header, *self.cells)]
        return "\n".join([*lines, rows[0], rule, *rows[1:], *(f"\n{escaped(note)}" for note in self.notes)]) + "\n"

    @property
    def html(self) -> str:
        """A `<figure class="table">`; columns of words have the class `words`, strong ones `said`."""
        kinds = [
            " ".join(name for name, holds in (("words", left), ("said", column.strong)) if holds)
            for column, left in zip(self._columns, self._left, strict=True)
        ]
        opening = [f' class="{kind}"' if kind else "" for kind in kinds]

        def row(cells: tuple[str, ...], tag: str, scope: str = "") -> str:
            made = (f"<{tag}{scope}{o}>{_html(cell)}</{tag}>" for o, cell in zip(opening, cells, strict=True))
            return f"<tr>{''.join(made)}</tr>"

        caption = _html(self.caption)
        notes = "".join(f'<p class="note">{_html(note)}</p>\n' for note in self.notes)
        return (
            f'<figure class="table"{f" id={chr(34)}{escape(self.name)}{chr(34)}" if self.name else ""}>\n'
            + (f"<figcaption>{caption}</figcaption>\n" if caption else "")
            + f'<div class="scroll" role="region" aria-label="{caption or "table"}" tabindex="0">\n<table>\n'
            + f"<thead>{row(self.header, 'th', ' scope=col')}</thead>\n<tbody>\n"
            + "\n".join(row(cells, "td") for cells in self.cells)
            + f"\n</tbody>\n</table>\n</div>\n{notes}</figure>"
        )

    @property
    def csv(self) -> str:
        """Header and rows; cells that a spreadsheet would run as a formula are made text."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([_harmless(cell) for cell in row] for row in (self.header, *self.cells))
        return stream.getvalue()

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.html


def _narrowed(rows: Sequence[tuple[str, ...]], left: Sequence[bool]) -> list[int]:
    """Columns' widths: those of words give way, the widest first, until all fit or hold their longest word."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    words = [max(len(word) for cell in column for word in cell.split() or [""]) for column in columns]
    least = [most if of_words else width for most, of_words, width in zip(words, left, widths, strict=True)]
    excess = sum(widths) + 2 * (len(widths) - 1) - WIDTH
    while excess > 0:
        place = max(range(len(widths)), key=lambda place: widths[place] if widths[place] > least[place] else 0)
        if widths[place] <= least[place]:
            break
        widths[place] -= 1
        excess -= 1
    return widths


def _wrapped(cell: str, width: int) -> list[str]:
    """A cell in lines; one that fits keeps its spaces."""
    return [cell] if len(cell) <= width else textwrap.wrap(cell, width, break_long_words=False, break_on_hyphens=False)


def number(value: float) -> str:
    """Three digits that count; thousands are set apart."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def probability(value: float) -> str:
    """A p-value with two digits that count, never a bare zero."""
    if value < 0.001:
        return "< 0.001"
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def one_line(text: str) -> str:
    """Text as one line that does nothing to a terminal."""
    return printable(" ".join(text.split()), keep="")


def escaped(text: str) -> str:
    """Text as one line of Markdown that means itself."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", one_line(text))


def _html(text: str) -> str:
    return escape(one_line(text)).replace(" = ", "\u00a0=\u00a0")


def _harmless(text: str) -> str:
    """A number keeps its sign; words that start like a formula get an apostrophe, and a cell has one line."""
    plain = printable(" ".join(text.splitlines()), keep="\t")
    number = re.fullmatch(r"[-+][\d.]+( to [-+][\d.]+)?", plain)
    return f"'{plain}" if plain.lstrip(" ")[:1] in _FORMULA and not number else plain
