"""Artefacts of a model, layer by layer: high-norm tokens, massive activations, outlier dimensions, likeness of tokens.

Statistics of *content* are of content tokens alone; [CLS], [SEP] and registers have rows of their own. Massive
activations are counted over every token of the text, special ones included, as their definition has it. Everything is
computed text by text on the text's own tokens, so neither padding nor the batch changes it. Kept are sums and one norm
a token and place (4 bytes × tokens × layers × 3), never states. Batches run twice, since z-scores need the mean of the
whole data set. The three places are those of `regtune.analyses.artefacts.sites`.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int8, Int64
from torch import Tensor, nn

from regtune.analyses.artefacts.sites import SITES, BlockStates, blocks_of, visit_texts
from regtune.errors import UnsupportedModelError
from regtune.interfaces import Batch
from regtune.registers.surgery import active_registers
from regtune.rows.token_classes import TokenClass, is_content
from regtune.typed import Checked, Range

SPECIAL = {"cls": TokenClass.CLS, "sep": TokenClass.SEP, "register": TokenClass.REGISTER}
"""Tokens without content, each reported on its own."""
EDGES: Float64[np.ndarray, " edges"] = np.geomspace(1e-2, 1e4, 121)
"""Bins of the norm histogram, 20 to a decade; norms outside count in the first and the last."""
SIGMAS = 6.0
"""Bondarenko 2023: an entry is an outlier if it is further from the mean than so many standard deviations."""
MASSIVE_LEAST, MASSIVE_RATIO = 100.0, 1000.0
"""Sun 2024: an activation is massive above the first and at or above the second times the median |x| of its text."""
_VALLEY_BEYOND = 2.0
"""A second mode of norms is one of outliers if the valley before it lies above so many times the median (regtune)."""
_VALLEY_DEPTH = 0.25
"""Most of the second mode's height that the valley may have, counts smoothed over three bins (regtune)."""
_VALLEY_TOKENS = 3


_Positive = Annotated[float, Range(0, math.inf, above=True)]


@dataclass(frozen=True, kw_only=True)
class ArtefactSettings(Checked):
    """The thresholds that are choices."""

    absolute: _Positive = 150.0
    """‖x‖₂ above which Darcet 2024 call a token of *their* model an outlier."""
    mad_factor: _Positive = 5.19
    """k of median + k·MAD: 3.5/0.6745, the usual cut of the modified z-score (Iglewicz and Hoaglin 1993)."""
    dimension_share: Annotated[float, Range(0, 1, above=True)] = 0.06
    """Share of tokens beyond 6σ from which a dimension is listed (Dettmers 2022 ask 6 % of the positions)."""
    probes: bool = True
    """Probe outlier tokens for what they know (where scikit-learn is installed)."""


@dataclass(frozen=True, kw_only=True)
class PlaceArtefacts:
    """Content tokens at one place, and massive activations of all tokens there."""

    tokens: int
    counts: tuple[int, ...]
    """Tokens in each bin of `EDGES`."""
    median: float
    max: float
    """Of the norms ‖x‖₂."""
    mad: float
    """Median absolute deviation of the norms."""
    outlier_rate: Mapping[str, float]
    """Share of tokens whose norm is above mean+3std, median+kmad and absolute, and 3, 5 and 10 times the median; std
    with n below, not n − 1."""
    tokens_beyond: Mapping[str, int]
    """How many tokens that is."""
    valley: float | None
    """The norm that parts the two modes of the histogram, where it has two (`valley_of`); `outlier_rate` and
    `tokens_beyond` then say what lies beyond it, as `valley`."""
    largest: float
    """Largest |x| of all."""
    max_over_median: float
    """Largest over texts of: largest |x| over median |x| of the text's content."""
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
    median: float
    max: float
    """Of the norms."""
    relative: float
    """Median over tokens of: norm over the median norm of the same text's content tokens."""


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
    """For each site and each measure of a text (`_Place.texts`) a number a text and layer; NaN where a text has no pair
    of tokens, or no such special token."""


