"""Attention statistics of a model over a data set, streamed: no map is kept longer than its layer takes.

What each number means is in `regtune.analyses.attention.measures`. Every window counts the same, whatever its length,
batch or padding. The weights are computed in the model's own precision and measured in float32 at least; load a model
in float32 for numbers to publish.

Memory: sums `[layers, heads]` and the means over heads of every window, about 130 bytes a window and layer.

|f(x)|, how large a vector each head writes for a token it attends to, is after Kobayashi et al. 2020 (arXiv
2004.10102): a head adds `sum_k A[i, k] f(x_k)` to token i, with `f(x) = (x W_V + b_V) W_O`, so a large weight on a
token whose f(x) is small does little.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor, nn

from regtune.analyses.attention.measures import (
    CLASSES,
    AttentionSettings,
    Places,
    column_deviation,
    measure_layer,
    places_of,
)
from regtune.analyses.attention.tap import attention_tap, registers_first
from regtune.analyses.batches import run_backbone, with_words
from regtune.analyses.parts import (
    CLASS_WORDS,
    Verdict,
    figure,
    graded,
    patch_maps,
    picture_blocks,
    table,
    text,
    verdict_blocks,
)
from regtune.analyses.pictures import heat_map, matrix, numbered, percent
from regtune.errors import DataError, UnsupportedModelError
from regtune.families import family_of
from regtune.families._family import modules_at
from regtune.interfaces import Analysis, Batch, Block, Examples, Rows
from regtune.progress import each
from regtune.registers.surgery import active_registers, backbone_of
from regtune.rows.token_classes import TokenClass
from regtune.session import Session

Floats = npt.NDArray[np.floating]
BY_CLASS = ("mass", "mass_text", "value_weighted_mass", "sink_rate_by_class")
"""The measures that have a number for each class of token."""
SINGLE = ("entropy", "entropy_text", "sink_rate", "sink_rate_text", "sink_lift", "sink_lift_text", "write", "idle")
_CACHED = 2**20
"""Attention weights of one layer that run together on a processor, so that they stay in its cache: 4 MB in float32."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionStatistics:
    """What `attention_statistics` found."""

    num_registers: int
    """N; 0 where the registers are switched off."""
    means: Mapping[str, Floats]
    """Means over windows of every measure of `measure_layer`, `[layers, heads, ...]`, and of `column_deviation`,
    `[layers]`. Sink rates and `idle` are shares of windows."""
    uniform: Floats
    """The mass that uniform attention would give each class, `[classes]`."""
    per_window: Mapping[str, Floats] = field(repr=False)
    """Each window's means over heads, `[windows, layers, ...]`."""
    examples: npt.NDArray[np.int64] = field(repr=False)
    """Index of each window's example, `[windows]`."""
    tokens: npt.NDArray[np.int64] = field(repr=False)
    """Text tokens of each window, `[windows]`."""


def attention_statistics(
    model: nn.Module, batches: Iterable[Batch], *, settings: AttentionSettings | None = None
) -> AttentionStatistics:
    """Runs the model over the batches and measures every layer's attention as it is computed.

    The model, eager or SDPA, is left as it was. Rows without a word are left out.
    """
    reader = _Reader(model, settings or AttentionSettings())
    with torch.no_grad(), attention_tap(model, reader.read):
        for batch in with_words(each(batches, "batches")):
            reader.begin(batch)
            run_backbone(model, batch)
            reader.end()
    return reader.result()


