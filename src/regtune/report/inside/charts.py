"""Charts of what is inside: norms of each layer's tokens, what a knock-out costs, how faithful explanations are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regtune.report.figures import COLOURS, INK, Figure, drawn

_MARKERS = "os^Dv"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and its 95 % interval; both ends None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None


def norm_figure(name: str, title: str, layers: Sequence[Mapping[str, Any]]) -> Figure:
    """A histogram of the norms for each layer, the first on top, on one axis of norms (log); medians and maxima marked.

    Args:
        name: of its file.
        title: which tokens, at which place.
        layers: for each layer `edges`, `counts`, `median`, `max` and `outlier_rate`.
    """
    seen = np.array([np.asarray(layer["counts"], dtype=np.float64) for layer in layers])
    edges = np.asarray(layers[0]["edges"], dtype=np.float64)
    filled = np.flatnonzero(seen.sum(0))
    first, last = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, len(edges) - 1)

    def draw(axes: Any) -> None:
        axes.grid(False)
        axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.7)
        for number, (layer, counts) in enumerate(zip(layers, seen, strict=True)):
            base = len(layers) - 1 - number
            heights = base + 0.86 * np.sqrt(counts[first:last] / max(counts.max(), 1))
            axes.stairs(heights, edges[first : last + 1], baseline=base, fill=True, color=COLOURS[0], alpha=0.35)
            axes.stairs(heights, edges[first : last + 1], baseline=base, color=COLOURS[0], linewidth=0.8)
            axes.plot([layer["median"]] * 2, [base, base + 0.5], color=INK, linewidth=1.6)
            axes.plot(layer["max"], base + 0.12, marker="<", color=COLOURS[1], markersize=5.5, linestyle="none")
        axes.plot([], [], color=INK, linewidth=1.6, label="median")
        axes.plot([], [], marker="<", color=COLOURS[1], linestyle="none", markersize=5.5, label="largest norm")
        axes.set_xscale("log")
        axes.set_ylim(-0.12, len(layers))
        axes.set_yticks([len(layers) - 1 - n + 0.05 for n in range(len(layers))], [f"{n}" for n in range(len(layers))])
        axes.set_ylabel("layer")
        axes.set_xlabel("norm ‖x‖₂ (log scale; heights: square root of counts)")

    words = "; ".join(
        f"layer {n}: median {one['median']:.3g}, largest {one['max']:.3g}" for n, one in enumerate(layers)
    )
    height = min(8.0, 1.7 + 0.42 * len(layers))
    return drawn(name, title, words, draw, columns=2, size=(5.2, height))


def knock_out_figure(name: str, title: str, effects: Mapping[str, Mapping[str, Estimate]], xlabel: str) -> Figure:
    """Dots with intervals: a row for each register, a marker for each way of knocking out.

    Args:
        name: of its file.
        title: what is drawn.
        effects: way to register to effect.
        xlabel: what an effect is, with its unit.
    """
    registers = list(dict.fromkeys(register for found in effects.values() for register in found))

    def draw(axes: Any) -> None:
        axes.grid(False)
        axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.7)
        axes.axvline(0, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        for number, (how, found) in enumerate(effects.items()):
            shift = 0.18 * (number - (len(effects) - 1) / 2)
            colour = COLOURS[number % len(COLOURS)]
            for row, register in enumerate(registers):
                if register not in found:
                    continue
                one, place = found[register], row + shift
                if one.low is not None and one.high is not None:
                    axes.plot([one.low, one.high], [place, place], color=colour, linewidth=1.3)
                marker = _MARKERS[number % len(_MARKERS)]
                axes.plot(one.value, place, marker=marker, color=colour, markersize=5, linestyle="none")
            marker = _MARKERS[number % len(_MARKERS)]
            axes.plot([], [], marker=marker, color=colour, linestyle="none", markersize=5, label=how)
        axes.set_yticks(range(len(registers)), registers)
        axes.set_ylim(len(registers) - 0.4, -0.6)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(xlabel)
        axes.set_ylabel("register", labelpad=7)

    words = "; ".join(
        f"{how}, register {register}: {one.value:+.3g}"
        for how, found in effects.items()
        for register, one in found.items()
    )
    height = min(9.0, 1.8 + 0.36 * len(registers))
    return drawn(name, title, words, draw, columns=max(1, len(effects)), size=(5.2, height))


def bar_figure(
    name: str, title: str, bars: Mapping[str, Estimate], xlabel: str, *, limits: bool, falling: bool = True
) -> Figure:
    """Horizontal bars with intervals, one for each method, the best on top.

    Args:
        name: of its file.
        title: what is drawn.
        bars: method to value.
        xlabel: what the value is.
        limits: values lie between a random ranking (0) and the best one (1), which are marked.
        falling: the largest value is the best.
    """
    order = sorted(bars, key=lambda method: bars[method].value, reverse=falling)

    def draw(axes: Any) -> None:
        axes.grid(False)
        axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.7)
        for row, method in enumerate(order):
            one = bars[method]
            axes.barh(row, one.value, height=0.62, color=COLOURS[0], alpha=0.4, edgecolor=INK, linewidth=0.8)
            if one.low is not None and one.high is not None:
                axes.plot([one.low, one.high], [row, row], "-|", color=INK, linewidth=1.4, markersize=7)
        axes.axvline(0, color=INK, linewidth=0.9)
        if limits:
            axes.axvline(1, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(order)), order)
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.set_xlabel(xlabel)

    words = "; ".join(f"{method}: {bars[method].value:.3g}" for method in order)
    return drawn(name, title, words, draw, columns=0, size=(5.2, min(8.0, 1.0 + 0.36 * len(order))))
