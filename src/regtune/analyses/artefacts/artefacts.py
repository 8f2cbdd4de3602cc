"""Artefacts of a model, layer by layer: high-norm tokens, massive activations, outlier dimensions, likeness of tokens.

Counted on content tokens alone; [CLS], [SEP] and registers have rows of their own. Texts stream through: kept are sums
and one norm a token and place (4 bytes × tokens × layers × 3). Batches run twice, since z-scores need the mean of the
whole data set. Definitions: `regtune.analyses.artefacts.places`; places: `regtune.analyses.artefacts.sites`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int8
from torch import Tensor, nn

from regtune.analyses.artefacts.places import (
    ArtefactSettings,
    CosineSums,
    PlaceArtefacts,
    SpecialArtefacts,
    kurtosis,
    place_artefacts,
    ratios_of,
    special_artefacts,
)
from regtune.analyses.artefacts.sites import SITES, Batch, BlockStates, blocks_of, visit_texts
from regtune.analyses.artefacts.sums import SPECIAL, PlaceSums, content_places, cosine_sums, z_scored
from regtune.registers.surgery import find_registers

SCHEMA_VERSION = 1
MEASURES = (
    "norm_max_over_median",
    "max_over_median",
    "outlier_entries",
    "kurtosis",
    "infinity_norm",
    "cosine_neighbours",
    "cosine_pairs",
    "cosine_neighbours_z",
    "cosine_pairs_z",
    "cls_relative",
    "sep_relative",
)
"""What is also known text by text, so that two models can be compared with an interval.

