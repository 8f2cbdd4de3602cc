"""Test-time registers (Jiang et al. 2025, arXiv 2506.08010): no training, a few neurons are moved to untrained tokens.

A feed-forward neuron's score is its mean |activation| at outlier tokens, whose norm at one layer is beyond a threshold.
The first of those up to that layer, the register neurons, have their largest activation at the registers then, and 0 at
all other tokens (`regtune.registers.moved_neurons`, which says what becomes of that in a decoder).

They are found once, in the model that training starts from; fine-tuning goes on from there.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import Tensor, nn

from regtune.config import Count, RegisterConfig
from regtune.errors import ConfigError
from regtune.families import family_of
from regtune.families._family import Family
from regtune.interfaces import Attached, Batch, Method, Rows
from regtune.models.precision import autocast
from regtune.registers.moved_neurons import Neuron, move_neurons, neuron_layers, restore_neurons
from regtune.registers.surgery import (
    add_registers,
    backbone_of,
    disable_registers,
    find_registers,
    num_registers,
    remove_registers,
    require_registers,
)
from regtune.rows.token_classes import TokenClass, is_content
from regtune.session import Session, spread_over
from regtune.typed import Checked, Range

if TYPE_CHECKING:
    from regtune.registers.registers import Registers

_FORWARDED = ("input_ids", "pixel_values", "attention_mask", "token_type_ids")


@dataclass(frozen=True, kw_only=True)
class TestTimeRegistersSettings(Checked, section="test_time_registers"):
    """How register neurons are found, and where they go."""

    __test__ = False  # for pytest, which takes it for a test by its name

    num_registers: Count = 1
    """Untrained tokens that are added, where the run has no registers of its own."""
    start: Literal["zeros", "mean"] = "zeros"
    """What those are: zeros, or the mean of what training rows have in their place."""
    neurons: Count = 10
    """How many neurons are moved; the authors take 10 to 50."""
    layer: Annotated[int, Range(0, 10_000)] | None = None
    """The layer, from 0, whose outputs' norms say what an outlier is. Without one, the first at which the largest norm
    over the median is at least half of what it is anywhere."""
    sigmas: Annotated[float, Range(0, 1000)] = 3.0
    """An outlier's norm is beyond the mean by more than so many standard deviations, over all tokens that count."""
    threshold: Annotated[float, Range(0, 1e9)] | None = None
    """Or beyond this number."""
    tokens: Literal["all", "content"] = "all"
    """Which tokens of texts count: all, or those without special ones; of images patches alone."""
    examples: Count = 500
    """Training rows that are looked at."""


class TestTimeRegisters(Method):
    """Register neurons, moved to registers that nobody trained."""

    __test__ = False

    name = "test_time_registers"
    title = "the neurons that make outlier tokens act at untrained registers instead (Jiang 2025)"
    costs = "attention over N more places; two forward passes over some rows first"
    use = "as the control whether registers must be trained; it needs no training of its own"
    settings = TestTimeRegistersSettings
    base = "changed"

    def attach(self, session: Session, settings: TestTimeRegistersSettings) -> MovedNeurons:
        """Adds untrained registers, where the run has none; neurons are moved once rows are known (`initialise`).

        Raises:
            UnsupportedModelError: a model that can't have registers, or whose neurons can't be moved.
        """
        model = session.model
        neuron_layers(backbone_of(model), family_of(backbone_of(model).config))
        own = find_registers(model) is None
        if own:
            add_registers(model, _untrained(settings.num_registers))
            require_registers(model).tokens.data.zero_()
        return MovedNeurons(model, own)

    def initialise(self, session: Session, settings: TestTimeRegistersSettings, rows: Rows[Any]) -> None:
        """Finds the register neurons on training rows and moves them.

        Raises:
            ConfigError: no layer of that number, or no token that is an outlier.
        """
        attached = session.attached[self.name]
        assert isinstance(attached, MovedNeurons)
        batches = _batches(session, rows, settings.examples)
        with disable_registers(session.model):
            attached.found = find_register_neurons(session, batches, settings)
            start = _mean_input(session, batches) if settings.start == "mean" and attached.own else None
        if start is not None:
            require_registers(session.model).tokens.data.copy_(start.expand(num_registers(session.model), -1))
        move_neurons(session.model, [neuron for neuron, _ in attached.found.neurons])

    def watch(
        self, session: Session, settings: TestTimeRegistersSettings, rows: Rows[Any]
    ) -> Callable[[], Mapping[str, Any]]:
        """Says what was found, and at each moment the largest norms of the text and of the registers."""
        attached = session.attached[self.name]
        assert isinstance(attached, MovedNeurons)
        assert attached.found is not None
        found, batches = attached.found, _batches(session, rows, min(settings.examples, _WATCHED))
        return lambda: found.facts() | largest_norms(session, batches, found.layer)

    def label(self, settings: TestTimeRegistersSettings) -> str:
        """What they are, and how many neurons."""
        return f"test-time registers, {settings.neurons} neurons"


_WATCHED = 64
"""Rows on which norms are watched."""


