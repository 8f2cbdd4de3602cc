"""The part `artefacts`: norms, massive activations, outlier dimensions and likeness of tokens, with verdicts.

Thresholds that the literature gives are used as they are and named; where it gives none, the threshold is regtune's
and says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from jaxtyping import Float64

from regtune.analyses.artefacts.artefacts import (
    EDGES,
    Artefacts,
    ArtefactSettings,
    PlaceArtefacts,
    artefact_statistics,
)
from regtune.analyses.artefacts.probes import likeness_of, probe_tokens, token_states
from regtune.analyses.artefacts.sites import BlockStates, watch_blocks
from regtune.analyses.batches import run_backbone
from regtune.analyses.parts import (
    CLASS_WORDS,
    SITE_WORDS,
    Verdict,
    Word,
    estimate,
    figure,
    graded,
    patch_maps,
    picture_blocks,
    table,
    text,
    verdict_blocks,
    with_interval,
)
from regtune.analyses.pictures import ridges
from regtune.interfaces import Analysis, Batch, Block, Examples, Rows
from regtune.session import Session
from regtune.tables import Column

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
_WORST = "content tokens where the norm reads, worst layer"
_MEASURED: tuple[tuple[str, str, Callable[..., Any], str], ...] = (
    ("norm_input", "norm_max_over_median", np.max, f"largest norm / median norm ({_WORST})"),
    ("block", "high_norm_share", np.max, "content tokens with a norm above 5 × the median (block output, worst layer)"),
    ("norm_input", "max_over_median", np.max, f"largest |x| / median |x| ({_WORST})"),
    ("feed_forward", "massive_ratio", np.max, "largest |x| of any token / median |x| (feed-forward, worst layer)"),
    ("feed_forward", "cls_relative", np.max, "norm of [CLS] / median norm (feed-forward output, worst layer)"),
    ("feed_forward", "sep_relative", np.max, "norm of [SEP] / median norm (feed-forward output, worst layer)"),
    (
        "norm_input",
        "outlier_entries",
        np.mean,
        "entries beyond 6σ (content tokens where the norm reads, mean of layers)",
    ),
    ("norm_input", "kurtosis", np.max, f"kurtosis ({_WORST})"),
    ("norm_input", "infinity_norm", np.max, f"‖x‖∞ ({_WORST})"),
    ("block", "cosine_pairs", np.mean, "cosine between tokens (block output, mean of layers)"),
    ("block", "cosine_pairs_z", np.max, "cosine between tokens, z-scored (block output, worst layer)"),
)
"""Site, measure of a text and layer, what is taken over layers, and the title."""


class ArtefactAnalysis(Analysis):
    """Norms, massive activations, outlier dimensions, likeness of tokens."""

    name = "artefacts"
    title = "Artefacts in hidden states"
    settings = ArtefactSettings

    def measure(
        self, session: Session, rows: Rows[Any], examples: Examples, settings: ArtefactSettings
    ) -> Mapping[str, Any]:
        """See `Analysis.measure`."""
        batches = session.batches(rows.one_each())
        found = artefact_statistics(session.model, batches, settings)
        probed = settings.probes and find_spec("sklearn") is not None
        return {
            "num_registers": found.num_registers,
            "layers": found.layers,
            "hidden": found.hidden,
            "windows": len(found.examples),
            "places": {
                "norm_input": f"input of {found.norm}, the last norm of a block",
                "feed_forward": f"output of {found.feed_forward}, the last linear layer of a block",
                "block": f"output of a block, {'behind' if found.post_norm else 'without'} a norm of its own",
            },
            "post_norm": found.post_norm,
            "edges": EDGES,
            "sites": found.sites,
            "special": found.special,
            "norm_weights": found.norm_weights,
            **(_probe(session, examples, batches, found) if probed else {}),
            "pictures": patch_maps(session, rows, examples, patch_norms),
            "verdicts": artefact_verdicts(found),
            "measures": {
                f"artefacts.{site}.{name}": dict(
                    zip(found.examples, over(found.by_text[site][name], axis=1), strict=True)
                )
                for site, name, over, _ in _MEASURED
            },
            "titles": {f"artefacts.{site}.{name}": words for site, name, _, words in _MEASURED},
        }

    def blocks(self, content: Mapping[str, Any]) -> Iterator[Block]:
        """See `Analysis.blocks`."""
        yield from verdict_blocks(content["verdicts"])
        yield text(
            "Norms by layer",
            "A norm behind the layer makes all lengths alike, so look at its input and at the feed-forward output too. "
            "Content tokens alone; the first layer is on top.",
        )
        for site, layers in content["sites"].items():
            counts, medians, largest = ([place[name] for place in layers] for name in ("counts", "median", "max"))
            axis = "norm ‖x‖₂ (log scale; heights: square root of counts)"
            yield figure(
                f"Norms of content tokens, {SITE_WORDS[site]}",
                ridges(content["edges"], counts, medians, largest, xlabel=axis),
                "; ".join(
                    f"layer {n}: median {median:.3g}, largest {most:.3g}"
                    for n, (median, most) in enumerate(zip(medians, largest, strict=True))
                ),
            )
        yield table(
            "Where large norms are",
            ("place", "tokens", "layer", "median norm", "largest norm", Column("× content's median", ".1f")),
            _large_norms(content),
            "Each row at its strongest layer; of content its largest norm, of special tokens their median one.",
        )
        yield table(
            "Massive activations",
            ("place", "tokens", "layer", "largest |x|", "× the text's median", "massive"),
            _massive_tokens(content),
            "Content, special tokens and registers apart; the median is over all tokens of the text. Counted are "
            "tokens with an |x| above 100 and at least 1000 × that median (Sun 2024), over all layers.",
        )
        yield from picture_blocks(
            content,
            "Norms of patches behind each block",
            "A patch whose norm is many times that of the others is an artefact (Darcet 2024).",
        )
        rates = {"mean+3std": "mean + 3σ", "median+kmad": "median + k·MAD", "absolute": "the absolute threshold"}
        numbers = {"median": "median norm", "max": "largest norm", "max_over_median": "largest |x| / median |x|"}
        yield table(
            "Norms and outliers of content tokens, layer by layer",
            (
                "place",
                "layer",
                *numbers.values(),
                "kurtosis",
                *(Column(f"beyond {r}, %", ".2f") for r in rates.values()),
                "valley",
                Column("beyond the valley, %", ".2f"),
            ),
            [
                (
                    *(SITE_WORDS[site], n, *(place[name] for name in (*numbers, "kurtosis"))),
                    *(100 * place["outlier_rate"][rate] for rate in rates),
                    place.get("valley"),
                    100 * place["outlier_rate"]["valley"] if place.get("valley") else None,
                )
                for site, layers in content["sites"].items()
                for n, place in enumerate(layers)
            ],
            "valley: where the histogram of norms has two modes, the norm that parts them (Darcet 2024, by hand).",
        )
        if content.get("probes"):
            found = content["probes"]
            reasons = dict.fromkeys(f"{probe['information']}: {probe['reason']}." for probe in found if probe["reason"])
            yield table(
                "What outlier tokens know, beside ordinary ones",
                ("knows its", "tokens", "number", "held out", "accuracy", "interval", Column("chance", ".1%")),
                [
                    (
                        *(probe[name] for name in ("information", "tokens", "count", "held_out")),
                        probe["reason"] or f"{probe['accuracy']:.1%}",
                        None if probe["reason"] else f"{probe['low']:.1%} to {probe['high']:.1%}",
                        probe["chance"],
                    )
                    for probe in found
                ],
                " ".join(
                    [f"Linear probes of {content['probed']} (Darcet 2024). Of pixels the accuracy is R².", *reasons]
                ),
            )
        if content.get("likeness"):
            yield table(
                "Patches beside their neighbours at the input",
                ("patches", "number", "mean cosine", "interval"),
                [
                    (kind, one["count"], f"{one['value']:.3f}", with_interval(estimate(one)))
                    for kind, one in content["likeness"].items()
                ],
                f"Cosine of a patch's embedding, before positions, to those beside, above and below; outliers are "
                f"{content['probed']}. In Darcet 2024 outliers stand where patches are alike. Means over images.",
            )


def _large_norms(content: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    for site, layers in content["sites"].items():
        ratio, n = max((place["max"] / max(place["median"], 1e-30), n) for n, place in enumerate(layers))
        yield SITE_WORDS[site], "content", n, layers[n]["median"], layers[n]["max"], ratio
        for name, of_class in content["special"].items():
            relative, n = max((each["relative"], n) for n, each in enumerate(of_class[site]))
            most = of_class[site][n]
            yield SITE_WORDS[site], CLASS_WORDS[name], n, most["median"], most["max"], relative


def _massive_tokens(content: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    for site, layers in content["sites"].items():
        for kind in layers[0]["massive_largest"]:
            times, size, n = max((*place["massive_largest"][kind][::-1], n) for n, place in enumerate(layers))
            if size:
                massive = sum(place["massive"][kind] for place in layers)
                yield SITE_WORDS[site], CLASS_WORDS[kind], n, size, times, massive


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


def _norm_ratio(place: PlaceArtefacts) -> float:
    return place.max / max(place.median, 1e-30)


def _high_norms(found: Artefacts) -> Verdict:
    def many(place: PlaceArtefacts) -> bool:
        return place.outlier_rate["10x_median"] >= 0.001 and place.tokens_beyond["10x_median"] >= 3

    site, layer, place = _worst(found, lambda each: (1e9 if many(each) else 0) + _norm_ratio(each))
    word: Word = "present" if many(place) else "weak" if place.tokens_beyond["5x_median"] else "absent"
    strength = (
        f"largest {place.max:.3g}, {_norm_ratio(place):.1f} × the median {place.median:.3g}; above 10 × "
        f"{place.outlier_rate['10x_median']:.2%}, 5 × {place.outlier_rate['5x_median']:.2%} of the tokens"
    )
    return _verdict("high-norm tokens", word, strength, value=_norm_ratio(place), layer=layer, site=site)


def _massive(found: Artefacts) -> Verdict:
    def ratio(place: PlaceArtefacts) -> float:
        return max(times for _, times in place.massive_largest.values())

    site, layer, place = _worst(found, lambda each: (1e12 if sum(each.massive.values()) else 0) + ratio(each))
    counted = {kind: count for kind, count in place.massive.items() if count}
    kind, (size, times) = max(place.massive_largest.items(), key=lambda each: each[1][1])
    word: Word = "present" if counted else "weak" if times >= 100 else "absent"
    strength = f"|x| = {size:.4g}, {times:,.0f} × the median of its text, at {CLASS_WORDS[kind]}"
    if counted:
        dimensions = ", ".join(str(dimension) for dimension, _ in place.massive_dimensions[:3])
        tokens = ", ".join(f"{count} {CLASS_WORDS[name]}" for name, count in counted.items())
        strength += f"; tokens: {tokens}; dimension {dimensions}"
    strength += f"; content alone at most {place.massive_largest['content'][1]:,.0f} ×" if kind != "content" else ""
    return _verdict("massive activations", word, strength, value=times, layer=layer, site=site)


def _outlier_dimensions(found: Artefacts) -> Verdict:
    site, layer, place = _worst(found, lambda each: max((share for _, share in each.outlier_dimensions), default=0.0))
    largest = max((share for _, share in place.outlier_dimensions), default=0.0)
    named = ", ".join(f"{dimension} ({part:.0%})" for dimension, part in place.outlier_dimensions[:3]) or "none"
    curved = max((each.kurtosis or 0.0, n) for of_site in found.sites.values() for n, each in enumerate(of_site))
    strength = f"{named} of the tokens; kurtosis up to {curved[0]:.0f} (layer {curved[1]})"
    common = common_norm_weights(found)
    if common:
        strength += f"; norm weights beyond 3σ in half of the layers: {', '.join(map(str, common[:4]))}"
    word = graded(largest, 0.06, 0.5)
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
    strength = f"cosine {value:.2f} z-scored, {found.sites['block'][layer].cosine['pairs']:.2f} raw"
    return _verdict("over-smoothing", graded(value, 0.25, 0.5), strength, value=value, layer=layer, site="block")


# Probes


def _probe(session: Session, examples: Examples, batches: Sequence[Batch], found: Artefacts) -> dict[str, Any]:
    """Probes at the place whose largest norm is furthest from its median; outliers are those above 5 × the median.

    Where no token is, those above median + k·MAD are taken, which any model has, so that the numbers can be compared.
    """
    site, layer, place = _worst(found, _norm_ratio)
    limit, words = 5 * place.median, "5 × the median"
    if place.valley is not None:
        limit, words = place.valley, "the valley between the two modes of norms"
    elif not place.tokens_beyond["5x_median"]:
        limit = place.median + found.settings.mad_factor * place.mad
        words = f"median + {found.settings.mad_factor:g} × MAD"
    tokens = token_states(session.model, batches, layer=layer, site=site, norm_above=limit)
    texts = _numbers([session.reads.text(item) for item in examples.items])
    titles = [str(getattr(item, "title", "")) for item in examples.items]
    labels = {"article": _numbers(titles)} if len(set(titles)) > 1 and all(titles) else {"text": texts}
    images = session.modality == "image"
    if images:
        classes = [str(getattr(item, "label", None)) for item in examples.items]
        labels = {"image": texts} | ({"label": _numbers(classes)} if len(set(classes)) > 1 else {})
    what = "patches" if images else "tokens"
    probed = f"{int(tokens.outlier.sum())} {what} with a norm above {words} ({limit:.3g}), {site} of layer {layer}"
    known: dict[str, Any] = {"probes": probe_tokens(tokens, labels=labels, texts=texts), "probed": probed}
    return known | ({"likeness": likeness_of(tokens)} if images else {})


def patch_norms(session: Session, batch: Batch) -> Float64[np.ndarray, "layers rows patches"]:
    """How large the state of every patch is behind each block."""
    found: list[np.ndarray] = []
    count = int(batch["patch_grid"][0].prod())

    def see(states: BlockStates) -> None:
        found.append(states.sites["block"][:, -count:].double().norm(dim=-1).cpu().numpy())

    with watch_blocks(session.model, see):
        run_backbone(session.model, batch)
    return np.stack(found)


def _numbers(names: Sequence[str]) -> list[int]:
    numbers: dict[str, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in names]
