"""BitFit (Ben Zaken et al. 2022, arXiv 2106.10199): the biases learn, all else is frozen.

What is trained is the difference to each bias, so that the base stays as it is: the same steps of Adam, and an adapter
of a few kilobytes that switches off.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regtune.methods.adapters import OwnConfig, OwnLayer, enter_kind


@dataclass
class BitFitConfig(OwnConfig):
    """Differences to the biases of the target modules."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = "BITFIT"


class BitFitLayer(OwnLayer):
    """A module whose bias is shifted."""

    adapter_layer_names = ("bitfit_shift",)

    def make(self) -> None:
        """One vector an adapter."""
        self.bitfit_shift = nn.ParameterDict()

    def update_layer(self, adapter: str, config: BitFitConfig) -> None:
        """A shift that starts at zero."""
        self.bitfit_shift[adapter] = nn.Parameter(torch.zeros_like(self.get_base_layer().bias))

    def change(self, adapter: str, output: Tensor) -> Tensor:
        """The shifted output."""
        inner = self.get_base_layer().weight.dim() - 2  # a convolution's channels come before places
        changed: Tensor = output + self.bitfit_shift[adapter].view(-1, *[1] * inner)
        return changed

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Adds the shifts to the biases."""
        for adapter in adapter_names or self.active_adapters:
            if adapter in self.bitfit_shift and adapter not in self.merged_adapters:
                self.get_base_layer().bias.data += self.bitfit_shift[adapter].data
                self.merged_adapters.append(adapter)

    def unmerge(self) -> None:
        """Takes them out again."""
        while self.merged_adapters:
            self.get_base_layer().bias.data -= self.bitfit_shift[self.merged_adapters.pop()].data


enter_kind(BitFitConfig, BitFitLayer)
