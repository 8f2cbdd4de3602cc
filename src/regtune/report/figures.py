"""Figures as SVG text: colour-blind safe (Okabe and Ito 2008), told apart by marker and line style as well.

Ink is `currentColor` and the colours are the page's variables, so a figure follows a dark page; `standalone` makes a
file of its own from it. The same records give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from regtune.errors import MissingExtraError
from regtune.interfaces import Metric
from regtune.pictures import COLOURS, FAINT, INK
from regtune.report.tasks import LABEL, reported
from regtune.stats.comparison import Comparison

_MARKERS = "os^Dvp*Xh"
_DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
_PAPER = {INK: "#16181d", FAINT: "#6b7078"}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawing for the page."""

    name: str
    title: str
    """Also the drawing's accessible name."""
    description: str
    """What a reader who can't see it should know."""
    svg: str

    @property
    def standalone(self) -> str:
        """The same as a file: fixed colours on white."""
        text = self.svg.replace("currentColor", _PAPER[INK]).replace("var(--faint)", _PAPER[FAINT])
        for number, colour in enumerate(COLOURS):
            text = text.replace(f"var(--c{number})", colour)
        return text.replace("</desc>", '</desc><rect width="100%" height="100%" fill="white"/>', 1)


@dataclass(frozen=True, kw_only=True)
class Series:
    """One N: its number, the score of each seed in percent, and its comparison with the baseline (None for N = 0)."""

    num_registers: int
    scores: tuple[float, ...]
    comparison: Comparison | None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A training curve: for each seed the steps and the values."""

    label: str
    seeds: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]


def score_figure(series: Sequence[Series], metric: Metric, set_name: str, *, task: str = "qa") -> Figure:
    """Score against N: a dot for each seed, the mean, and the 95 % band of the difference to the baseline.

    The band is drawn around the baseline's mean, so where it does not touch the baseline's line the difference is
    distinguishable from 0, corrected for all N (Bonferroni).
    """
    curve = reported(task).curve.get(metric.name, ())

    def draw(axes: Any) -> None:
        places = [_place(one.num_registers) for one in series]
        _published(axes, curve)
        _band(axes, series)
        for place, one in zip(places, series, strict=True):
            count = len(one.scores)
            offsets = np.linspace(-0.09, 0.09, count) if count > 1 else [0.0]
            axes.plot(place + np.array(offsets), one.scores, "o", color=COLOURS[0], markersize=4, alpha=0.75, zorder=3)
        means = [float(np.mean(one.scores)) for one in series]
        axes.plot(places, means, "-D", color=INK, markersize=5, linewidth=1.6, label="mean over seeds", zorder=4)
        axes.plot([], [], "o", color=COLOURS[0], markersize=4, label="one seed")
        counts = {one.num_registers for one in series} | {count for count, _ in curve}
        shown = _ticks(sorted(counts), {one.num_registers for one in series})
        axes.set_xticks([_place(count) for count in shown], [str(count) for count in shown])
        axes.set_xlabel("number of registers N (log scale)")
        axes.set_ylabel(f"{metric.title} (%)" if metric.scale == 100 else metric.title)

    description = "; ".join(
        f"N = {one.num_registers}: mean {np.mean(one.scores):.1f} over {len(one.scores)} seeds" for one in series
    )
    title = f"{metric.title} on {set_name} against the number of registers"
    return drawn(f"{metric.name}-by-registers", title, description, draw, columns=1)


def curve_figure(curves: Sequence[Curve], name: str, title: str, ylabel: str) -> Figure:
    """Training curves: the mean over seeds for each arm, every seed as a thin line."""

    def draw(axes: Any) -> None:
        for number, curve in enumerate(curves):
            colour = INK if number == 0 else COLOURS[(number - 1) % len(COLOURS)]
            dashes = _DASHES[number % len(_DASHES)]
            for steps, values in curve.seeds:
                axes.plot(steps, values, linestyle=dashes, color=colour, linewidth=0.6, alpha=0.3)
            middle, means = _mean_curve(curve)
            axes.plot(
                middle,
                means,
                linestyle=dashes,
                color=colour,
                linewidth=1.8,
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=4.5,
                markevery=max(1, len(middle) // 6),
                label=curve.label.replace("$", r"\$"),
            )
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(ylabel)

    ends = "; ".join(f"{curve.label} ends at {_mean_curve(curve)[1][-1]:.2f}" for curve in curves)
    return drawn(name, title, f"Mean over seeds: {ends}", draw, columns=2)


def _place(count: int) -> float:
    return float(np.log2(1 + count))


def _published(axes: Any, curve: Sequence[tuple[int, float]]) -> None:
    """Points that can be read off a chart; nothing joins them, for what lies between is not known."""
    if curve:
        axes.plot(
            [_place(count) for count, _ in curve],
            [value for _, value in curve],
            linestyle="none",
            marker="s",
            markerfacecolor="none",
            color=FAINT,
            markersize=4.5,
            label=LABEL,
            zorder=1,
        )


def _band(axes: Any, series: Sequence[Series]) -> None:
    compared = [one for one in series if one.comparison is not None]
    if not compared:
        return
    result = compared[0].comparison
    assert result is not None
    scale = result.metric.scale
    base = scale * result.baseline_mean
    axes.axhline(base, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), label="baseline's mean", zorder=2)
    ends = [(one.num_registers, one.comparison.simultaneous_interval) for one in compared if one.comparison is not None]
    start = [(0, (0.0, 0.0))] if any(one.comparison is None for one in series) else []
    low, high = ([base + scale * interval[end] for _, interval in start + ends] for end in (0, 1))
    places = [_place(count) for count, _ in start + ends]
    axes.fill_between(places, low, high, color=COLOURS[0], alpha=0.16, linewidth=0, zorder=0)
    for place, bottom, top in zip(places[len(start) :], low[len(start) :], high[len(start) :], strict=True):
        label = "95 % interval of the difference (simultaneous)" if place == places[len(start)] else None
        axes.plot([place, place], [bottom, top], "-_", color=COLOURS[0], linewidth=1.2, markersize=7, label=label)


def _ticks(counts: Sequence[int], own: set[int]) -> list[int]:
    """The runs' own N, and the paper's where there is room."""
    return [count for count in counts if count in own or all(abs(_place(count) - _place(other)) > 0.5 for other in own)]


def _mean_curve(curve: Curve) -> tuple[list[float], list[float]]:
    found: dict[float, list[float]] = {}
    for steps, values in curve.seeds:
        for step, value in zip(steps, values, strict=True):
            found.setdefault(step, []).append(value)
    most = max(map(len, found.values()))
    kept = sorted(step for step, values in found.items() if len(values) == most)
    return kept, [float(np.mean(found[step])) for step in kept]


def drawn(
    name: str,
    title: str,
    description: str,
    draw: Callable[[Any], None],
    *,
    columns: int | None = None,
    size: tuple[float, float] = (5.2, 4.1),
) -> Figure:
    """A figure in the page's style.

    Args:
        name: of its file, and the start of its ids.
        title: also its accessible name.
        description: what a reader who can't see it should know.
        draw: draws on matplotlib axes, in `INK`, `FAINT` and `COLOURS`.
        columns: of the legend beneath; by default one row of what has a label, if anything has.
        size: width and height in inches.

    Raises:
        MissingExtraError: matplotlib isn't installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure as Drawing
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report", "The report's figures") from error
    style: dict[Any, Any] = {
        "svg.hashsalt": "regtune",
        "svg.fonttype": "none",
        "font.size": 10,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with mpl.rc_context(style):
        drawing = Drawing(figsize=size, layout="constrained")
        FigureCanvasSVG(drawing)
        drawing.patch.set_alpha(0)
        axes = drawing.subplots()
        axes.patch.set_alpha(0)
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        if columns is None:
            columns = min(4, len(axes.get_legend_handles_labels()[1]))
        if columns:
            drawing.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9, reverse=columns == 1)
        stream = io.StringIO()
        drawing.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return Figure(
        name=name, title=title, description=description, svg=_inline(stream.getvalue(), name, title, description)
    )


def _inline(text: str, name: str, title: str, description: str) -> str:
    """The `<svg>` element alone, with a title, ids that are unique on the page, and colours that follow the page."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    for number, colour in enumerate(COLOURS):
        text = text.replace(colour, f"var(--c{number})")
    text = text.replace(INK, "currentColor").replace(FAINT, "var(--faint)")
    head = re.search(r'viewBox="[^"]+"', text)
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {head[0] if head else ""} '
        f'role="img" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
    )
    return opening + text[text.index(">") + 1 :].strip()
