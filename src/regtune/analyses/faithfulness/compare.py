"""Two models' explanations against each other, text by text; and a measurement as a table for a person."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from regtune.analyses.faithfulness.results import RESAMPLES, Faithfulness, Interval, Row
from regtune.errors import ConfigError, DataError
from regtune.stats.bootstrap import paired_difference, resampled_means, single_run_difference

PUBLISHED = "published for bert-base (arXiv 2408.08137), another model: for orientation alone"
PUBLISHED_SST2: dict[str, dict[str, float]] = {
    "random": {"comprehensiveness": 0.079, "sufficiency": 0.083},
    "gradient-input": {"comprehensiveness": 0.109, "sufficiency": 0.032},
    "attention": {"comprehensiveness": 0.095, "sufficiency": 0.051},
    "integrated-gradients": {"comprehensiveness": 0.125, "sufficiency": 0.022},
    "decompx": {"comprehensiveness": 0.346, "sufficiency": -0.030},
    "beam limit": {"comprehensiveness": 0.595, "sufficiency": -0.050},
}
"""Raw values on SST-2 of that paper, which (so its released code) masks tokens one by one and averages over *every*
step, not over ERASER's fractions: beside ours they belong to `deletion` and `deletion-lerf`."""
_SAME_CURVE = {"comprehensiveness": "deletion", "sufficiency": "deletion-lerf"}


@dataclass(frozen=True, kw_only=True)
class FaithfulnessDifference:
    """The second model's value minus the first's, for one method and metric; paired by text."""

    method: str
    metric: str
    normalised: bool
    higher_is_better: bool
    first: float
    second: float
    difference: float
    low: float
    high: float
    p_value: float
    n: int
    """Texts that both measured."""
    seeds: int
    """Pairs of models; one pair says nothing about other seeds."""

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return dict(self.__dict__)


def compare_faithfulness(
    a: Faithfulness | Sequence[Faithfulness], b: Faithfulness | Sequence[Faithfulness], *, resamples: int = RESAMPLES
) -> list[FaithfulnessDifference]:
    """Is the second model explained more faithfully than the first? For each method and metric, raw and normalised.

    Raw figures of two models differ for reasons that have nothing to do with explanations: read the normalised ones.
    One pair of models gets a bootstrap over texts. Several pairs (seeds, in the same order) get the corrected
    multi-bootstrap over seeds × texts. p-values are not corrected for the number of rows.

    Args:
        a: one measurement, or one for each seed.
        b: of the other model or arm, with the same settings and data.
        resamples: bootstrap draws.

    Raises:
        ConfigError: different kinds of text, settings or numbers of seeds.
        DataError: fewer than two texts in common.
    """
    first = [a] if isinstance(a, Faithfulness) else list(a)
    second = [b] if isinstance(b, Faithfulness) else list(b)
    _check_alike(first, second)
    found = []
    for method in first[0].methods:
        for metric in first[0].values.get(method, {}):
            for is_normalised, pick in ((False, _raw), (True, _normalised)):
                pair = _paired(first, second, pick, method, metric)
                if pair is not None:
                    found.append(_difference(method, metric, is_normalised, pair, resamples))
        for metric in first[0].agreement.get(method, {}):
            pair = _paired(first, second, _agreement, method, metric)
            if pair is not None:
                found.append(_difference(method, metric, False, pair, resamples))
    return found


Named = tuple[tuple[str, ...], Float64[np.ndarray, " _"]]
Pick = Callable[[Faithfulness, str, str], "Named | None"]
Pair = tuple[Float64[np.ndarray, "seeds texts"], Float64[np.ndarray, "seeds texts"]]


def _raw(one: Faithfulness, method: str, metric: str) -> Named | None:
    values = one.values.get(method, {}).get(metric)
    return None if values is None else (one.texts, values)


def _normalised(one: Faithfulness, method: str, metric: str) -> Named | None:
    values = one.normalised(method, metric)
    return None if values is None else (one.limit_texts, values)


def _agreement(one: Faithfulness, method: str, metric: str) -> Named | None:
    values = one.agreement.get(method, {}).get(metric)
    return None if values is None else (one.agreement_texts, values)


