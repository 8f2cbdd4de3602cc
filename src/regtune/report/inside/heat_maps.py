"""Heat maps as SVG: pale is little, dark is much, so they read in black and white; numbers in the cells if they fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from regtune.report.figures import INK, Figure, drawn

_STEPS = 9
"""Colours of a scale: few enough to be told apart, and to be found again in the legend."""
_DARK, _PALE = "#111418", "#fcfcfa"
_MOST_WITH_NUMBERS = 16
"""Columns; with more, a number would be too small to read."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What rows or columns are: their common name and each one's label."""

    name: str
    labels: tuple[str, ...]


def numbered(name: str, count: int) -> Axis:
    """An axis of things that are counted from 0."""
    return Axis(name=name, labels=tuple(map(str, range(count))))


def heat_map(
    name: str,
    title: str,
    values: Float[np.ndarray, "rows columns"],
    *,
    rows: Axis,
    columns: Axis,
    most: float | None = None,
    signed: bool = False,
    form: Callable[[float], str] = lambda value: f"{100 * value:.0f}",
) -> Figure:
    """Draws a matrix; the first row is on top.

    Args:
        name: of its file, and the start of its ids.
        title: what it shows, with the unit of the cells' numbers.
        values: the cells; NaN is left blank.
        rows: their axis.
        columns: theirs.
        most: what the darkest colour stands for; the largest value (in size) if None.
        signed: with two colours, for values on both sides of 0.
        form: a cell's number as text.
    """
    finite = np.abs(values[np.isfinite(values)])
    top = most if most is not None else float(finite.max(initial=0.0))
    top = top or 1.0
    height = min(7.0, 1.15 + 0.3 * len(rows.labels))

    def draw(axes: Any) -> None:
        import matplotlib as mpl

        axes.grid(False)
        axes.spines[:].set_visible(False)
        colours = mpl.colormaps["PuOr_r" if signed else "Blues"].resampled(_STEPS)
        low = -top if signed else 0.0
        cells = np.ma.masked_invalid(values)
        mesh = axes.pcolormesh(cells, cmap=colours, vmin=low, vmax=top, edgecolors=_PALE, linewidth=0.8)
        axes.invert_yaxis()
        if len(columns.labels) <= _MOST_WITH_NUMBERS and len(rows.labels) <= 2 * _MOST_WITH_NUMBERS:
            _numbers(axes, values, top, form, signed=signed)
        else:
            bar = axes.figure.colorbar(mesh, ax=axes, shrink=0.8, pad=0.02)
            ticks = np.linspace(low, top, 5)
            bar.set_ticks(ticks, labels=[form(float(tick)) for tick in ticks])
            bar.outline.set_visible(False)
        _ticks(axes.set_xticks, columns)
        _ticks(axes.set_yticks, rows)
        axes.set_xlabel(columns.name)
        axes.set_ylabel(rows.name, labelpad=7)
        axes.tick_params(length=0)

    return drawn(name, title, _words(values, rows, columns, form), draw, columns=0, size=(5.2, height))


def _numbers(axes: Any, values: np.ndarray, top: float, form: Callable[[float], str], *, signed: bool) -> None:
    wide = values.shape[1]
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = abs(value) / top > (0.62 if signed else 0.55)
            axes.text(
                column + 0.5,
                row + 0.5,
                form(float(value)),
                ha="center",
                va="center",
                fontsize=9 if wide <= 12 else 8,
                color=_PALE if dark else _DARK,
            )


def _ticks(put: Callable[..., Any], axis: Axis) -> None:
    every = max(1, -(-len(axis.labels) // 16))
    put([place + 0.5 for place in range(0, len(axis.labels), every)], axis.labels[::every], color=INK)


def _words(values: np.ndarray, rows: Axis, columns: Axis, form: Callable[[float], str]) -> str:
    if not np.isfinite(values).any():
        return "No values."
    row, column = np.unravel_index(np.nanargmax(np.abs(values)), values.shape)
    return (
        f"{len(rows.labels)} rows ({rows.name}) and {len(columns.labels)} columns ({columns.name}); the largest value, "
        f"{form(float(values[row, column]))}, is at {rows.name} {rows.labels[row]}, {columns.name} "
        f"{columns.labels[column]}."
    )


def matrix(values: Sequence[Any]) -> Float[np.ndarray, "rows columns"]:
    """Nested lists with None for what is unknown, as an array with NaN."""
    return np.array([[np.nan if cell is None else float(cell) for cell in row] for row in values], dtype=np.float64)