def artefact_statistics(
    model: nn.Module, batches: Iterable[Batch], settings: ArtefactSettings | None = None
) -> Artefacts:
    """Looks for artefacts in every layer at the three sites; the model is left as it was, and its head doesn't run.

    Padding, the batches' order and their size change nothing but rounding.
    """
    settings = settings or ArtefactSettings()
    kept = list(batches)
    places: dict[tuple[int, str], _Place] = {}
    last: list[BlockStates] = []

    def visit(states: BlockStates, row: int, classes: Int8[Tensor, " total"]) -> None:
        last[:] = [dataclasses.replace(states, sites={})]
        for site, values in states.sites.items():
            place = places.setdefault((states.layer, site), _Place(values.shape[-1]))
            place.add(values[row], classes)

    examples = visit_texts(model, kept, visit)
    _add_z_scored(model, kept, places)
    (block,) = last
    layers = range(1 + block.layer)
    by_site = {site: [places[n, site] for n in layers] for site in SITES}
    special = {
        name: {site: tuple(_special(*place.special[name]) for place in by_site[site]) for site in SITES}
        for name in SPECIAL
        if by_site["block"][0].special[name][0]
    }
    registers = active_registers(model)
    return Artefacts(
        layers=len(layers),
        hidden=len(places[0, "block"].outliers),
        num_registers=0 if registers is None else registers.num_registers,
        examples=examples,
        norm=block.norm,
        feed_forward=block.feed_forward,
        post_norm=block.post_norm,
        settings=settings,
        sites={site: tuple(_summed(place, settings) for place in found) for site, found in by_site.items()},
        special=special,
        norm_weights=_norm_weights(model, block.norm, len(layers)),
        by_text={
            site: {
                name: np.array([[text[name] for text in place.texts] for place in found], dtype=np.float64).T
                for name in found[0].texts[0]
            }
            for site, found in by_site.items()
        },
    )


# What is kept of a text


