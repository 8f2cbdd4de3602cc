"""Figures as SVG text: colour-blind safe (Okabe and Ito 2008), told apart by marker and line style as well.

Ink is `currentColor` and the colours are the page's variables, so a figure follows a dark page. The same records give
the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from regtune.analyses.pictures import COLOURS, FAINT, INK
from regtune.errors import MissingExtraError
from regtune.interfaces import Block, Metric, Published
from regtune.stats.comparison import Comparison

_MARKERS = "os^Dvp*Xh"
_DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
_PAPER = {INK: "#16181d", FAINT: "#6b7078"}


Seeds = Sequence[tuple[Sequence[float], Sequence[float]]]
"""Of a curve: for each seed the steps and the values."""


def score_figure(
    scores: Mapping[int, Sequence[float]],
    compared: Mapping[int, Comparison],
    metric: Metric,
    set_name: str,
    published: Published | None = None,
) -> Block:
    """Score against N: a dot for each seed, the mean, and the 95 % band of the difference to the baseline.

    The band is drawn around the baseline's mean, so where it does not touch the baseline's line the difference is
    distinguishable from 0, corrected for all N (Bonferroni).

    Args:
        scores: N to the score of each seed, as a person reads it.
        compared: N to its comparison with the baseline.
        metric: which score.
        set_name: where it was measured.
        published: points to hold it against.
    """
    counts = sorted(scores)
    means = [float(np.mean(scores[count])) for count in counts]
    curve = published.points if published else ()

    def draw(axes: Any) -> None:
        if published:  # points alone: nothing joins them, for what lies between is not known
            axes.plot(
                [_place(count) for count, _ in curve],
                [value for _, value in curve],
                linestyle="none",
                marker="s",
                markerfacecolor="none",
                color=FAINT,
                markersize=4.5,
                label=published.label,
                zorder=1,
            )
        if compared:
            _band(axes, counts, compared)
        for count in counts:
            offsets = np.linspace(-0.09, 0.09, len(scores[count])) if len(scores[count]) > 1 else np.zeros(1)
            style = {"color": COLOURS[0], "markersize": 4, "alpha": 0.75, "zorder": 3}
            axes.plot(_place(count) + offsets, scores[count], "o", **style)
        places = [_place(count) for count in counts]
        axes.plot(places, means, "-D", color=INK, markersize=5, linewidth=1.6, label="mean over seeds", zorder=4)
        axes.plot([], [], "o", color=COLOURS[0], markersize=4, label="one seed")
        others = [count for count, _ in curve if all(abs(_place(count) - place) > 0.5 for place in places)]
        shown = sorted({*counts, *others})
        axes.set_xticks([_place(count) for count in shown], [str(count) for count in shown])
        axes.set_xlabel("number of registers N (log scale)")
        axes.set_ylabel(f"{metric.title} (%)" if metric.scale == 100 else metric.title)

    described = [
        f"N = {count}: mean {mean:.1f} over {len(scores[count])} seeds"
        for count, mean in zip(counts, means, strict=True)
    ]
    return Block(
        kind="figure",
        name=f"{metric.name}-by-registers",
        title=f"{metric.title} on {set_name} against the number of registers",
        text="; ".join(described),
        draw=draw,
    )


def curve_figure(curves: Mapping[str, Seeds], name: str, title: str, ylabel: str) -> Block:
    """Training curves: the mean over seeds for each arm, every seed as a thin line."""
    middles = {label: _mean_curve(seeds) for label, seeds in curves.items()}

    def draw(axes: Any) -> None:
        for number, (label, seeds) in enumerate(curves.items()):
            colour = INK if number == 0 else COLOURS[(number - 1) % len(COLOURS)]
            dashes = _DASHES[number % len(_DASHES)]
            for steps, values in seeds:
                axes.plot(steps, values, linestyle=dashes, color=colour, linewidth=0.6, alpha=0.3)
            axes.plot(
                *middles[label],
                linestyle=dashes,
                color=colour,
                linewidth=1.8,
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=4.5,
                markevery=max(1, len(middles[label][0]) // 6),
                label=label.replace("$", r"\$"),
            )
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(ylabel)

    ends = "; ".join(f"{label} ends at {means[-1]:.2f}" for label, (_, means) in middles.items())
    return Block(kind="figure", name=name, title=title, text=f"Mean over seeds: {ends}", draw=draw)


def _place(count: int) -> float:
    return float(np.log2(1 + count))


def _band(axes: Any, counts: Sequence[int], compared: Mapping[int, Comparison]) -> None:
    first = next(iter(compared.values()))
    scale = first.metric.scale
    base = scale * first.baseline_mean
    axes.axhline(base, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), label="baseline's mean", zorder=2)
    known = [count for count in counts if count in compared or count == 0]
    ends = [compared[count].simultaneous_interval if count in compared else (0.0, 0.0) for count in known]
    places = [_place(count) for count in known]
    low, high = ([base + scale * interval[end] for interval in ends] for end in (0, 1))
    axes.fill_between(places, low, high, color=COLOURS[0], alpha=0.16, linewidth=0, zorder=0)
    label: str | None = "95 % interval of the difference (simultaneous)"
    for count, place, bottom, top in zip(known, places, low, high, strict=True):
        if count in compared:
            axes.plot([place, place], [bottom, top], "-_", color=COLOURS[0], linewidth=1.2, markersize=7, label=label)
            label = None


def _mean_curve(seeds: Seeds) -> tuple[list[float], list[float]]:
    found: dict[float, list[float]] = {}
    for steps, values in seeds:
        for step, value in zip(steps, values, strict=True):
            found.setdefault(step, []).append(value)
    most = max(map(len, found.values()))
    kept = sorted(step for step, values in found.items() if len(values) == most)
    return kept, [float(np.mean(found[step])) for step in kept]


def drawn(block: Block, name: str) -> str:
    """A figure as an `<svg>` element in the page's style; beneath it a legend of what has a label, if anything has.

    Args:
        block: its `draw` draws on matplotlib axes, in `INK`, `FAINT` and `COLOURS`; title and text describe it.
        name: the start of its ids.
    """
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report", "The report's figures") from error
    style: dict[Any, Any] = {
        "svg.hashsalt": "regtune",
        "svg.fonttype": "none",
        "font.size": 10,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    }
    assert block.draw is not None
    with mpl.rc_context(style):
        drawing = Figure(figsize=(5.2, 4.1), layout="constrained")
        FigureCanvasSVG(drawing)
        drawing.patch.set_alpha(0)
        axes = drawing.subplots()
        axes.patch.set_alpha(0)
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        block.draw(axes)
        labels = axes.get_legend_handles_labels()[1]
        if labels:
            columns = max(1, min(4, len(labels), 56 // max(map(len, labels))))
            drawing.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9, reverse=columns == 1)
        stream = io.StringIO()
        drawing.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(stream.getvalue(), name, block.title, block.text or block.title)


def standalone(svg: str) -> str:
    """A page's figure as a file of its own: fixed colours on white."""
    text = svg.replace("currentColor", _PAPER[INK]).replace("var(--faint)", _PAPER[FAINT])
    for number, colour in enumerate(COLOURS):
        text = text.replace(f"var(--c{number})", colour)
    return text.replace("</desc>", '</desc><rect width="100%" height="100%" fill="white"/>', 1)


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
