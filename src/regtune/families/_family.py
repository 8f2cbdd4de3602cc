"""What regtune has to know about an architecture: where its parts are, how its positions work, what its rules are.

A family is one declarative file in `families/`, plain data alone; adding an architecture is that file and one line in
the table there. One table serves registers, relevance, attention, the lens and everything else that looks inside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

LEDGER = ("attnlrp", "cp-lrp")
"""Relevance rules that every family with rules has; BERT-like ones have `chefer` too."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """The description of one architecture; the defaults are BERT's names.

    Paths start at the backbone (the encoder or the decoder under the head; of a model that has both, the encoder), at a
    layer, or at the model with its head, as each group says; `*` stands for one name, and `fc1|up_proj` for one of the
    two, where configurations differ. Linear layers, norms and activations are otherwise found by their type.
    """

    name: str
    model_types: tuple[str, ...]
    """Values of `config.model_type` that belong to this family."""

    # What it reads
    inputs: tuple[str, ...] = ("input_ids", "inputs_embeds")
    """Arguments of `forward`, one of which holds what is read."""
    leading: int = 1
    """Tokens in front of what is read that stand for all of it: [CLS] (and DeiT's second one)."""

    # A model that reads with an encoder and writes with a decoder
    encoder: str | None = None
    """Its encoder, which all other paths are of; None for models that are one stack."""
    decoder: str | None = None
    """Its decoder, whose parts have the names of the encoder's as far as its own registers need them."""
    cross_attention: str | None = None
    """From a layer of its decoder: the module that attends to what the encoder gives."""

    # Positions
    positions: Literal["absolute", "relative", "rotary"]
    """absolute: added in the embeddings, so registers cost none. relative, rotary: counted along the sequence."""
    position_offset: int = 0
    """Rows of the position table that no token uses (RoBERTa starts at padding_idx + 1 = 2)."""
    positions_run_out: bool = False
    """A table of `max_position_embeddings` is read for the whole sequence, so that registers take places of it."""
    local_window: str | None = None
    """Config attribute with the local attention window, if some layers see only a window of the sequence."""
    causal: bool = False
    """Tokens see earlier ones alone; classes are read from the last token."""

    # Parts, from the backbone; one that a configuration lacks is skipped
    word_embeddings: str = "embeddings.word_embeddings"
    """The table of words, or what makes tokens of an image's patches."""
    position_embeddings: str | None = "embeddings.position_embeddings"
    type_embeddings: str | None = "embeddings.token_type_embeddings"
    embeddings: str = "embeddings"
    """The module whose output registers join."""
    word_scale: str | None = None
    """Attribute of the backbone by which it multiplies what its table of words gives."""
    scale_behind: str | None = None
    """The same where it multiplies all that it is given as embedded words, so that registers are divided by it."""
    masks_first: bool = False
    """The backbone makes its masks while it embeds, so registers have places among the words from the start."""
    masks_always: bool = False
    """A decoder makes a mask even where its attention needs none (Falcon). It would make it for the text alone, so it
    is given one in every step."""
    norm: str | None = "embeddings.LayerNorm"
    """The last LayerNorm inside the embeddings (`RegisterConfig.layer_norm`)."""
    dropout: str | None = "embeddings.dropout"
    """The dropout behind that norm, which registers pass with it; None without such a norm."""
    widen: str | None = None
    """Brings narrow embeddings to the hidden size, where there is such a module."""
    layers: str = "encoder.layer"
    """The list of layers."""
    stack: str = "encoder"
    """The module at whose output the registers leave again, before any pooler or head; of the `layers` the last."""
    final_norm: str | None = None
    """The norm behind the last layer, where layers have theirs in front."""

    # Parts of a layer, from the layer
    attention: str = "attention.self"
    """The module that attends."""
    keys: str | None = "key"
    """The linear layer inside the attending module that makes its keys; None where one layer makes several things."""
    values: str | None = "value"
    attention_out: str = "attention.output.dense"
    """The projection behind the heads."""
    feed_forward_in: str | None = "intermediate.dense"
    """The projection whose rows are what the feed-forward neurons read (of gated units the linear branch); None where
    its name depends on the version."""
    gate_in_front: bool = False
    """`feed_forward_in` makes both branches of a gated unit: the gate's rows, then as many of the linear one."""
    feed_forward_out: str | None = "output.dense"
    """The projection whose columns are what the neurons write; its inputs are their activations. None where several
    experts write."""
    norms: tuple[str, ...] = ("attention.output.LayerNorm", "output.LayerNorm")
    assembled: str | None = None
    """From the backbone: what patches go through once [CLS] and positions, which are plain parameters, have joined."""
    pooling: Literal["token", "mean", "both"] = "token"
    """What an image's class is read from: its first token, the mean over patches, or the two side by side."""

    # The way to the vocabulary, from the model with a language-model head
    lm_head: tuple[str, ...] = ("cls.predictions",)
    """Modules that turn the last hidden state into logits over the vocabulary, in order; the final norm included."""
    head_scaled: str | None = None
    """Name in the config of whether that state is then divided by the square root of its width, behind the norm."""
    head_bias: str | None = None
    """From the model with a language-model head: what is then added to its logits."""

    # Registers
    refusal: str | None = None
    """Why registers don't fit this architecture, if they don't; the family is there for what looks inside alone."""
    embeddings_mask: str | None = None
    """Name under which the embeddings module is given the attention mask, if it is."""
    mixing: tuple[str, ...] = ()
    """Modules that mix neighbouring positions (convolutions); registers are led around them."""
    shared_layers: bool = False
    """The same layer runs at several depths, so registers of every layer have no place to hang on."""
    unsupported: tuple[tuple[str, Any, str], ...] = ()
    """(config attribute, largest value or only word that works, why): configurations that registers don't fit."""

    # Relevance
    relevance: tuple[str, ...] = ()
    """The sets of relevance rules that fit: `attnlrp`, `cp-lrp`, `chefer`."""
    attention_by: Literal["interface", "scope"] = "interface"
    """interface: through transformers' table of attention functions. scope: the module's own forward runs, and the
    rules replace the products, softmax and activations that it calls."""
    gated: str | None = None
    """From the layer: a unit that multiplies two streams, or calls activations as functions."""
    rms_norm: bool = False
    """Whether `norms` and `final_norm` are RMSNorms (LayerNorms are known by their type)."""
    position_bias: str | None = None
    """Argument of the attending modules that is added to their scores, `[batch, heads, query, key]`."""
    single_precision: bool = False
    """Part of the model computes in float32 whatever its weights are, so the ledger closes to 1e-6, not 1e-8."""

    @property
    def placements(self) -> tuple[str, ...]:
        """Where registers may join: tokens must see them and, where positions are distances, stay beside [CLS]."""
        if self.causal:
            return ("prefix",)
        behind = self.positions == "absolute" and self.leading > 0
        return ("prefix", "after_cls", "suffix") if behind else ("prefix", "suffix")

    @property
    def beside_encoder(self) -> bool:
        """Whether this is a decoder that attends to what an encoder gives (`decoder_side`)."""
        return self.causal and self.cross_attention is not None

    @property
    def decoder_side(self) -> Family:
        """How registers of the decoder's own see it, where this describes a model with an encoder and a decoder."""
        return dataclasses.replace(
            self,
            name=f"the decoder of {self.name}",
            causal=True,
            encoder=None,
            decoder=None,
            word_scale=None,
            scale_behind=self.word_scale,
            unsupported=tuple((name.replace("encoder_", "decoder_"), *rest) for name, *rest in self.unsupported),
        )

    @property
    def joins_words(self) -> bool:
        """Whether registers join the words themselves, because no module stands between them and the layers."""
        return self.embeddings == self.word_embeddings

    @property
    def reads_images(self) -> bool:
        """Whether it reads images, `[batch, channels, height, width]`, in patches of `config.patch_size`."""
        return "pixel_values" in self.inputs

    @property
    def joined(self) -> str:
        """A module with a weight as wide as what registers join."""
        if self.norm is None and self.reads_images:
            return self.final_norm or f"{self.layers}.0.{self.norms[0]}"
        return self.norm or self.word_embeddings

    def within_layers(self, *paths: str | None) -> tuple[str, ...]:
        """Patterns, from the backbone, of parts of a layer in all layers; of the layers themselves without any."""
        every = f"{self.layers}.*"
        return tuple(f"{every}.{path}" for path in paths if path is not None) if paths else (every,)


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of a config's `image_size` or `patch_size`, where one number stands for both."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def stack_of(backbone: nn.Module, family: Family) -> nn.Module:
    """The module at whose output the registers leave the backbone."""
    found = backbone.get_submodule(family.stack)
    return found[-1] if isinstance(found, nn.ModuleList) else found


def num_layers(backbone: Any, family: Family) -> int:
    """How many layers a backbone has: a config doesn't say it of a decoder beside an encoder, nor modules of ALBERT."""
    shared = family.shared_layers
    return int(backbone.config.num_hidden_layers) if shared else len(backbone.get_submodule(family.layers))


def embed_words(backbone: nn.Module, family: Family, ids: Tensor) -> Tensor:
    """The words' embeddings as the backbone reads them, `[batch, seq, width]`."""
    words: Tensor = backbone.get_submodule(family.word_embeddings)(ids)
    return words if family.word_scale is None else words * getattr(backbone, family.word_scale)


def patch_grid(config: Any, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of patches that a model with this config makes of an image's pixels."""
    patch = sides(config.patch_size)
    return height // patch[0], width // patch[1]


def submodule(backbone: nn.Module, path: str | None) -> nn.Module | None:
    """The module at `path`, or None where this configuration has none (DeBERTa's optional convolution)."""
    if path is None:
        return None
    try:
        found: nn.Module | None = backbone.get_submodule(path)
    except AttributeError:
        return None
    return found if isinstance(found, nn.Module) else None


def first_readers(layer: nn.Module, family: Family) -> list[nn.Module]:
    """Modules inside a layer of which one reads what the layer is given, and does so first.

    Gradient checkpointing runs a layer's `forward` again without the layer's own hooks, and theirs with it.
    """
    found = (submodule(layer, path) for path in (family.norms[0], family.attention))
    return [module for module in found if module is not None]


def _stands_for(wanted: str, name: str) -> bool:
    return wanted == "*" or name in wanted.split("|")


def modules_at(backbone: nn.Module, *patterns: str) -> Iterator[nn.Module]:
    """The modules whose path matches one of the patterns, in the order of `named_modules`; each once."""
    wanted = [pattern.split(".") for pattern in patterns]
    for path, module in backbone.named_modules():
        names = path.split(".")
        for pattern in wanted:
            if len(pattern) == len(names) and all(map(_stands_for, pattern, names)):
                yield module
                break
