"""Attention statistics of a model over a data set, streamed: no map is kept longer than its layer takes.

What each number means is in `regtune.analyses.attention.measures`. Every window counts the same, whatever its length,
batch or padding. The weights are computed in the model's own precision and measured in float32 at least; load a model
in float32 for numbers to publish. Windows run a few at a time, so that a layer's weights stay in the processor's cache.

Memory: sums `[layers, heads]` and the means over heads of every window, about 130 bytes a window and layer.

|f(x)|, how large a vector each head writes for a token it attends to, is after Kobayashi et al. 2020 (arXiv
2004.10102): a head adds `sum_k A[i, k] f(x_k)` to token i, with `f(x) = (x W_V + b_V) W_O`, so a large weight on a
token whose f(x) is small does little.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from regtune.analyses.artefacts.sites import run_backbone
from regtune.analyses.attention.measures import CLASSES, AttentionSettings, Places, measure_layer, places_of
from regtune.analyses.attention.tap import attention_tap, registers_first
from regtune.analyses.parts import Verdict, Word, verdict_blocks
from regtune.errors import ConfigError, DataError, UnsupportedModelError
from regtune.families import family_of
from regtune.families._family import modules_at
from regtune.interfaces import Block, Examples, Need, Rows
from regtune.pictures import heat_map, matrix, numbered, percent
from regtune.registers.surgery import backbone_of, find_registers
from regtune.session import Session
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
        order = registers.layout.order
        columns = torch.arange(count, device=device).expand(batch, -1)
        return make(total, columns if order is None else registers.layout.columns()[:, :count])

    def _names_kept(self) -> list[str]:
        """Names of the leading numbers, those that aren't of single registers."""
        names: list[str] = []
        for name in self.shapes:
            if name in BY_CLASS:
                names.extend(f"{name}.{of}" for of in CLASSES)
            elif name in SINGLE:
                names.append(name)
        return names


class OutputNorms:
    """|f(x)| of one model's heads; what depends on the weights alone is computed once a layer.

    Raises:
        UnsupportedModelError: an architecture whose parts aren't known.
    """

    def __init__(self, model: nn.Module) -> None:
        backbone = backbone_of(model)
        family = family_of(backbone.config, "parts")
        attending = modules_at(backbone, *family.within_layers(family.attention))
        projections = modules_at(backbone, *family.within_layers(family.attention_out))
        self._projection = {id(module): part for module, part in zip(attending, projections, strict=True)}
        self._factors: dict[int, Tensor] = {}

    def __call__(
        self, module: nn.Module, values: Float[Tensor, "batch heads total head_dim"]
    ) -> Float[Tensor, "batch heads total"]:
        """The norms, in float32 or wider.

        Args:
            module: the attending module.
            values: its value states.
        """
        if id(module) not in self._factors:
            self._factors[id(module)] = _factor(self._projection[id(module)], values)
        factor = self._factors[id(module)]
        norms: Tensor = torch.linalg.vector_norm(values.to(factor.dtype) @ factor, dim=-1)
        return norms


def _factor(projection: nn.Module, values: Tensor) -> Float[Tensor, "heads head_dim rank"]:
    """For each head a matrix with `|v W_O| = |v factor|`, at most head_dim wide where W_O is hidden wide.

    W_O' = Q R with orthonormal Q, so |v W_O| = |v R'|. W_O is read off the module's answers, which holds for linear
    layers however they keep their weights (transposed, with an adapter, quantised).
    """
    heads, head_dim = values.shape[1], values.shape[3]
    eye = torch.eye(heads * head_dim, dtype=values.dtype, device=values.device)
    answers = projection(eye).double() - projection(torch.zeros_like(eye[:1])).double()
    triangles: Tensor = torch.linalg.qr(answers.unflatten(0, (heads, head_dim)).mT, mode="r").R
    return triangles.mT.to(torch.promote_types(values.dtype, torch.float32)).contiguous()


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


# The part


class AttentionAnalysis:
    """Attention by class of token, sinks, idle heads, and how much registers receive."""

    name: ClassVar[str] = "attention"
    title: ClassVar[str] = "Attention"
    settings: ClassVar[type] = AttentionSettings
    needs: ClassVar[frozenset[Need]] = frozenset({"attention"})

    def measure(
        self, session: Session, rows: Rows[Any], examples: Examples, settings: AttentionSettings
    ) -> Mapping[str, Any]:
        """See `Analysis.measure`."""
        del examples
        batches = [kept for batch in session.batches(rows.one_each()) if (kept := with_words(batch)) is not None]
        found = attention_statistics(session.model, batches, settings=settings)
        columns, texts = column_deviation(session.model, batches)
        names = [name for name in _MEASURED if name != "mass.register" or found.num_registers]
        measures = {
            f"attention.{name}": dict(
                zip(
                    found.examples.tolist(),
                    found.per_window[name].mean(axis=1, dtype=np.float64).tolist(),
                    strict=True,
                )
            )
            for name in names
        }
        measures["attention.column_deviation"] = dict(zip(texts, columns.mean(axis=1).tolist(), strict=True))
        return {
            **found.to_json(),
            "column_deviation": columns.mean(axis=0).tolist(),
            "verdicts": [_sinks(found), _idle(found)],
            "measures": measures,
            "titles": {
                **{f"attention.{name}": f"{_MEASURED[name]} (mean of all layers and heads)" for name in names},
                "attention.column_deviation": "column deviation of attention (mean of layers)",
            },
        }

    def blocks(self, content: Mapping[str, Any]) -> Iterator[Block]:
        """See `Analysis.blocks`."""
        return _blocks(content)


