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

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from regtune.analyses.batches import with_words
from regtune.analyses.outcomes import Runs, some
from regtune.analyses.parts import CLASS_WORDS, figure, mean_interval, table, text, with_interval
from regtune.analyses.pictures import Estimate, bars, heat_map, matrix, numbered
from regtune.analyses.registers.knock_out import kept_outputs, layer_inputs, resumed
from regtune.errors import ConfigError, UnsupportedModelError
from regtune.families import family_of
from regtune.families._family import modules_at
from regtune.interfaces import Analysis, Batch, Block, Examples, Rows
from regtune.progress import each
from regtune.registers.surgery import active_registers, backbone_of, disable_registers, mask_registers, num_registers
from regtune.rows.token_classes import TokenClass, is_content
from regtune.session import Session, spread_over
from regtune.tables import Column
from regtune.typed import Checked, Range

Floats = Float64[np.ndarray, " examples"]
TOKENS = {kind.name.lower(): kind for kind in TokenClass if TokenClass.CLS <= kind <= TokenClass.QUESTION}


@dataclass(frozen=True, kw_only=True)
class HeadSettings(Checked, section="heads"):
    """How much is knocked out and patched."""

    examples: Annotated[int, Range(1, 1_000_000)] = 6
    """At most so many of the sample, evenly spread: the model runs twice for every head."""
    patch: bool = True
    """Patch activations too."""
    against: Literal["auto", "registers", "masked"] = "auto"
    """The changed run: without registers, or with half of the content tokens masked; auto takes the first if it can."""
    seed: int = 0
    """Chooses the tokens that are masked."""


