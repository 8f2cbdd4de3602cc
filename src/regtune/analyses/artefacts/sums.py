"""What is kept of one text's states at one place: sums and a norm for each token, never the states.

Everything is computed text by text on its own tokens, so neither padding nor the batch can change it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from regtune.errors import UnsupportedModelError
from regtune.token_classes import TokenClass

SPECIAL = {"cls": TokenClass.CLS, "sep": TokenClass.SEP, "register": TokenClass.REGISTER}
"""Tokens without content, each reported on its own and in no verdict about content."""
SIGMAS = 6.0
"""Bondarenko 2023: an entry is an outlier if it is further from the mean than so many standard deviations."""
MASSIVE_LEAST, MASSIVE_RATIO = 100.0, 1000.0
"""Sun 2024: an activation is massive above the first and above the second times the median of its text."""


@dataclass(kw_only=True)
class SpecialSums:
    """The special tokens of one class at one place, over texts."""

    norms: list[np.ndarray] = field(default_factory=list)
    relative: list[np.ndarray] = field(default_factory=list)
    """Each norm over the median norm of its own text's content tokens."""
    ratios: list[float] = field(default_factory=list)
    """For each text with such tokens the largest |x| over the median |x| of its content tokens."""
    by_text: list[float] = field(default_factory=list)
    """For each text the mean of `relative`; NaN where it has no such token."""

    def add(self, x: Float[Tensor, "tokens hidden"], usual_norm: float, usual_size: float) -> None:
        """Adds one text's tokens of this class, beside what is usual for its content."""
        norms = x.norm(dim=1).cpu().numpy()
        relative = norms / max(usual_norm, 1e-30)
        self.by_text.append(float(relative.mean()) if len(norms) else float("nan"))
        if len(norms):
            self.norms.append(norms)
            self.relative.append(relative)
            self.ratios.append(float(x.abs().max()) / max(usual_size, 1e-30))


@dataclass(kw_only=True)
class PlaceSums:
    """The content tokens at one place (layer and site), over texts; one entry of each list is one text."""

    hidden: int
    norms: list[np.ndarray] = field(default_factory=list)
    """‖x‖₂ of each token, float32."""
    largest: list[float] = field(default_factory=list)
    """Largest |x|."""
    medians: list[float] = field(default_factory=list)
    """Median |x|."""
    moments: list[np.ndarray] = field(default_factory=list)
    """Number of entries, and the sums of x, x², x³ and x⁴."""
    massive: list[int] = field(default_factory=list)
    """Tokens that hold a massive activation."""
    outliers: list[int] = field(default_factory=list)
    """Entries beyond 6σ of their text."""
    neighbours: list[tuple[float, float]] = field(default_factory=list)
    """Sum of the cosines of neighbouring content tokens, and the number of pairs."""
    pairs: list[tuple[float, float]] = field(default_factory=list)
    """The same for all pairs of a text."""
    massive_by_dimension: np.ndarray = field(init=False)
    outliers_by_dimension: np.ndarray = field(init=False)
    sum_by_dimension: np.ndarray = field(init=False)
    squares_by_dimension: np.ndarray = field(init=False)
    special: dict[str, SpecialSums] = field(default_factory=lambda: {name: SpecialSums() for name in SPECIAL})

    def __post_init__(self) -> None:
        self.massive_by_dimension = np.zeros(self.hidden, dtype=np.int64)
        self.outliers_by_dimension = np.zeros(self.hidden, dtype=np.int64)
        self.sum_by_dimension = np.zeros(self.hidden)
        self.squares_by_dimension = np.zeros(self.hidden)

    def add(self, states: Float[Tensor, "total hidden"], classes: Int[Tensor, " total"]) -> None:
        """Adds one text that has content.

        Args:
            states: of registers and text.
            classes: the `TokenClass` of each.

        Raises:
            UnsupportedModelError: states that are not finite.
        """
        places = content_places(classes)
        x = states[places].float()
        size = x.abs()
        norms = x.norm(dim=1)
        median = float(size.median())
        self._add_content(x, size, places, median)
        self.norms.append(norms.cpu().numpy())
        usual = float(norms.median())
        for name, kind in SPECIAL.items():
            self.special[name].add(states[classes == kind].float(), usual, median)

    def _add_content(self, x: Tensor, size: Tensor, places: Tensor, median: float) -> None:
        massive = (size > MASSIVE_LEAST) & (size >= MASSIVE_RATIO * median)
        wide = x.double()
        squares = wide * wide
        sums = [wide.sum(), squares.sum(), (squares * wide).sum(), (squares * squares).sum()]
        mean = wide.mean()
        beyond = (wide - mean).abs() > SIGMAS * wide.std(correction=0)
        largest = float(size.max())
        if not largest < float("inf"):
            raise UnsupportedModelError(
                f"The model's states hold {largest}: they are no numbers any more. Load it in float32, or look at its "
                "weights."
            )
        self.largest.append(largest)
        self.medians.append(median)
        self.moments.append(np.array([x.numel(), *map(float, sums)]))
        self.massive.append(int(massive.any(1).sum()))
        self.outliers.append(int(beyond.sum()))
        neighbours, pairs = cosine_sums(wide, places)
        self.neighbours.append(neighbours)
        self.pairs.append(pairs)
        self.massive_by_dimension += massive.sum(0).cpu().numpy()
        self.outliers_by_dimension += beyond.sum(0).cpu().numpy()
        self.sum_by_dimension += wide.sum(0).cpu().numpy()
        self.squares_by_dimension += squares.sum(0).cpu().numpy()

    def scale(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each dimension over all content tokens, `[hidden]` float64."""
        tokens = sum(map(len, self.norms))
        mean = self.sum_by_dimension / tokens
        variance = np.maximum(self.squares_by_dimension / tokens - mean**2, 0)
        return torch.from_numpy(mean), torch.from_numpy(np.sqrt(variance))


def content_places(classes: Int[Tensor, " total"]) -> Int64[Tensor, " content"]:
    """Where the content tokens of one text stand."""
    return ((classes >= TokenClass.PUNCTUATION) & (classes <= TokenClass.CONTEXT)).nonzero().flatten()


def cosine_sums(
    x: Float[Tensor, "content hidden"], places: Int64[Tensor, " content"]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Sums of cosines and numbers of pairs of one text: of neighbours, and of all pairs.

    The sum over all pairs needs no pair: Σ_{s≠t} u_s·u_t = |Σ u_t|² − Σ |u_t|², u being x over its norm.

    Args:
        x: the tokens.
        places: where they stand; neighbours are one apart.
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