class _Place:
    """One place (layer and site) over texts; one entry of each list is one text."""

    def __init__(self, hidden: int) -> None:
        self.texts: list[dict[str, float | None]] = []
        """Measures of each. `high_norm_share`: content tokens with a norm above 5 times their median. `massive_ratio`:
        the largest |x| over the text's median. `cls_relative`, `sep_relative`: the norm of [CLS] and of [SEP] over the
        median norm of the text's content. `_z`: of z-scored states."""
        self.norms: list[np.ndarray] = []
        self.moments = np.zeros(5)
        """Number of entries, and the sums of x, x², x³ and x⁴."""
        self.massive = dict.fromkeys(("content", *SPECIAL), 0)
        self.massive_largest = dict.fromkeys(self.massive, (0.0, 0.0))
        self.outliers, self.massive_dimensions = np.zeros(hidden, dtype=np.int64), np.zeros(hidden, dtype=np.int64)
        """Entries beyond 6σ of their text, and massive ones, by dimension."""
        self.sums, self.squares = np.zeros(hidden), np.zeros(hidden)
        self.special: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in SPECIAL}
        """Norms of special tokens, and each over the median norm of its own text's content tokens."""

    def add(self, states: Float[Tensor, "total hidden"], classes: Int[Tensor, " total"]) -> None:
        """Adds one text that has content."""
        where = content_places(classes)
        x = states[where].float()
        norms = x.norm(dim=1)
        median, largest = float(x.abs().median()), float(x.abs().max())
        if not largest < float("inf"):
            raise UnsupportedModelError(
                f"The model's states hold {largest}: they are no numbers any more. Load it in float32, or look at its "
                "weights."
            )
        wide = x.double()
        squares = wide * wide
        powers = (wide, squares, squares * wide, squares * squares)
        moments = np.array([x.numel(), *(float(power.sum()) for power in powers)])
        beyond = (wide - wide.mean()).abs() > SIGMAS * wide.std(correction=0)
        neighbours, pairs = mean_cosines(wide, where)
        relative = {name: self._add_special(name, states[classes == kind], norms) for name, kind in SPECIAL.items()}
        self.norms.append(norms.cpu().numpy())
        self.moments += moments
        self.outliers += beyond.sum(0).cpu().numpy()
        self.sums += wide.sum(0).cpu().numpy()
        self.squares += squares.sum(0).cpu().numpy()
        self.texts.append(
            {
                "norm_max_over_median": float(norms.max()) / max(float(np.median(self.norms[-1])), 1e-30),
                "high_norm_share": float((norms > 5 * norms.median()).double().mean()),
                "max_over_median": largest / max(median, 1e-30),
                "outlier_entries": int(beyond.sum()) / x.numel(),
                "kurtosis": kurtosis(moments),
                "infinity_norm": largest,
                "massive_ratio": self._count_massive(states.float().abs(), classes),
                "cosine_neighbours": neighbours,
                "cosine_pairs": pairs,
                "cls_relative": relative["cls"],
                "sep_relative": relative["sep"],
            }
        )

    def _add_special(self, name: str, x: Tensor, usual: Tensor) -> float | None:
        """The mean over the tokens of one class of: norm over the median norm of content; None without such a token."""
        norms = x.float().norm(dim=1).cpu().numpy()
        relative = norms / max(float(usual.median()), 1e-30)
        self.special[name][0].extend(norms.tolist())
        self.special[name][1].extend(relative.tolist())
        return float(relative.mean()) if len(norms) else None

    def _count_massive(self, size: Tensor, classes: Tensor) -> float:
        """The largest |x| of any token of the text over their median."""
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
        self.massive_dimensions += massive.sum(0).cpu().numpy()
        return float(size[text].max()) / median

    def scale(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each dimension over all content tokens, `[hidden]` float64."""
        tokens = sum(map(len, self.norms))
        mean = self.sums / tokens
        variance = np.maximum(self.squares / tokens - mean**2, 0)
        return torch.from_numpy(mean), torch.from_numpy(np.sqrt(variance))


def _add_z_scored(model: nn.Module, batches: Sequence[Batch], places: Mapping[tuple[int, str], _Place]) -> None:
    """Second pass: cosines of states whose every dimension has mean 0 and deviation 1 over the data set."""
    scales = {key: place.scale() for key, place in places.items()}
    seen: Counter[tuple[int, str]] = Counter()

    def visit(states: BlockStates, row: int, classes: Int8[Tensor, " total"]) -> None:
        where = content_places(classes)
        for site, values in states.sites.items():
            key = (states.layer, site)
            mean, deviation = (part.to(values.device) for part in scales[key])
            near, pairs = mean_cosines(z_scored(values[row][where], mean, deviation), where)
            places[key].texts[seen[key]] |= {"cosine_neighbours_z": near, "cosine_pairs_z": pairs}
            seen[key] += 1

    visit_texts(model, batches, visit)


def content_places(classes: Int[Tensor, " total"]) -> Int64[Tensor, " content"]:
    """Where the content tokens of one text stand."""
    return is_content(classes).nonzero().flatten()


def mean_cosines(
    x: Float[Tensor, "content hidden"], places: Int64[Tensor, " content"]
) -> tuple[float | None, float | None]:
    """Mean cosines of one text: of neighbours (places one apart), and of all pairs; None where there is no pair.

    The sum over all pairs needs no pair: Σ_{s≠t} u_s·u_t = |Σ u_t|² − Σ |u_t|², u being x over its norm.
    """
    unit = x / x.norm(dim=1, keepdim=True).clamp(min=1e-30)
    near = (unit[1:] * unit[:-1]).sum(1)[places.diff() == 1]
    count = len(x) * (len(x) - 1)
    every = float(unit.sum(0).square().sum() - unit.square().sum())
    return float(near.mean()) if len(near) else None, every / count if count else None


def z_scored(
    x: Float[Tensor, "content hidden"], mean: Float[Tensor, " hidden"], deviation: Float[Tensor, " hidden"]
) -> Float[Tensor, "content hidden"]:
    """Each dimension with mean 0 and deviation 1 over the data set; dimensions that never vary become 0."""
    varies = deviation > 1e-9 * deviation.max().clamp(min=1e-30)
    return torch.where(varies, (x.double() - mean) / deviation.clamp(min=1e-30), 0.0)


# From sums to the numbers that a reader sees


def _summed(place: _Place, settings: ArtefactSettings) -> PlaceArtefacts:
    norms = np.concatenate(place.norms).astype(np.float64)
    median = float(np.median(norms))
    mad = float(np.median(np.abs(norms - median)))
    limits = {
        "mean+3std": float(norms.mean() + 3 * norms.std()),
        "median+kmad": median + settings.mad_factor * mad,
        "absolute": settings.absolute,
        **{f"{times}x_median": times * median for times in (3, 5, 10)},
    }
    counts = np.histogram(np.clip(norms, EDGES[0], EDGES[-1]), EDGES)[0]
    valley = valley_of(counts, median)
    limits |= {} if valley is None else {"valley": valley}
    beyond = {name: int((norms > limit).sum()) for name, limit in limits.items()}
    frequent = _most(place.outliers, least=settings.dimension_share * len(norms))
    over = {name: [text[name] for text in place.texts] for name in place.texts[0]}
    return PlaceArtefacts(
        tokens=len(norms),
        counts=tuple(counts.tolist()),
        valley=valley,
        median=median,
        max=float(norms.max()),
        mad=mad,
        outlier_rate={name: count / len(norms) for name, count in beyond.items()},
        tokens_beyond=beyond,
        largest=max(filter(None, over["infinity_norm"]), default=0.0),
        max_over_median=max(filter(None, over["max_over_median"]), default=0.0),
        massive=dict(place.massive),
        massive_dimensions=_most(place.massive_dimensions, least=1.0),
        massive_largest=dict(place.massive_largest),
        outlier_entries=int(place.outliers.sum()) / float(place.moments[0]),
        outlier_dimensions=tuple((dimension, count / len(norms)) for dimension, count in frequent),
        kurtosis=kurtosis(place.moments),
        infinity_norm=_mean(over["infinity_norm"]) or 0.0,
        cosine={name: _mean(over[f"cosine_{name}"]) for name in ("neighbours", "pairs", "neighbours_z", "pairs_z")},
    )


def valley_of(counts: Int[np.ndarray, " bins"], median: float) -> float | None:
    """The norm that parts ordinary tokens from outliers, where the histogram of norms has two modes; else None.

    Darcet 2024 cut where the norms of their model part (150, by hand). Here it is the emptiest place between the main
    mode and the highest one beyond twice the median, if it is so empty that the two are apart.

    Args:
        counts: tokens in each bin of `EDGES`.
        median: of the norms.
    """
    smooth = np.convolve(counts, np.full(3, 1 / 3), mode="same")
    main = int(smooth.argmax())
    beyond = np.flatnonzero(EDGES[:-1] > _VALLEY_BEYOND * median)
    beyond = beyond[beyond > main]
    for peak in sorted(beyond.tolist(), key=lambda one: -smooth[one]):
        between = smooth[main : peak + 1]
        lowest = float(between.min())
        if smooth[peak] <= 0 or lowest > _VALLEY_DEPTH * smooth[peak]:
            continue
        flat = main + np.flatnonzero(between <= lowest)
        at = float(EDGES[flat[len(flat) // 2] + 1])
        if at > _VALLEY_BEYOND * median and int(counts[EDGES[:-1] >= at].sum()) >= _VALLEY_TOKENS:
            return at
    return None


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean over the texts that have a number, so that a long text counts no more than a short one."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _special(norms: Sequence[float], relative: Sequence[float]) -> SpecialArtefacts:
    return SpecialArtefacts(
        tokens=len(norms), median=float(np.median(norms)), max=max(norms), relative=float(np.median(relative))
    )


def kurtosis(moments: Float64[np.ndarray, " sums"]) -> float | None:
    """E[(x − μ)⁴]/σ⁴ from the number of entries and the sums of their first four powers; None if nothing varies."""
    m1, m2, m3, m4 = moments[1:] / moments[0]
    variance = m2 - m1**2
    if variance <= 1e-12 * max(m2, 1e-300):
        return None
    return float((m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / variance**2)


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
