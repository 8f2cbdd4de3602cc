"""Neurons held at an activation, reversibly: whether a model then says the words that they stand for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from regtune.analyses.neurons.record import NeuronRecord, require_index
from regtune.analyses.neurons.weights import neuron_weights, projection, read_prompt, text_family, token_text
from regtune.analyses.parts import table, text
from regtune.analyses.registers.lens import language_head
from regtune.analyses.reversible import require_eval_mode
from regtune.errors import ConfigError, UnsupportedModelError, shown
from regtune.interfaces import Batch, Block
from regtune.session import Session
from regtune.tables import Column


class Clamp(NamedTuple):
    """A neuron, and the activation that it is held at."""

    layer: int
    neuron: int
    value: float

    @classmethod
    def read(cls, given: str | Clamp) -> Clamp:
        """A clamp from `LAYER:NEURON=VALUE`.

        Raises:
            ConfigError: it isn't of this form, or holds no finite value.
        """
        parts = str(given).replace("=", ":").split(":")
        try:
            made = cls(int(parts[0]), int(parts[1]), float(":".join(parts[2:])))
        except (IndexError, ValueError):
            raise ConfigError(f"clamp={shown(given)} must be LAYER:NEURON=VALUE, for example 12:345=10.") from None
        if not math.isfinite(made.value):
            raise ConfigError(f"clamp={shown(given)} holds the neuron at {made.value}; give a finite value.")
        return made

    def __str__(self) -> str:
        return f"{self.layer}:{self.neuron}={self.value!r}"


@contextmanager
def clamped(model: nn.Module, clamps: Sequence[Clamp]) -> Iterator[None]:
    """Inside the context neurons have a fixed activation at every position, registers included; then they are free.

    The activation is what goes into the down-projection: behind the activation function and, in gated units, behind the
    gate. In ALBERT a neuron is held at every depth, since its layers are the same one.

    Raises:
        ConfigError: there is no such layer or neuron.
        UnsupportedModelError: as `neuron_weights`.
    """

    def hold(clamp: Clamp) -> Callable[[nn.Module, tuple], tuple]:
        def held(_module: nn.Module, args: tuple) -> tuple:
            activations = args[0].clone()
            activations[..., clamp.neuron] = clamp.value
            return (activations, *args[1:])

        return held

    with ExitStack() as stack:
        for clamp in clamps:
            module = _of_clamp(model, clamp)
            stack.callback(module.register_forward_pre_hook(hold(clamp)).remove)
        yield


def _of_clamp(model: nn.Module, clamp: Clamp) -> nn.Module:
    module = projection(model, clamp.layer, text_family(model).feed_forward_out)
    require_index("neuron", clamp.neuron, len(neuron_weights(model, clamp.layer, "writes")))
    return module


@dataclass(frozen=True, kw_only=True)
class WordEffect:
    """How likely a model finds a word, with its neurons free and with some held."""

    layer: int
    neuron: int
    word: str
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class ClampEffect:
    """What holding neurons does to what a model says of a prompt."""

    clamps: tuple[Clamp, ...]
    prompt: str
    free: tuple[tuple[float, float], ...]
    """Smallest and largest activation of each of the neurons on the prompt, while it is free."""
    words: tuple[WordEffect, ...]
    """The held neurons' words: their probability as the next token or, in a masked language model, at [MASK]."""
    before: str
    after: str
    """What the model writes behind the prompt (greedily), or puts at [MASK]."""

    def blocks(self) -> Iterator[Block]:
        """Both texts, and the words' probabilities."""
        held = ", ".join(str(clamp) for clamp in self.clamps)
        ranges = "; ".join(
            f"neuron {clamp.layer}:{clamp.neuron} lies between {low:.3g} and {high:.3g} there"
            for clamp, (low, high) in zip(self.clamps, self.free, strict=True)
        )
        yield text(
            f"Behind {shown(self.prompt)}",
            f"free: {shown(self.before, 2000)}\nheld at {held}: {shown(self.after, 2000)}\nWhile it is free, {ranges}.",
        )
        yield table(
            "How likely the held neurons' words are",
            ("neuron", "word", *(Column(name, ".3g") for name in ("free", "held")), Column("held / free", ".3g")),
            [
                (f"{one.layer}:{one.neuron}", one.word, one.before, one.after, one.after / max(one.before, 1e-30))
                for one in self.words
            ],
            "Probabilities of the next token (in a masked language model: at [MASK]).",
        )


