"""Self-distilled registers (PH-Reg, Chen et al. 2025, arXiv 2505.21501): a stage without labels.

A frozen model's states, averaged over perturbed copies, are what the model with registers learns to give: artefacts
differ from copy to copy and average out. An image's copies are moved and mirrored, and the target of a patch is the
mean of the states that are found where it is, over the copies that show all of it (`picture_copies`); of [CLS], which
has no place, the mean over all. A text's copies have other words masked, and a token's target is the mean over the
copies in which it isn't masked itself. The student reads text or image as it is; registers and the last layer learn, by
cosine and squared error. Fine-tuning goes on from there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, pad

from regtune.config import Count, Rate
from regtune.errors import ConfigError, UnsupportedModelError
from regtune.families import family_of
from regtune.families._family import patch_grid, sides
from regtune.interfaces import Examples, Method
from regtune.methods.picture_copies import Moves, draw_moves, moved, put_back
from regtune.methods.warm_up import cut_passages, learn, padded, restore_backbone, save_backbone
from regtune.models.precision import device_of
from regtune.registers.surgery import (
    backbone_of,
    disable_registers,
    keeping_flags,
    num_registers,
    register_parameters,
    register_positions,
)
from regtune.training.trainer import preserved_random_state
from regtune.typed import Checked, Range

if TYPE_CHECKING:
    from regtune.session import Session

FILE = "self_distil.safetensors"


@dataclass(frozen=True, kw_only=True)
class SelfDistilSettings(Checked, section="self_distil"):
    """The stage."""

    steps: Annotated[int, Range(1, 10**9)] = 500
    """Optimiser steps."""
    copies: Annotated[int, Range(1, 100)] = 4
    """Copies of each text or image that the targets are averaged over."""
    mask_probability: Annotated[float, Range(0, 1, above=True, below=True)] = 0.15
    """Share of a copy's words that are masked."""
    shift: Annotated[float, Range(0, 0.5)] = 0.15
    """How far a copy of an image is moved at most, as a share of its height and of its width."""
    trainable: Literal["registers", "last_layer", "all"] = "last_layer"
    """What learns: the registers alone, with the last layer, or with all."""
    learning_rate: Rate = 1e-4
    """Peak learning rate of all weights but the registers'."""
    register_learning_rate: Rate = 1e-3
    """Peak learning rate of the registers."""
    batch_size: Count = 16
    """Passages or images in a step."""


class SelfDistil(Method):
    """The model with registers learns what it says itself, less what changes from copy to copy."""

    name = "self_distil"
    title = (
        "registers learn the frozen model's states, averaged over perturbed copies, without labels (PH-Reg, Chen 2025)"
    )
    costs = "its steps, each with a forward pass more for every copy"
    use = "to give an encoder of text or images registers before fine-tuning"
    settings = SelfDistilSettings
    base = "moved"

    def before(
        self, session: Session, settings: SelfDistilSettings, examples: Examples, folder: Path
    ) -> Mapping[str, Any]:
        """The stage; what it learnt is kept in the run directory, so that a run that was killed goes on from there.

        Raises:
            ConfigError: no registers that learn.
            UnsupportedModelError: a decoder, or a tokenizer without [MASK].
        """
        model, config = session.model, session.config
        backbone, path = backbone_of(model), folder / FILE
        if path.is_file():
            return restore_backbone(backbone, path)
        if not any(parameter.requires_grad for parameter in register_parameters(backbone)):
            raise ConfigError(
                f"self_distil is for registers, and this model has {num_registers(model)} and none that learn. Set "
                "registers.num_registers, or take self_distil out of the run."
            )
        how = _of_images if session.modality == "image" else _of_texts
        lengths, loss_of, count = how(session, settings, examples, copy.deepcopy(backbone).eval())
        with preserved_random_state(), keeping_flags(model):
            _let_learn(model, settings.trainable)
            torch.manual_seed(config.training.seed)
            facts = learn(backbone, lengths, loss_of, settings, config) | count
        model.eval()
        save_backbone(backbone, path, facts)
        return facts

    def leftovers(self) -> tuple[str, ...]:
        """The weights that were learnt."""
        return (FILE,)

    def label(self, settings: SelfDistilSettings) -> str:
        """The same for all."""
        return "self-distilled"


_Work = tuple[Sequence[int], Callable[[Sequence[int], torch.Generator], Tensor], dict[str, int]]
"""Lengths of the rows, the loss of a batch of them, and how many there are, for the record."""


def _of_texts(session: Session, settings: SelfDistilSettings, examples: Examples, teacher: nn.Module) -> _Work:
    """The stage on texts, cut into passages.

    Raises:
        UnsupportedModelError: a decoder, or a tokenizer without [MASK].
    """
    reader, config, backbone = session.reader, session.config, backbone_of(session.model)
    if session.family.causal or getattr(reader, "mask_token_id", None) is None:
        raise UnsupportedModelError(f"{config.model} can't be distilled: it is no encoder with a [MASK] token.")
    texts = [session.reads.text(example) for example in examples.items]
    passages = cut_passages(texts, reader, max_length=config.data.max_length - register_positions(session.model))
    device = device_of(backbone)

    def loss_of(rows: Sequence[int], generator: torch.Generator) -> Tensor:
        ids, mask, special = padded([passages[row] for row in rows], reader)
        masked = masks(special, settings.copies, settings.mask_probability, generator).to(device)
        ids, mask = ids.to(device), mask.to(device)
        target, known = averaged(teacher, ids, mask, masked, int(reader.mask_token_id))
        states = backbone(input_ids=ids, attention_mask=mask)[0][known]
        return distance(states, target[known])

    return [len(ids) for ids in passages], loss_of, {"passages": len(passages)}


