"""A table as data, and as Markdown and CSV; the page's template makes its HTML."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from regtune.errors import printable

_FORMULA = ("=", "+", "-", "@", "\t", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a cell starts with that a spreadsheet runs; the last four are their wide forms."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text. The first `left` columns hold words and are aligned to the left, the others hold numbers."""

    name: str
    """Of its file, for example `arms`."""
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    """What has to be known to read it."""
    left: int = 1

    @property
    def markdown(self) -> str:
        """The table under its title, with its notes."""
        rule = "|" + "---|" * self.left + "--:|" * (len(self.header) - self.left)
        lines = [f"## {escaped(self.title)}", "", _line(self.header), rule, *(_line(row) for row in self.rows)]
        return "\n".join([*lines, *(f"\n{escaped(note)}" for note in self.notes)]) + "\n"

    @property
    def csv(self) -> str:
        """The header and the rows; cells that a spreadsheet would run as a formula are made text."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([_harmless(cell) for cell in self.header])
        writer.writerows([[_harmless(cell) for cell in row] for row in self.rows])
        return stream.getvalue()


def escaped(text: str) -> str:
    """Text as one line of Markdown that means itself."""
    plain = " ".join(text.split())
    for character in "\\`*_[]<>|":
        plain = plain.replace(character, f"\\{character}")
    return plain


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(escaped(cell) for cell in cells) + " |"


def _harmless(text: str) -> str:
    """A number keeps its sign; words that start like a formula get an apostrophe, and a cell has one line."""
    plain = printable(" ".join(text.splitlines()), keep="\t")
    if plain.lstrip(" ")[:1] in _FORMULA and not _is_number(plain):
        return f"'{plain}"
    return plain


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+][\d.]+( to [-+][\d.]+)?", text) is not None


def percent(ratio: float) -> str:
    """A score in percent with one digit."""
    return f"{100 * ratio:.1f}"


def points(ratio: float) -> str:
    """A difference in points with two digits and its sign."""
    return f"{100 * ratio:+.2f}"


def span(interval: tuple[float, float]) -> str:
    """An interval of differences in points."""
    return f"{points(interval[0])} to {points(interval[1])}"


def probability(value: float) -> str:
    """A p-value with two digits that count, never a bare zero."""
    if value < 0.001:
        return "< 0.001"
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}"
