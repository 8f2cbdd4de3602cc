"""From the sums of one place to the numbers that a reader sees; definitions with their sources."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from regtune.analyses.artefacts.sums import PlaceSums, SpecialSums
from regtune.errors import ConfigError

EDGES: Float64[np.ndarray, " edges"] = np.geomspace(1e-2, 1e4, 121)
"""Bins of the norm histogram, 20 to a decade; norms outside count in the first and the last."""


@dataclass(frozen=True, kw_only=True)
class ArtefactSettings:
    """The thresholds that are choices."""

    absolute: float = 150.0
    """‖x‖₂ above which Darcet 2024 call a token of *their* model an outlier."""
    mad_factor: float = 5.19
    """k of median + k·MAD: 3.5/0.6745, the usual cut of the modified z-score (Iglewicz and Hoaglin 1993)."""
    dimension_share: float = 0.06
    """Share of tokens beyond 6σ from which a dimension is listed (Dettmers 2022 ask 6 % of the positions)."""

    def __post_init__(self) -> None:
        for name in ("absolute", "mad_factor"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be above 0.")
        if not 0 < self.dimension_share <= 1:
            raise ConfigError(f"dimension_share={self.dimension_share} must be a share of tokens, above 0, at most 1.")


@dataclass(frozen=True, kw_only=True)
class PlaceArtefacts:
    """Content tokens at one place."""

    tokens: int
    counts: tuple[int, ...]
    """Tokens in each bin of `EDGES`."""
    mean: float
    std: float
    median: float
    max: float
    """Of the norms ‖x‖₂ (std with n below, not n − 1)."""
    mad: float
    """Median absolute deviation of the norms."""
    outlier_rate: Mapping[str, float]
    """Share of tokens whose norm is above mean+3std, median+kmad and absolute, and 3, 5 and 10 times the median."""
    tokens_beyond: Mapping[str, int]
    """How many tokens that is."""
    largest: float
    """Largest |x| of all."""
    max_over_median: float
    """Largest over texts of: largest |x| over median |x| of the text (Sun 2024's ratio)."""
    max_over_median_mean: float
    massive_tokens: int
    """Tokens with an |x| above 100 and above 1000 times the text's median."""
    massive_dimensions: tuple[tuple[int, int], ...]
    """Dimension and number of tokens, the most first."""
    outlier_entries: float
    """Share of entries further than 6σ from the mean, both taken over the text's content (Bondarenko 2023)."""
    outlier_dimensions: tuple[tuple[int, float], ...]
    """Dimension and share of tokens beyond 6σ, from `dimension_share` on, the most first."""
    kurtosis: float | None
    """E[(x − μ)⁴]/σ⁴ over all entries of all tokens; 3 for a normal distribution; None if nothing varies."""
    infinity_norm: float
    """Largest |x| of a text, averaged over texts."""
    cosine: Mapping[str, float | None]
    """Mean cosine within a text: neighbours, pairs (all), and the same z-scored (`neighbours_z`, `pairs_z`)."""

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and lists, with the bins' edges."""
        return {"edges": EDGES.tolist(), **dataclasses.asdict(self)}


@dataclass(frozen=True, kw_only=True)
class SpecialArtefacts:
    """Special tokens of one class at one place."""

    tokens: int
    mean: float
    std: float
    median: float
    max: float
    """Of the norms."""
    relative: float
    """Median over tokens of: norm over the median norm of the same text's content tokens."""
    max_over_median: float
    """Largest over texts of: largest |x| here over the median |x| of the text's *content*."""

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return dataclasses.asdict(self)


CosineSums = Sequence[tuple[float, float]]


def place_artefacts(
    sums: PlaceSums, neighbours_z: CosineSums, pairs_z: CosineSums, settings: ArtefactSettings
) -> PlaceArtefacts:
    """The numbers of one place from its sums.

    Args:
        sums: of the content tokens.
        neighbours_z: sum and number of the z-scored neighbours' cosines, for each text.
        pairs_z: the same of all pairs.
        settings: the thresholds.
    """
    norms = np.concatenate(sums.norms).astype(np.float64)
    median = float(np.median(norms))
    mad = float(np.median(np.abs(norms - median)))
    limits = {
        "mean+3std": float(norms.mean() + 3 * norms.std()),
        "median+kmad": median + settings.mad_factor * mad,
        "absolute": settings.absolute,
        **{f"{times}x_median": times * median for times in (3, 5, 10)},
    }
    beyond = {name: int((norms > limit).sum()) for name, limit in limits.items()}
    ratios = ratios_of(sums)
    return PlaceArtefacts(
        tokens=len(norms),
        counts=tuple(np.histogram(np.clip(norms, EDGES[0], EDGES[-1]), EDGES)[0].tolist()),
        mean=float(norms.mean()),
        std=float(norms.std()),
        median=median,
        max=float(norms.max()),
        mad=mad,
        outlier_rate={name: count / len(norms) for name, count in beyond.items()},
        tokens_beyond=beyond,
        largest=max(sums.largest),
        max_over_median=float(ratios.max()),
        max_over_median_mean=float(ratios.mean()),
        massive_tokens=sum(sums.massive),
        massive_dimensions=_most(sums.massive_by_dimension, least=1.0),
        outlier_entries=sum(sums.outliers) / float(np.sum(sums.moments, axis=0)[0]),
        outlier_dimensions=tuple(
            (dimension, count / len(norms))
            for dimension, count in _most(sums.outliers_by_dimension, least=settings.dimension_share * len(norms))
        ),
        kurtosis=kurtosis(np.sum(sums.moments, axis=0)),
        infinity_norm=float(np.mean(sums.largest)),
        cosine={
            "neighbours": _mean_cosine(sums.neighbours),
            "pairs": _mean_cosine(sums.pairs),
            "neighbours_z": _mean_cosine(neighbours_z),
            "pairs_z": _mean_cosine(pairs_z),
        },
    )


def special_artefacts(sums: SpecialSums) -> SpecialArtefacts | None:
    """The numbers of one class of special tokens; None where there are none."""
    if not sums.norms:
        return None
    norms = np.concatenate(sums.norms).astype(np.float64)
    return SpecialArtefacts(
        tokens=len(norms),
        mean=float(norms.mean()),
        std=float(norms.std()),
        median=float(np.median(norms)),
        max=float(norms.max()),
        relative=float(np.median(np.concatenate(sums.relative))),
        max_over_median=max(sums.ratios),
    )


def ratios_of(sums: PlaceSums) -> Float64[np.ndarray, " texts"]:
    """Largest |x| over median |x| of each text."""
    return np.asarray(sums.largest, dtype=np.float64) / np.maximum(np.asarray(sums.medians, dtype=np.float64), 1e-30)


def kurtosis(moments: Float64[np.ndarray, " sums"]) -> float | None:
    """E[(x − μ)⁴]/σ⁴ from the number of entries and the sums of their first four powers; None if nothing varies."""
    m1, m2, m3, m4 = moments[1:] / moments[0]
    variance = m2 - m1**2
    if variance <= 1e-12 * max(m2, 1e-300):
        return None
    return float((m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / variance**2)


def _mean_cosine(sums: CosineSums) -> float | None:
    """Mean over texts of the texts' means, so that a long text counts no more than a short one."""
    means = [total / count for total, count in sums if count]
    return float(np.mean(means)) if means else None


def _most(counts: np.ndarray, *, least: float) -> tuple[tuple[int, int], ...]:
    order = np.argsort(-counts, kind="stable")[:20]
    return tuple((int(index), int(counts[index])) for index in order if counts[index] >= least)