The last two: the norm of [CLS] and of [SEP] over the median norm of the text's content."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Artefacts:
    """What `artefact_statistics` found."""

    layers: int
    hidden: int
    num_registers: int
    examples: tuple[int, ...]
    """The example of each text (`batch["example"]`, or its number), in the order in which they came."""
    norm: str
    """Path inside a block of the norm whose input is `norm_input`."""
    feed_forward: str
    """Path inside a block of the linear layer whose output is `feed_forward`."""
    post_norm: bool
    """Whether a block ends with that norm (BERT), or has its norms before its branches (ModernBERT, GPT-2)."""
    settings: ArtefactSettings
    sites: Mapping[str, tuple[PlaceArtefacts, ...]]
    """For each site an entry a layer: content tokens."""
    special: Mapping[str, Mapping[str, tuple[SpecialArtefacts, ...]]]
    """For each class that occurs (cls, sep, register) the same."""
    norm_weights: tuple[tuple[int, ...], ...]
    """For each layer the dimensions whose weight in that norm is beyond 3σ of its weights (Kovaleva 2021)."""
    by_text: Mapping[str, Mapping[str, Float64[np.ndarray, "texts layers"]]]
    """For each site and each of `MEASURES` a number a text and layer; NaN where a text has no pair of tokens, or no
    such special token."""

    def to_json(self) -> dict[str, Any]:
        """What `inside/artefacts.json` holds: plain numbers and lists."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "artefacts",
            "num_registers": self.num_registers,
            "layers": self.layers,
            "hidden": self.hidden,
            "windows": len(self.examples),
            "places": {
                "norm_input": f"input of {self.norm}, the last norm of a block",
                "feed_forward": f"output of {self.feed_forward}, the last linear layer of a block",
                "block": f"output of a block, {'behind' if self.post_norm else 'without'} a norm of its own",
            },
            "post_norm": self.post_norm,
            "settings": dataclasses.asdict(self.settings),
            "sites": {site: [place.to_json() for place in places] for site, places in self.sites.items()},
            "special": {
                name: {site: [place.to_json() for place in places] for site, places in of_class.items()}
                for name, of_class in self.special.items()
            },
            "norm_weights": [list(dimensions) for dimensions in self.norm_weights],
        }


def artefact_statistics(
    model: nn.Module, batches: Iterable[Batch], settings: ArtefactSettings | None = None
) -> Artefacts:
    """Looks for artefacts in every layer at the three sites; the model is left as it was.

    Args:
        model: a Hugging Face model in eval mode, with or without registers and head; the head doesn't run.
        batches: analysis batches. Padding, their order and their size change nothing but rounding.
        settings: the thresholds.

    Raises:
        DataError: not one content token.
        ConfigError: batches without `token_classes`.
        UnsupportedModelError: training mode, or a model whose blocks can't be found.
    """
    settings = settings or ArtefactSettings()
    kept = list(batches)
    first = _Sums()
    examples = visit_texts(model, kept, first.visit)
    second = _ZScores(first)
    visit_texts(model, kept, second.visit)
    layers = range(1 + max(layer for layer, _ in first.places))
    special = {
        name: {
            site: tuple(found for n in layers if (found := special_artefacts(first.places[n, site].special[name])))
            for site in SITES
        }
        for name in SPECIAL
    }
    registers = find_registers(model)
    return Artefacts(
        layers=len(layers),
        hidden=first.places[0, "block"].hidden,
        num_registers=0 if registers is None or not registers.enabled else registers.num_registers,
        examples=examples,
        norm=first.last.norm,
        feed_forward=first.last.feed_forward,
        post_norm=first.last.post_norm,
        settings=settings,
        sites={
            site: tuple(
                place_artefacts(first.places[n, site], *second.sums(n, site), settings=settings) for n in layers
            )
            for site in SITES
        },
        special={name: of_class for name, of_class in special.items() if of_class["block"]},
        norm_weights=_norm_weights(model, first.last.norm, len(layers)),
        by_text={site: _by_text([(first.places[n, site], second.sums(n, site)) for n in layers]) for site in SITES},
    )


class _Sums:
    """First pass: the sums of every place."""

    def __init__(self) -> None:
        self.places: dict[tuple[int, str], PlaceSums] = {}
        self.last: BlockStates

    def visit(self, states: BlockStates, row: int, classes: Int8[Tensor, " total"]) -> None:
        self.last = dataclasses.replace(states, sites={})
        for site, values in states.sites.items():
            key = (states.layer, site)
            if key not in self.places:
                self.places[key] = PlaceSums(hidden=values.shape[-1])
            self.places[key].add(values[row], classes)


class _ZScores:
    """Second pass: cosines of states whose every dimension has mean 0 and deviation 1 over the data set."""

    def __init__(self, first: _Sums) -> None:
        self.scales = {key: sums.scale() for key, sums in first.places.items()}
        self.neighbours: dict[tuple[int, str], list[tuple[float, float]]] = {key: [] for key in self.scales}
        self.pairs: dict[tuple[int, str], list[tuple[float, float]]] = {key: [] for key in self.scales}

    def visit(self, states: BlockStates, row: int, classes: Int8[Tensor, " total"]) -> None:
        places = content_places(classes)
        for site, values in states.sites.items():
            key = (states.layer, site)
            mean, deviation = (part.to(values.device) for part in self.scales[key])
            neighbours, pairs = cosine_sums(z_scored(values[row][places], mean, deviation), places)
            self.neighbours[key].append(neighbours)
            self.pairs[key].append(pairs)

    def sums(self, layer: int, site: str) -> tuple[CosineSums, CosineSums]:
        return self.neighbours[layer, site], self.pairs[layer, site]


def _by_text(layers: Sequence[tuple[PlaceSums, tuple[CosineSums, CosineSums]]]) -> dict[str, np.ndarray]:
    """Each of `MEASURES`, `[texts, layers]`."""
    columns = [
        {
            "norm_max_over_median": [float(n.max()) / max(float(np.median(n)), 1e-30) for n in sums.norms],
            "max_over_median": ratios_of(sums),
            "outlier_entries": [count / m[0] for count, m in zip(sums.outliers, sums.moments, strict=True)],
            "kurtosis": [kurtosis(m) for m in sums.moments],
            "infinity_norm": sums.largest,
            "cosine_neighbours": [_ratio(pair) for pair in sums.neighbours],
            "cosine_pairs": [_ratio(pair) for pair in sums.pairs],
            "cosine_neighbours_z": [_ratio(pair) for pair in neighbours_z],
            "cosine_pairs_z": [_ratio(pair) for pair in pairs_z],
            "cls_relative": sums.special["cls"].by_text,
            "sep_relative": sums.special["sep"].by_text,
        }
        for sums, (neighbours_z, pairs_z) in layers
    ]
    return {
        name: np.stack([np.array(column[name], dtype=np.float64) for column in columns], axis=1) for name in MEASURES
    }


def _ratio(pair: tuple[float, float]) -> float:
    return pair[0] / pair[1] if pair[1] else float("nan")


def _norm_weights(model: nn.Module, path: str, layers: int) -> tuple[tuple[int, ...], ...]:
    """Dimensions beyond 3σ of each norm's weights; a block that runs at several depths counts at each."""
    found = []
    for block in blocks_of(model):
        weight = getattr(block.get_submodule(path), "weight", None)
        if weight is None:
            found.append(())
            continue
        values = weight.detach().double().cpu()
        far = (values - values.mean()).abs() > 3 * values.std(correction=0)
        found.append(tuple(far.nonzero().flatten().tolist()))
    return tuple(found[n % len(found)] for n in range(layers))
