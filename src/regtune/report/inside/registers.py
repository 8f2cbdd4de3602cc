"""What each register does: who uses it, what its loss costs, how alike registers are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from regtune.report.figures import Figure
from regtune.report.inside.blocks import Block, estimate
from regtune.report.inside.charts import Estimate, knock_out_figure
from regtune.report.inside.heat_maps import heat_map, matrix, numbered
from regtune.report.table import Table

_HOWS = {"mask": "hidden", "mean": "its mean state", "swap": "its neighbour's copy", "zero": "zeros"}


def register_blocks(
    attention: Mapping[str, Any] | None, audit: Mapping[str, Any] | None, prefix: str
) -> Iterator[Block]:
    """The usage matrix, knock-outs and similarities of one model; nothing for a model without registers."""
    count = int((attention or audit or {}).get("num_registers") or 0)
    if not count:
        return
    usage = [figure for figure in (_usage(attention, audit, prefix),) if figure is not None]
    if audit is None:
        if usage:
            yield Block(title="Who uses which register", figures=tuple(usage), apart=True)
        return
    knocked = _knock_outs(audit)
    single = {how: {name: one for name, one in found.items() if name != "all"} for how, found in knocked.items()}
    if any(single.values()):
        usage.append(
            knock_out_figure(
                f"{prefix}-knock-outs",
                "Change in loss when one register is taken away, with its 95 % interval",
                {_HOWS.get(how, how): found for how, found in single.items() if found},
                "change in loss, nats (right of 0: it is missed)",
            )
        )
    yield Block(
        title="What each register does",
        lead=str(audit.get("verdict") or ""),
        note="Registers and layers count from 0. A register is taken away in several ways: hidden, replaced by zeros, "
        "by a copy of its neighbour, or by its mean state over the data. The last keeps what is constant, so an effect "
        "of it means that the register carries something about the input.",
        figures=(*usage, *_similarities(audit, count, prefix)),
        apart=True,
        tables=(_table(audit, knocked, count, prefix),),
    )


def _usage(attention: Mapping[str, Any] | None, audit: Mapping[str, Any] | None, prefix: str) -> Figure | None:
    """Registers × layers: the mean over heads of the attention that text pays to each."""
    if attention is not None and attention.get("register_share"):
        share = np.asarray(attention["register_share"], dtype=np.float64).mean(axis=2)
    elif audit is not None and audit.get("attention_in"):
        share = np.asarray(audit["attention_in"], dtype=np.float64).T
    else:
        return None
    return heat_map(
        f"{prefix}-usage",
        "Register usage: share of a text token's attention, in % (mean over heads)",
        share,
        rows=numbered("register", share.shape[0]),
        columns=numbered("layer", share.shape[1]),
        form=lambda value: f"{100 * value:.0f}" if value >= 0.0995 else f"{100 * value:.1f}",
    )


def _similarities(audit: Mapping[str, Any], count: int, prefix: str) -> Iterator[Figure]:
    axes: dict[str, Any] = {"rows": numbered("register", count), "columns": numbered("register", count)}
    contextual = audit.get("similarity_contextual") or []
    found = [("initial", "Similarity (cosine) of the learned vectors", audit.get("similarity_initial"))]
    if contextual:
        title = f"Similarity (cosine) of what layer {len(contextual) - 1} reads"
        found.append(("contextual", title, contextual[-1]))
    for name, title, values in found:
        if values:
            cosines = matrix(values)
            yield heat_map(f"{prefix}-similarity-{name}", title, cosines, most=1.0, signed=True, form=_cosine, **axes)
    if audit.get("variation"):
        variation = matrix(audit["variation"]).T
        yield heat_map(
            f"{prefix}-variation",
            "How much a register varies with the text, in % of what tokens do",
            variation,
            rows=axes["rows"],
            columns=numbered("layer", variation.shape[1]),
        )


def _cosine(value: float) -> str:
    text = f"{value:.1f}"
    return "0" if text in ("0.0", "-0.0") else text.replace("-", "−")


def _knock_outs(audit: Mapping[str, Any]) -> dict[str, dict[str, Estimate]]:
    found: dict[str, dict[str, Estimate]] = {}
    for entry in audit.get("knock_outs") or []:
        name = "all" if entry["register"] is None else str(entry["register"])
        one = estimate(entry["loss"])
        if one is not None:
            found.setdefault(str(entry["how"]), {})[name] = one
    return found


def _table(audit: Mapping[str, Any], knocked: Mapping[str, Mapping[str, Estimate]], count: int, prefix: str) -> Table:
    names = [*map(str, range(count)), "all"]
    relevance = audit.get("relevance") or []
    rows = []
    for index, name in enumerate(names):
        cells = [_change(found.get(name)) for found in knocked.values()]
        mine = f"{relevance[index]:.3g}" if index < len(relevance) and relevance[index] is not None else ""
        rows.append((name, *cells, mine))
    return Table(
        name=f"{prefix}-registers",
        title="Knock-outs: change in loss, nats (95 %)",
        header=("register", *(_HOWS.get(how, how) for how in knocked), "mean relevance, logits"),
        rows=tuple(rows),
    )


def _change(one: Estimate | None) -> str:
    if one is None:
        return ""
    ends = "" if one.low is None or one.high is None else f" ({one.low:+.4f} to {one.high:+.4f})"
    return f"{one.value:+.4f}{ends}"
