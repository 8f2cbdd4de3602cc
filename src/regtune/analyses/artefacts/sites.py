"""The three places in every block at which artefacts are looked for, read while the model runs.

- `norm_input`: what goes into the last LayerNorm (or RMSNorm) that runs in a block. Where the norm stands behind the
  sums (BERT and its relatives) that is the feed-forward output plus its skip connection, before the norm makes all
  tokens alike; where it stands before the branches (ModernBERT, GPT-2, Llama) it is the residual stream behind the
  block's attention.
- `feed_forward`: what the last linear layer that runs in a block gives: the feed-forward branch, without its skip.
- `block`: what the block hands on: behind the LayerNorm in the first case, the residual stream in the second.

"Last that runs" is found by listening, not by name, so that any Hugging Face model with a list of blocks will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Int8
from torch import Tensor, nn

from regtune.analyses.attention.tap import registers_first
from regtune.analyses.batches import run_backbone, with_words
from regtune.analyses.reversible import require_eval_mode
from regtune.errors import DataError, UnsupportedModelError
from regtune.families import find_family, known_families
from regtune.families._family import modules_at
from regtune.interfaces import Batch
from regtune.progress import each
from regtune.registers.surgery import backbone_of, base_of, find_registers
from regtune.rows.token_classes import TokenClass

SITES = ("norm_input", "feed_forward", "block")


@dataclass(frozen=True, kw_only=True)
class BlockStates:
    """What one block did with a batch, `[rows, registers + seq, hidden]` each, registers first."""

    layer: int
    sites: Mapping[str, Tensor]
    norm: str
    """Path of the norm inside the block, and of the linear layer."""
    feed_forward: str
    post_norm: bool
    """Whether the block's output is that norm's output."""


Callback = Callable[[BlockStates], None]


def blocks_of(model: nn.Module) -> tuple[nn.Module, ...]:
    """The blocks of the backbone in the order of depth; one that runs at several depths (ALBERT) occurs once."""
    backbone = backbone_of(model)
    family = find_family(backbone.config)
    known = None if family is None else tuple(modules_at(backbone, *family.within_layers()))
    blocks = _listed_blocks(backbone) if known is None else known
    if not blocks or getattr(backbone.config, "is_encoder_decoder", False):
        names = ", ".join(family.name for family in known_families())
        raise UnsupportedModelError(
            f"The blocks of {type(base_of(model)).__name__} "
            f"(model_type={getattr(backbone.config, 'model_type', None)!r}) can't be found. "
            f"Supported: {names}, and any other encoder or decoder that keeps its num_hidden_layers "
            "blocks in one list."
        )
    return blocks


def _listed_blocks(backbone: Any) -> tuple[nn.Module, ...]:
    depth = getattr(backbone.config, "num_hidden_layers", None)
    for module in backbone.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth and len({type(part) for part in module}) == 1:
            return tuple(module)
    return ()


@contextmanager
def watch_blocks(model: nn.Module, callback: Callback) -> Iterator[None]:
    """Inside the context every forward pass calls `callback` once a block, in the order of depth.

    Hooks only listen: outputs stay bit for bit what they are, and on leaving all hooks are gone.
    """
    require_eval_mode(model)
    blocks = blocks_of(model)
    backbone = backbone_of(model)
    watch = _Watch(callback, model)
    with ExitStack() as stack:
        stack.callback(backbone.register_forward_pre_hook(watch.restart).remove)
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(watch.enter, with_kwargs=True).remove)
            for path, part in block.named_modules():
                if is_norm(part) or is_linear(part):
                    hear = partial(watch.hear, path, is_norm(part))
                    stack.callback(part.register_forward_hook(hear).remove)
            stack.callback(block.register_forward_hook(watch.leave, prepend=True).remove)
        yield


class _Watch:
    """Remembers the last norm and the last linear layer of the block that is running."""

    def __init__(self, callback: Callback, model: nn.Module) -> None:
        self.callback = callback
        self.registers = find_registers(model)
        self.layer = 0
        self.shape: torch.Size | None = None
        self.norm: tuple[str, Tensor, Tensor] | None = None
        self.linear: tuple[str, Tensor, Tensor] | None = None
        """Path, input and output of each."""

    def restart(self, _backbone: nn.Module, _args: tuple) -> None:
        self.layer = 0

    def enter(self, _block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim() == 3]
        self.shape = given[0].shape if given else None
        self.norm = self.linear = None

    def hear(self, path: str, norm: bool, _module: nn.Module, args: tuple, output: Tensor) -> None:
        if args and output.shape == self.shape:
            if norm:
                self.norm = (path, args[0], output)
            else:
                self.linear = (path, args[0], output)

    def leave(self, block: nn.Module, _args: tuple, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        if self.norm is None or self.linear is None or states.shape != self.shape:
            raise UnsupportedModelError(
                f"Block {self.layer} ({type(block).__name__}) runs no norm or no linear layer on states of its own "
                "shape [rows, seq, hidden], so it isn't clear where its artefacts would be."
            )
        norm, linear = self.norm, self.linear
        self.norm = self.linear = None
        sites = dict(zip(SITES, (norm[1], linear[2], states), strict=True))
        found = BlockStates(
            layer=self.layer,
            sites={name: registers_first(value, self.registers, 1) for name, value in sites.items()},
            norm=norm[0],
            feed_forward=linear[0],
            post_norm=norm[2].data_ptr() == states.data_ptr(),
        )
        self.layer += 1
        self.callback(found)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a LayerNorm or RMSNorm, by type or (models' own RMSNorms) by name."""
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("Norm")


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer: torch's, or GPT-2's, which keeps its weight transposed."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


Visit = Callable[[BlockStates, int, Int8[Tensor, " total"]], None]
"""`visit(states, row, classes)`: one text in one block; classes include the registers'."""


def visit_texts(model: nn.Module, batches: Iterable[Batch], visit: Visit) -> tuple[int, ...]:
    """Runs batches and calls `visit` for every text with content, in every block.

    Returns:
        The example of each text in the order of the visits.
    """
    classes = torch.empty(0)
    examples: list[int] = []

    def see(states: BlockStates) -> None:
        extra = next(iter(states.sites.values())).shape[1] - classes.shape[1]
        registers = classes.new_full((extra,), int(TokenClass.REGISTER))
        for row, kinds in enumerate(classes):
            visit(states, row, torch.cat([registers, kinds]))

    with watch_blocks(model, see):
        for batch in with_words(each(batches, "batches")):
            examples += batch["example"].tolist()
            classes = batch["token_classes"].to(next(model.parameters()).device)
            run_backbone(model, batch)
    if not examples:
        raise DataError("The texts hold not one content token: all are special ones or padding. Give text with words.")
    return tuple(examples)
