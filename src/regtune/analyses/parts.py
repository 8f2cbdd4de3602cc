"""What the parts of `inspect` share: verdicts, numbers by example, intervals, and how they are shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float64
from tqdm import tqdm

from regtune.interfaces import Block
from regtune.pictures import Estimate
from regtune.stats.bootstrap import single_run_difference

ItemT = TypeVar("ItemT")
Word = Literal["present", "weak", "absent", "unclear", "not measured"]
ByExample = Mapping[int, float]
"""Index of an example to its number."""
RESAMPLES = 2_000
SITE_WORDS = {"norm_input": "norm input", "feed_forward": "feed-forward", "block": "block output"}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One known artefact in one model."""

    artefact: str
    verdict: Word
    strength: str
    """How strong, in words and numbers."""
    definition: str
    """What the verdict means, and whose threshold it is."""
    value: float | None = None
    """The number that the threshold is about, at its largest."""
    layer: int | None = None
    """Where that is, from 0; None where it isn't in one layer."""
    site: str | None = None


def verdict_blocks(verdicts: Iterable[Mapping[str, Any]]) -> list[Block]:
    """A table of verdicts, and what they mean."""
    found = list(verdicts)
    if not found:
        return []
    rows = tuple((v["artefact"], v["verdict"], _where(v), v["strength"]) for v in found)
    meanings = "\n".join(f"{v['artefact']}: {v['definition']}" for v in found)
    return [
        Block(
            kind="table",
            title="Known artefacts",
            columns=("artefact", "verdict", "strongest in", "how strong"),
            rows=rows,
            text=meanings,
            data=found,
        )
    ]


def _where(verdict: Mapping[str, Any]) -> str:
    if verdict["layer"] is None:
        return ""
    site = SITE_WORDS.get(verdict["site"], "")
    return f"layer {verdict['layer']}" + (f", {site}" if site else "")


def mean_interval(values: Float64[np.ndarray, " _"], *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The mean over examples and its 95 % bootstrap interval; none for a single one."""
    mean = float(values.mean())
    if len(values) < 2:
        return Estimate(mean)
    low, high = single_run_difference(values, np.zeros_like(values), resamples=resamples, seed=seed).interval(0.95)
    return Estimate(mean, low, high)


def estimate(entry: Any) -> Estimate | None:
    """What a record keeps of an `Estimate`: `value`, `low`, `high`."""
    if entry is None or entry["value"] is None:
        return None
    return Estimate(
        float(entry["value"]), *(None if entry[end] is None else float(entry[end]) for end in ("low", "high"))
    )


def short(value: float | None) -> str:
    """Three significant digits; empty for None."""
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def with_interval(one: Estimate | None, form: str = ".3f") -> str:
    """A number and its interval."""
    if one is None:
        return ""
    ends = "" if one.low is None or one.high is None else f" ({one.low:{form}} to {one.high:{form}})"
    return f"{one.value:{form}}{ends}"


def spread_over(count: int, most: int) -> list[int]:
    """At most `most` of so many indices, evenly spread, so that costly parts look at a part of the same sample."""
    return list(range(count)) if count <= most else [index * count // most for index in range(most)]


def progress(items: Sequence[ItemT], words: str) -> Iterator[ItemT]:
    """The items, with a bar on a terminal that says how long the rest takes."""
    yield from tqdm(items, desc=words, disable=None, leave=False)
