"""Artefacts of a model, layer by layer: high-norm tokens, massive activations, outlier dimensions, likeness of tokens.

Statistics of *content* are of content tokens alone; [CLS], [SEP] and registers have rows of their own. Massive
activations are counted over every token of the text, special ones included, as their definition has it. Everything is
computed text by text on the text's own tokens, so neither padding nor the batch changes it. Kept are sums and one norm
a token and place (4 bytes × tokens × layers × 3), never states. Batches run twice, since z-scores need the mean of the
whole data set. The three places are those of `regtune.analyses.artefacts.sites`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int8, Int64
from torch import Tensor, nn

from regtune.analyses.artefacts.sites import SITES, Batch, BlockStates, blocks_of, visit_texts
from regtune.errors import ConfigError, UnsupportedModelError
from regtune.registers.surgery import find_registers
from regtune.token_classes import TokenClass, is_content

SPECIAL = {"cls": TokenClass.CLS, "sep": TokenClass.SEP, "register": TokenClass.REGISTER}
"""Tokens without content, each reported on its own."""
EDGES: Float64[np.ndarray, " edges"] = np.geomspace(1e-2, 1e4, 121)
"""Bins of the norm histogram, 20 to a decade; norms outside count in the first and the last."""
SIGMAS = 6.0
"""Bondarenko 2023: an entry is an outlier if it is further from the mean than so many standard deviations."""
MASSIVE_LEAST, MASSIVE_RATIO = 100.0, 1000.0
"""Sun 2024: an activation is massive above the first and at or above the second times the median |x| of its text."""
MEASURES = (
    "norm_max_over_median",
    "max_over_median",
    "outlier_entries",
    "kurtosis",
    "infinity_norm",
    "massive_ratio",
    "cosine_neighbours",
    "cosine_pairs",
    "cosine_neighbours_z",
    "cosine_pairs_z",
    "cls_relative",
    "sep_relative",
)
"""What is also known text by text. `massive_ratio`: largest |x| of any token of the text over their median; the last
two: the norm of [CLS] and of [SEP] over the median norm of the text's content."""


