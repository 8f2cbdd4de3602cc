"""Running a model on given word embeddings, and given registers, instead of its own.

The embeddings replace the output of the table of word embeddings, by a hook: `inputs_embeds` would lose RoBERTa's
positions, which depend on the ids, and not every model takes it. Positions and types stay those of the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from regtune.families._family import Family, modules_at
from regtune.registers.registers import Registers
from regtune.registers.surgery import backbone_of, find_registers


class GivenEmbeddings:
    """What stands in for the model's own embeddings in the passes inside `given_embeddings`."""

    def __init__(self, registers: Registers | None) -> None:
        self.active = None if registers is None or not registers.enabled else registers
        self.words: Tensor | None = None
        """`[batch, seq, width]`, or None for the model's own."""
        self.registers: Sequence[Tensor] = ()
        """For each depth at which registers join, `[batch, registers, width]`; empty for the model's own."""
        self._calls = 0

    def learned_registers(self) -> list[Tensor]:
        """The registers' own vectors, `[registers, width]` for each depth at which they join."""
        if self.active is None:
            return []
        deep = [] if self.active.deep is None else list(self.active.deep.detach())
        return [self.active(1)[0].detach(), *deep]

    def _restart(self, _module: nn.Module, _args: tuple) -> None:
        self._calls = 0

    def _give_words(self, _module: nn.Module, _args: tuple, _output: Tensor) -> Tensor | None:
        self._calls += 1  # GPT-2 looks its token types up in the same table, after the words
        return self.words if self._calls == 1 else None

    def _give_registers(self, _module: nn.Module, _args: tuple, _output: Tensor) -> Tensor | None:
        return self.registers[0] if self.registers else None

    def _give_fresh(self, depth: int, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        if self.active is None or not self.registers:
            return None
        states = args[0] if args else kwargs["hidden_states"]
        states = self.active.insert(self.registers[depth], self.active.strip(states))
        return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})


@contextmanager
def given_embeddings(model: nn.Module, family: Family) -> Iterator[GivenEmbeddings]:
    """Inside the context, passes of `model` run on what is set on the yielded object."""
    backbone = backbone_of(model)
    given = GivenEmbeddings(find_registers(model))
    with ExitStack() as stack:
        stack.callback(backbone.register_forward_pre_hook(given._restart).remove)
        words = backbone.get_submodule(family.word_embeddings)
        stack.callback(words.register_forward_hook(given._give_words).remove)
        if given.active is not None:
            stack.callback(given.active.register_forward_hook(given._give_registers).remove)
            if given.active.deep is not None:
                for depth, layer in enumerate(list(modules_at(backbone, *family.within_layers()))[1:], start=1):
                    stack.callback(layer.register_forward_pre_hook(_Fresh(given, depth), with_kwargs=True).remove)
        yield given


class _Fresh:
    """Before a layer: puts the given registers of its depth in the place of the model's."""

    def __init__(self, given: GivenEmbeddings, depth: int) -> None:
        self.given = given
        self.depth = depth

    def __call__(self, _layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        return self.given._give_fresh(self.depth, args, kwargs)