def _untrained(number: int) -> RegisterConfig:
    return RegisterConfig(num_registers=number, position="none", trainable=False)


@dataclass(eq=False)
class MovedNeurons(Attached):
    """Register neurons that act at registers."""

    model: Any
    own: bool
    """Whether the registers came with the method."""
    found: Found | None = None

    def detach(self) -> None:
        """The neurons act where they did; registers that came with the method go."""
        restore_neurons(self.model)
        if self.own:
            remove_registers(self.model)

    def disabled(self) -> AbstractContextManager[None]:
        """Inside, the model computes bit for bit as without registers, and every neuron where it did."""
        return disable_registers(self.model)


# Finding them


@dataclass(frozen=True, kw_only=True)
class Found:
    """Register neurons, and how they were found."""

    layer: int
    threshold: float
    """Norms beyond it are outliers."""
    tokens: int
    """Tokens that counted."""
    outliers: int
    rows: int
    """Rows with an outlier, over which scores are means."""
    neurons: Sequence[tuple[Neuron, float]] = field(default_factory=list)
    """With their scores, the largest first."""

    def facts(self) -> dict[str, Any]:
        """For the record."""
        every = [dataclasses.asdict(neuron) | {"score": score} for neuron, score in self.neurons]
        return {**{name: getattr(self, name) for name in _TOLD}, "neurons": every}


_TOLD = ("layer", "threshold", "tokens", "outliers", "rows")


def find_register_neurons(session: Session, batches: Sequence[Batch], settings: TestTimeRegistersSettings) -> Found:
    """Finds them in two passes: which tokens are outliers, and which neurons are active there.

    A token's norm is that of its state behind a layer or, where layers end with a norm that hides it, in front of that.

    Args:
        session: a model without registers, or with those switched off.
        batches: of `Session.batches`.
        settings: what counts, how many.

    Raises:
        ConfigError: no layer of that number, or no token that is an outlier.
    """
    session.model.eval()
    norms = _norms(session, batches)
    counted = [_counted(session, batch, settings.tokens) for batch in batches]
    by_layer = [torch.cat([one[layer][kept] for one, kept in zip(norms, counted, strict=True)]) for layer in norms[0]]
    layer = _first_with_outliers(by_layer) if settings.layer is None else settings.layer
    if layer >= len(by_layer):
        raise ConfigError(
            f"methods.test_time_registers.layer={layer} doesn't exist; {session.name} has layers 0 to "
            f"{len(by_layer) - 1}."
        )
    every = by_layer[layer]
    threshold = settings.threshold
    if threshold is None:
        threshold = float(every.mean() + settings.sigmas * every.std(unbiased=False))
    outliers = [kept & (one[layer] > threshold) for one, kept in zip(norms, counted, strict=True)]
    count = sum(int(one.sum()) for one in outliers)
    if not count:
        raise ConfigError(
            f"No token is an outlier: of {len(every)} at layer {layer} the largest norm is {float(every.max()):.4g}, "
            f"and outliers are beyond {threshold:.4g}. Set methods.test_time_registers.sigmas (or threshold) lower, or "
            "take test_time_registers out of the run."
        )
    return Found(
        layer=layer,
        threshold=threshold,
        tokens=len(every),
        outliers=count,
        rows=sum(int(one.any(1).sum()) for one in outliers),
        neurons=_most_active(session, batches, outliers, layer, settings.neurons),
    )


def _first_with_outliers(norms: Sequence[Tensor]) -> int:
    ratios = torch.stack([one.max() / one.median().clamp(min=1e-30) for one in norms])
    return int((ratios >= ratios.max() / 2).int().argmax())


def _batches(session: Session, rows: Rows[Any], most: int) -> list[Batch]:
    return session.batches(rows.only(spread_over(len(rows), most)))


def _classes(batch: Batch) -> Tensor:
    return batch["token_classes"].flatten(0, -2)


def _counted(session: Session, batch: Batch, tokens: str) -> Tensor:
    classes = _classes(batch)
    content = tokens == "content" or session.modality == "image"
    return is_content(classes) if content else classes != TokenClass.PADDING


@torch.no_grad()
def _run(session: Session, batch: Batch) -> None:
    """The backbone alone on a batch."""
    backbone = backbone_of(session.model)
    accepted = inspect.signature(backbone.forward).parameters
    given: dict[str, Any] = {}
    for name in _FORWARDED:
        if name in accepted and name in batch:
            value = batch[name].to(session.device)
            given[name] = value if name == "pixel_values" else value.flatten(0, -2)
    if "use_cache" in accepted:
        given["use_cache"] = False
    with autocast(session.device, session.precision):
        backbone(**given)