class HeadAnalysis(Analysis):
    """Knock-outs of heads and tokens, and activation patching."""

    name = "heads"
    title = "Heads and tokens"
    settings = HeadSettings
    needs = frozenset({"attention"})

    def measure(
        self, session: Session, rows: Rows[Any], examples: Examples, settings: HeadSettings
    ) -> Mapping[str, Any]:
        """See `Analysis.measure`."""
        model, chosen = session.model, spread_over(len(examples), settings.examples)
        run = Runs(session, list(with_words(session.batches(some(rows.one_each(), chosen)))), len(examples))
        kept = _Kept(model)
        normal = run(kept.record)
        layers, heads = shape_of(model)
        lost = np.full((layers, heads, len(examples)), np.nan)

        def silent(_batch: int, layer: int, head: int) -> AbstractContextManager[None]:
            return knocked_out_head(model, layer, head)

        for layer, head in each([(n, m) for n in range(layers) for m in range(heads)], "heads"):
            lost[layer, head] = run(partial(kept.changed, layer=layer, change=silent, head=head)) - normal

        def unseen(batch: Batch, kind: TokenClass) -> Batch:
            return {**batch, "attention_mask": batch["attention_mask"] * (batch["token_classes"] != kind)}

        tokens = {
            name: run(batches=[unseen(batch, kind) for batch in run.batches]) - normal
            for name, kind in TOKENS.items()
            if any(bool((batch["token_classes"] == kind).any()) for batch in run.batches)
        }
        if num_registers(model):
            tokens["register"] = run(lambda _: mask_registers(model)) - normal
        unit = f"{run.quantity}, {len(chosen)} examples of the sample"
        titles = {f"heads.without_{name}": f"change without {CLASS_WORDS[name]} ({unit})" for name in tokens}
        return {
            "layers": layers,
            "heads": heads,
            "quantity": run.quantity,
            "examples": len(chosen),
            "head_effects": np.nanmean(lost, axis=2),
            "token_effects": {name: _interval(values) for name, values in tokens.items()},
            **({"patching": _patching(session, run, settings, normal, kept)} if settings.patch else {}),
            "measures": {
                **{f"heads.without_{name}": values for name, values in tokens.items()},
                "heads.largest": lost.max(axis=(0, 1)),
            },
            "titles": {**titles, "heads.largest": f"largest change without one head ({unit})"},
        }

    def blocks(self, content: Mapping[str, Any]) -> Iterator[Block]:
        """See `Analysis.blocks`."""
        rows, columns = numbered("layer", content["layers"]), numbered("head", content["heads"])
        effects = matrix(content["head_effects"])
        unit = f"change in {content['quantity']}, mean of {content['examples']} examples"
        places = [np.unravel_index(index, effects.shape) for index in np.argsort(-effects, axis=None)[:5]]
        yield figure(
            f"Each head knocked out: {unit}",
            heat_map(effects, signed=True, form=lambda value: f"{value:.2f}", rows=rows, columns=columns),
            f"The largest: {'; '.join(f'layer {n}, head {m}: {effects[n, m]:+.3g}' for n, m in places)}.",
        )
        tokens = {CLASS_WORDS[name]: Estimate(**one) for name, one in content["token_effects"].items()}
        yield figure(
            f"Tokens that nobody may attend to: {unit}",
            bars(tokens, xlabel=unit),
            "; ".join(f"{name}: {one.value:+.3g}" for name, one in tokens.items()),
        )
        yield table(
            "Knocked out",
            ("without", "change"),
            [
                *((name, with_interval(one, "+.4f")) for name, one in tokens.items()),
                *((f"layer {n}, head {m}", f"{effects[n, m]:+.4f}") for n, m in places),
            ],
            f"{unit[0].upper()}{unit[1:]}, with its 95 % interval over examples.",
        )
        patching = content.get("patching")
        if patching is None or "left_out" in patching:
            return
        other = "without registers" if patching["against"] == "registers" else "with half of the content tokens masked"
        damage = Estimate(**patching["damage"])
        words = (
            f"The model {other}: {content['quantity']} {patching['normal']:.4f} → {patching['changed']:.4f} "
            f"({with_interval(damage, '+.4f')}). Shown is the share of this that is repaired when one part of the "
            "normal run is put back at the text."
        )
        if damage.low is not None and damage.high is not None and damage.low <= 0 <= damage.high:
            words += " The interval holds 0: there is no damage to be repaired, and the shares mean little."
        yield text("Activation patching", words)
        shares = matrix(patching["heads"])
        yield figure(
            "Repaired by one head's output, in %",
            heat_map(shares, signed=True, rows=rows, columns=columns),
            f"Largest share: {np.nanmax(shares, initial=0):.2f}.",
        )
        yield table(
            "Repaired by the states that a layer reads",
            ("layer", *(Column(str(layer), ".0f") for layer in range(content["layers"]))),
            [("share, %", *(None if share is None else 100 * share for share in patching["layers"]))],
        )


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
    """
    backbone = backbone_of(model)
    family = family_of(backbone.config, "parts")
    heads = shape_of(model)[1]
    depth = -1

    def see(layer: int, _states: Tensor) -> None:
        nonlocal depth
        depth = layer

    def project(_module: nn.Module, args: tuple) -> tuple | None:
        changed = visit(depth, args[0].unflatten(-1, (heads, -1)))
        return None if changed is None else (changed.flatten(-2), *args[1:])

    projections = list(modules_at(backbone, *family.within_layers(family.attention_out)))
    if not projections:
        raise UnsupportedModelError(f"{type(backbone).__name__} has no output projection at {family.attention_out}.")
    with ExitStack() as stack:
        stack.enter_context(layer_inputs(model, see))
        for module in projections:
            stack.callback(module.register_forward_pre_hook(project).remove)
        yield


@contextmanager
def knocked_out_head(model: nn.Module, layer: int, head: int) -> Iterator[None]:
    """Inside the context one head writes nothing, at any position."""

    def silence(at: int, outputs: Tensor) -> Tensor | None:
        return outputs.index_fill(2, torch.tensor(head, device=outputs.device), 0.0) if at == layer else None

    with head_outputs(model, silence):
        yield


# Activation patching


def _patching(session: Session, run: Runs, settings: HeadSettings, normal: Floats, kept: _Kept) -> dict[str, Any]:
    """The share of the damage that each layer's input and each head's output repairs, as ratios of means."""
    model = session.model
    registers = bool(num_registers(model))
    without = registers if settings.against == "auto" else settings.against == "registers"
    if without and not registers:
        raise ConfigError("against='registers' needs a model with registers; use against='masked'.")
    if not without and session.modality == "text" and session.reader.mask_token_id is None:
        return {"against": "masked", "left_out": "the tokenizer has no [MASK]"}
    batches = None if without else [_masked(batch, session, settings.seed + i) for i, batch in enumerate(run.batches)]
    off: Callable[[], AbstractContextManager[Any]] = partial(disable_registers, model) if without else nullcontext
    worse = _Kept(model, off)
    changed = run(worse.record, batches)
    damage = float(np.nanmean(changed - normal))

    def repaired(layer: int, change: Callable[..., AbstractContextManager[Any]], **which: int) -> float:
        patched = run(partial(worse.changed, layer=layer, change=change, **which), batches)
        return float(np.nanmean(changed - patched)) / damage if damage else np.nan

    layers, heads = shape_of(model)
    by_layer = [repaired(layer, kept.put_states) for layer in each(range(layers), "layers put back")]
    places = each([(n, m) for n in range(layers) for m in range(heads)], "heads put back")
    by_head = np.array([repaired(layer, kept.put_head, head=head) for layer, head in places]).reshape(layers, heads)
    return {
        "against": "registers" if without else "masked",
        "normal": float(np.nanmean(normal)),
        "changed": float(np.nanmean(changed)),
        "damage": _interval(changed - normal),
        "layers": by_layer,
        "heads": by_head,
    }


def _masked(batch: Batch, session: Session, seed: int) -> Batch:
    """The batch with half of the content tokens masked; patches of images get the mean colour."""
    drawn = torch.rand(batch["token_classes"].shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    gone = drawn & is_content(batch["token_classes"])
    if "pixel_values" in batch:
        pixels, grid = batch["pixel_values"], batch["patch_grid"][0].tolist()
        hidden = gone[:, -grid[0] * grid[1] :].reshape(-1, 1, *grid).float()
        blank = torch.nn.functional.interpolate(hidden, size=pixels.shape[-2:], mode="nearest").bool()
        return {**batch, "pixel_values": pixels.masked_fill(blank, 0.0)}
    return {**batch, "input_ids": batch["input_ids"].masked_fill(gone, session.reader.mask_token_id)}


class _Kept:
    """What the parts of a model did in one run, batch by batch, and contexts that put some of it into another run."""

    def __init__(self, model: nn.Module, inside: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        """`inside` makes the context that every run of it is in."""
        self.model, self.inside = model, inside
        self.outputs: dict[int, list[Any]] = {}
        """What the layers gave, registers included."""
        self.states: dict[int, list[Tensor]] = {}
        self.heads: dict[int, list[Tensor]] = {}
        """The text's part of what the layers read and of what their heads gave."""

    @contextmanager
    def record(self, batch: int) -> Iterator[None]:
        """A run in which everything is kept."""
        outputs: list[Any] = []
        states: list[Tensor] = []
        heads: list[Tensor] = []
        see = layer_inputs(self.model, lambda _, total: states.append(self._text(total).clone()))
        hear = head_outputs(self.model, lambda _, total: heads.append(self._text(total).clone()))
        with self.inside(), see, hear, kept_outputs(self.model, outputs):
            yield
        self.outputs[batch], self.states[batch], self.heads[batch] = outputs, states, heads

    @contextmanager
    def changed(self, batch: int, *, layer: int, change: Callable[..., Any], **which: int) -> Iterator[None]:
        """The same run with a change in one layer: those before it need not run again."""
        with self.inside(), resumed(self.model, self.outputs[batch], layer), change(batch, layer, **which):
            yield

    def put_states(self, batch: int, layer: int) -> AbstractContextManager[None]:
        """What the text's states were when the layer read them."""
        text = self.states[batch][layer]
        return layer_inputs(self.model, lambda n, total: self._with_text(total, text) if n == layer else None)

    def put_head(self, batch: int, layer: int, head: int) -> AbstractContextManager[None]:
        """What the head's outputs at the text were."""

        def put(n: int, total: Tensor) -> Tensor | None:
            if n != layer:
                return None
            text = self._text(total).clone()
            text[:, :, head] = self.heads[batch][layer][:, :, head]
            return self._with_text(total, text)

        return head_outputs(self.model, put)

    def _text(self, total: Tensor) -> Tensor:
        registers = active_registers(self.model)
        return total if registers is None else registers.strip(total)

    def _with_text(self, total: Tensor, text: Tensor) -> Tensor:
        registers = active_registers(self.model)
        return text if registers is None else registers.insert(registers.registers_of(total), text)


def _interval(values: Floats) -> Estimate:
    return mean_interval(values[np.isfinite(values)])
