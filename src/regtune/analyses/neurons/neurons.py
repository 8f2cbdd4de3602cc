"""`neurons`: feed-forward neurons in words, those of a word, those that two models share, and what holding one does."""

from __future__ import annotations

import dataclasses
import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regtune.analyses.neurons.clamp import Clamp, ClampEffect, clamp_effect
from regtune.analyses.neurons.record import (
    SIDES,
    LayerNeurons,
    NeuronRecord,
    NeuronWord,
    Side,
    read_neurons,
    write_neurons,
)
from regtune.analyses.neurons.shared import Shared, share_words
from regtune.analyses.neurons.weights import map_neurons
from regtune.analyses.parts import table
from regtune.errors import ConfigError, shown, unknown_name
from regtune.interfaces import Block, ShownByBlocks
from regtune.progress import begin_stage, stages
from regtune.records import file_name
from regtune.session import Session, session_of
from regtune.tables import Column

_LISTED = 20
_OF_A_LAYER = 5


@dataclass(frozen=True, kw_only=True)
class Neurons(ShownByBlocks):
    """What `neurons` found; `print` shows it."""

    record: NeuronRecord
    path: Path | None
    """Of the record; None where only a part of the layers was read, and nobody named a file."""
    found: Mapping[str, list[NeuronWord]]
    """The neurons of each word that was looked for."""
    shared: Shared | None
    clamped: ClampEffect | None

    def blocks(self) -> list[Block]:
        """What was asked for; if nothing was, the layers with the words of their strongest neurons."""
        asked = [*self._words()]
        asked += [] if self.shared is None else self.shared.blocks()
        asked += [] if self.clamped is None else self.clamped.blocks()
        if asked:
            return asked
        lens = self.record.registers
        return [self._layers(), *([] if lens is None else lens.blocks())]

    def _words(self) -> Iterator[Block]:
        for word, neurons_ in self.found.items():
            count = len(neurons_)
            words = f"The {_LISTED} best of {count:,}." if count > _LISTED else ""
            if not count:
                near = ", ".join(self.record.near(word))
                words = "No neuron has it among its words." + (f" There are: {near}." if near else "")
            yield table(
                f"Neurons of {shown(word)}",
                ("layer", "neuron", "rank", Column("score", ".3g"), "words"),
                [(*one[:4], _listed(one.words)) for one in neurons_[:_LISTED]],
                words,
            )

    def _layers(self) -> Block:
        record = self.record
        if len(record.layers) == 1:
            (layer,) = record.layers
            return table(
                f"The strongest neurons of layer {layer.layer}",
                ("neuron", Column("score", ".3g"), "words"),
                [(n, layer.scores[n][0], _listed(record.words(layer.layer, n))) for n in _strongest(layer, _LISTED)],
            )
        rows = []
        for layer in record.layers:
            words = [f"{record.words(layer.layer, n)[0]} ({n})" for n in _strongest(layer, _OF_A_LAYER)]
            rows.append((layer.layer, len(layer.ids), len({ids[0] for ids in layer.ids}), _listed(words)))
        return table(
            "Neurons by layer",
            ("layer", "neurons", "different words", "words of the strongest (and their numbers)"),
            rows,
            "Strongest: the largest product with a token's vector. Words are readings of weights; a clamp tests one.",
        )

    def __repr__(self) -> str:
        return f"<Neurons of {self.record.subject['name']}: {self.record.count:,} in {len(self.record.layers)} layers>"

    def __str__(self) -> str:
        one, subject = self.record, self.record.subject
        head = (
            f"{subject['name']}: {subject['architecture']}, {subject['label']}; what {one.count:,} neurons "
            f"{one.side[:-1]} ({SIDES[one.side]}), through the {one.vocabulary}."
        )
        return "\n\n".join([head, *map(str, self.blocks())])


def _strongest(layer: LayerNeurons, most: int) -> list[int]:
    return heapq.nlargest(most, range(len(layer.ids)), key=[scores[0] for scores in layer.scores].__getitem__)


def _listed(words: Sequence[str]) -> str:
    return "  ".join(words)


