"""The part `heads`: which heads and which tokens the model needs, and through which parts registers act.

- *Knock-out of a head*: what it hands to the output projection is set to 0 (Michel 2019, arXiv 1905.10650, at
  inference). What is then lost is what only that head did.
- *Knock-out of tokens*: no token attends to those of a class ([CLS], [SEP], punctuation, the question, registers); they
  keep their places. Not the same as taking them out of the text.
- *Activation patching* (Vig 2020, arXiv 2004.12265): the model runs twice, as it is and changed (without registers
  or, where it has none, with half of its content tokens masked). Into the changed run a part of the normal one is put
  back at the text: the states that a layer reads, or one head's output. Measured is the share of the damage that this
  repairs: (changed − patched) / (changed − normal). Near 1: the difference runs through that part.

Measured is the loss, where the model has a head and the data labels, else the distance of the last hidden state of
content tokens from the normal run's, as a share of its size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from regtune.analyses.artefacts.sites import run_backbone
from regtune.analyses.attention.attention import with_words
from regtune.analyses.outcomes import row_losses, some
from regtune.analyses.parts import mean_interval, progress, spread_over, with_interval
from regtune.analyses.registers.knock_out import layer_inputs
from regtune.errors import ConfigError, UnsupportedModelError
from regtune.families import family_of
from regtune.families._family import modules_at
from regtune.interfaces import Batch, Block, Examples, Need, Rows
from regtune.pictures import Estimate, bars, heat_map, numbered
from regtune.registers.surgery import backbone_of, disable_registers, find_registers, mask_registers, num_registers
from regtune.session import Session
from regtune.token_classes import TokenClass, is_content

Floats = Float64[np.ndarray, " examples"]
TOKENS = {
    "cls": TokenClass.CLS,
    "sep": TokenClass.SEP,
    "punctuation": TokenClass.PUNCTUATION,
    "question": TokenClass.QUESTION,
}
WORDS = {
    "cls": "[CLS]",
    "sep": "[SEP]",
    "punctuation": "punctuation",
    "question": "the question",
    "register": "registers",
}


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """How much is knocked out and patched."""

    examples: int = 32
    """At most so many of the sample, evenly spread: the model runs twice for every head."""
    patch: bool = True
    """Patch activations too."""
    against: Literal["auto", "registers", "masked"] = "auto"
    """The changed run: without registers, or with half of the content tokens masked; auto takes the first if it can."""
    seed: int = 0
    """Chooses the tokens that are masked."""

    def __post_init__(self) -> None:
        if self.examples < 1:
            raise ConfigError(f"examples={self.examples} must be at least 1.")


class HeadAnalysis:
    """Knock-outs of heads and tokens, and activation patching."""

    name: ClassVar[str] = "heads"
    title: ClassVar[str] = "Heads and tokens"
    settings: ClassVar[type] = HeadSettings
    needs: ClassVar[frozenset[Need]] = frozenset({"attention"})

    def measure(
        self, session: Session, rows: Rows[Any], examples: Examples, settings: HeadSettings
    ) -> Mapping[str, Any]:
        """See `Analysis.measure`."""
        chosen = spread_over(len(examples), settings.examples)
        every = [with_words(batch) for batch in session.batches(some(rows.one_each(), chosen))]
        run = _Runs(session, [batch for batch in every if batch is not None], len(examples))
        layers, heads = shape_of(session.model)
        normal = run()
        lost = np.full((layers, heads, len(examples)), np.nan)
        for layer, head in progress([(n, m) for n in range(layers) for m in range(heads)], "heads"):
            lost[layer, head] = run(partial(knocked_out_head, session.model, layer, head)) - normal
        tokens = {name: run(hide=kind) - normal for name, kind in TOKENS.items() if run.has(kind)}
        if num_registers(session.model):
            tokens["register"] = run(lambda: mask_registers(session.model)) - normal
        content: dict[str, Any] = {
            "layers": layers,
            "heads": heads,
            "quantity": run.quantity,
            "examples": len(chosen),
            "head_effects": np.nanmean(lost, axis=2),
            "token_effects": {name: _interval(values) for name, values in tokens.items()},
        }
        if settings.patch:
            content["patching"] = _patching(session, run, settings, normal)
        measures = {f"heads.without_{name}": values for name, values in tokens.items()}
        measures["heads.largest"] = lost.max(axis=(0, 1))
        unit = f"{run.quantity}, {len(chosen)} examples of the sample"
        titles = {f"heads.without_{name}": f"change without {WORDS[name]} ({unit})" for name in tokens}
        titles["heads.largest"] = f"largest change without one head ({unit})"
        return {**content, "measures": measures, "titles": titles}

    def blocks(self, content: Mapping[str, Any]) -> Iterator[Block]:
        """See `Analysis.blocks`."""
        return _blocks(content)


def shape_of(model: nn.Module) -> tuple[int, int]:
    """Number of layers (each depth counts) and of heads."""
    config = backbone_of(model).config
    return int(config.num_hidden_layers), int(config.num_attention_heads)


HeadVisit = Callable[[int, Tensor], "Tensor | None"]
"""`visit(layer, outputs)`: `[batch, total, heads, head_dim]` of one layer; what it returns takes their place."""


@contextmanager
def head_outputs(model: nn.Module, visit: HeadVisit) -> Iterator[None]:
    """Inside the context every forward pass calls `visit` once a layer, before the heads' outputs are projected.

    Layers that share their weights (ALBERT) count each time. On leaving, the model is as it was.

    Raises:
        UnsupportedModelError: an unknown family.
    """
    backbone = backbone_of(model)
    family = family_of(backbone.config, "parts")
    heads = shape_of(model)[1]
    layer = 0

    def restart(_module: nn.Module, _args: tuple) -> None:
        nonlocal layer
        layer = 0

    def project(_module: nn.Module, args: tuple) -> tuple | None:
        nonlocal layer
        states = args[0]
        changed = visit(layer, states.unflatten(-1, (heads, -1)))
        layer += 1
        return None if changed is None else (changed.flatten(-2), *args[1:])

    projections = list(modules_at(backbone, *family.within_layers(family.attention_out)))
    if not projections:
        raise UnsupportedModelError(f"{type(backbone).__name__} has no output projection at {family.attention_out}.")
    with ExitStack() as stack:
        stack.callback(backbone.register_forward_pre_hook(restart).remove)
        for module in projections:
            stack.callback(module.register_forward_pre_hook(project).remove)
        yield


@contextmanager
def knocked_out_head(model: nn.Module, layer: int, head: int) -> Iterator[None]:
    """Inside the context one head writes nothing, at any position.

    Raises:
        ConfigError: a layer or head that doesn't exist.
        UnsupportedModelError: an unknown family.
    """
    layers, heads = shape_of(model)
    for what, index, count in (("layer", layer, layers), ("head", head, heads)):
        if not 0 <= index < count:
            raise ConfigError(f"{what} {index} doesn't exist; this model has 0 to {count - 1}.")

    def silence(at: int, outputs: Tensor) -> Tensor | None:
        if at != layer:
            return None
        kept = torch.ones(heads, 1, dtype=outputs.dtype, device=outputs.device)
        kept[head] = 0
        return outputs * kept

    with head_outputs(model, silence):
        yield


class _Runs:
    """The loss of every example (or the distance of its states from the first run), run after run."""

    def __init__(self, session: Session, batches: Sequence[Batch], count: int) -> None:
        self.session, self.batches, self.count = session, batches, count
        self.normal: list[Tensor] = []
        self.quantity = "loss" if session.task is not None and any(map(_labelled, batches)) else "last hidden state"

    def has(self, kind: TokenClass) -> bool:
        """Whether any text has such tokens, beside others."""
        return any(bool((batch["token_classes"] == kind).any()) for batch in self.batches)

    @torch.inference_mode()
    def __call__(
        self,
        changed: Callable[[], AbstractContextManager[Any]] = nullcontext,
        *,
        hide: TokenClass | None = None,
        batches: Sequence[Batch] | None = None,
        each: Callable[[int], AbstractContextManager[Any]] | None = None,
    ) -> Floats:
        """One number an example.

        Args:
            changed: makes the context that the model runs in.
            hide: no token attends to those of this class.
            batches: run these instead, of the same shape.
            each: makes a context for the batch of that number, inside the first.
        """
        found = np.full(self.count, np.nan)
        for index, batch in enumerate(self.batches if batches is None else batches):
            given = dict(batch)
            if hide is not None:
                given["attention_mask"] = batch["attention_mask"] * (batch["token_classes"] != hide)
            with changed(), nullcontext() if each is None else each(index):
                values = self._measure(given, index, self.batches[index])
            for example, value in zip(batch["example"].tolist(), values.tolist(), strict=True):
                found[example] = value
        return found

    def _measure(self, given: Batch, index: int, original: Batch) -> Tensor:
        if self.quantity == "loss":
            loss = row_losses(self.session.forward(given), {**given, "attention_mask": original["attention_mask"]})
            assert loss is not None
            return loss
        states = run_backbone(self.session.model, given).double()
        if index == len(self.normal):
            self.normal.append(states)
        content = is_content(original["token_classes"]).to(states.device).unsqueeze(-1)
        h = self.normal[index]
        moved: Tensor = ((states - h) * content).flatten(1).norm(dim=1) / (h * content).flatten(1).norm(dim=1).clamp(
            min=1e-30
        )
        return moved


def _labelled(batch: Batch) -> bool:
    return "labels" in batch or "start_positions" in batch


# Activation patching


def _patching(session: Session, run: _Runs, settings: HeadSettings, normal: Floats) -> dict[str, Any]:
    """The share of the damage that each layer's input and each head's output repairs, as ratios of means."""
    model = session.model
    registers = bool(num_registers(model))
    without = registers if settings.against == "auto" else settings.against == "registers"
    if without and not registers:
        raise ConfigError("against='registers' needs a model with registers; use against='masked'.")
    if not without and session.reader.mask_token_id is None:
        return {"against": "masked", "left_out": "the tokenizer has no [MASK]"}
    batches = None if without else [_masked(batch, session, settings.seed + i) for i, batch in enumerate(run.batches)]

    def off() -> AbstractContextManager[Any]:
        return disable_registers(model) if without else nullcontext()

    changed = run(off, batches=batches)
    damage = float(np.nanmean(changed - normal))
    layers, heads = shape_of(model)
    kept = _Kept(session, run.batches)
    by_layer, by_head = np.full(layers, np.nan), np.full((layers, heads), np.nan)
    for layer in progress(range(layers), "patching layers"):
        patched = run(off, batches=batches, each=partial(kept.put_states, layer=layer))
        by_layer[layer] = float(np.nanmean(changed - patched)) / damage if damage else np.nan
    for layer, head in progress([(n, m) for n in range(layers) for m in range(heads)], "patching heads"):
        patched = run(off, batches=batches, each=partial(kept.put_head, layer=layer, head=head))
        by_head[layer, head] = float(np.nanmean(changed - patched)) / damage if damage else np.nan
    return {
        "against": "registers" if without else "masked",
        "normal": float(np.nanmean(normal)),
        "changed": float(np.nanmean(changed)),
        "damage": _interval(changed - normal),
        "layers": by_layer,
        "heads": by_head,
    }


def _masked(batch: Batch, session: Session, seed: int) -> Batch:
    """The batch with half of the content tokens masked."""
    drawn = torch.rand(batch["input_ids"].shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    gone = drawn & is_content(batch["token_classes"])
    return {**batch, "input_ids": batch["input_ids"].masked_fill(gone, session.reader.mask_token_id)}


class _Kept:
    """The text's part of every layer's input and heads' outputs in the normal run, and contexts that put one back."""

    def __init__(self, session: Session, batches: Sequence[Batch]) -> None:
        self.model = session.model
        self.states: list[list[Tensor]] = []
        self.heads: list[list[Tensor]] = []
        for batch in batches:
            states: list[Tensor] = []
            outputs: list[Tensor] = []
            see = layer_inputs(self.model, partial(self._keep, states))
            hear = head_outputs(self.model, partial(self._keep, outputs))
            with see, hear, torch.inference_mode():
                run_backbone(self.model, batch)
            self.states.append(states)
            self.heads.append(outputs)

    def _text(self, total: Tensor) -> Tensor:
        registers = find_registers(self.model)
        return total if registers is None or not registers.enabled else registers.strip(total)

    def _keep(self, to: list[Tensor], _layer: int, total: Tensor) -> None:
        to.append(self._text(total).clone())

    def _with_text(self, total: Tensor, text: Tensor) -> Tensor:
        registers = find_registers(self.model)
        if registers is None or not registers.enabled:
            return text
        return registers.insert(registers.registers_of(total), text)

    def put_states(self, batch: int, layer: int) -> AbstractContextManager[None]:
        """What the text's states were when the layer read them."""
        return layer_inputs(
            self.model,
            lambda n, total: self._with_text(total, self.states[batch][layer]) if n == layer else None,
        )

    def put_head(self, batch: int, layer: int, head: int) -> AbstractContextManager[None]:
        """What the head's outputs at the text were."""

        def put(n: int, total: Tensor) -> Tensor | None:
            if n != layer:
                return None
            text = self._text(total).clone()
            text[:, :, head] = self.heads[batch][layer][:, :, head]
            return self._with_text(total, text)

        return head_outputs(self.model, put)


