"""Verdicts on the known artefacts: numbers in, present, weak or absent out, with the threshold and whose it is.

Thresholds that the literature gives are used as they are and named; where it gives none, the threshold is regtune's and
says so. Only content tokens decide about content.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from regtune.analyses.artefacts.artefacts import Artefacts
from regtune.analyses.artefacts.diagnose_quantise import QuantisationLoss
from regtune.analyses.artefacts.places import PlaceArtefacts
from regtune.analyses.attention.attention import AttentionStatistics
from regtune.analyses.attention.measures import CLASSES

Word = Literal["present", "weak", "absent", "unclear", "not measured"]

DEFINITIONS = {
    "high-norm tokens": (
        "present: 0.1 % of the content tokens, and three at least, have a norm above 10 × the median (Darcet 2024: "
        "'roughly 10x'); weak: any above 5 × (regtune). Their 150 was picked for one model and decides nothing."
    ),
    "massive activations": (
        "present: an |x| above 100 and above 1000 × the median |x| of its text (Sun 2024); weak: above 100 × (regtune)."
    ),
    "outlier dimensions": (
        "present: a dimension beyond 6σ (Bondarenko 2023) in half of the content tokens (regtune); weak: in 6 % "
        "(Dettmers 2022)."
    ),
    "attention sinks": (
        "a head has a sink in a text if a token receives more than 0.3 of its attention on average (Gu 2025). present: "
        "so in half of the heads of a layer; weak: in a tenth (regtune)."
    ),
    "do-nothing heads": (
        "a head is idle in a text if 0.9 of its attention is on tokens without content and it writes at most half of "
        "what an average token would (after Bondarenko 2023). present: a tenth of all heads are idle in half of the "
        "texts; weak: any (regtune)."
    ),
    "over-smoothing": (
        "mean cosine of all pairs of content tokens of a text at the block output, dimensions z-scored (raw cosine is "
        "high in any model with an outlier dimension). present: 0.5; weak: 0.25 (regtune; after Shi 2022, Bai 2024)."
    ),
    "W8A8 loss": (
        "weights and inputs of all linear layers rounded to int8, one range a tensor. present: F1 falls by a point and "
        "the interval leaves 0 out; weak: by less, and it leaves 0 out; unclear: it holds both 0 and a point, so more "
        "questions are needed. Without F1: relative error of the last hidden state, present 0.2, weak 0.1 (regtune)."
    ),
}
"""What each verdict means, in the order of the table."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One artefact in one model."""

    artefact: str
    verdict: Word
    strength: str
    """How strong, in words and numbers."""
    value: float | None = None
    """The number that the threshold is about, at its largest."""
    layer: int | None = None
    """Where that is, from 0; None where it isn't in one layer."""
    site: str | None = None

    def to_json(self) -> dict[str, Any]:
        """With the definition."""
        return {**dataclasses.asdict(self), "definition": DEFINITIONS[self.artefact]}


def artefact_verdicts(found: Artefacts) -> list[Verdict]:
    """The verdicts that need hidden states alone."""
    return [_high_norms(found), _massive(found), _outlier_dimensions(found)]


def attention_verdicts(found: AttentionStatistics) -> list[Verdict]:
    """The verdicts that need attention weights."""
    return [_sinks(found), _idle(found)]


def not_measured(artefacts: list[str], reason: str) -> list[Verdict]:
    """Says so, and why."""
    return [Verdict(artefact=name, verdict="not measured", strength=reason) for name in artefacts]


def _largest(found: Artefacts, number: Callable[[PlaceArtefacts], float]) -> tuple[str, int, PlaceArtefacts]:
    """The place where a number is largest."""
    places = [(site, layer, place) for site, of_site in found.sites.items() for layer, place in enumerate(of_site)]
    return max(places, key=lambda each: number(each[2]))


def _high_norms(found: Artefacts) -> Verdict:
    def many(place: PlaceArtefacts) -> bool:
        return place.outlier_rate["10x_median"] >= 0.001 and place.tokens_beyond["10x_median"] >= 3

    def ratio(place: PlaceArtefacts) -> float:
        return place.max / max(place.median, 1e-30)

    site, layer, place = _largest(found, lambda each: (1e9 if many(each) else 0) + ratio(each))
    word: Word = "present" if many(place) else "weak" if place.tokens_beyond["5x_median"] else "absent"
    return Verdict(
        artefact="high-norm tokens",
        verdict=word,
        value=ratio(place),
        layer=layer,
        site=site,
        strength=f"largest {place.max:.3g}, {ratio(place):.1f} × the median {place.median:.3g}; above 10 × "
        f"{place.outlier_rate['10x_median']:.2%}, 5 × {place.outlier_rate['5x_median']:.2%} of the tokens",
    )