def neurons(
    model: object,
    *,
    side: Side = "reads",
    top: int = 5,
    layer: int | None = None,
    find: str | Sequence[str] = (),
    compare: object = None,
    clamp: str | Clamp | Sequence[str | Clamp] = (),
    prompt: str | None = None,
    write: int = 20,
    output: Path | None = None,
) -> Neurons:
    """Puts feed-forward neurons into words through the output embedding, and tests what they stand for.

    A neuron's words are the tokens whose output embeddings have the largest product with its weights (Davies 2025,
    arXiv 2501.02688); where a model has no output embedding of its hidden width, its input embeddings are read. No norm
    is applied. Of a model with registers, their states are read in words as well.

    Args:
        model: a run directory, a folder, a hub name, a `Session`, a pair of a model and its tokenizer, or the file of a
            record that was made before.
        side: the weights that a neuron `reads` with (the up-projection) or `writes` with.
        top: words of each neuron.
        layer: this layer alone, from 0.
        find: words whose neurons are listed.
        compare: another model, or its record: the share of neurons with the same top word.
        clamp: neurons held at an activation, each `LAYER:NEURON=VALUE`, while the model reads `prompt`; without
            `layer`, only these neurons' layers are read.
        prompt: a text; of a masked language model with [MASK] where a word is missing.
        write: so many tokens that a decoder writes behind it.
        output: where the record is written (`.json` or `.json.gz`); by default `neurons-SIDE.json.gz` in the run
            directory, or runs/neurons/MODEL/, where all layers were read.

    Raises:
        ConfigError: an argument that can't be; the value is named.
        CheckpointError: no such model.
        DataError: a record that can't be read, or models that can't be compared.
        UnsupportedModelError: an architecture whose neurons aren't known, a model of images, or a clamp on a model
            without a language-model head.
    """
    clamps = [Clamp.read(one) for one in ([clamp] if isinstance(clamp, (str, Clamp)) else clamp)]
    require_side(side)
    _check_arguments(top, clamps, prompt, write)
    words = [find] if isinstance(find, str) else list(find)
    if clamps and _is_record(model):
        raise ConfigError(f"{model} is a record, and a clamp needs the model. Name the model instead.")
    with stages(1 + (compare is not None) + bool(clamps)):
        some = {one.layer for one in clamps} | (set() if layer is None else {layer})
        wanted = sorted(some) if layer is not None or (some and not words and compare is None) else None
        begin_stage(f"the neurons of {_name(model)}")
        record, session = _record(model, side, top, wanted, prompt)
        path = output
        if path is None and session is not None and wanted is None:
            path = _default_path(session, side)
        if path is not None:
            write_neurons(path, record)
        shared = None
        if compare is not None:
            begin_stage(f"the neurons of {_name(compare)}")
            shared = share_words(record, _record(compare, record.side, 1, wanted, None)[0])
        effect = None
        if clamps and session is not None and prompt is not None:
            begin_stage("holding neurons")
            effect = clamp_effect(session, clamps, prompt, record, write)
    found = {word: record.find(word) for word in words}
    return Neurons(record=record, path=path, found=found, shared=shared, clamped=effect)


def require_side(side: str) -> None:
    """Refuses weights that a neuron hasn't got."""
    if side not in SIDES:
        raise unknown_name("side of a neuron", side, SIDES)


def _check_arguments(top: int, clamps: Sequence[Clamp], prompt: str | None, write: int) -> None:
    if top < 1:
        raise ConfigError(f"top={top} must be at least 1.")
    if write < 0:
        raise ConfigError(f"write={write} must be at least 0.")
    if bool(clamps) != (prompt is not None):
        given, missing = ("clamp", "prompt") if clamps else ("prompt", "clamp")
        raise ConfigError(
            f"{given} is given and {missing} isn't: a clamp is tested on a prompt. Give both, or neither."
        )
    twice = next((key for key, times in Counter(one[:2] for one in clamps).items() if times > 1), None)
    if twice is not None:
        raise ConfigError(f"Neuron {twice[0]}:{twice[1]} is held twice. Give it one value.")


def _name(model: object) -> str:
    if isinstance(model, tuple):
        return type(model[0]).__name__
    return model.name if isinstance(model, Session) else str(model)


def _is_record(model: object) -> bool:
    return isinstance(model, (str, Path)) and str(model).endswith((".json", ".json.gz"))


def _record(
    model: Any, side: Side, top: int, layers: Sequence[int] | None, prompt: str | None
) -> tuple[NeuronRecord, Session | None]:
    """The record, and the model that it was made of; None where it was read from a file."""
    if not _is_record(model):
        session = session_of(model)
        return map_neurons(session, side=side, top=top, layers=layers, prompt=prompt), session
    record = read_neurons(Path(model).expanduser())
    if layers is not None:
        record = dataclasses.replace(record, layers=[record.layer(number) for number in layers])
    return record, None


def _default_path(session: Session, side: str) -> Path:
    folder = session.run_dir or Path("runs") / "neurons" / file_name(session.name)
    return folder / f"neurons-{side}.json.gz"