class _Reader:
    """Takes each layer's weights, adds what they say to the sums, and lets go of them."""

    def __init__(self, model: nn.Module, settings: AttentionSettings) -> None:
        self.settings = settings
        self.norms = OutputNorms(model)
        self.registers = active_registers(model)
        self.batch: Batch = {}
        self.places: Places | None = None
        self.sums: list[dict[str, Tensor]] = []
        """For each layer the sums over windows, in float64."""
        self.seen: list[dict[str, Tensor]] = []
        """For each layer of the present batch the means over heads, `[rows, ...]`."""
        self.rows: list[dict[str, Floats]] = []
        """For each batch `[rows, layers, ...]`."""
        self.uniform = torch.zeros(len(CLASSES), dtype=torch.float64)
        self.examples: list[Tensor] = []
        self.tokens: list[Tensor] = []

    def begin(self, batch: Batch) -> None:
        """Before a batch runs."""
        self.batch, self.places, self.seen = batch, None, []
        self.examples.append(batch["example"])
        self.tokens.append(batch["attention_mask"].sum(1))

    def read(self, layer: int, weights: Tensor, values: Tensor, module: nn.Module) -> None:
        """The tap's callback."""
        wide = torch.promote_types(weights.dtype, torch.float32)
        if self.places is None:  # only now have the registers found their places
            self.places = self._places(weights.device, wide, causal=bool(getattr(module, "is_causal", False)))
        weights = weights.to(wide)
        found = measure_layer(weights, self.norms(module, values).to(wide), self.places, self.settings)
        deviation = column_deviation(weights, self.places)
        summed = {name: value.sum(0, dtype=torch.float64) for name, value in found.items()}
        summed["column_deviation"] = deviation.sum(0, dtype=torch.float64)
        if layer == len(self.sums):
            self.sums.append(summed)
        else:
            self.sums[layer] = {name: value + summed[name] for name, value in self.sums[layer].items()}
        kept = {name: found[name].mean(1) for name in (*BY_CLASS, *SINGLE)}
        self.seen.append(kept | {"column_deviation": deviation})

    def end(self) -> None:
        """After a batch has run."""
        if not self.seen or self.places is None or len(self.seen) != len(self.sums):
            raise UnsupportedModelError(
                f"The model ran {len(self.seen)} layers whose attention could be read, after {len(self.sums)} before; "
                "its attention cannot be measured."
            )
        received = (self.places.uniform * self.places.seen_by).unsqueeze(1) @ self.places.one_hot
        self.uniform += received.sum((0, 1), dtype=torch.float64).cpu()
        self.rows.append(
            {name: torch.stack([one[name] for one in self.seen], 1).float().cpu().numpy() for name in self.seen[0]}
        )
        self.places, self.seen = None, []

    def result(self) -> AttentionStatistics:
        """The means."""
        if not self.rows:
            raise DataError("There is not one word to read attention from. Give at least one text with words.")
        tokens = torch.cat(self.tokens).numpy()
        means = {
            name: np.stack([layer[name].cpu().numpy() for layer in self.sums]) / len(tokens) for name in self.sums[0]
        }
        broken = [n for n, layer in enumerate(self.sums) if not all(v.isfinite().all() for v in layer.values())]
        if broken:
            raise UnsupportedModelError(
                f"Attention in layer {broken[0]} is not a number in some window; load the model in float32, and check "
                "that its logits are numbers."
            )
        return AttentionStatistics(
            num_registers=means["register_share"].shape[-1],
            means=means,
            uniform=(self.uniform / len(tokens)).numpy(),
            per_window={name: np.concatenate([rows[name] for rows in self.rows]) for name in self.rows[0]},
            examples=torch.cat(self.examples).numpy(),
            tokens=tokens,
        )

    def _places(self, device: torch.device, dtype: torch.dtype, *, causal: bool) -> Places:
        classes, registers = self.batch["token_classes"].to(device), self.registers
        batch, count = len(classes), 0 if registers is None else registers.num_registers
        columns = torch.arange(count, device=device).expand(batch, -1)
        if registers is not None:
            kinds = torch.full((count,), TokenClass.REGISTER, dtype=torch.int8, device=device).masked_fill(
                ~registers.visible(device), TokenClass.PADDING
            )
            classes = registers.insert(kinds.expand(batch, -1), classes)
            if registers.layout.order is not None:
                columns = registers.layout.columns()[:, :count]
        return places_of(classes, columns, queries=self.settings.queries, causal=causal, dtype=dtype)


class OutputNorms:
    """|f(x)| of one model's heads; what depends on the weights alone is computed once a layer."""

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
        """The norms of an attending module's value states, in float32 or wider."""
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


# The part


