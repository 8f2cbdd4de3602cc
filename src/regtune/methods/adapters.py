"""Bottleneck adapters, Houlsby's two and Pfeiffer's one a layer: kinds of adapters that peft can save, load and switch.

Houlsby et al. 2019 (arXiv 1902.00751) put one behind each of a layer's two projections, in front of the residual sum;
Pfeiffer et al. 2021 (arXiv 2005.00247) keep the one behind the feed-forward. The second matrix starts at zero here, so
that training starts from the base model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft.config import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import gelu


@dataclass
class OwnConfig(PeftConfig):  # type: ignore[misc]
    """What every kind of adapter that is not in peft has: where it goes, and what is trained beside it."""

    target_modules: list[str] | None = None
    exclude_modules: list[str] | None = None
    modules_to_save: list[str] | None = None


@dataclass
class BottleneckConfig(OwnConfig):
    """Bottleneck adapters behind the target modules."""

    reduction: int = 16
    """The bottleneck has this many times fewer dimensions than what it reads."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = "BOTTLENECK"


class OwnLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A module with something added to its output by the active adapters."""

    get_base_layer: Any
    active_adapters: Any
    adapter_layer_names: Any
    set_adapter: Any
    unmerge: Any

    def __init__(self, base_layer: nn.Module, adapter: str, config: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.merged_adapters: list[str] = []
        self.make()
        self.update_layer(adapter, config)
        self.set_adapter(adapter)

    def make(self) -> None:
        """The containers of weights, by adapter."""
        raise NotImplementedError

    def update_layer(self, adapter: str, config: Any) -> None:
        """The weights of one more adapter, on the base's device."""
        raise NotImplementedError

    def change(self, adapter: str, output: Tensor) -> Tensor:
        """The output with what an adapter adds."""
        raise NotImplementedError

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The base's output, changed by the active adapters that are not merged into it."""
        output: Tensor = self.base_layer(*args, **kwargs)
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
                return self.forward(*args, **kwargs)
            return output
        for adapter in self.active_adapters:
            if adapter in getattr(self, self.adapter_layer_names[0]) and adapter not in self.merged_adapters:
                output = self.change(adapter, output)
        return output


class BottleneckLayer(OwnLayer):
    """x + up(gelu(down(x))) behind a projection."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")

    def make(self) -> None:
        """Two matrices an adapter."""
        self.bottleneck_down, self.bottleneck_up = nn.ModuleDict(), nn.ModuleDict()

    def update_layer(self, adapter: str, config: BottleneckConfig) -> None:
        """A narrow pair of layers; the second one starts at zero."""
        base = self.get_base_layer()
        weight, width = base.weight, base.bias.shape[0] if base.bias is not None else base.weight.shape[0]
        narrow = max(1, width // config.reduction)
        down, up = nn.Linear(width, narrow), nn.Linear(narrow, width)
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
        self.bottleneck_down[adapter] = down.to(weight.device, weight.dtype)
        self.bottleneck_up[adapter] = up.to(weight.device, weight.dtype)

    def change(self, adapter: str, output: Tensor) -> Tensor:
        """The residual bottleneck."""
        changed: Tensor = output + self.bottleneck_up[adapter](gelu(self.bottleneck_down[adapter](output)))
        return changed

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused: it is no linear change.

        Raises:
            ValueError: always.
        """
        raise ValueError("Bottleneck adapters can't be merged: they are not linear. Serve them with their adapter.")


class OwnTuner(BaseTuner):  # type: ignore[misc]
    """Puts layers of one class around the target modules."""

    target_module_mapping: dict[str, list[str]] = {}

    def _create_and_replace(
        self, config: Any, adapter: str, target: Any, name: str, parent: nn.Module, current_key: str
    ) -> None:
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter, config)
            return
        layer = self.tuner_layer_cls(target, adapter, config)
        if adapter not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, name, layer, target)


def enter_kind(config: Any, layer: type[OwnLayer]) -> Any:
    """Makes peft know a kind of adapter; gives its config class."""
    kind, prefix = config().peft_type, layer.adapter_layer_names[0].split("_")[0] + "_"
    tuner = type(f"{kind.title()}Model", (OwnTuner,), {"prefix": prefix, "tuner_layer_cls": layer})
    PEFT_TYPE_TO_CONFIG_MAPPING[kind], PEFT_TYPE_TO_TUNER_MAPPING[kind] = config, tuner
    PEFT_TYPE_TO_PREFIX_MAPPING[kind] = prefix
    return config


enter_kind(BottleneckConfig, BottleneckLayer)
