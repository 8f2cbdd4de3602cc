"""Attention statistics as tables that a person reads in a terminal; shares are in percent."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from regtune.analyses.attention.attention import AttentionStatistics
from regtune.analyses.attention.compare import AttentionComparison
from regtune.analyses.attention.measures import CLASSES

_SHORT = ("[CLS]", "[SEP]", "punct.", "question", "context", "register")
_SHARES = ("entropy", "entropy_text", "sink_rate", "sink_rate_text")
_COMPARED = (
    *(f"mass_text.{name}" for name in CLASSES[:-1]),
    "entropy_text",
    "sink_rate_text",
    "sink_lift_text",
    "mass.register",
    "sink_rate",
    "idle",
    "write",
)
_TIMES = ("sink_lift_text", "write")
"""Measures that are ratios, not shares."""


def attention_text(statistics: AttentionStatistics) -> str:
    """One row a layer, means over heads; then the share of every register, if there are any."""
    by_class = {name: values.mean(1) for name, values in statistics.by_class.items()}
    single = {name: values.mean(1) for name, values in statistics.single.items()}
    lines = [
        f"Attention of {statistics.windows} windows: {statistics.layers} layers, {statistics.heads} heads, "
        f"{statistics.num_registers} registers. Mean over heads, in percent.",
        "",
        _row("layer", [*_SHORT, "entropy", "txt.ent.", "sinks", "txt.sink", "lift", "idle", "write"]),
    ]
    for layer in range(statistics.layers):
        shares = [*by_class["mass"][layer], *(single[name][layer] for name in _SHARES)]
        lines.append(
            _row(
                str(layer),
                [
                    *(f"{100 * share:.1f}" for share in shares),
                    f"{single['sink_lift'][layer]:.1f}x",
                    f"{100 * single['idle'][layer]:.1f}",
                    f"{single['write'][layer]:.2f}x",
                ],
            )
        )
    uniform = [f"{100 * share:.1f}" for share in statistics.uniform]
    lines.append(_row("unif.", [*uniform, "100.0", "100.0", "0.0", "0.0", "1.0x"]))
    if statistics.num_registers:
        lines += ["", "Share of each register:", *_register_rows(statistics.register_share.mean(1))]
    lines += [
        "",
        f"sinks: heads with a token that receives more than {100 * statistics.settings.sink_above:g} % on average;",
        "txt.ent., txt.sink: the same of the attention that goes to text, as if registers were not there;",
        "lift: what the token that receives most gets, over uniform attention;",
        "idle: heads that attend to tokens without content and read little there;",
        "write: the size of what is read, over an average word's.",
    ]
    return "\n".join(line.rstrip() for line in lines)


def comparison_text(comparison: AttentionComparison) -> str:
    """After minus before in percentage points (ratios as they are), with intervals, one row a measure and layer."""
    before, after = comparison.num_registers
    lines = [
        f"Attention on {comparison.windows} windows of {comparison.examples} texts: {before} registers before, {after} "
        f"after. Mean over heads, {100 * comparison.confidence:g} % intervals over texts.",
        "",
        f"{'measure':<24}{'layer':>6}{'before':>9}{'after':>9}{'change':>9}   interval",
    ]
    for name in _COMPARED:
        factor = 1 if name in _TIMES else 100
        for layer in range(len(comparison.difference[name])):
            values = [part[name][layer] for part in (comparison.before, comparison.after, comparison.difference)]
            low, high = (factor * part[name][layer] for part in (comparison.low, comparison.high))
            numbers = "".join(f"{factor * value:>{9}.2f}" for value in values)
            lines.append(f"{name if not layer else '':<24}{layer:>6}{numbers}   [{low:.2f}, {high:.2f}]")
    return "\n".join(lines)


def _row(label: str, cells: list[str]) -> str:
    return f"{label:<6}" + "".join(f"{cell:>9}" for cell in cells)


def _register_rows(shares: npt.NDArray[np.floating], width: int = 12) -> list[str]:
    rows = []
    for first in range(0, shares.shape[1], width):
        part = shares[:, first : first + width]
        rows.append(_row("layer", [f"r{first + index}" for index in range(part.shape[1])]))
        rows += [_row(str(layer), [f"{100 * share:.2f}" for share in line]) for layer, line in enumerate(part)]
    return rows