class AttentionAnalysis(Analysis):
    """Attention by class of token, sinks, idle heads, and how much registers receive."""

    name = "attention"
    title = "Attention"
    settings = AttentionSettings
    needs = frozenset({"attention"})

    def measure(
        self, session: Session, rows: Rows[Any], examples: Examples, settings: AttentionSettings
    ) -> Mapping[str, Any]:
        """See `Analysis.measure`."""
        one_each = rows.one_each()
        weights = int(backbone_of(session.model).config.num_attention_heads) * max(one_each.lengths) ** 2
        size = 16 if session.device.type != "cpu" else max(1, min(16, _CACHED // weights))
        found = attention_statistics(session.model, session.batches(one_each, batch_size=size), settings=settings)
        layers, heads = found.means["entropy"].shape
        measured = {name: words for name, words in _MEASURED.items() if name != "mass.register" or found.num_registers}
        return {
            "num_registers": found.num_registers,
            "layers": layers,
            "heads": heads,
            "windows": len(found.tokens),
            "tokens": int(found.tokens.sum()),
            "uniform": dict(zip(CLASSES, found.uniform, strict=True)),
            **{name: _by_class(found.means[name]) for name in BY_CLASS},
            **{name: found.means[name] for name in (*SINGLE, "column_deviation")},
            "register_share": np.moveaxis(found.means["register_share"], -1, 0),
            "register_attention_out": _by_class(np.moveaxis(found.means["register_attention_out"], 2, 0)),
            "verdicts": attention_verdicts(found),
            "pictures": patch_maps(session, rows, examples, patch_attention),
            "measures": {
                f"attention.{name}": dict(zip(found.examples.tolist(), _by_window(found, name), strict=True))
                for name in measured
            },
            "titles": {
                f"attention.{name}": f"{words} (mean of all layers and heads)" for name, words in measured.items()
            },
        }

    def blocks(self, content: Mapping[str, Any]) -> Iterator[Block]:
        """See `Analysis.blocks`."""
        yield from verdict_blocks(content["verdicts"])
        layers, heads = numbered("layer", content["layers"]), numbered("head", content["heads"])
        images = bool(content.get("pictures"))
        called = CLASS_WORDS | ({"context": "patches", "sep": "the second token"} if images else {})
        there = [name for name, share in content["uniform"].items() if share > 0 or not images]
        mass = {name: matrix(content["mass"][name]) for name in there}
        most = max(float(values.max()) for values in mass.values())
        yield text(
            "Attention by layer and head",
            f"Mean share of a text token's attention that goes to each class of token, over {content['windows']:,} "
            f"windows. Pale is little; one scale for all maps, registers included (darkest: {100 * most:.0f} %). What "
            "registers receive is taken from the other classes: N more keys lower everything else by arithmetic alone. "
            "Layers and heads count from 0.",
        )
        drawn = [name for name in mass if name != "register" or content["num_registers"]]
        maps = [(f"Attention to {called[name]}, in %", mass[name], most) for name in drawn]
        maps += [(words, matrix(content[name]), 1.0) for name, words in _MAPS.items()]
        for title, values, darkest in maps:
            yield figure(title, heat_map(values, most=darkest, rows=layers, columns=heads), _peak(values))
        yield from picture_blocks(
            content,
            "Attention to patches, mean over heads",
            "What [CLS] attends to, or all patches on average where there is no [CLS]; in shares of all attention.",
        )
        if content["num_registers"]:
            share = np.asarray(content["register_share"], dtype=np.float64).mean(axis=2)
            yield figure(
                "Register usage: share of a text token's attention, in % (mean over heads)",
                heat_map(share, rows=numbered("register", len(share)), columns=layers, form=percent),
                _peak(share),
            )
        single = {name: matrix(content[name]).mean(1) for name in SINGLE}
        shares = ("entropy", "entropy_text", "sink_rate", "sink_rate_text")
        rows = [
            (
                *(str(layer), *(f"{100 * values[layer].mean():.1f}" for values in mass.values())),
                *(f"{100 * single[name][layer]:.1f}" for name in shares),
                f"{single['sink_lift'][layer]:.1f}",
                f"{100 * single['idle'][layer]:.1f}",
                f"{single['write'][layer]:.2f}",
                f"{content['column_deviation'][layer]:.1f}",
            )
            for layer in range(content["layers"])
        ]
        uniform = [f"{100 * content['uniform'][name]:.1f}" for name in mass]
        rows.append(("uniform", *uniform, "100.0", "100.0", "0.0", "0.0", "1.0", "", "", "0.0"))
        yield table(
            "Attention, layer by layer",
            (
                *("layer", *(called[name] for name in mass), "entropy", "entropy over text", "sinks"),
                *("sinks over text", "lift", "idle", "write", "column deviation"),
            ),
            rows,
            "Mean over heads, in percent. sinks: heads with a token that receives more than the threshold on average; "
            "over text: as if registers were not there; lift: what the token that receives most gets, over uniform "
            "attention; idle: heads that attend to tokens without content and read little there; write: the size of "
            "what is read, over an average word's.",
        )


def patch_attention(session: Session, batch: Batch) -> Floats:
    """What [CLS] attends to (without one: all patches on average), the mean over heads, `[layers, rows, patches]`."""
    found: list[Floats] = []
    registers, count = active_registers(session.model), int(batch["patch_grid"][0].prod())
    leading = batch["token_classes"].shape[1] - count

    def read(_layer: int, weights: Tensor, _values: Tensor, _module: nn.Module) -> None:
        mean = registers_first(weights, registers, 2, 3).mean(1, dtype=torch.float64)
        asking = mean[:, -(leading + count)] if leading else mean[:, -count:].mean(1)
        found.append(asking[:, -count:].cpu().numpy())

    with torch.no_grad(), attention_tap(session.model, read):
        run_backbone(session.model, batch)
    return np.stack(found)


def _peak(values: np.ndarray) -> str:
    row, column = np.unravel_index(np.nanargmax(values), values.shape)
    return f"The largest value, {percent(float(values[row, column]))}, is in row {row}, column {column}."


def _by_class(values: Floats) -> dict[str, Floats]:
    """`[..., classes]` as one array for each class."""
    return dict(zip(CLASSES, np.moveaxis(values, -1, 0), strict=True))


def _by_window(found: AttentionStatistics, name: str) -> list[float]:
    """A measure's means over layers and heads, one a window; `mass.cls` is the mass on [CLS]."""
    name, _, kind = name.partition(".")
    values = found.per_window[name]
    means: list[float] = (values[..., CLASSES.index(kind)] if kind else values).mean(axis=1, dtype=np.float64).tolist()
    return means


_MEASURED = {
    "mass_text.cls": "attention on [CLS], share of that over text",
    "mass_text.sep": "attention on [SEP], share of that over text",
    "mass_text.punctuation": "attention on punctuation, share of that over text",
    "mass.register": "attention on registers, share of all",
    "entropy_text": "entropy of attention over text, divided by ln of the number of text tokens",
    "sink_rate": "heads with a key that receives more than 0.3 of all attention",
    "sink_rate_text": "heads with a sink, over text alone",
    "idle": "idle heads: 0.9 of their attention on tokens without content, and little moved",
    "column_deviation": "column deviation of attention",
}
_MAPS = {
    "entropy_text": "Entropy of attention over text (100 is uniform)",
    "sink_rate": "Windows in which the head has a sink, in %",
    "idle": "Windows in which the head is idle, in %",
}


def attention_verdicts(found: AttentionStatistics) -> list[Verdict]:
    """The verdicts that attention gives."""
    return [_sinks(found), _idle(found)]


def _sinks(found: AttentionStatistics) -> Verdict:
    by_layer = found.means["sink_rate"].mean(1)
    layer = int(by_layer.argmax())
    share = float(by_layer[layer])
    classes = found.means["sink_rate_by_class"][layer].mean(0)
    where = f", mostly {CLASSES[int(classes.argmax())]}" if share > 0 else ""
    return Verdict(
        artefact="attention sinks",
        verdict=graded(share, 0.1, 0.5),
        value=share,
        layer=layer,
        strength=f"{share:.0%} of the heads of the layer{where}; {float(by_layer.mean()):.0%} of all heads",
        definition="a head has a sink in a text if a token receives more than 0.3 of its attention on average (Gu "
        "2025). Present: so in half of the heads of a layer; weak: in a tenth (regtune).",
    )


def _idle(found: AttentionStatistics) -> Verdict:
    idle = found.means["idle"] >= 0.5
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