def _paired(
    first: Sequence[Faithfulness], second: Sequence[Faithfulness], pick: Pick, method: str, metric: str
) -> Pair | None:
    """The values of the texts that all have, one row a seed; None where one has none."""
    picked = [pick(one, method, metric) for one in (*first, *second)]
    named = [one for one in picked if one is not None]
    if len(named) < len(picked):
        return None
    others = [set(names) for names, _ in named[1:]]
    common = [name for name in named[0][0] if all(name in other for other in others)]
    if len(common) < 2:
        raise DataError(
            f"{method}, {metric}: the models have {len(common)} texts in common and 2 are needed. Measure them with "
            "the same data, limit and seed."
        )
    rows = [values[[names.index(name) for name in common]] for names, values in named]
    return np.stack(rows[: len(first)]), np.stack(rows[len(first) :])


def _difference(method: str, metric: str, is_normalised: bool, pair: Pair, resamples: int) -> FaithfulnessDifference:
    from regtune.analyses.faithfulness.faithfulness import HIGHER_IS_BETTER

    first, second = pair
    if len(first) == 1:
        difference = single_run_difference(second[0], first[0], resamples=resamples, seed=0)
    else:
        means = np.split(resampled_means(np.concatenate([second, first]), resamples=resamples, seed=0), 2)
        difference = paired_difference(second, first, (means[0], means[1]), seed=1)
    low, high = difference.interval(0.95)
    return FaithfulnessDifference(
        method=method,
        metric=metric,
        normalised=is_normalised,
        higher_is_better=True if is_normalised else HIGHER_IS_BETTER.get(metric, True),
        first=float(first.mean()),
        second=float(second.mean()),
        difference=difference.estimate,
        low=low,
        high=high,
        p_value=difference.p_value(),
        n=first.shape[1],
        seeds=len(first),
    )


def _check_alike(first: Sequence[Faithfulness], second: Sequence[Faithfulness]) -> None:
    if not first or len(first) != len(second):
        raise ConfigError(f"{len(first)} and {len(second)} measurements; give as many of each, in the seeds' order.")
    for one in (*first, *second):
        for name in ("kind", "data", "settings"):
            ours, theirs = getattr(first[0], name), getattr(one, name)
            if ours != theirs:
                raise ConfigError(
                    f"{first[0].model} was measured with {name}={ours!r}, {one.model} with {theirs!r}; the difference "
                    "would be one of settings. Measure both alike."
                )


def faithfulness_text(found: Faithfulness, *, resamples: int = RESAMPLES) -> str:
    """The rows as a table for the terminal, limits and published values below."""
    rows = found.rows(resamples=resamples)
    width = max([len(row.method) for row in rows] + [len("method")])
    span = max([len(row.metric) for row in rows] + [len("metric")])
    lines = [
        f"{found.model}: {found.num_registers} registers, {found.kind}, {found.data}",
        f"{'method':{width}}  {'metric':{span}}     {'raw':24} {'normalised':26} n",
    ]
    lines += [_line(row, width, span) for row in rows]
    for metric in found.random:
        random, limit = (float(values.mean()) for values in found.limits(metric))
        beam = float(found.beam[metric].mean())
        lines.append(
            f"limits of {metric}: random {random:.3f}, beam search {beam:.3f}, best order known {limit:.3f} "
            f"({len(found.limit_texts)} texts)"
        )
    if found.kind == "sentiment":
        lines.append(f"{PUBLISHED}:")
        lines += [_published_line(method, values) for method, values in PUBLISHED_SST2.items()]
    return "\n".join([*lines, *found.notes]) + "\n"


def _line(row: Row, width: int, span: int) -> str:
    arrow = "↑" if row.higher_is_better else "↓"
    shares = "-" if row.normalised is None else _shown(row.normalised)
    return f"{row.method:{width}}  {row.metric:{span}} {arrow}   {_shown(row.raw):24} {shares:26} {row.n}"


def _published_line(method: str, values: dict[str, float]) -> str:
    shown = ", ".join(f"{_SAME_CURVE[metric]} {value:.3f}" for metric, value in values.items())
    return f"  {method}: {shown}"


def _shown(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"
