"""The headline numbers of a look inside, one a question, so that models can be compared question by question."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from regtune.analyses.artefacts.artefacts import Artefacts
from regtune.analyses.attention.attention import AttentionStatistics
from regtune.analyses.attribution.attribution import Attribution
from regtune.errors import DataError

ByExample = dict[int, float]
"""Index of a question to its number."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One headline number."""

    name: str
    title: str
    """For a table's row."""
    meaning: str
    """What it is, with the layers that it is taken over."""


def _mean(values: Float64[np.ndarray, "texts layers"]) -> Float64[np.ndarray, " texts"]:
    found: Float64[np.ndarray, " texts"] = values.mean(axis=1)
    return found


def _largest(values: Float64[np.ndarray, "texts layers"]) -> Float64[np.ndarray, " texts"]:
    found: Float64[np.ndarray, " texts"] = values.max(axis=1)
    return found


Over = Callable[[Float64[np.ndarray, "texts layers"]], Float64[np.ndarray, " texts"]]

_ATTENTION: tuple[tuple[str, str, str], ...] = (
    ("mass_text.cls", "attention on [CLS]", "share of the attention over text"),
    ("mass_text.sep", "attention on [SEP]", "share of the attention over text"),
    ("mass_text.punctuation", "attention on punctuation", "share of the attention over text"),
    ("mass.register", "attention on registers", "share of all attention"),
    ("entropy_text", "entropy of attention over text", "divided by ln of the number of text tokens"),
    ("sink_rate", "heads with a sink", "share of heads with a key that receives more than 0.3 of all attention"),
    ("sink_rate_text", "heads with a sink, over text", "the same of the attention over text"),
    ("idle", "idle heads", "share of heads with 0.9 of their attention on tokens without content, and little moved"),
)
_WORST = "content tokens where the norm reads, worst layer"
_ARTEFACTS: tuple[tuple[str, str, Over, str, str], ...] = (
    ("norm_input", "norm_max_over_median", _largest, "largest norm / median norm", _WORST),
    ("norm_input", "max_over_median", _largest, "largest |x| / median |x|", _WORST),
    ("feed_forward", "cls_relative", _largest, "norm of [CLS] / median norm", "feed-forward output, worst layer"),
    (
        "norm_input",
        "outlier_entries",
        _mean,
        "entries beyond 6σ",
        "content tokens where the norm reads, mean of layers",
    ),
    ("norm_input", "kurtosis", _largest, "kurtosis", _WORST),
    ("norm_input", "infinity_norm", _largest, "‖x‖∞", _WORST),
    ("block", "cosine_pairs_z", _largest, "cosine between tokens, z-scored", "block output, worst layer"),
)

MEASURES: tuple[Measure, ...] = (
    *(
        Measure(name=f"attention.{name}", title=title, meaning=f"{meaning}; mean of all layers and heads")
        for name, title, meaning in _ATTENTION
    ),
    *(
        Measure(name=f"artefacts.{site}.{name}", title=title, meaning=meaning)
        for site, name, _, title, meaning in _ARTEFACTS
    ),
    Measure(name="w8a8.f1_loss", title="F1 lost with W8A8", meaning="ratio; weights and activations in 8 bits"),
)
"""Those of attributions are added for each method: see `explanation_measures`."""


def attention_measures(found: AttentionStatistics) -> dict[str, ByExample]:
    """One number a question from each entry of `_ATTENTION`."""
    return {
        f"attention.{name}": dict(
            zip(found.examples.tolist(), found.per_window[name].mean(axis=1, dtype=np.float64).tolist(), strict=True)
        )
        for name, _, _ in _ATTENTION
    }


def artefact_measures(found: Artefacts) -> dict[str, ByExample]:
    """One number a question from each entry of `_ARTEFACTS`."""
    return {
        f"artefacts.{site}.{name}": dict(zip(found.examples, over(found.by_text[site][name]).tolist(), strict=True))
        for site, name, over, _, _ in _ARTEFACTS
    }


def explanation_measures(
    method: str, found: Mapping[int, Attribution], content: Mapping[int, np.ndarray], gold: Mapping[int, np.ndarray]
) -> dict[str, ByExample]:
    """How concentrated a method's scores are, and how they sit on the gold answer: looks, not truth.

    Args:
        method: names the measures.
        found: the scores of each question's window.
        content: for each question, which of the window's tokens are content.
        gold: which of them are the gold answer's; questions without one are left out of the second measure.
    """
    spread, on_gold = {}, {}
    for example, attribution in found.items():
        size = np.abs(attribution.relevance[content[example]])
        shares = size / size.sum() if size.sum() > 0 else np.full(len(size), 1 / max(len(size), 1))
        logs = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
        spread[example] = float(-(shares * logs).sum() / np.log(len(shares))) if len(shares) > 1 else 0.0
        if gold[example].any():
            on_gold[example] = float(shares[gold[example][content[example]]].sum())
    return {f"explanation.{method}.entropy": spread, f"explanation.{method}.on_gold": on_gold}


def aligned(measures: Mapping[str, ByExample], ids: Sequence[str]) -> dict[str, list[float | None]]:
    """The measures with one entry a question, None where a question has none.

    Raises:
        DataError: a question that is not among the ids.
    """
    for name, values in measures.items():
        strangers = [index for index in values if not 0 <= index < len(ids)]
        if strangers:
            raise DataError(f"{name} has a number for question {strangers[0]}, but there are {len(ids)} questions.")
    return {name: [_number(values.get(index)) for index in range(len(ids))] for name, values in measures.items()}


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(f"{value:.6g}")