_MEASURED = {
    "mass_text.cls": "attention on [CLS], share of that over text",
    "mass_text.sep": "attention on [SEP], share of that over text",
    "mass_text.punctuation": "attention on punctuation, share of that over text",
    "mass.register": "attention on registers, share of all",
    "entropy_text": "entropy of attention over text, divided by ln of the number of text tokens",
    "sink_rate": "heads with a key that receives more than 0.3 of all attention",
    "sink_rate_text": "heads with a sink, over text alone",
    "idle": "idle heads: 0.9 of their attention on tokens without content, and little moved",
}
CLASS_WORDS = {
    "cls": "[CLS]",
    "sep": "[SEP]",
    "punctuation": "punctuation",
    "question": "question",
    "context": "context",
    "register": "registers",
}
_MAPS = {
    "entropy_text": "Entropy of attention over text (100 is uniform)",
    "sink_rate": "Windows in which the head has a sink, in %",
    "idle": "Windows in which the head is idle, in %",
}
_NOTE = (
    "Mean over heads, in percent. sinks: heads with a token that receives more than the threshold on average; over "
    "text: as if registers were not there; lift: what the token that receives most gets, over uniform attention; idle: "
    "heads that attend to tokens without content and read little there; write: the size of what is read, over an "
    "average word's."
)


