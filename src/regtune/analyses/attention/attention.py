"""Attention statistics of a model over a data set, streamed: no map is kept longer than its layer takes.

What each number means is in `regtune.analyses.attention.measures`. Every window counts the same, whatever its length,
batch or padding. The weights are computed in the model's own precision and measured in float32 at least; load a model
in float32 for numbers to publish. Windows run a few at a time, so that a layer's weights stay in the processor's cache.

Memory: sums `[layers, heads]`, and for intervals (`attention_compare`) the means over heads of every window, about
130 bytes a window and layer: 0.4 MB for 500 windows of six layers.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from regtune.analyses.attention.measures import CLASSES, AttentionSettings, Places, measure_layer, places_of
from regtune.analyses.attention.outputs import OutputNorms
from regtune.analyses.attention.tap import attention_tap
from regtune.errors import ConfigError, DataError, UnsupportedModelError
from regtune.registers.surgery import backbone_of, find_registers
from regtune.token_classes import TokenClass, is_content

Floats = npt.NDArray[np.floating]

BY_CLASS = ("mass", "mass_text", "value_weighted_mass", "sink_rate_by_class")
SINGLE = (
    "entropy",
    "entropy_text",
    "sink_rate",
    "sink_rate_text",
    "sink_lift",
    "sink_lift_text",
    "write",
    "idle",
)
_FORWARDED = ("input_ids", "attention_mask", "token_type_ids")
_CACHED = 2**20
"""Attention weights of one layer that run together on a processor: 4 MB in float32 (one row at least)."""
_ON_ACCELERATOR = 2**28


@dataclass(frozen=True, kw_only=True)
class AttentionStatistics:
    """What `attention_statistics` found; arrays are means over windows, `[layers, heads, ...]`.

    Attributes:
        num_registers: N; 0 where the registers are switched off.
        layers: number of layers.
        heads: number of heads.
        windows: number of windows.
        settings: thresholds and choice of queries.
        by_class: `mass`, `mass_text`, `value_weighted_mass`, `sink_rate_by_class`: `[layers, heads, classes]`.
        single: `entropy`, `sink_rate`, `sink_lift`, the same three over text (`entropy_text`, ...), `write` and `idle`:
            `[layers, heads]`. Sink rates and `idle` are shares of windows.
        uniform: the mass that uniform attention would give each class, `[classes]`.
        register_share: attention that text gives each register, `[layers, heads, registers]`.
        register_attention_out: what registers attend to, `[layers, heads, registers, classes]`.
        per_window: each window's means over heads, by name (`mass.cls`, `entropy`, ...): `[windows, layers]`.
        examples: index of each window's example, `[windows]`.
        tokens: text tokens of each window, `[windows]`.
    """

    num_registers: int
    layers: int
    heads: int
    windows: int
    settings: AttentionSettings
    by_class: dict[str, Floats]
    single: dict[str, Floats]
    uniform: Floats
    register_share: Floats
    register_attention_out: Floats
    per_window: dict[str, Floats] = field(repr=False)
    examples: npt.NDArray[np.int64] = field(repr=False)
    tokens: npt.NDArray[np.int64] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """The contents of `inside/attention.json`: numbers and lists, without the single windows."""
        return {
            "schema_version": 1,
            "kind": "attention",
            "num_registers": self.num_registers,
            "layers": self.layers,
            "heads": self.heads,
            "windows": self.windows,
            "tokens": int(self.tokens.sum()),
            "queries": self.settings.queries,
            "sink_above": self.settings.sink_above,
            "idle_mass": self.settings.idle_mass,
            "idle_write": self.settings.idle_write,
            "uniform": dict(zip(CLASSES, self.uniform.tolist(), strict=True)),
            **{name: _by_name(values) for name, values in self.by_class.items()},
            **{name: values.tolist() for name, values in self.single.items()},
            "register_share": np.moveaxis(self.register_share, -1, 0).tolist(),
            "register_attention_out": _by_name(np.moveaxis(self.register_attention_out, 2, 0)),
        }


def attention_statistics(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], *, settings: AttentionSettings | None = None
) -> AttentionStatistics:
    """Runs the model over the batches and measures every layer's attention as it is computed.

    Args:
        model: a Hugging Face model of a supported family, with or without registers, eager or SDPA, in eval mode. It
            is left as it was.
        batches: analysis batches: `input_ids`, `attention_mask`, `token_classes` `[rows, seq]`, and where there are
            any `token_type_ids` and `example` `[rows]` (else windows are numbered as they come).
        settings: thresholds and choice of queries.

    Raises:
        UnsupportedModelError: a model in training mode, of an unknown family, or with an attention implementation
            that hides its weights; attention that is not a number.
        DataError: no batch at all.
        ConfigError: token classes that are missing or don't fit the mask, or a window without a word.
    """
    backbone = backbone_of(model)
    reader = _Reader(model, settings or AttentionSettings())
    accepted = inspect.signature(backbone.forward).parameters
    device = next(backbone.parameters()).device
    extra = {"use_cache": False} if "use_cache" in accepted else {}
    windows = 0
    with torch.no_grad(), attention_tap(model, reader.read):
        for batch in batches:
            _check(batch)
            examples = (
                batch["example"] if "example" in batch else torch.arange(windows, windows + len(batch["input_ids"]))
            )
            windows += len(examples)
            for rows in reader.groups(batch):
                inputs = {name: value.to(device) for name, value in rows.items() if name in _FORWARDED}
                reader.begin(rows, examples[rows["row"]])
                backbone(
                    **{name: value for name, value in inputs.items() if name in accepted}, **extra, return_dict=True
                )
                reader.end()
    if not windows:
        raise DataError("There is no batch to read attention from. Give at least one window.")
    return reader.result()


class _Reader:
    """Takes each layer's weights, adds what they say to the sums, and lets go of them."""

    def __init__(self, model: nn.Module, settings: AttentionSettings) -> None:
        self.settings = settings
        self.norms = OutputNorms(model)
        registers = find_registers(model)
        self.registers = registers if registers is not None and registers.enabled else None
        config = backbone_of(model).config
        self.weights_a_row = int(config.num_attention_heads)
        self.limit = _CACHED if next(model.parameters()).device.type == "cpu" else _ON_ACCELERATOR
        self.classes = torch.empty(0)
        self.places: Places | None = None
        self.shapes: dict[str, torch.Size] = {}
        self.sums: list[Tensor] = []
        """For each layer `[heads, numbers]` in float64."""
        self.uniform = torch.zeros(len(CLASSES), dtype=torch.float64)
        self.seen: list[Tensor] = []
        """For each layer of the present group the means over heads, `[rows, numbers]`."""
        self.rows: list[npt.NDArray[np.float32]] = []
        """For each group `[rows, layers, numbers]`."""
        self.examples: list[Tensor] = []
        self.tokens: list[Tensor] = []

    def groups(self, batch: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """A batch in groups of rows whose weights fit the cache, without the padding behind all of a group's rows."""
        names = [name for name in (*_FORWARDED, "token_classes") if name in batch]
        total = batch["input_ids"].shape[1] + (self.registers.num_registers if self.registers is not None else 0)
        size = max(1, self.limit // (self.weights_a_row * total**2))
        for first in range(0, len(batch["input_ids"]), size):
            rows = torch.arange(first, min(first + size, len(batch["input_ids"])))
            length = int(batch["attention_mask"][rows].any(0).nonzero().max()) + 1
            yield {"row": rows, **{name: batch[name][rows, :length] for name in names}}

    def begin(self, rows: Mapping[str, Tensor], examples: Tensor) -> None:
        """Before a group runs."""
        self.classes, self.places, self.seen = rows["token_classes"], None, []
        self.examples.append(examples)
        self.tokens.append(rows["attention_mask"].sum(1))

    def read(self, layer: int, weights: Tensor, values: Tensor, module: nn.Module) -> None:
        """The tap's callback."""
        wide = torch.promote_types(weights.dtype, torch.float32)
        if self.places is None:  # only now have the registers found their places
            self.places = self._places(weights.device, wide, causal=bool(getattr(module, "is_causal", False)))
        found = measure_layer(weights.to(wide), self.norms(module, values).to(wide), self.places, self.settings)
        self.shapes = {name: value.shape[2:] for name, value in found.items()}
        numbers = torch.cat(
            [value.flatten(2) if value.dim() > 2 else value.unsqueeze(2) for value in found.values()], 2
        )
        summed = numbers.sum(0, dtype=torch.float64)
        if layer == len(self.sums):
            self.sums.append(summed)
        else:
            self.sums[layer] += summed
        self.seen.append(numbers.mean(1))

    def end(self) -> None:
        """After a group has run."""
        if not self.seen or self.places is None or len(self.seen) != len(self.sums):
            raise UnsupportedModelError(
                f"The model ran {len(self.seen)} layers whose attention could be read, after {len(self.sums)} before; "
                "its attention cannot be measured."
            )
        received = (self.places.uniform * self.places.seen_by).unsqueeze(1) @ self.places.one_hot
        self.uniform += received.sum((0, 1), dtype=torch.float64).cpu()
        kept = torch.stack(self.seen, 1)[..., : len(self._names_kept())]
        self.rows.append(kept.float().cpu().numpy())
        self.places, self.seen = None, []

    def result(self) -> AttentionStatistics:
        """The means."""
        rows = np.concatenate(self.rows)
        means = (torch.stack(self.sums).cpu() / len(rows)).numpy()
        broken = np.flatnonzero(~np.isfinite(means).all((1, 2)))
        if len(broken):
            raise UnsupportedModelError(
                f"Attention in layer {broken[0]} is not a number in some window; load the model in float32, and check "
                "that its logits are numbers."
            )
        sizes = [size.numel() for size in self.shapes.values()]
        parts = np.split(means, np.cumsum(sizes)[:-1], axis=-1)
        found = {
            name: part.reshape(*means.shape[:2], *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }
        return AttentionStatistics(
            num_registers=found["register_share"].shape[-1],
            layers=means.shape[0],
            heads=means.shape[1],
            windows=len(rows),
            settings=self.settings,
            by_class={name: found[name] for name in BY_CLASS},
            single={name: found[name] for name in SINGLE},
            uniform=(self.uniform / len(rows)).numpy(),
            register_share=found["register_share"],
            register_attention_out=found["register_attention_out"],
            per_window=dict(zip(self._names_kept(), np.moveaxis(rows, -1, 0), strict=True)),
            examples=torch.cat(self.examples).numpy(),
            tokens=torch.cat(self.tokens).numpy(),
        )

    def _places(self, device: torch.device, dtype: torch.dtype, *, causal: bool) -> Places:
        classes, registers = self.classes.to(device), self.registers
        make = functools.partial(places_of, queries=self.settings.queries, causal=causal, dtype=dtype)
        batch = len(classes)
        if registers is None:
            return make(classes, torch.zeros(batch, 0, dtype=torch.long, device=device))
        count = registers.num_registers
        kinds = torch.full((count,), TokenClass.REGISTER, dtype=torch.int8, device=device).masked_fill(
            ~registers.visible(device), TokenClass.PADDING
        )
        total = registers.insert(kinds.expand(batch, -1), classes)
        order = registers.order
        columns = torch.arange(count, device=device).expand(batch, -1)
        return make(total, columns if order is None else registers.columns()[:, :count])

    def _names_kept(self) -> list[str]:
        """Names of the leading numbers, those that aren't of single registers."""
        names: list[str] = []
        for name in self.shapes:
            if name in BY_CLASS:
                names.extend(f"{name}.{of}" for of in CLASSES)
            elif name in SINGLE:
                names.append(name)
        return names


def _check(batch: Mapping[str, Tensor]) -> None:
    missing = [name for name in ("input_ids", "attention_mask", "token_classes") if name not in batch]
    if missing:
        raise ConfigError(f"An analysis batch needs {', '.join(missing)}; this one has {', '.join(batch)}.")
    classes, mask = batch["token_classes"], batch["attention_mask"]
    if not classes.shape == mask.shape == batch["input_ids"].shape:
        raise ConfigError(
            f"input_ids are {list(batch['input_ids'].shape)}, attention_mask {list(mask.shape)} and token_classes "
            f"{list(classes.shape)}; they must be equal."
        )
    if not torch.equal(classes != TokenClass.PADDING, mask.bool()):
        raise ConfigError("token_classes and attention_mask disagree about what is padding; make both from one batch.")
    if int(classes.max()) >= TokenClass.REGISTER:
        raise ConfigError("token_classes hold registers, which are no text; regtune puts them there itself.")
    empty = (~is_content(classes).any(1)).nonzero().flatten().tolist()
    if empty:
        raise ConfigError(f"Row {empty[0]} of a batch holds no word, only special tokens; leave it out.")


def _by_name(values: Floats) -> dict[str, Any]:
    """`[..., classes]` as one list for each class."""
    return {name: values[..., index].tolist() for index, name in enumerate(CLASSES)}
