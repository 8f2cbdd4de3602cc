"""The register lens: which words of the vocabulary a register's state is nearest to, layer by layer.

Of a model with an encoder and a decoder each set is read by its own stack's embeddings. What the language-model head
reads is the decoder, so it reads the decoder's own registers alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regtune.analyses.batches import run_backbone
from regtune.analyses.registers.knock_out import layer_inputs, require_active_sets
from regtune.errors import UnsupportedModelError
from regtune.families import family_of
from regtune.interfaces import Batch, Block
from regtune.models.precision import device_of
from regtune.registers.registers import Registers
from regtune.registers.surgery import backbone_of, base_of, decoder_of
from regtune.tables import Column


class NearToken(NamedTuple):
    """One entry of the vocabulary and how near it is."""

    token: str
    score: float
    """A cosine (input embeddings) or a probability (language-model head)."""


Nearest = tuple[tuple[tuple[NearToken, ...], ...], ...]
"""`nearest[register][depth]`: tokens, the nearest first."""


@dataclass(frozen=True, kw_only=True)
class RegisterLens:
    """Nearest words of every register at every depth (0: what the first layer reads, L: what the last one wrote)."""

    embedding: Nearest
    """By cosine with the input embeddings."""
    head: Nearest | None
    """By probability under the language-model head; None where there is none."""
    head_from: str | None
    """The class of the model, whose own head it is."""
    norms: tuple[str, ...] = ()
    """The normalisation layers that the head applies to the states (its final norm)."""
    stack: Literal["encoder", "decoder"] | None = None
    """Whose registers they are, in a model with both."""

    def blocks(self) -> list[Block]:
        """A table of words by register and depth for each way of reading."""
        return words_blocks(vars(self))


def words_blocks(lens: Mapping[str, Any]) -> list[Block]:
    """`RegisterLens.blocks` of what a record keeps of a lens."""
    each = "each register" if lens["stack"] is None else f"each of the {lens['stack']}'s registers"
    found = [_words(f"Nearest input embeddings of {each} (cosine)", lens["embedding"])]
    if lens["head"] is not None:
        found.append(_words(f"What the language-model head of {lens['head_from']} makes of them", lens["head"]))
    return found


def _words(title: str, nearest: Sequence[Any]) -> Block:
    return Block(
        kind="table",
        title=title,
        columns=("register", *(Column(f"depth {depth}", align="left") for depth in range(len(nearest[0])))),
        rows=tuple(
            (str(n), *(", ".join(f"{token} {score:.2f}" for token, score in words) for words in depths))
            for n, depths in enumerate(nearest)
        ),
        text="Depth 0 is what the first layer reads, the last one what the last layer wrote. A reading, not a "
        "measurement: nobody trained these states to be words.",
    )


def lens_of_batch(model: nn.Module, batch: Batch, tokenizer: Any = None, *, top: int = 5) -> list[RegisterLens]:
    """The words of the registers' states while the model reads the first row of a batch, set by set.

    A decoder's own registers stand before all that it reads and see the encoder's states alone, so that what it is
    given makes no difference to them: it is one token.

    Raises:
        UnsupportedModelError: the model has no registers, or they are switched off.
    """
    found = []
    for stack, registers in require_active_sets(model):
        states: list[Tensor] = []

        def see(_depth: int, values: Tensor, registers: Registers = registers, states: list[Tensor] = states) -> None:
            states.append(registers.registers_of(values)[0].float().clone())

        with torch.no_grad(), layer_inputs(stack, see):
            if registers.of_decoder:
                _run_both(model, batch)
            else:
                run_backbone(model, batch)
        found.append(register_lens(model, torch.stack(states), tokenizer, top=top, stack=stack))
    return found


def _run_both(model: nn.Module, batch: Batch) -> None:
    device = device_of(model)
    given = {name: batch[name].to(device) for name in ("input_ids", "attention_mask") if name in batch}
    first = torch.zeros(len(batch["input_ids"]), 1, dtype=torch.long, device=device)
    base_of(model)(**given, decoder_input_ids=first, use_cache=False)


@torch.no_grad()
def register_lens(
    model: nn.Module,
    states: Float[Tensor, "depths registers hidden"],
    tokenizer: Any = None,
    *,
    top: int = 5,
    stack: nn.Module | None = None,
) -> RegisterLens:
    """Reads states in words, through the input embeddings and the model's language-model head, where it has one.

    The head was trained to read what the last layer writes about a masked token, or of the next one. What it says of
    other depths, and of registers, is a reading, not a measurement; the cosines with the input embeddings are shown
    beside it.

    Args:
        model: whose head reads.
        states: of its registers.
        tokenizer: gives tokens their names; without it they are numbers.
        top: words of each state.
        stack: the encoder or the decoder that the states are from; the encoder of a model with both by default.
    """
    decoder = decoder_of(model)
    of_decoder = decoder is not None and stack is decoder
    head = language_head(model) if decoder is None or of_decoder else None
    normal, vectors = nn.functional.normalize, vocabulary_vectors(decoder if of_decoder else model)
    cosines = normal(states.to(vectors), dim=-1) @ normal(vectors, dim=-1).T

    def nearest(scores: Tensor) -> Nearest:
        best = scores.transpose(0, 1).topk(min(top, scores.shape[-1]))
        return _named(best.indices.tolist(), best.values.tolist(), tokenizer)

    return RegisterLens(
        embedding=nearest(cosines),
        head=None if head is None else nearest(head(states).float().softmax(-1)),
        head_from=None if head is None else type(model).__name__,
        norms=() if head is None else head.norms,
        stack=None if decoder is None else "decoder" if of_decoder else "encoder",
    )


def _named(ids: list, scores: list, tokenizer: Any) -> tuple:
    if isinstance(ids[0], list):
        return tuple(_named(*pair, tokenizer) for pair in zip(ids, scores, strict=True))
    known = ids if tokenizer is None else tokenizer.convert_ids_to_tokens(ids)
    # An embedding table may be longer than the vocabulary; such rows have no name.
    names = [str(index) if name is None else str(name) for index, name in zip(ids, known, strict=True)]
    return tuple(NearToken(name, float(score)) for name, score in zip(names, scores, strict=True))


# What puts hidden states into words: the vocabulary, and the language-model head


@torch.no_grad()
def vocabulary_vectors(model: nn.Module) -> Float[Tensor, "vocabulary hidden"]:
    """The input embedding of every token; brought to the hidden size as the model does it where it is narrower.

    Raises:
        UnsupportedModelError: a model of images, or of no known family.
    """
    backbone = backbone_of(model)
    if family_of(backbone.config, "parts").reads_images:
        raise UnsupportedModelError(f"{type(model).__name__} reads images, so it has no words that a state is near to.")
    vectors: Tensor = backbone.get_input_embeddings().weight.detach()
    widen = family_of(backbone.config, "parts").widen
    if widen is not None and vectors.shape[1] != backbone.config.hidden_size:
        vectors = backbone.get_submodule(widen)(vectors)
    return vectors


@dataclass(frozen=True, kw_only=True, eq=False)
class LanguageHead:
    """A model's own way from a last hidden state to logits over the vocabulary."""

    model: nn.Module
    steps: tuple[str, ...]
    """The modules applied, in order, as paths in `model`."""
    norms: tuple[str, ...]
    """The normalisation layers among them (or inside them): what is applied to a state from the middle of the model,
    which was never meant to meet them."""
    scale: float = 1.0
    """By which a state is multiplied before the last module."""
    bias: str | None = None
    """What is added to the logits, as a path in `model`."""

    def __call__(self, states: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch vocabulary"]:
        """Logits over the vocabulary."""
        first = next(self.model.get_submodule(self.steps[0]).parameters())
        states = states.to(first.device, first.dtype)
        for step in self.steps[:-1]:
            states = self.model.get_submodule(step)(states)
        logits: Tensor = self.model.get_submodule(self.steps[-1])(states * self.scale)
        return logits if self.bias is None else logits + getattr(self.model, self.bias)


def language_head(model: nn.Module) -> LanguageHead | None:
    """The model's language-model head; None if it has none (a question-answering model, a bare encoder).

    Of a model with an encoder and a decoder it reads the decoder.
    """
    family = family_of(backbone_of(model).config, "parts")
    if not family.lm_head:
        return None
    if hasattr(model, "get_base_model"):  # peft's: paths start at the model inside
        model = model.get_base_model()  # type: ignore[operator]
    try:
        modules = {path: model.get_submodule(path) for path in family.lm_head}
    except AttributeError:
        return None
    norms = [
        f"{path}.{name}".rstrip(".")
        for path, module in modules.items()
        for name, part in module.named_modules()
        if type(part).__name__.endswith("Norm")
    ]
    config: Any = model.config
    scaled = family.head_scaled is not None and getattr(config, family.head_scaled)
    return LanguageHead(
        model=model,
        steps=family.lm_head,
        norms=tuple(norms),
        scale=float(config.hidden_size) ** -0.5 if scaled else 1.0,
        bias=family.head_bias,
    )
