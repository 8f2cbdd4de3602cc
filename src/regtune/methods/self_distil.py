"""Self-distilled registers (PH-Reg, Chen et al. 2025, arXiv 2505.21501), for text: a stage without labels.

There a frozen model's features, averaged over shifted and mirrored copies of an image, are what the model with
registers learns to give: artefacts differ from copy to copy and average out. Of a text the copies have other words
masked, and a token's target is the mean of its last hidden states over the copies in which it isn't masked itself. The
student reads the text as it is; registers and the last layer learn, by cosine and squared error. Fine-tuning goes on
from there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from regtune.config import Count, Rate
from regtune.errors import ConfigError, UnsupportedModelError
from regtune.families import family_of
from regtune.interfaces import Method
from regtune.methods.warm_up import cut_passages, learn, restore_backbone, save_backbone
from regtune.models.precision import device_of
from regtune.registers.surgery import (
    backbone_of,
    disable_registers,
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
    """Copies of each text that the targets are averaged over."""
    mask_probability: Annotated[float, Range(0, 1, above=True, below=True)] = 0.15
    """Share of a copy's words that are masked."""
    trainable: Literal["registers", "last_layer", "all"] = "last_layer"
    """What learns: the registers alone, with the last layer, or with all."""
    learning_rate: Rate = 1e-4
    """Peak learning rate of all weights but the registers'."""
    register_learning_rate: Rate = 1e-3
    """Peak learning rate of the registers."""
    batch_size: Count = 16
    """Passages in a step."""


class SelfDistil(Method):
    """The model with registers learns what it says itself, less what changes from copy to copy."""

    name = "self_distil"
    title = "registers learn the frozen model's states, averaged over masked copies, without labels (PH-Reg, Chen 2025)"
    costs = "its steps, each with a forward pass more for every copy"
    use = "to give an encoder registers before fine-tuning"
    settings = SelfDistilSettings
    base = "moved"

    def before(
        self, session: Session, settings: SelfDistilSettings, texts: Sequence[str], folder: Path
    ) -> Mapping[str, Any]:
        """The stage; what it learnt is kept in the run directory, so that a run that was killed goes on from there.

        Raises:
            ConfigError: no registers that learn.
            UnsupportedModelError: a decoder, or a tokenizer without [MASK].
        """
        model, reader, config = session.model, session.reader, session.config
        backbone, path = backbone_of(model), folder / FILE
        if path.is_file():
            return restore_backbone(backbone, path)
        if not any(parameter.requires_grad for parameter in register_parameters(model)):
            raise ConfigError(
                f"self_distil is for registers, and this model has {num_registers(model)} and none that learn. Set "
                "registers.num_registers, or take self_distil out of the run."
            )
        if family_of(backbone.config).causal or getattr(reader, "mask_token_id", None) is None:
            raise UnsupportedModelError(f"{config.model} can't be distilled: it is no encoder with a [MASK] token.")
        teacher = copy.deepcopy(backbone).eval()
        passages = cut_passages(texts, reader, max_length=config.data.max_length - register_positions(model))
        device = device_of(backbone)

        def loss_of(ids: Tensor, mask: Tensor, special: Tensor, generator: torch.Generator) -> Tensor:
            masked = masks(special, settings.copies, settings.mask_probability, generator).to(device)
            ids, mask = ids.to(device), mask.to(device)
            target, known = averaged(teacher, ids, mask, masked, int(reader.mask_token_id))
            states = backbone(input_ids=ids, attention_mask=mask)[0][known]
            return distance(states, target[known])

        with preserved_random_state(), _learning(model, settings.trainable):
            torch.manual_seed(config.training.seed)
            facts = learn(backbone, passages, reader, loss_of, settings, config)
        model.eval()
        save_backbone(backbone, path, facts)
        return facts

    def leftovers(self) -> tuple[str, ...]:
        """The weights that were learnt."""
        return (FILE,)

    def label(self, settings: SelfDistilSettings) -> str:
        """The same for all."""
        return "self-distilled"


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


def distance(states: Float[Tensor, "tokens hidden"], target: Float[Tensor, "tokens hidden"]) -> Tensor:
    """1 − cosine, and the squared error over the targets' variance, both averaged."""
    states = states.float()
    squared = (states - target).square().mean() / target.var().clamp(min=1e-12)
    found: Tensor = (1 - cosine_similarity(states, target, dim=-1)).mean() + squared
    return found


@contextmanager
def _learning(model: nn.Module, who: str) -> Iterator[None]:
    """Lets the registers, and what is asked for beside them, learn; puts the flags back afterwards."""
    backbone = backbone_of(model)
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    registers = {id(parameter) for parameter in register_parameters(model)}
    layers = list(backbone.get_submodule(family_of(backbone.config).layers).children())
    chosen = {"registers": [], "last_layer": list(layers[-1].parameters()), "all": list(backbone.parameters())}[who]
    wanted = {id(parameter) for parameter in chosen}
    for parameter in model.parameters():
        if id(parameter) not in registers:
            parameter.requires_grad_(id(parameter) in wanted)
    try:
        yield
    finally:
        for parameter, flag in before.items():
            parameter.requires_grad_(flag)