def _interval(values: Floats) -> Estimate:
    return mean_interval(values[np.isfinite(values)])


# Blocks


def _blocks(content: Mapping[str, Any]) -> Iterator[Block]:
    layers, heads = int(content["layers"]), int(content["heads"])
    axes: dict[str, Any] = {"rows": numbered("layer", layers), "columns": numbered("head", heads)}
    effects = np.asarray(content["head_effects"], dtype=np.float64)
    unit = f"change in {content['quantity']}, mean of {content['examples']} examples"
    order = np.argsort(-effects, axis=None)[:5]
    places = [np.unravel_index(index, effects.shape) for index in order]
    most = "; ".join(f"layer {n}, head {m}: {effects[n, m]:+.3g}" for n, m in places)
    yield Block(
        kind="figure",
        title=f"Each head knocked out: {unit}",
        text=f"The largest: {most}.",
        draw=heat_map(effects, signed=True, form=lambda value: f"{value:.2f}", **axes),
    )
    tokens = {WORDS[name]: Estimate(**one) for name, one in content["token_effects"].items()}
    yield Block(
        kind="figure",
        title=f"Tokens that nobody may attend to: {unit}",
        text="; ".join(f"{name}: {one.value:+.3g}" for name, one in tokens.items()),
        draw=bars(tokens, xlabel=unit),
    )
    yield Block(
        kind="table",
        title="Knocked out",
        text=f"{unit[0].upper()}{unit[1:]}, with its 95 % interval over examples.",
        columns=("without", "change"),
        rows=tuple((name, with_interval(one, "+.4f")) for name, one in tokens.items())
        + tuple((f"layer {n}, head {m}", f"{effects[n, m]:+.4f}") for n, m in places),
    )
    patching = content.get("patching")
    if patching is None or "left_out" in patching:
        return
    changed = "without registers" if patching["against"] == "registers" else "with half of the content tokens masked"
    damage = Estimate(**patching["damage"])
    text = (
        f"The model {changed}: {content['quantity']} {patching['normal']:.4f} → {patching['changed']:.4f} "
        f"({with_interval(damage, '+.4f')}). Shown is the share of this that is repaired when one part of the normal "
        "run is put back at the text."
    )
    if damage.low is not None and damage.high is not None and damage.low <= 0 <= damage.high:
        text += " The interval holds 0: there is no damage to be repaired, and the shares mean little."
    yield Block(kind="text", title="Activation patching", text=text)
    shares = np.array([[np.nan if v is None else v for v in row] for row in patching["heads"]], dtype=np.float64)
    by_layer = [np.nan if value is None else float(value) for value in patching["layers"]]
    yield Block(
        kind="figure",
        title="Repaired by one head's output, in %",
        text=f"Largest share: {np.nanmax(shares, initial=0):.2f}.",
        draw=heat_map(shares, signed=True, **axes),
    )
    yield Block(
        kind="table",
        title="Repaired by the states that a layer reads",
        columns=("layer", *map(str, range(layers))),
        rows=(("share, %", *(f"{100 * value:.0f}" for value in by_layer)),),
    )