def _massive(found: Artefacts) -> Verdict:
    site, layer, place = _largest(found, lambda each: (1e12 if each.massive_tokens else 0) + each.max_over_median)
    word: Word = "present" if place.massive_tokens else "weak" if place.max_over_median >= 100 else "absent"
    strength = f"largest |x| {place.largest:.3g}; at most {place.max_over_median:.0f} × the median of its text"
    if place.massive_tokens:
        dimensions = ", ".join(str(dimension) for dimension, _ in place.massive_dimensions[:3])
        strength += f"; {place.massive_tokens} of {place.tokens} tokens, dimension {dimensions}"
    return Verdict(
        artefact="massive activations",
        verdict=word,
        value=place.max_over_median,
        layer=layer,
        site=site,
        strength=strength,
    )


def _outlier_dimensions(found: Artefacts) -> Verdict:
    def share(place: PlaceArtefacts) -> float:
        return place.outlier_dimensions[0][1] if place.outlier_dimensions else 0.0

    site, layer, place = _largest(found, share)
    largest = share(place)
    word: Word = "present" if largest >= 0.5 else "weak" if largest >= 0.06 else "absent"
    named = ", ".join(f"{dimension} ({part:.0%})" for dimension, part in place.outlier_dimensions[:3]) or "none"
    curved = max((each.kurtosis or 0.0, n) for of_site in found.sites.values() for n, each in enumerate(of_site))
    strength = f"{named} of the tokens; kurtosis up to {curved[0]:.0f} (layer {curved[1]})"
    common = common_norm_weights(found)
    if common:
        strength += f"; norm weights beyond 3σ in half of the layers: {', '.join(map(str, common[:4]))}"
    return Verdict(
        artefact="outlier dimensions", verdict=word, value=largest, layer=layer, site=site, strength=strength
    )


def common_norm_weights(found: Artefacts) -> list[int]:
    """Dimensions whose norm weight is beyond 3σ in at least half of the layers, two at least (Kovaleva 2021)."""
    counts = Counter(dimension for layer in found.norm_weights for dimension in layer)
    return [dimension for dimension, count in counts.most_common() if count >= max(2, found.layers / 2)]


def _sinks(found: AttentionStatistics) -> Verdict:
    by_layer = found.single["sink_rate"].mean(1)
    layer = int(by_layer.argmax())
    share = float(by_layer[layer])
    classes = found.by_class["sink_rate_by_class"][layer].mean(0)
    word: Word = "present" if share >= 0.5 else "weak" if share >= 0.1 else "absent"
    where = f", mostly {CLASSES[int(classes.argmax())]}" if share > 0 else ""
    strength = f"{share:.0%} of the heads of the layer{where}; {float(by_layer.mean()):.0%} of all heads"
    return Verdict(artefact="attention sinks", verdict=word, value=share, layer=layer, strength=strength)


def _idle(found: AttentionStatistics) -> Verdict:
    idle = found.single["idle"] >= 0.5
    share = float(idle.mean())
    layer = int(idle.sum(1).argmax())
    word: Word = "present" if share >= 0.1 else "weak" if idle.any() else "absent"
    strength = f"{int(idle.sum())} of {idle.size} heads idle in half of the texts"
    if idle.any():
        strength += f", {int(idle[layer].sum())} of them in the layer"
    return Verdict(
        artefact="do-nothing heads", verdict=word, value=share, layer=layer if idle.any() else None, strength=strength
    )


def over_smoothing(found: Artefacts, columns: np.ndarray | None) -> Verdict:
    """The verdict on tokens that grow alike.

    Args:
        found: the artefacts.
        columns: column deviation of attention, `[layers]`, or None where attention can't be read.
    """
    likeness = [place.cosine["pairs_z"] for place in found.sites["block"]]
    known = [(value, layer) for layer, value in enumerate(likeness) if value is not None]
    if not known:
        return not_measured(["over-smoothing"], "no text has two content tokens")[0]
    value, layer = max(known)
    word: Word = "present" if value >= 0.5 else "weak" if value >= 0.25 else "absent"
    raw = found.sites["block"][layer].cosine["pairs"]
    strength = f"cosine {value:.2f} z-scored, {raw:.2f} raw"
    if columns is not None:
        strength += f"; column deviation up to {columns.max():.1f} (layer {int(columns.argmax())})"
    return Verdict(artefact="over-smoothing", verdict=word, value=value, layer=layer, site="block", strength=strength)


def quantisation_verdict(found: QuantisationLoss) -> Verdict:
    """The verdict on rounding to 8 bits."""
    word: Word = "absent"
    if found.metric == "f1_loss":
        if found.low > 0:
            word = "present" if found.value >= 0.01 else "weak"
        elif found.high >= 0.01:
            word = "unclear"
        interval = f"[{100 * found.low:.1f}, {100 * found.high:.1f}]"
        strength = f"F1 {100 * (found.f1 or 0):.1f} falls by {100 * found.value:.1f} {interval} points"
    else:
        word = "present" if found.value >= 0.2 else "weak" if found.value >= 0.1 else "absent"
        strength = f"last hidden state off by {found.value:.1%} [{found.low:.1%}, {found.high:.1%}]"
    return Verdict(artefact="W8A8 loss", verdict=word, value=found.value, strength=strength)
