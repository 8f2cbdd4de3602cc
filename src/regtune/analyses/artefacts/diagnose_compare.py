"""What differs between two models that read the same texts, with bootstrap intervals over texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from regtune.errors import DataError
from regtune.stats.bootstrap import single_run_difference

if TYPE_CHECKING:
    from regtune.analyses.artefacts.diagnose import ModelDiagnosis

_PEAKS = ("norm_max_over_median", "max_over_median", "kurtosis", "infinity_norm", "cls_relative", "sep_relative")
_MEANS = ("outlier_entries",)
_COSINES = ("cosine_neighbours", "cosine_pairs", "cosine_neighbours_z", "cosine_pairs_z")
_ATTENTION = (
    "sink_rate",
    "idle",
    "mass.cls",
    "mass.sep",
    "mass.register",
    "mass_text.cls",
    "mass_text.sep",
    "entropy_text",
)

Numbers = Mapping[int, float]


class Measure(NamedTuple):
    """A number for each text of one model."""

    name: str
    over: str
    """`largest` or `mean` over layers; empty where it isn't a layer's."""
    by_example: Numbers


@dataclass(frozen=True, kw_only=True)
class MeasureDifference:
    """One measure of two models: other − model, averaged over the texts that both have it for."""

    name: str
    over: str
    texts: int
    model: float
    other: float
    difference: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return not self.low <= 0 <= self.high

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {**dataclasses.asdict(self), "clear": self.clear}


def compare_diagnoses(
    model: ModelDiagnosis, other: ModelDiagnosis, *, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> list[MeasureDifference]:
    """Paired differences of every measure that both models have.

    Each text's largest value over the layers (or mean over layers, for shares and cosines), so that models of different
    depth can be compared. The intervals cover the choice of texts; not that of the training seed, which takes several
    models to know, and not the number of comparisons.

    Raises:
        DataError: fewer than two texts.
    """
    theirs = {measure.name: measure for measure in measures(other)}
    found = []
    for mine in measures(model):
        if mine.name not in theirs:
            continue
        others = theirs[mine.name].by_example
        common = sorted(mine.by_example.keys() & others.keys())
        pairs = [(mine.by_example[example], others[example]) for example in common]
        values = np.array([pair for pair in pairs if all(map(np.isfinite, pair))], dtype=np.float64).reshape(-1, 2)
        if not len(values):
            continue
        if len(values) < 2:
            raise DataError(f"{len(values)} text is too little to compare two models; give at least 2, better 50.")
        difference = single_run_difference(values[:, 1], values[:, 0], resamples=resamples, seed=seed)
        low, high = difference.interval(level)
        found.append(
            MeasureDifference(
                name=mine.name,
                over=mine.over,
                texts=len(values),
                model=float(values[:, 0].mean()),
                other=float(values[:, 1].mean()),
                difference=difference.estimate,
                low=low,
                high=high,
            )
        )
    return found


def measures(found: ModelDiagnosis) -> Iterator[Measure]:
    """Every measure of one model that is known text by text."""
    artefacts = found.artefacts
    for site, names in (("norm_input", (*_PEAKS, *_MEANS)), ("feed_forward", (*_PEAKS, *_MEANS)), ("block", _COSINES)):
        for name in names:
            over = "largest" if name in _PEAKS else "mean"
            yield _measure(f"{site}: {name}", over, artefacts.by_text[site][name], artefacts.examples)
    if found.attention is not None:
        for name in _ATTENTION:
            if name in found.attention.per_window and (name != "mass.register" or found.attention.num_registers):
                values = found.attention.per_window[name].astype(np.float64)
                yield _measure(f"attention: {name}", "mean", values, found.attention.examples.tolist())
    if found.columns is not None:
        yield _measure("attention: column deviation", "mean", found.columns, found.columns_examples)
    if found.quantisation is not None:
        yield Measure(f"W8A8: {found.quantisation.metric}", "", found.quantisation.by_example)


def _measure(name: str, over: str, values: np.ndarray, examples: Any) -> Measure:
    """`[texts, layers]` to one number a text; NaN where any layer has none."""
    by_text = values.max(axis=1) if over == "largest" else values.mean(axis=1)
    return Measure(name, over, dict(zip(map(int, examples), map(float, by_text), strict=True)))
