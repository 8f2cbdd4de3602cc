"""What blocks are drawn with: heat maps, bars, dots and histograms on matplotlib axes.

Colour-blind safe (Okabe and Ito 2008), told apart by marker as well; pale is little and dark is much, so they read in
black and white too. Each function returns what `Block.draw` takes, so nothing here imports matplotlib before it draws.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

Draw = Callable[[Any], None]
INK, FAINT = "#010203", "#040506"
"""Stand for the page's own ink; replaced when a figure is put on a page."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8c7a00", "#7f7f7f")
"""Okabe and Ito's, with their yellow darkened to be seen on white; the baseline has the ink."""
_DARK, _PALE = "#111418", "#fcfcfa"
_MARKERS = "os^Dv"
_STEPS = 9
"""Colours of a scale: few enough to be told apart, and to be found again in the legend."""
_MAPS_ACROSS = 4
"""Maps of patches beside each other."""
_MOST_WITH_NUMBERS = 16
"""Columns; with more, a number would be too small to read."""


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval; both ends None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None


def data_uri(pixels: UInt8[np.ndarray, "height width channels"]) -> str:
    """An image as a PNG inside an address, for pages that need no other file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def pixels_of(uri: str) -> UInt8[np.ndarray, "height width channels"]:
    """The image that `data_uri` put into an address.

    Raises:
        ValueError: the address holds no such image.
    """
    from PIL import Image

    kind, _, content = uri.partition(",")
    if kind != "data:image/png;base64":
        raise ValueError(f"{kind[:40]!r} is no PNG image")
    with Image.open(io.BytesIO(base64.b64decode(content)), formats=["PNG"]) as image:
        return np.array(image.convert("RGB"))


def over_picture(
    picture: UInt8[np.ndarray, "height width channels"] | None,
    values: Float[np.ndarray, "maps rows columns"],
    names: Sequence[str],
) -> Draw:
    """A value for each patch of a picture, as heat over it, map beside map: pale is little, dark is much, in each map.

    Args:
        picture: what lies beneath; None draws the patches alone.
        values: a map for each name, such as a layer's; NaN is left blank.
        names: of the maps.
    """
    count, (rows, columns) = len(values), values.shape[1:]
    across = min(count, _MAPS_ACROSS)
    down = -(-count // across)

    def draw(axes: Any) -> None:
        axes.figure.set_size_inches(5.2, min(9.0, 0.4 + 5.2 / across * (rows / columns + 0.22) * down))
        axes.set_axis_off()
        axes.set_aspect("equal")
        for number, one in enumerate(values):
            left = (number % across) * columns * 1.08
            top = (number // across) * (rows + 0.2 * columns)
            place = (left, left + columns, top + rows, top)
            low, high = float(np.nanmin(one)), float(np.nanmax(one))
            if picture is not None:
                grey = picture.astype(np.float64).mean(-1)
                axes.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=place, interpolation="nearest")
            axes.imshow(
                np.ma.masked_invalid(one),
                cmap="YlOrRd",
                vmin=low,
                vmax=high if high > low else low + 1,
                alpha=0.62 if picture is not None else 1.0,
                extent=place,
                interpolation="nearest",
            )
            axes.text(
                left,
                top - 0.04 * columns,
                f"{names[number]}: {low:.3g} to {high:.3g}",
                fontsize=7,
                color=INK,
                va="bottom",
            )
        axes.set_xlim(-0.1, across * columns * 1.08)
        axes.set_ylim((down - 1) * (rows + 0.2 * columns) + rows + 0.1, -0.16 * columns)

    return draw


def percent(value: float) -> str:
    """A share as whole percents, with a digit below 10 %."""
    return f"{100 * value:.0f}" if abs(value) >= 0.0995 or value == 0 else f"{100 * value:.1f}"


def heat_map(
    values: Float[np.ndarray, "rows columns"],
    *,
    rows: tuple[str, Sequence[str]],
    columns: tuple[str, Sequence[str]],
    most: float | None = None,
    signed: bool = False,
    form: Callable[[float], str] = lambda value: f"{100 * value:.0f}",
) -> Draw:
    """A matrix; the first row is on top.

    Args:
        values: the cells; NaN is left blank.
        rows: their common name and each one's label.
        columns: theirs.
        most: what the darkest colour stands for; the largest value (in size) if None.
        signed: with two colours, for values on both sides of 0.
        form: a cell's number as text.
    """
    finite = np.abs(values[np.isfinite(values)])
    top = (most if most is not None else float(finite.max(initial=0.0))) or 1.0

    def draw(axes: Any) -> None:
        import matplotlib as mpl

        axes.figure.set_size_inches(5.2, min(7.0, 1.15 + 0.3 * len(rows[1])))
        axes.grid(False)
        axes.spines[:].set_visible(False)
        colours = mpl.colormaps["PuOr_r" if signed else "Blues"].resampled(_STEPS)
        low = -top if signed else 0.0
        cells = np.ma.masked_invalid(values)
        mesh = axes.pcolormesh(cells, cmap=colours, vmin=low, vmax=top, edgecolors=_PALE, linewidth=0.8)
        axes.invert_yaxis()
        if len(columns[1]) <= _MOST_WITH_NUMBERS and len(rows[1]) <= 2 * _MOST_WITH_NUMBERS:
            _numbers(axes, values, top, form, signed=signed)
        else:
            bar = axes.figure.colorbar(mesh, ax=axes, shrink=0.8, pad=0.02)
            ticks = np.linspace(low, top, 5)
            bar.set_ticks(ticks, labels=[form(float(tick)) for tick in ticks])
            bar.outline.set_visible(False)
        for put, (_, labels) in ((axes.set_xticks, columns), (axes.set_yticks, rows)):
            every = max(1, -(-len(labels) // 16))
            put([place + 0.5 for place in range(0, len(labels), every)], labels[::every], color=INK)
        axes.set_xlabel(columns[0])
        axes.set_ylabel(rows[0], labelpad=7)
        axes.tick_params(length=0)

    return draw


def _numbers(axes: Any, values: np.ndarray, top: float, form: Callable[[float], str], *, signed: bool) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = abs(value) / top > (0.62 if signed else 0.55)
            axes.text(
                column + 0.5,
                row + 0.5,
                form(float(value)),
                ha="center",
                va="center",
                fontsize=9 if values.shape[1] <= 12 else 8,
                color=_PALE if dark else _DARK,
            )


def numbered(name: str, count: int) -> tuple[str, tuple[str, ...]]:
    """An axis of things that are counted from 0."""
    return name, tuple(map(str, range(count)))


def matrix(values: Sequence[Any]) -> Float[np.ndarray, "rows columns"]:
    """Nested lists with None for what is unknown, as an array with NaN."""
    return np.array([[np.nan if cell is None else float(cell) for cell in row] for row in values], dtype=np.float64)


def ridges(
    edges: Sequence[float],
    counts: Sequence[Sequence[int]],
    medians: Sequence[float],
    largest: Sequence[float],
    *,
    xlabel: str,
) -> Draw:
    """A histogram for each layer, the first on top, on one logarithmic axis; medians and maxima are marked."""
    seen, bins = np.asarray(counts, dtype=np.float64), np.asarray(edges, dtype=np.float64)
    filled = np.flatnonzero(seen.sum(0))
    first, last = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, len(bins) - 1)
    layers = len(seen)

    def draw(axes: Any) -> None:
        axes.figure.set_size_inches(5.2, min(8.0, 1.7 + 0.42 * layers))
        _lines_across(axes)
        for number, row in enumerate(seen):
            base = layers - 1 - number
            heights = base + 0.86 * np.sqrt(row[first:last] / max(row.max(), 1))
            axes.stairs(heights, bins[first : last + 1], baseline=base, fill=True, color=COLOURS[0], alpha=0.35)
            axes.stairs(heights, bins[first : last + 1], baseline=base, color=COLOURS[0], linewidth=0.8)
            axes.plot([medians[number]] * 2, [base, base + 0.5], color=INK, linewidth=1.6)
            axes.plot(largest[number], base + 0.12, marker="<", color=COLOURS[1], markersize=5.5, linestyle="none")
        axes.plot([], [], color=INK, linewidth=1.6, label="median")
        axes.plot([], [], marker="<", color=COLOURS[1], linestyle="none", markersize=5.5, label="largest")
        axes.set_xscale("log")
        axes.set_ylim(-0.12, layers)
        axes.set_yticks([layers - 1 - n + 0.05 for n in range(layers)], [f"{n}" for n in range(layers)])
        axes.set_ylabel("layer")
        axes.set_xlabel(xlabel)

    return draw


def dots(series: Mapping[str, Mapping[str, Estimate]], *, xlabel: str) -> Draw:
    """Dots with intervals: a row for each register, a marker for each series."""
    names = list(dict.fromkeys(name for found in series.values() for name in found))

    def draw(axes: Any) -> None:
        axes.figure.set_size_inches(5.2, min(9.0, 1.8 + 0.36 * len(names)))
        _lines_across(axes)
        axes.axvline(0, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        for number, (label, found) in enumerate(series.items()):
            shift = 0.18 * (number - (len(series) - 1) / 2)
            colour, marker = COLOURS[number % len(COLOURS)], _MARKERS[number % len(_MARKERS)]
            for row, name in enumerate(names):
                if name in found:
                    _spread(axes, found[name], row + shift, colour)
                    axes.plot(
                        found[name].value, row + shift, marker=marker, color=colour, markersize=5, linestyle="none"
                    )
            axes.plot([], [], marker=marker, color=colour, linestyle="none", markersize=5, label=label)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(xlabel)
        axes.set_ylabel("register", labelpad=7)

    return draw


def bars(values: Mapping[str, Estimate], *, xlabel: str, falling: bool = True, marks: Sequence[float] = ()) -> Draw:
    """Horizontal bars with intervals, the best on top.

    Args:
        values: name to value.
        xlabel: what the value is.
        falling: the largest value is the best.
        marks: values to draw a line at.
    """
    order = sorted(values, key=lambda name: values[name].value, reverse=falling)

    def draw(axes: Any) -> None:
        axes.figure.set_size_inches(5.2, min(8.0, 1.0 + 0.36 * len(order)))
        _lines_across(axes)
        for row, name in enumerate(order):
            axes.barh(row, values[name].value, height=0.62, color=COLOURS[0], alpha=0.4, edgecolor=INK, linewidth=0.8)
            _spread(axes, values[name], row, INK)
        axes.axvline(0, color=INK, linewidth=0.9)
        for mark in marks:
            axes.axvline(mark, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(order)), order)
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.set_xlabel(xlabel)

    return draw


def _lines_across(axes: Any) -> None:
    axes.grid(False)
    axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.7)


def _spread(axes: Any, one: Estimate, row: float | int, colour: str) -> None:
    if one.low is not None and one.high is not None:
        axes.plot([one.low, one.high], [row, row], "-|", color=colour, linewidth=1.3, markersize=6)
