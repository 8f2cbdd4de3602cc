"""The part `artefacts`: norms, massive activations, outlier dimensions and likeness of tokens, with verdicts.

Thresholds that the literature gives are used as they are and named; where it gives none, the threshold is regtune's
and says so.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float64

from regtune.analyses.artefacts.artefacts import Artefacts, ArtefactSettings, PlaceArtefacts, artefact_statistics
from regtune.analyses.artefacts.probes import Probe, probe_tokens, token_states
from regtune.analyses.artefacts.sites import Batch
from regtune.analyses.parts import SITE_WORDS, Verdict, Word, short, verdict_blocks
from regtune.interfaces import Block, Examples, Need, Rows
from regtune.pictures import ridges
from regtune.session import Session

Values = Float64[np.ndarray, "texts layers"]
DEFINITIONS = {
    "high-norm tokens": (
        "content tokens. Present: 0.1 % of them, and three at least, have a norm above 10 × the median (Darcet 2024: "
        "'roughly 10x'); weak: any above 5 × (regtune). Their 150 was picked for one model and decides nothing."
    ),
    "massive activations": (
        "all tokens of the text and registers, at all three places. Present: an |x| above 100 and at least 1000 × the "
        "median |x| of its text's tokens (Sun 2024); weak: at least 100 × (regtune)."
    ),
    "outlier dimensions": (
        "content tokens. Present: a dimension beyond 6σ (Bondarenko 2023) in half of them (regtune); weak: in 6 % "
        "(Dettmers 2022)."
    ),
    "over-smoothing": (
        "mean cosine of all pairs of content tokens of a text at the block output, dimensions z-scored (raw cosine is "
        "high in any model with an outlier dimension). Present: 0.5; weak: 0.25 (regtune; after Shi 2022, Bai 2024)."
    ),
}
_TOKENS = {"content": "content", "cls": "[CLS]", "sep": "[SEP]", "register": "registers"}
_WORST = "content tokens where the norm reads, worst layer"


def _largest(values: Values) -> Float64[np.ndarray, " texts"]:
    return np.asarray(values.max(axis=1))


def _mean(values: Values) -> Float64[np.ndarray, " texts"]:
    return np.asarray(values.mean(axis=1))


_MEASURED: tuple[tuple[str, str, Callable[[Values], Float64[np.ndarray, " texts"]], str], ...] = (
    ("norm_input", "norm_max_over_median", _largest, f"largest norm / median norm ({_WORST})"),
    ("norm_input", "max_over_median", _largest, f"largest |x| / median |x| ({_WORST})"),
    ("feed_forward", "massive_ratio", _largest, "largest |x| of any token / median |x| (feed-forward, worst layer)"),
    ("feed_forward", "cls_relative", _largest, "norm of [CLS] / median norm (feed-forward output, worst layer)"),
    ("feed_forward", "sep_relative", _largest, "norm of [SEP] / median norm (feed-forward output, worst layer)"),
    ("norm_input", "outlier_entries", _mean, "entries beyond 6σ (content tokens where the norm reads, mean of layers)"),
    ("norm_input", "kurtosis", _largest, f"kurtosis ({_WORST})"),
    ("norm_input", "infinity_norm", _largest, f"‖x‖∞ ({_WORST})"),
    ("block", "cosine_pairs", _mean, "cosine between tokens (block output, mean of layers)"),
    ("block", "cosine_pairs_z", _largest, "cosine between tokens, z-scored (block output, worst layer)"),
)


class ArtefactAnalysis:
    """Norms, massive activations, outlier dimensions, likeness of tokens."""

    name: ClassVar[str] = "artefacts"
    title: ClassVar[str] = "Artefacts in hidden states"
    settings: ClassVar[type] = ArtefactSettings
    needs: ClassVar[frozenset[Need]] = frozenset()

    def measure(
        self, session: Session, rows: Rows[Any], examples: Examples, settings: ArtefactSettings
    ) -> Mapping[str, Any]:
        """See `Analysis.measure`."""
        batches = session.batches(rows.one_each())
        found = artefact_statistics(session.model, batches, settings)
        content = found.to_json()
        if settings.probes and find_spec("sklearn") is not None:
            probes, probed = _probe(session, examples, batches, found)
            content |= {"probes": [dataclasses.asdict(probe) for probe in probes], "probed": probed}
        measures = {
            f"artefacts.{site}.{name}": dict(zip(found.examples, over(found.by_text[site][name]).tolist(), strict=True))
            for site, name, over, _ in _MEASURED
        }
        return {
            **content,
            "verdicts": artefact_verdicts(found),
            "measures": measures,
            "titles": {f"artefacts.{site}.{name}": words for site, name, _, words in _MEASURED},
        }

    def blocks(self, content: Mapping[str, Any]) -> Iterator[Block]:
        """See `Analysis.blocks`."""
        return _blocks(content)


# Verdicts


def artefact_verdicts(found: Artefacts) -> list[Verdict]:
    """The verdicts that need hidden states alone."""
    return [_high_norms(found), _massive(found), _outlier_dimensions(found), over_smoothing(found)]


def _verdict(artefact: str, word: Word, strength: str, **where: Any) -> Verdict:
    return Verdict(artefact=artefact, verdict=word, strength=strength, definition=DEFINITIONS[artefact], **where)


def _worst(found: Artefacts, number: Callable[[PlaceArtefacts], float]) -> tuple[str, int, PlaceArtefacts]:
    """The place where a number is largest."""
    places = [(site, layer, place) for site, of_site in found.sites.items() for layer, place in enumerate(of_site)]
    return max(places, key=lambda each: number(each[2]))


def _high_norms(found: Artefacts) -> Verdict:
    def many(place: PlaceArtefacts) -> bool:
        return place.outlier_rate["10x_median"] >= 0.001 and place.tokens_beyond["10x_median"] >= 3

    def ratio(place: PlaceArtefacts) -> float:
        return place.max / max(place.median, 1e-30)

    site, layer, place = _worst(found, lambda each: (1e9 if many(each) else 0) + ratio(each))
    word: Word = "present" if many(place) else "weak" if place.tokens_beyond["5x_median"] else "absent"
    strength = (
        f"largest {place.max:.3g}, {ratio(place):.1f} × the median {place.median:.3g}; above 10 × "
        f"{place.outlier_rate['10x_median']:.2%}, 5 × {place.outlier_rate['5x_median']:.2%} of the tokens"
    )
    return _verdict("high-norm tokens", word, strength, value=ratio(place), layer=layer, site=site)


def _massive(found: Artefacts) -> Verdict:
    def ratio(place: PlaceArtefacts) -> float:
        return max(times for _, times in place.massive_largest.values())

    site, layer, place = _worst(found, lambda each: (1e12 if sum(each.massive.values()) else 0) + ratio(each))
    counted = {kind: count for kind, count in place.massive.items() if count}
    kind, (size, times) = max(place.massive_largest.items(), key=lambda each: each[1][1])
    word: Word = "present" if counted else "weak" if times >= 100 else "absent"
    strength = f"|x| = {size:.4g}, {times:,.0f} × the median of its text, at {_TOKENS[kind]}"
    if counted:
        dimensions = ", ".join(str(dimension) for dimension, _ in place.massive_dimensions[:3])
        tokens = ", ".join(f"{count} {_TOKENS[name]}" for name, count in counted.items())
        strength += f"; tokens: {tokens}; dimension {dimensions}"
    strength += f"; content alone at most {place.massive_largest['content'][1]:,.0f} ×" if kind != "content" else ""
    return _verdict("massive activations", word, strength, value=times, layer=layer, site=site)


def _outlier_dimensions(found: Artefacts) -> Verdict:
    def share(place: PlaceArtefacts) -> float:
        return place.outlier_dimensions[0][1] if place.outlier_dimensions else 0.0

    site, layer, place = _worst(found, share)
    largest = share(place)
    word: Word = "present" if largest >= 0.5 else "weak" if largest >= 0.06 else "absent"
    named = ", ".join(f"{dimension} ({part:.0%})" for dimension, part in place.outlier_dimensions[:3]) or "none"
    curved = max((each.kurtosis or 0.0, n) for of_site in found.sites.values() for n, each in enumerate(of_site))
    strength = f"{named} of the tokens; kurtosis up to {curved[0]:.0f} (layer {curved[1]})"
    common = common_norm_weights(found)
    if common:
        strength += f"; norm weights beyond 3σ in half of the layers: {', '.join(map(str, common[:4]))}"
    return _verdict("outlier dimensions", word, strength, value=largest, layer=layer, site=site)


def common_norm_weights(found: Artefacts) -> list[int]:
    """Dimensions whose norm weight is beyond 3σ in at least half of the layers, two at least (Kovaleva 2021)."""
    counts = Counter(dimension for layer in found.norm_weights for dimension in layer)
    return [dimension for dimension, count in counts.most_common() if count >= max(2, found.layers / 2)]


def over_smoothing(found: Artefacts) -> Verdict:
    """The verdict on tokens that grow alike."""
    likeness = [place.cosine["pairs_z"] for place in found.sites["block"]]
    known = [(value, layer) for layer, value in enumerate(likeness) if value is not None]
    if not known:
        return _verdict("over-smoothing", "not measured", "no text has two content tokens")
    value, layer = max(known)
    word: Word = "present" if value >= 0.5 else "weak" if value >= 0.25 else "absent"
    raw = found.sites["block"][layer].cosine["pairs"]
    strength = f"cosine {value:.2f} z-scored, {raw:.2f} raw"
    return _verdict("over-smoothing", word, strength, value=value, layer=layer, site="block")


# Probes


def _probe(session: Session, examples: Examples, batches: Sequence[Batch], found: Artefacts) -> tuple[list[Probe], str]:
    """Probes at the place whose largest norm is furthest from its median; outliers are those above 5 × the median.

    Where no token is, those above median + k·MAD are taken, which any model has, so that the numbers can be compared.
    """
    site, layer, place = _worst(found, lambda each: each.max / max(each.median, 1e-30))
    limit, words = 5 * place.median, "5 × the median"
    if not place.tokens_beyond["5x_median"]:
        limit = place.median + found.settings.mad_factor * place.mad
        words = f"median + {found.settings.mad_factor:g} × MAD"
    tokens = token_states(session.model, batches, layer=layer, site=site, norm_above=limit)
    texts = _numbers([session.reads.text(item) for item in examples.items])
    titles = [str(getattr(item, "title", "")) for item in examples.items]
    article = len(set(titles)) > 1 and all(titles)
    labels = {"article": _numbers(titles)} if article else {"text": texts}
    probes = probe_tokens(tokens, labels=labels, texts=texts)
    return (
        probes,
        f"{int(tokens.outlier.sum())} tokens with a norm above {words} ({limit:.3g}), {site} of layer {layer}",
    )


def _numbers(names: Sequence[str]) -> list[int]:
    numbers: dict[str, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in names]


# Blocks


def _blocks(content: Mapping[str, Any]) -> Iterator[Block]:
    yield from verdict_blocks(content["verdicts"])
    yield Block(
        kind="text",
        title="Norms by layer",
        text="A norm behind the layer makes all lengths alike, so look at its input and at the feed-forward output "
        "too. Content tokens alone; the first layer is on top.",
    )
    for site, layers in content["sites"].items():
        yield Block(
            kind="figure",
            title=f"Norms of content tokens, {SITE_WORDS[site]}",
            text="; ".join(
                f"layer {n}: median {p['median']:.3g}, largest {p['max']:.3g}" for n, p in enumerate(layers)
            ),
            draw=ridges(
                content["edges"],
                [place["counts"] for place in layers],
                [place["median"] for place in layers],
                [place["max"] for place in layers],
                xlabel="norm ‖x‖₂ (log scale; heights: square root of counts)",
            ),
        )
    yield _special_table(content)
    yield _massive_table(content)
    yield Block(
        kind="table",
        title="Norms and outliers of content tokens, layer by layer",
        columns=(
            *("place", "layer", "median norm", "largest norm", "largest |x| / median |x|", "kurtosis"),
            *("beyond mean + 3σ, %", "beyond median + k·MAD, %", "beyond the absolute threshold, %"),
        ),
        rows=tuple(
            (
                SITE_WORDS[site],
                str(n),
                *(short(place[name]) for name in ("median", "max", "max_over_median", "kurtosis")),
                *(f"{100 * place['outlier_rate'][r]:.2f}" for r in ("mean+3std", "median+kmad", "absolute")),
            )
            for site, layers in content["sites"].items()
            for n, place in enumerate(layers)
        ),
    )
    if content.get("probes"):
        yield _probe_table(content)


def _special_table(content: Mapping[str, Any]) -> Block:
    rows = []
    for site, layers in content["sites"].items():
        ratio, layer = max((place["max"] / max(place["median"], 1e-30), n) for n, place in enumerate(layers))
        kinds = [("content", layer, layers[layer], ratio)]
        for name, of_class in content["special"].items():
            relative, layer = max((each["relative"], n) for n, each in enumerate(of_class[site]))
            kinds.append((_TOKENS[name], layer, of_class[site][layer], relative))
        rows += [
            (SITE_WORDS[site], name, str(layer), short(place["median"]), short(place["max"]), f"{times:.1f}")
            for name, layer, place, times in kinds
        ]
    return Block(
        kind="table",
        title="Where large norms are",
        text="Each row at its strongest layer; of content its largest norm, of special tokens their median one.",
        columns=("place", "tokens", "layer", "median norm", "largest norm", "× content's median"),
        rows=tuple(rows),
    )


def _massive_table(content: Mapping[str, Any]) -> Block:
    rows = []
    for site, layers in content["sites"].items():
        for kind, words in _TOKENS.items():
            size, times, layer = max(
                ((*place["massive_largest"][kind], n) for n, place in enumerate(layers)), key=lambda each: each[1]
            )
            if size:
                tokens = sum(place["massive"][kind] for place in layers)
                rows.append((SITE_WORDS[site], words, str(layer), short(size), short(times), str(tokens)))
    return Block(
        kind="table",
        title="Massive activations",
        text="Content, special tokens and registers apart; the median is over all tokens of the text. Counted are "
        "tokens with an |x| above 100 and at least 1000 × that median (Sun 2024), over all layers.",
        columns=("place", "tokens", "layer", "largest |x|", "× the text's median", "massive"),
        rows=tuple(rows),
    )


def _probe_table(content: Mapping[str, Any]) -> Block:
    rows = []
    for probe in content["probes"]:
        known = probe["accuracy"] is not None
        interval = f"{probe['low']:.1%} to {probe['high']:.1%}" if known else ""
        numbers = (
            (f"{probe['accuracy']:.1%}", interval, f"{probe['chance']:.1%}") if known else (probe["reason"], "", "")
        )
        rows.append((probe["information"], probe["tokens"], str(probe["count"]), probe["held_out"], *numbers))
    reasons = dict.fromkeys(
        f"{probe['information']}: {probe['reason']}" for probe in content["probes"] if probe["reason"]
    )
    return Block(
        kind="table",
        title="What outlier tokens know, beside ordinary ones",
        text=" ".join([f"Linear probes of {content['probed']} (Darcet 2024).", *(f"{r}." for r in reasons)]),
        columns=("knows its", "tokens", "number", "held out", "accuracy", "interval", "chance"),
        rows=tuple(rows),
    )