@torch.inference_mode()
def clamp_effect(
    session: Session, clamps: Sequence[Clamp], prompt: str, record: NeuronRecord, write: int
) -> ClampEffect:
    """What holding neurons changes on one prompt.

    Args:
        session: a decoder or a masked language model.
        clamps: the neurons, each once.
        prompt: of a masked language model with [MASK] once.
        record: of the model; the probability of each held neuron's words is looked at.
        write: so many tokens that a decoder writes.

    Raises:
        ConfigError: no such neuron, a prompt that doesn't fit.
        UnsupportedModelError: the model has no language-model head.
    """
    model, reader = session.model, session.reader
    require_eval_mode(model)
    head = language_head(model)
    if head is None:
        raise UnsupportedModelError(
            f"{session.name} is a {type(model).__name__} without a language-model head, so it says no words that a "
            "clamp could change. Name a decoder or a masked language model."
        )
    causal = text_family(model).causal
    batch, place = _prompt(session, prompt, 0 if not causal else write)

    def said() -> tuple[Tensor, str]:
        likely = session.forward(batch).logits[0, place].float().softmax(-1)
        if not causal:
            return likely, token_text(reader, int(likely.argmax()))
        if not write:
            return likely, ""
        given = {name: value.to(session.device) for name, value in batch.items()}
        pad = next((one for one in (reader.pad_token_id, reader.eos_token_id) if one is not None), 0)
        ids = model.generate(**given, max_new_tokens=write, do_sample=False, num_beams=1, pad_token_id=pad)
        return likely, str(reader.decode(ids[0, batch["input_ids"].shape[1] :], skip_special_tokens=True))

    free: dict[int, tuple[float, float]] = {}
    with ExitStack() as stack:
        for number, clamp in enumerate(clamps):

            def watch(_module: nn.Module, args: tuple, number: int = number, clamp: Clamp = clamp) -> None:
                mine = args[0][..., clamp.neuron]
                free.setdefault(number, (float(mine.min()), float(mine.max())))

            stack.callback(_of_clamp(model, clamp).register_forward_pre_hook(watch).remove)
        before, text_before = said()
    with clamped(model, clamps):
        after, text_after = said()
    return ClampEffect(
        clamps=tuple(clamps),
        prompt=prompt,
        free=tuple(free[number] for number in range(len(clamps))),
        words=tuple(
            WordEffect(layer=layer, neuron=neuron, word=word, before=float(before[token]), after=float(after[token]))
            for layer, neuron, _ in clamps
            for token, word in zip(record.layer(layer).ids[neuron], record.words(layer, neuron), strict=True)
        ),
        before=text_before,
        after=text_after,
    )


def _prompt(session: Session, prompt: str, write: int) -> tuple[Batch, int]:
    """A prompt as the model reads it, and the place whose word is looked at."""
    reader, causal = session.reader, text_family(session.model).causal
    batch = read_prompt(session, prompt)
    length = batch["input_ids"].shape[1]
    if not length:
        raise ConfigError(f"prompt={shown(prompt)} has no token for this tokenizer. Give a text.")
    if session.text_limit is not None and length + write > session.text_limit:
        behind = f" and {write} that it writes" if write else ""
        raise ConfigError(
            f"The prompt has {length} tokens{behind}; {session.name} has positions for {session.text_limit}. "
            "Give a shorter one."
        )
    if causal:
        return batch, length - 1
    masked = batch["input_ids"][0] == (-1 if reader.mask_token_id is None else reader.mask_token_id)
    places = masked.nonzero().flatten().tolist()
    if len(places) != 1:
        raise ConfigError(
            f"prompt={shown(prompt)} holds [MASK] {len(places)} times; write it once, where {session.name} is to find "
            "a word."
        )
    return batch, int(places[0])