@contextmanager
def _states(session: Session, see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Inside the context `see(layer, states)` gets the states whose norms count, `[rows, total, hidden]`."""
    backbone = backbone_of(session.model)
    family = family_of(backbone.config)
    handles = []
    for number, (layer, _) in enumerate(neuron_layers(backbone, family)):

        def behind(_layer: nn.Module, _args: tuple, output: Any, number: int = number) -> None:
            see(number, output[0] if isinstance(output, tuple) else output)

        def before(_norm: nn.Module, args: tuple, number: int = number) -> None:
            see(number, args[0])

        if _ends_with_norm(family):
            handles.append(layer.get_submodule(family.norms[-1]).register_forward_pre_hook(before))
        else:
            handles.append(layer.register_forward_hook(behind))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _ends_with_norm(family: Family) -> bool:
    """Whether a layer's output is that of its last norm: where none is needed behind the last layer."""
    return family.final_norm is None


def _norms(session: Session, batches: Sequence[Batch]) -> list[dict[int, Tensor]]:
    """Of each batch by layer, `[rows, seq]`."""
    found: list[dict[int, Tensor]] = []

    def see(layer: int, states: Tensor) -> None:
        found[-1][layer] = states.double().norm(dim=-1).cpu()

    with _states(session, see):
        for batch in batches:
            found.append({})
            _run(session, batch)
    return found


def _most_active(
    session: Session, batches: Sequence[Batch], outliers: Sequence[Tensor], last: int, number: int
) -> list[tuple[Neuron, float]]:
    """The neurons up to a layer whose mean |activation| at outliers is largest."""
    layers = neuron_layers(backbone_of(session.model), family_of(backbone_of(session.model).config))[: last + 1]
    sums: list[Any] = [0.0] * len(layers)
    outlier, real = torch.empty(0), torch.empty(0)

    def add(place: int, _projection: nn.Module, args: tuple) -> None:
        states = args[0].double().cpu()
        share = outlier.double() / outlier.sum(1, keepdim=True).clamp(min=1)
        hidden = torch.finfo(states.dtype).max
        largest = states.masked_fill(~real[..., None], -hidden).amax(1).sum(0)
        least = states.masked_fill(~real[..., None], hidden).amin(1).sum(0)
        at_outliers = [torch.einsum("rs,rsn->n", share, part) for part in (states.abs(), states)]
        sums[place] = sums[place] + torch.stack([*at_outliers, largest, least])

    handles = [
        projection.register_forward_pre_hook(lambda module, args, place=place: add(place, module, args))
        for place, (_, projection) in enumerate(layers)
    ]
    try:
        for batch, outlier in zip(batches, outliers, strict=True):  # noqa: B007 - the hooks read it
            real = _classes(batch) != TokenClass.PADDING
            _run(session, batch)
    finally:
        for handle in handles:
            handle.remove()
    rows, total = sum(int(one.any(1).sum()) for one in outliers), sum(len(one) for one in outliers)
    scores = torch.stack([one[0] / rows for one in sums])
    width = scores.shape[1]
    found = []
    for place in scores.flatten().topk(min(number, scores.numel())).indices.tolist():
        layer, index = divmod(place, width)
        _, mean, largest, least = sums[layer][:, index].tolist()
        positive = mean >= 0
        held = (largest if positive else least) / total
        neuron = Neuron(layer=layer, index=index, sign=1 if positive else -1, held=held)
        found.append((neuron, float(scores[layer, index])))
    return found


def _mean_input(session: Session, batches: Sequence[Batch]) -> Tensor:
    """The mean of what registers join, over real tokens, `[width]`."""
    backbone = backbone_of(session.model)
    family = family_of(backbone.config)
    sums: list[Tensor] = []
    real = torch.empty(0)

    def add(states: Tensor) -> None:
        sums.append(states.double()[real.to(states.device)])

    def embedded(_module: nn.Module, _args: tuple, output: Tensor) -> None:
        add(output)

    def entered(_layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        add(args[0] if args else kwargs["hidden_states"])

    if family.joins_words:
        handle = neuron_layers(backbone, family)[0][0].register_forward_pre_hook(entered, with_kwargs=True)
    else:
        handle = backbone.get_submodule(family.embeddings).register_forward_hook(embedded)
    try:
        for batch in batches:
            real = _classes(batch) != TokenClass.PADDING
            _run(session, batch)
    finally:
        handle.remove()
    return torch.cat(sums).mean(0).to(require_registers(session.model).tokens.dtype)


def largest_norms(session: Session, batches: Sequence[Batch], layer: int) -> dict[str, float]:
    """Means over rows of the largest norm behind a layer: `text_norm`, without padding, and `register_norm`."""
    session.model.eval()
    registers: Registers = require_registers(session.model)
    text: list[Tensor] = []
    held: list[Tensor] = []
    real = torch.empty(0)

    def see(number: int, states: Tensor) -> None:
        if number == layer:
            of_text = registers.strip(states).double().norm(dim=-1).cpu()
            text.append(of_text.masked_fill(~real, 0.0).amax(1))
            held.append(registers.registers_of(states).double().norm(dim=-1).amax(1).cpu())

    with _states(session, see):
        for batch in batches:
            real = _classes(batch) != TokenClass.PADDING
            _run(session, batch)
    return {"text_norm": float(torch.cat(text).mean()), "register_norm": float(torch.cat(held).mean())}