def with_words(batch: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The rows that hold a word; None if none does."""
    kept = is_content(batch["token_classes"]).any(1)
    return {name: value[kept] for name, value in batch.items()} if kept.any() else None


def _sinks(found: AttentionStatistics) -> Verdict:
    by_layer = found.single["sink_rate"].mean(1)
    layer = int(by_layer.argmax())
    share = float(by_layer[layer])
    classes = found.by_class["sink_rate_by_class"][layer].mean(0)
    word: Word = "present" if share >= 0.5 else "weak" if share >= 0.1 else "absent"
    where = f", mostly {CLASSES[int(classes.argmax())]}" if share > 0 else ""
    return Verdict(
        artefact="attention sinks",
        verdict=word,
        value=share,
        layer=layer,
        strength=f"{share:.0%} of the heads of the layer{where}; {float(by_layer.mean()):.0%} of all heads",
        definition="a head has a sink in a text if a token receives more than 0.3 of its attention on average (Gu "
        "2025). Present: so in half of the heads of a layer; weak: in a tenth (regtune).",
    )


def _idle(found: AttentionStatistics) -> Verdict:
    idle = found.single["idle"] >= 0.5
    layer = int(idle.sum(1).argmax())
    strength = f"{int(idle.sum())} of {idle.size} heads idle in half of the texts"
    if idle.any():
        strength += f", {int(idle[layer].sum())} of them in the layer"
    return Verdict(
        artefact="do-nothing heads",
        verdict="present" if idle.mean() >= 0.1 else "weak" if idle.any() else "absent",
        value=float(idle.mean()),
        layer=layer if idle.any() else None,
        strength=strength,
        definition="a head is idle in a text if 0.9 of its attention is on tokens without content and it writes at "
        "most half of what an average token would (after Bondarenko 2023). Present: a tenth of all heads are idle in "
        "half of the texts; weak: any (regtune).",
    )


def column_deviation(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]]
) -> tuple[Float64[np.ndarray, "texts layers"], tuple[int, ...]]:
    """The deviation of attention's column means, in units of their mean, text by text and layer by layer.

    A is the mean over heads of a text's attention weights, text queries and text keys alone and rows scaled to sum to 1
    (registers and padding left out). Column k's mean is what token k receives; T of them have the mean 1/T, and their
    standard deviation times T is what is returned: 0 where all tokens receive the same, √(T − 1) where one receives
    all. After Bai et al. 2024 (arXiv 2410.05648), who tie it to over-smoothing: rows that all mix the same few tokens
    make all tokens alike.

    Returns:
        The deviations, and the example of each text (those without content are left out).

    Raises:
        UnsupportedModelError: as `attention_tap`.
    """
    registers = find_registers(model)
    device = next(model.parameters()).device
    found: list[np.ndarray] = []
    examples: list[int] = []
    layers: list[Tensor] = []
    text = torch.empty(0, dtype=torch.bool)
    seen = 0

    def read(_layer: int, weights: Tensor, _values: Tensor, _module: nn.Module) -> None:
        """`[rows, heads, total, total]` to `[rows]`."""
        ordered = registers_first(weights.mean(1, dtype=torch.float64), registers, 1, 2)
        extra = ordered.shape[1] - text.shape[1]
        on = text.double()
        counts = on.sum(1, keepdim=True)
        rows = ordered[:, extra:, extra:] * on.unsqueeze(1)
        rows = rows / rows.sum(-1, keepdim=True).clamp(min=1e-30)
        received = (rows * on.unsqueeze(2)).sum(1) / counts
        spread = ((received - 1 / counts).square() * on).sum(1, keepdim=True) / counts
        layers.append((spread.sqrt() * counts).squeeze(1))

    with torch.inference_mode(), attention_tap(model, read):
        for batch in batches:
            classes = batch["token_classes"]
            kept = is_content(classes).any(1).numpy()
            text, layers = classes.to(device) != TokenClass.PADDING, []
            run_backbone(model, batch)
            numbers = batch["example"].tolist() if "example" in batch else range(seen, seen + len(classes))
            examples += [int(number) for number, wanted in zip(numbers, kept, strict=True) if wanted]
            seen += len(classes)
            found.append(torch.stack(layers, dim=1).cpu().numpy()[kept])
    return np.concatenate(found), tuple(examples)


def _blocks(content: Mapping[str, Any]) -> Iterator[Block]:
    yield from verdict_blocks(content["verdicts"])
    layers, heads = int(content["layers"]), int(content["heads"])
    mass = {name: matrix(values) for name, values in content["mass"].items()}
    most = max(float(values.max()) for values in mass.values())
    axes: dict[str, Any] = {"rows": numbered("layer", layers), "columns": numbered("head", heads)}
    yield Block(
        kind="text",
        title="Attention by layer and head",
        text=f"Mean share of a text token's attention that goes to each class of token, over {content['windows']:,} "
        f"windows. Pale is little; one scale for all maps, registers included (darkest: {100 * most:.0f} %). What "
        "registers receive is taken from the other classes: N more keys lower everything else by arithmetic alone. "
        "Layers and heads count from 0.",
    )
    for name, words in CLASS_WORDS.items():
        if name != "register" or content["num_registers"]:
            yield Block(
                kind="figure",
                title=f"Attention to {words}, in %",
                text=_peak(mass[name]),
                draw=heat_map(mass[name], most=most, **axes),
            )
    for name, words in _MAPS.items():
        values = matrix(content[name])
        yield Block(kind="figure", title=words, text=_peak(values), draw=heat_map(values, most=1.0, **axes))
    if content["num_registers"]:
        share = np.asarray(content["register_share"], dtype=np.float64).mean(axis=2)
        yield Block(
            kind="figure",
            title="Register usage: share of a text token's attention, in % (mean over heads)",
            text=_peak(share),
            draw=heat_map(
                share, rows=numbered("register", len(share)), columns=numbered("layer", layers), form=percent
            ),
        )
    yield _table(content, mass)


def _peak(values: np.ndarray) -> str:
    row, column = np.unravel_index(np.nanargmax(values), values.shape)
    return f"The largest value, {percent(float(values[row, column]))}, is in row {row}, column {column}."


def _table(content: Mapping[str, Any], mass: Mapping[str, np.ndarray]) -> Block:
    single = {name: matrix(content[name]).mean(1) for name in SINGLE}
    shares = ("entropy", "entropy_text", "sink_rate", "sink_rate_text")
    rows = [
        (
            str(layer),
            *(f"{100 * values[layer].mean():.1f}" for values in mass.values()),
            *(f"{100 * single[name][layer]:.1f}" for name in shares),
            f"{single['sink_lift'][layer]:.1f}",
            f"{100 * single['idle'][layer]:.1f}",
            f"{single['write'][layer]:.2f}",
            f"{content['column_deviation'][layer]:.1f}",
        )
        for layer in range(int(content["layers"]))
    ]
    uniform = [f"{100 * share:.1f}" for share in content["uniform"].values()]
    rows.append(("uniform", *uniform, "100.0", "100.0", "0.0", "0.0", "1.0", "", "", "0.0"))
    return Block(
        kind="table",
        title="Attention, layer by layer",
        text=_NOTE,
        columns=(
            *("layer", *(CLASS_WORDS[name] for name in mass), "entropy", "entropy over text", "sinks"),
            *("sinks over text", "lift", "idle", "write", "column deviation"),
        ),
        rows=tuple(rows),
    )