def _of_images(session: Session, settings: SelfDistilSettings, examples: Examples, teacher: nn.Module) -> _Work:
    """The stage on images, as the model's image processor makes them."""
    backbone = backbone_of(session.model)
    device, found = device_of(backbone), session.rows(examples)

    def loss_of(rows: Sequence[int], generator: torch.Generator) -> Tensor:
        pixels = found.batch(rows)["pixel_values"].to(device)
        size = (pixels.shape[-2], pixels.shape[-1])
        copies = [draw_moves(len(rows), size, settings.shift, generator) for _ in range(settings.copies)]
        target, known = averaged_pictures(teacher, pixels, copies)
        return distance(backbone(pixel_values=pixels)[0][known], target[known])

    return found.lengths, loss_of, {"images": len(found)}


def masks(
    special: Bool[Tensor, "batch seq"], copies: int, probability: float, generator: torch.Generator
) -> Bool[Tensor, "copies batch seq"]:
    """Which words are masked in each copy; special tokens and padding never are."""
    draws = torch.rand((copies, *special.shape), generator=generator)
    return (draws < probability) & ~special


@torch.no_grad()
def averaged(
    teacher: nn.Module,
    ids: Int[Tensor, "batch seq"],
    mask: Int[Tensor, "batch seq"],
    masked: Bool[Tensor, "copies batch seq"],
    mask_token_id: int,
) -> tuple[Float[Tensor, "batch seq hidden"], Bool[Tensor, "batch seq"]]:
    """The targets: each token's last hidden state, averaged over the copies in which it isn't masked.

    Args:
        teacher: a backbone; its registers are switched off.
        ids: the texts.
        mask: 1 for text, 0 for padding.
        masked: what is masked in each copy.
        mask_token_id: of [MASK].

    Returns:
        The means, and which tokens have one.
    """
    total, count = None, torch.zeros_like(ids, dtype=torch.float32)
    with disable_registers(teacher):
        for gone in masked:
            states = teacher(input_ids=ids.masked_fill(gone, mask_token_id), attention_mask=mask)[0].float()
            kept = (~gone & mask.bool()).float()
            total = states * kept[..., None] if total is None else total + states * kept[..., None]
            count += kept
    assert total is not None
    return total / count.clamp(min=1)[..., None], count > 0


@torch.no_grad()
def averaged_pictures(
    teacher: nn.Module, pixels: Float[Tensor, "batch channels height width"], copies: Sequence[Moves]
) -> tuple[Float[Tensor, "batch places hidden"], Bool[Tensor, "batch places"]]:
    """The targets: the last hidden states, averaged over moved and mirrored copies, each put back to its place.

    Args:
        teacher: a backbone; its registers are switched off.
        pixels: the images.
        copies: how each copy is made.

    Returns:
        The means: of the tokens in front over all copies, of a patch over those that show all of it; and which places
        have one.
    """
    config: Any = backbone_of(teacher).config
    size, leading = (pixels.shape[-2], pixels.shape[-1]), family_of(config).leading
    grid = patch_grid(config, *size)
    total = count = torch.zeros((), device=pixels.device)
    with disable_registers(teacher):
        for moves in copies:
            states = teacher(pixel_values=moved(pixels, moves))[0].float()
            patches = states[:, leading:].unflatten(1, grid)
            back, seen = put_back(patches, moves, size, sides(config.patch_size))
            total = total + torch.cat([states[:, :leading], back.flatten(1, 2)], dim=1)
            count = count + pad(seen.flatten(1).float(), (leading, 0), value=1.0)
    return total / count.clamp(min=1)[..., None], count > 0


def distance(states: Float[Tensor, "tokens hidden"], target: Float[Tensor, "tokens hidden"]) -> Tensor:
    """1 − cosine, and the squared error over the targets' variance, both averaged."""
    states = states.float()
    squared = (states - target).square().mean() / target.var().clamp(min=1e-12)
    found: Tensor = (1 - cosine_similarity(states, target, dim=-1)).mean() + squared
    return found


def _let_learn(model: nn.Module, who: str) -> None:
    """Lets the registers, and what is asked for beside them, learn."""
    backbone = backbone_of(model)
    registers = {id(parameter) for parameter in register_parameters(model)}
    layers = list(backbone.get_submodule(family_of(backbone.config).layers).children())
    chosen = {"registers": [], "last_layer": list(layers[-1].parameters()), "all": list(backbone.parameters())}[who]
    wanted = {id(parameter) for parameter in chosen}
    for parameter in model.parameters():
        if id(parameter) not in registers:
            parameter.requires_grad_(id(parameter) in wanted)
