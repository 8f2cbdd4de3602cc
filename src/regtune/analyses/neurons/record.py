"""The words of a model's neurons: one record, written and read by the same types, searched by word."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from regtune.analyses.registers.lens import RegisterLens
from regtune.errors import ConfigError, DataError, shown
from regtune.records import plain, read_typed, write_json

Side = Literal["reads", "writes"]
SIDES: Mapping[str, str] = {"reads": "up-projection", "writes": "down-projection"}
"""The weights of a neuron, and the projection that holds them."""


@dataclass(frozen=True, kw_only=True)
class LayerNeurons:
    """The words of one layer's neurons, the best first."""

    layer: int
    ids: list[list[int]]
    """Of tokens: `[neurons][top]`."""
    scores: list[list[float]]
    """Products of the neuron's weights and the token's output embedding."""


class NeuronWord(NamedTuple):
    """A neuron that has a word among its own."""

    layer: int
    neuron: int
    rank: int
    """From 1."""
    score: float
    words: tuple[str, ...]
    """All its words, the best first."""


@dataclass(frozen=True, kw_only=True)
class NeuronRecord:
    """The words of a model's neurons; layers and neurons count from 0."""

    schema_version: Literal[1] = 1
    kind: Literal["neurons"] = "neurons"
    subject: dict[str, Any]
    """The model: `name`, `architecture`, `base`, `label` of its methods, `num_registers`, `seed`, `run`, `code`."""
    side: Side
    vocabulary: str
    """Which table the tokens' vectors are from."""
    tokens: dict[str, str]
    """Id to text of every token that is a neuron's word; `▁` stands for the space before a word."""
    layers: list[LayerNeurons]
    registers: RegisterLens | None = None
    """The registers' states in words, where the model has any; on an empty text, or on the prompt where one was given
    (a decoder's are the same on all texts)."""
    made: dict[str, Any]
    """Versions, machine and time."""

    @property
    def count(self) -> int:
        """Neurons in all layers."""
        return sum(len(layer.ids) for layer in self.layers)

    def layer(self, number: int) -> LayerNeurons:
        """One of the layers.

        Raises:
            ConfigError: it isn't in the record.
        """
        for layer in self.layers:
            if layer.layer == number:
                return layer
        there = ", ".join(str(layer.layer) for layer in self.layers)
        raise ConfigError(f"layer={number} isn't there; {self.subject['name']} has layers {there}.")

    def words(self, layer: int, neuron: int) -> tuple[str, ...]:
        """The words of one neuron, the best first.

        Raises:
            ConfigError: there is no such layer or neuron.
        """
        ids = self.layer(layer).ids
        require_index("neuron", neuron, len(ids))
        return tuple(self.tokens[str(token)] for token in ids[neuron])

    def find(self, word: str) -> list[NeuronWord]:
        """The neurons that have a word among theirs: those that rank it first, then by score.

        Upper and lower case, and a space or another mark before the word, make no difference.

        Raises:
            ConfigError: an empty word.
        """
        wanted = {int(token) for token, text_ in self.tokens.items() if _same_word(word) == _same_word(text_)}
        if not _same_word(word):
            raise ConfigError(f"find={shown(word)} is no word. Give one, for example find='dog'.")
        found = []
        for layer in self.layers if wanted else ():
            for neuron, ids in enumerate(layer.ids):
                rank = next((place for place, token in enumerate(ids) if token in wanted), None)
                if rank is not None:
                    words = tuple(self.tokens[str(token)] for token in ids)
                    found.append(NeuronWord(layer.layer, neuron, rank + 1, layer.scores[neuron][rank], words))
        return sorted(found, key=lambda one: (one.rank, -one.score))

    def near(self, word: str) -> list[str]:
        """A few words of the record that are spelled like another one: its parts first."""
        wanted, every = _same_word(word), {_same_word(one) for one in self.tokens.values()} - {""}
        parts = sorted((one for one in every if len(one) > 2 and wanted.startswith(one)), key=len, reverse=True)
        return list(dict.fromkeys([*parts[:3], *difflib.get_close_matches(wanted, sorted(every), n=3)]))


def write_neurons(path: Path, record: NeuronRecord) -> Path:
    """Writes the record as JSON, gzipped where the file's name ends in `.gz`."""
    content = {name: value for name, value in vars(record).items() if name not in ("layers", "registers")}
    content |= {"registers": plain(record.registers), "layers": [vars(layer) for layer in record.layers]}
    return write_json(path, content)


_AGAIN = "Make it again: regtune neurons MODEL."


def read_neurons(path: Path) -> NeuronRecord:
    """Reads what `write_neurons` wrote.

    Raises:
        DataError: the file is missing, broken or no such record.
    """
    record: NeuronRecord = read_typed(path, NeuronRecord, remedy=_AGAIN)
    for layer in record.layers:
        sizes = {len(ids) for ids in layer.ids} | {len(scores) for scores in layer.scores}
        if len(sizes) != 1 or 0 in sizes or len(layer.ids) != len(layer.scores):
            raise DataError(f"{path}: the neurons of layer {layer.layer} don't have one score for each word. {_AGAIN}")
        nameless = next((token for ids in layer.ids for token in ids if str(token) not in record.tokens), None)
        if nameless is not None:
            raise DataError(f"{path}: token {nameless} has no text. {_AGAIN}")
    if not record.layers:
        raise DataError(f"{path} holds no layers. {_AGAIN}")
    return record


_MARKS = re.compile(r"^(?:##|[▁Ġ\s])+|\s+$")


def _same_word(word: str) -> str:
    return _MARKS.sub("", word).casefold()


def require_index(what: str, index: int, count: int) -> None:
    """Refuses a layer or a neuron that doesn't exist."""
    if not 0 <= index < count:
        raise ConfigError(f"{what}={index} doesn't exist; there are {what}s 0 to {count - 1}.")
