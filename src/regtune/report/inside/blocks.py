"""Figures and tables of attention, artefacts and faithfulness, made from their JSON files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regtune.report.figures import Figure
from regtune.report.inside.charts import Estimate, bar_figure, norm_figure
from regtune.report.inside.heat_maps import heat_map, matrix, numbered
from regtune.report.table import Table

TEXT_CLASSES = {
    "cls": "[CLS]",
    "sep": "[SEP]",
    "punctuation": "punctuation",
    "question": "the question",
    "context": "the context",
}
_SITES = {
    "norm_input": "at the input of a layer's last norm",
    "feed_forward": "at the feed-forward output",
    "block": "at the layer's output",
}
_SINGLE = {
    "entropy_text": "Entropy of attention over text (100 is uniform)",
    "sink_rate": "Share of windows in which the head has a sink, in %",
    "idle": "Share of windows in which the head is idle, in %",
}


@dataclass(frozen=True, kw_only=True)
class Block:
    """Drawings that are read together."""

    title: str
    note: str = ""
    lead: str = ""
    """The finding in a sentence, where the file has one."""
    figures: tuple[Figure, ...] = ()
    apart: bool = False
    """Set off from the rest: registers."""
    details: tuple[Figure, ...] = ()
    """Drawings that are folded away."""
    tables: tuple[Table, ...] = ()


def attention_blocks(content: Mapping[str, Any], prefix: str) -> Iterator[Block]:
    """Attention by layer and head: a map for each class of token, registers apart, on one scale."""
    layers, heads = int(content["layers"]), int(content["heads"])
    mass = {name: matrix(values) for name, values in content["mass"].items()}
    most = max(float(values.max()) for values in mass.values())
    axes: dict[str, Any] = {"rows": numbered("layer", layers), "columns": numbered("head", heads)}
    figures = tuple(
        heat_map(f"{prefix}-attention-{name}", f"Attention to {words}, in %", mass[name], most=most, **axes)
        for name, words in TEXT_CLASSES.items()
        if name in mass
    )
    details = tuple(
        heat_map(f"{prefix}-{name.replace('_', '-')}", words, matrix(content[name]), most=1.0, **axes)
        for name, words in _SINGLE.items()
        if isinstance(content.get(name), Sequence)
    )
    yield Block(
        title="Attention by layer and head",
        note=(
            f"Mean share of a text token's attention that goes to each class of token, over {content['windows']:,} "
            f"windows. Pale is little; one scale for all maps, registers included (darkest: {100 * most:.0f} %). "
            "Layers and heads count from 0."
        ),
        figures=figures,
        details=details,
    )
    if content.get("num_registers") and "register" in mass:
        yield Block(
            title="Attention to registers, set apart",
            note="On the same scale. What registers receive is taken from the classes above: N more keys lower "
            "everything else by arithmetic alone.",
            figures=(
                heat_map(
                    f"{prefix}-attention-register",
                    f"Attention to all {content['num_registers']} registers, in %",
                    mass["register"],
                    most=most,
                    **axes,
                ),
            ),
            apart=True,
        )


def artefact_blocks(content: Mapping[str, Any], prefix: str) -> Iterator[Block]:
    """Norms of content tokens, layer by layer, at each of the three places."""
    sites = {site: layers for site, layers in content["sites"].items() if layers}
    figures = tuple(
        norm_figure(
            f"{prefix}-norms-{site.replace('_', '-')}", f"Norms of content tokens {_SITES.get(site, site)}", layers
        )
        for site, layers in sites.items()
    )
    rows = [
        (
            site.replace("_", " "),
            str(number),
            *(_number(layer.get(name)) for name in ("median", "max", "max_over_median", "kurtosis")),
            *(_percent(layer["outlier_rate"].get(name)) for name in ("mean+3std", "median+kmad", "absolute")),
        )
        for site, layers in sites.items()
        for number, layer in enumerate(layers)
    ]
    header = ("place", "layer", "median norm", "largest norm", "largest |x| / median |x|", "kurtosis")
    rates = ("beyond mean + 3σ, %", "beyond median + k·MAD, %", "beyond the absolute threshold, %")
    table = Table(
        name=f"{prefix}-artefacts",
        title="Norms and outliers, layer by layer",
        header=(*header, *rates),
        rows=tuple(rows),
        notes=("Content tokens alone: no [CLS], [SEP], padding or registers.",),
        left=2,
    )
    yield Block(
        title="Norms by layer",
        note="A norm behind the layer makes all lengths alike, so look at its input and at the feed-forward output "
        "too. The first layer is on top.",
        figures=figures,
        tables=(table,),
    )


def faithfulness_blocks(content: Mapping[str, Any], prefix: str) -> Iterator[Block]:
    """Bars with intervals for each metric: placed between random and best where that was measured."""
    metrics: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in content["rows"]:
        metrics.setdefault(str(row["metric"]), {})[str(row["method"])] = row
    figures = []
    for number, (metric, found) in enumerate(metrics.items(), start=1):
        placed = {method: one for method, row in found.items() if (one := estimate(row.get("normalised"))) is not None}
        raw = {method: one for method, row in found.items() if (one := estimate(row.get("raw"))) is not None}
        if placed or raw:
            less = not placed and not all(row.get("higher_is_better", True) for row in found.values())
            words = "0: random ranking, 1: best found" if placed else f"raw value{', less is better' if less else ''}"
            figures.append(
                bar_figure(
                    f"{prefix}-faithful-{number}", metric, placed or raw, words, limits=bool(placed), falling=not less
                )
            )
    rows = [
        (metric, method, _interval(estimate(row.get("raw"))), _interval(estimate(row.get("normalised"))))
        for metric, found in metrics.items()
        for method, row in found.items()
    ]
    table = Table(
        name=f"{prefix}-faithfulness",
        title="Faithfulness of the methods",
        header=("metric", "method", "raw (95 %)", "normalised (95 %)"),
        rows=tuple(rows),
        left=2,
    )
    yield Block(
        title="Are the explanations faithful?",
        note="What the highlighted tokens do when they are taken away or kept alone. A method whose interval overlaps "
        "that of “random” has not been shown to be better than noise. Raw values of two models can't be compared; "
        "normalised ones can.",
        figures=tuple(figures),
        tables=(table,),
    )


def estimate(entry: Any) -> Estimate | None:
    """A number with its interval, from a bare number or an object that has one under a usual name."""
    if entry is None:
        return None
    if isinstance(entry, Mapping):
        name = next(name for name in ("value", "mean", "difference", "estimate") if name in entry)
        if entry[name] is None:
            return None
        low, high = (None if entry.get(end) is None else float(entry[end]) for end in ("low", "high"))
        return Estimate(value=float(entry[name]), low=low, high=high)
    return Estimate(value=float(entry))


def _interval(one: Estimate | None) -> str:
    if one is None:
        return ""
    ends = "" if one.low is None or one.high is None else f" ({one.low:.3f} to {one.high:.3f})"
    return f"{one.value:.3f}{ends}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"
