"""What two models' neurons have in common: the share with the same top word (Davies 2025, arXiv 2501.02688)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from regtune.analyses.neurons.record import NeuronRecord
from regtune.analyses.parts import table
from regtune.errors import DataError, shown
from regtune.interfaces import Block
from regtune.tables import Column

_LISTED = 20


class LayerShare(NamedTuple):
    """How many of a layer's neurons have the same top token in two models."""

    layer: int
    neurons: int
    share: float
    chance: float
    """The share that there would be if the other model's neurons stood in any order in the layer."""


class ChangedNeuron(NamedTuple):
    """A neuron with another top token in the other model."""

    layer: int
    neuron: int
    score: float
    """In the first model."""
    word: str
    other: str


@dataclass(frozen=True, kw_only=True)
class Shared:
    """The share of neurons with the same top token in two models."""

    name: str
    """Of the other model."""
    layers: tuple[LayerShare, ...]
    changed: tuple[ChangedNeuron, ...]
    """Those that differ, the largest score first."""

    @property
    def share(self) -> float:
        """Over all neurons."""
        return self._mean([layer.share for layer in self.layers])

    @property
    def chance(self) -> float:
        """Over all neurons: what it would be if they stood in any order in their layers."""
        return self._mean([layer.chance for layer in self.layers])

    def _mean(self, values: Sequence[float]) -> float:
        sizes = [layer.neurons for layer in self.layers]
        return sum(size * value for size, value in zip(sizes, values, strict=True)) / sum(sizes)

    def blocks(self) -> Iterator[Block]:
        """The share by layer, and what changed."""
        rows: list[tuple[Any, ...]] = [tuple(layer) for layer in self.layers]
        if len(rows) > 1:
            rows.append(("all", sum(layer.neurons for layer in self.layers), self.share, self.chance))
        yield table(
            f"Neurons with the same top word in {self.name}",
            ("layer", "neurons", Column("same", ".1%"), Column("by chance", ".1%")),
            rows,
            "by chance: the share if the other model's neurons stood in any order in their layer.",
        )
        if self.changed:
            yield table(
                "Neurons whose top word changed, by score",
                ("layer", "neuron", Column("score", ".3g"), "word", f"in {self.name}"),
                [(one.layer, one.neuron, one.score, one.word, one.other) for one in self.changed[:_LISTED]],
                f"{min(_LISTED, len(self.changed))} of {len(self.changed):,}.",
            )


def share_words(record: NeuronRecord, other: NeuronRecord) -> Shared:
    """The share of neurons with the same top token, layer by layer.

    Raises:
        DataError: the models have other layers, numbers of neurons or vocabularies, or other weights were read.
    """
    names = record.subject["name"], other.subject["name"]
    shapes = [{layer.layer: len(layer.ids) for layer in one.layers} for one in (record, other)]
    if shapes[0] != shapes[1]:
        sizes = [f"{one.count:,} neurons in {len(one.layers)} layers" for one in (record, other)]
        raise DataError(
            f"{names[0]} has {sizes[0]} and {names[1]} has {sizes[1]}; they are compared neuron by neuron. Compare "
            "models of one architecture, on the same layers."
        )
    if record.side != other.side:
        raise DataError(
            f"{names[0]} holds what neurons {record.side[:-1]}, {names[1]} what they {other.side[:-1]}. Make both with "
            "the same side."
        )
    for token in record.tokens.keys() & other.tokens.keys():
        if record.tokens[token] != other.tokens[token]:
            raise DataError(
                f"Token {token} is {shown(record.tokens[token])} in {names[0]} and {shown(other.tokens[token])} in "
                f"{names[1]}; with other vocabularies their words can't be compared."
            )
    shares, changed = [], []
    for mine in record.layers:
        first, second = ([ids[0] for ids in layer.ids] for layer in (mine, other.layer(mine.layer)))
        same, size = [a == b for a, b in zip(first, second, strict=True)], len(first)
        counts = Counter(first), Counter(second)
        chance = sum(times * counts[1][token] for token, times in counts[0].items()) / size**2
        shares.append(LayerShare(mine.layer, size, sum(same) / size, chance))
        changed += [
            ChangedNeuron(mine.layer, n, mine.scores[n][0], record.tokens[str(first[n])], other.tokens[str(second[n])])
            for n in range(size)
            if not same[n]
        ]
    changed.sort(key=lambda one: -one.score)
    return Shared(name=names[1], layers=tuple(shares), changed=tuple(changed))
