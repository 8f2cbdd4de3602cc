"""The registers of a decoder, read once and kept.

A register sees no text, so its keys and values are the same for all texts: a model that is served reads them once.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from regtune.errors import InputError, UnsupportedModelError
from regtune.families import family_of
from regtune.registers.cache_names import cache_argument, put_cache
from regtune.registers.surgery import backbone_of, require_registers


class RegistersCache:
    """What `registers_cache` gives: `start(batch_size)` makes caches from it."""

    def __init__(self, model: nn.Module) -> None:
        registers, backbone = require_registers(model), backbone_of(model)
        family = family_of(backbone.config)
        if not family.causal:
            raise UnsupportedModelError(
                f"{type(model).__name__} has no cache to keep registers in: its registers see the text. "
                "Only those of decoders don't."
            )
        if not registers.enabled:
            raise InputError("The registers are switched off. Make their cache outside disable_registers.")
        cache, training = DynamicCache(config=backbone.config), backbone.training
        one = torch.zeros(1, 1, dtype=torch.long, device=registers.tokens.device)
        given: dict[str, Any] = {"input_ids": one, "position_ids": one, "use_cache": True}
        put_cache(given, cache, cache_argument(backbone.forward))
        backbone.eval()
        try:
            with torch.no_grad():
                backbone(**given)
        finally:
            backbone.train(training)
        cache.registers = cache.registers._replace(ahead=True)  # type: ignore[attr-defined]
        self._cache: Any = cache
        self._weights = list(backbone.parameters())
        self._versions = self._now()

    def _now(self) -> list[int]:
        return [weight._version for weight in self._weights]

    def start(self, batch_size: int = 1) -> DynamicCache:
        """A cache that holds the registers and no text yet, for a call or for `generate`.

        Args:
            batch_size: texts of the call; `generate` reads a text once for each of its beams or samples.

        Raises:
            InputError: the model's weights have changed since the registers were read.
        """
        if self._now() != self._versions:
            raise InputError(
                "The model's weights have changed since its registers were read. Read them again: "
                "registers_cache(model)."
            )
        cache: DynamicCache = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(batch_size)
        cache.crop(-1)  # the token that they were read with
        return cache


def registers_cache(model: nn.Module) -> RegistersCache:
    """Reads a decoder's registers once, so that no later call does.

        kept = regtune.registers_cache(model)
        model.generate(**inputs, past_key_values=kept.start(len(inputs["input_ids"])))  # cache= from transformers 5.24

    Padded texts need `position_ids` in which each starts at 0, which `generate` gives by itself.

    Args:
        model: a decoder with registers, any head.

    Raises:
        UnsupportedModelError: no registers, or an encoder, whose registers see the text.
        InputError: the registers are switched off.
    """
    return RegistersCache(model)