@dataclass(frozen=True, kw_only=True)
class ArtefactSettings:
    """The thresholds that are choices."""

    absolute: float = 150.0
    """‖x‖₂ above which Darcet 2024 call a token of *their* model an outlier."""
    mad_factor: float = 5.19
    """k of median + k·MAD: 3.5/0.6745, the usual cut of the modified z-score (Iglewicz and Hoaglin 1993)."""
    dimension_share: float = 0.06
    """Share of tokens beyond 6σ from which a dimension is listed (Dettmers 2022 ask 6 % of the positions)."""
    probes: bool = True
    """Probe outlier tokens for what they know (where scikit-learn is installed)."""

    def __post_init__(self) -> None:
        for name in ("absolute", "mad_factor"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be above 0.")
        if not 0 < self.dimension_share <= 1:
            raise ConfigError(f"dimension_share={self.dimension_share} must be a share of tokens, above 0, at most 1.")


@dataclass(frozen=True, kw_only=True)
class PlaceArtefacts:
    """Content tokens at one place, and massive activations of all tokens there."""

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
    """Largest over texts of: largest |x| over median |x| of the text's content."""
    max_over_median_mean: float
    massive: Mapping[str, int]
    """Tokens with an |x| above 100 and at least 1000 times the median |x| of the text (special tokens included in the
    median, registers not): of `content`, `cls`, `sep`, `register`."""
    massive_dimensions: tuple[tuple[int, int], ...]
    """Dimension and number of such tokens, the most first."""
    massive_largest: Mapping[str, tuple[float, float]]
    """For each of the same kinds of token the |x| that is largest over its text's median, and how many times that."""
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
    """For each site an entry a layer."""
    special: Mapping[str, Mapping[str, tuple[SpecialArtefacts, ...]]]
    """For each class that occurs (cls, sep, register) the same."""
    norm_weights: tuple[tuple[int, ...], ...]
    """For each layer the dimensions whose weight in that norm is beyond 3σ of its weights (Kovaleva 2021)."""
    by_text: Mapping[str, Mapping[str, Float64[np.ndarray, "texts layers"]]]
    """For each site and each of `MEASURES` a number a text and layer; NaN where a text has no pair of tokens, or no
    such special token."""

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and lists, without the single texts."""
        return {
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
            "edges": EDGES.tolist(),
            "sites": {site: [dataclasses.asdict(place) for place in places] for site, places in self.sites.items()},
            "special": {
                name: {site: [dataclasses.asdict(place) for place in places] for site, places in of_class.items()}
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
    first = _FirstPass()
    examples = visit_texts(model, kept, first.visit)
    second = _ZScores(first)
    visit_texts(model, kept, second.visit)
    layers = range(1 + max(layer for layer, _ in first.places))
    special = {
        name: {
            site: tuple(found for n in layers if (found := _special(first.places[n, site].special[name])))
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
            site: tuple(_place(first.places[n, site], second.sums(n, site), settings) for n in layers) for site in SITES
        },
        special={name: of_class for name, of_class in special.items() if of_class["block"]},
        norm_weights=_norm_weights(model, first.last.norm, len(layers)),
        by_text={site: _by_text([(first.places[n, site], second.sums(n, site)) for n in layers]) for site in SITES},
    )


# What is kept of a text


@dataclass(kw_only=True)
class _Special:
    """The special tokens of one class at one place, over texts."""

    norms: list[np.ndarray] = field(default_factory=list)
    relative: list[np.ndarray] = field(default_factory=list)
    """Each norm over the median norm of its own text's content tokens."""
    ratios: list[float] = field(default_factory=list)
    """For each text with such tokens the largest |x| over the median |x| of its content tokens."""
    by_text: list[float] = field(default_factory=list)
    """For each text the mean of `relative`; NaN where it has no such token."""

    def add(self, x: Float[Tensor, "tokens hidden"], usual_norm: float, usual_size: float) -> None:
        norms = x.norm(dim=1).cpu().numpy()
        relative = norms / max(usual_norm, 1e-30)
        self.by_text.append(float(relative.mean()) if len(norms) else float("nan"))
        if len(norms):
            self.norms.append(norms)
            self.relative.append(relative)
            self.ratios.append(float(x.abs().max()) / max(usual_size, 1e-30))


class _Place:
    """One place (layer and site) over texts; one entry of each list is one text."""

    def __init__(self, hidden: int) -> None:
        self.hidden = hidden
        self.norms: list[np.ndarray] = []
        self.largest: list[float] = []
        self.medians: list[float] = []
        self.moments: list[np.ndarray] = []
        """Number of entries, and the sums of x, x², x³ and x⁴."""
        self.outliers: list[int] = []
        """Entries beyond 6σ of their text."""
        self.neighbours: list[tuple[float, float]] = []
        """Sum of the cosines of neighbouring content tokens, and the number of pairs."""
        self.pairs: list[tuple[float, float]] = []
        self.massive = dict.fromkeys(("content", *SPECIAL), 0)
        self.massive_largest = dict.fromkeys(self.massive, (0.0, 0.0))
        self.massive_ratios: list[float] = []
        self.massive_by_dimension = np.zeros(hidden, dtype=np.int64)
        self.outliers_by_dimension = np.zeros(hidden, dtype=np.int64)
        self.sum_by_dimension = np.zeros(hidden)
        self.squares_by_dimension = np.zeros(hidden)
        self.special = {name: _Special() for name in SPECIAL}

    def add(self, states: Float[Tensor, "total hidden"], classes: Int[Tensor, " total"]) -> None:
        """Adds one text that has content.

        Raises:
            UnsupportedModelError: states that are not finite.
        """
        places = content_places(classes)
        x = states[places].float()
        size = x.abs()
        norms = x.norm(dim=1)
        median, largest = float(size.median()), float(size.max())
        if not largest < float("inf"):
            raise UnsupportedModelError(
                f"The model's states hold {largest}: they are no numbers any more. Load it in float32, or look at its "
                "weights."
            )
        wide = x.double()
        squares = wide * wide
        sums = [wide.sum(), squares.sum(), (squares * wide).sum(), (squares * squares).sum()]
        beyond = (wide - wide.mean()).abs() > SIGMAS * wide.std(correction=0)
        neighbours, pairs = cosine_sums(wide, places)
        self.norms.append(norms.cpu().numpy())
        self.largest.append(largest)
        self.medians.append(median)
        self.moments.append(np.array([x.numel(), *map(float, sums)]))
        self.outliers.append(int(beyond.sum()))
        self.neighbours.append(neighbours)
        self.pairs.append(pairs)
        self.outliers_by_dimension += beyond.sum(0).cpu().numpy()
        self.sum_by_dimension += wide.sum(0).cpu().numpy()
        self.squares_by_dimension += squares.sum(0).cpu().numpy()
        usual = float(norms.median())
        for name, kind in SPECIAL.items():
            self.special[name].add(states[classes == kind].float(), usual, median)
        self._count_massive(states.float().abs(), classes)

    def _count_massive(self, size: Tensor, classes: Tensor) -> None:
        text = (classes >= TokenClass.CLS) & (classes <= TokenClass.CONTEXT)
        median = max(float(size[text].median()), 1e-30)
        massive = (size > MASSIVE_LEAST) & (size >= MASSIVE_RATIO * median) & (classes >= TokenClass.CLS)[:, None]
        for kind in self.massive:
            mine = is_content(classes) if kind == "content" else classes == SPECIAL[kind]
            if mine.any():
                largest = float(size[mine].max())
                self.massive[kind] += int(massive[mine].any(1).sum())
                self.massive_largest[kind] = max(
                    self.massive_largest[kind], (largest, largest / median), key=lambda one: one[1]
                )
        self.massive_by_dimension += massive.sum(0).cpu().numpy()
        self.massive_ratios.append(float(size[text].max()) / median)

    @property
    def ratios(self) -> Float64[np.ndarray, " texts"]:
        """Largest |x| over median |x| of each text's content."""
        found: Float64[np.ndarray, " texts"] = np.asarray(self.largest) / np.maximum(np.asarray(self.medians), 1e-30)
        return found

    def scale(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each dimension over all content tokens, `[hidden]` float64."""
        tokens = sum(map(len, self.norms))
        mean = self.sum_by_dimension / tokens
        variance = np.maximum(self.squares_by_dimension / tokens - mean**2, 0)
        return torch.from_numpy(mean), torch.from_numpy(np.sqrt(variance))


class _FirstPass:
    """The sums of every place."""

    def __init__(self) -> None:
        self.places: dict[tuple[int, str], _Place] = {}
        self.last: BlockStates

    def visit(self, states: BlockStates, row: int, classes: Int8[Tensor, " total"]) -> None:
        self.last = dataclasses.replace(states, sites={})
        for site, values in states.sites.items():
            key = (states.layer, site)
            if key not in self.places:
                self.places[key] = _Place(values.shape[-1])
            self.places[key].add(values[row], classes)


CosineSums = Sequence[tuple[float, float]]


class _ZScores:
    """Second pass: cosines of states whose every dimension has mean 0 and deviation 1 over the data set."""

    def __init__(self, first: _FirstPass) -> None:
        self.scales = {key: sums.scale() for key, sums in first.places.items()}
        self.found: dict[tuple[int, str], tuple[list, list]] = {key: ([], []) for key in self.scales}

    def visit(self, states: BlockStates, row: int, classes: Int8[Tensor, " total"]) -> None:
        places = content_places(classes)
        for site, values in states.sites.items():
            mean, deviation = (part.to(values.device) for part in self.scales[states.layer, site])
            z = z_scored(values[row][places], mean, deviation)
            for sums, found in zip(self.found[states.layer, site], cosine_sums(z, places), strict=True):
                sums.append(found)

    def sums(self, layer: int, site: str) -> tuple[CosineSums, CosineSums]:
        return self.found[layer, site]


def content_places(classes: Int[Tensor, " total"]) -> Int64[Tensor, " content"]:
    """Where the content tokens of one text stand."""
    return is_content(classes).nonzero().flatten()


def cosine_sums(
    x: Float[Tensor, "content hidden"], places: Int64[Tensor, " content"]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Sums of cosines and numbers of pairs of one text: of neighbours (places one apart), and of all pairs.

    The sum over all pairs needs no pair: Σ_{s≠t} u_s·u_t = |Σ u_t|² − Σ |u_t|², u being x over its norm.
    """
    unit = x / x.norm(dim=1, keepdim=True).clamp(min=1e-30)
    beside = places.diff() == 1
    near = float((unit[1:] * unit[:-1]).sum(1)[beside].sum())
    every = float(unit.sum(0).square().sum() - unit.square().sum())
    return (near, float(beside.sum())), (every, float(len(x) * (len(x) - 1)))


def z_scored(
    x: Float[Tensor, "content hidden"], mean: Float[Tensor, " hidden"], deviation: Float[Tensor, " hidden"]
) -> Float[Tensor, "content hidden"]:
    """Each dimension with mean 0 and deviation 1 over the data set; dimensions that never vary become 0."""
    varies = deviation > 1e-9 * deviation.max().clamp(min=1e-30)
    return torch.where(varies, (x.double() - mean) / deviation.clamp(min=1e-30), 0.0)


# From sums to the numbers that a reader sees


def _place(sums: _Place, z: tuple[CosineSums, CosineSums], settings: ArtefactSettings) -> PlaceArtefacts:
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
    moments = np.sum(sums.moments, axis=0)
    frequent = _most(sums.outliers_by_dimension, least=settings.dimension_share * len(norms))
    cosines = {"neighbours": sums.neighbours, "pairs": sums.pairs, "neighbours_z": z[0], "pairs_z": z[1]}
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
        max_over_median=float(sums.ratios.max()),
        max_over_median_mean=float(sums.ratios.mean()),
        massive=dict(sums.massive),
        massive_dimensions=_most(sums.massive_by_dimension, least=1.0),
        massive_largest=dict(sums.massive_largest),
        outlier_entries=sum(sums.outliers) / float(moments[0]),
        outlier_dimensions=tuple((dimension, count / len(norms)) for dimension, count in frequent),
        kurtosis=kurtosis(moments),
        infinity_norm=float(np.mean(sums.largest)),
        cosine={name: _mean_cosine(found) for name, found in cosines.items()},
    )


def _special(sums: _Special) -> SpecialArtefacts | None:
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


def kurtosis(moments: Float64[np.ndarray, " sums"]) -> float | None:
    """E[(x − μ)⁴]/σ⁴ from the number of entries and the sums of their first four powers; None if nothing varies."""
    m1, m2, m3, m4 = moments[1:] / moments[0]
    variance = m2 - m1**2
    if variance <= 1e-12 * max(m2, 1e-300):
        return None
    return float((m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / variance**2)


def _by_text(layers: Sequence[tuple[_Place, tuple[CosineSums, CosineSums]]]) -> dict[str, np.ndarray]:
    """Each of `MEASURES`, `[texts, layers]`."""
    columns = [
        (
            [float(n.max()) / max(float(np.median(n)), 1e-30) for n in sums.norms],
            sums.ratios,
            [count / m[0] for count, m in zip(sums.outliers, sums.moments, strict=True)],
            [kurtosis(m) for m in sums.moments],
            sums.largest,
            sums.massive_ratios,
            *([_ratio(pair) for pair in found] for found in (sums.neighbours, sums.pairs, *z)),
            sums.special["cls"].by_text,
            sums.special["sep"].by_text,
        )
        for sums, z in layers
    ]
    return {
        name: np.stack([np.array(column[index], dtype=np.float64) for column in columns], axis=1)
        for index, name in enumerate(MEASURES)
    }


def _ratio(pair: tuple[float, float]) -> float:
    return pair[0] / pair[1] if pair[1] else float("nan")


def _mean_cosine(sums: CosineSums) -> float | None:
    """Mean over texts of the texts' means, so that a long text counts no more than a short one."""
    means = [total / count for total, count in sums if count]
    return float(np.mean(means)) if means else None


def _most(counts: np.ndarray, *, least: float) -> tuple[tuple[int, int], ...]:
    order = np.argsort(-counts, kind="stable")[:20]
    return tuple((int(index), int(counts[index])) for index in order if counts[index] >= least)


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
