"""The part `int8`: what rounding weights and activations to 8 bits (W8A8) costs, simulated. Two schemes, by name.

`bondarenko`: as published for BERT (Bondarenko 2021, 2023). Weights symmetric, one range a tensor; activations
asymmetric (256 levels between the smallest and the largest value), one range a site, at *every* site: what embeddings,
linear layers, norms and activation functions give, what linear layers and norms read (so the sums with the skip
connection too), attention scores and probabilities. The head is left as it is. Where norms stand before their branches
(GPT-2, Llama) the stream is rounded at each block's input and in what each norm reads.

`linear`: what integer matrix kernels round, and no more. Weights *and inputs* of every linear layer, the head's too,
symmetric with 255 levels; what is between stays as it is.

Ranges of activations are fixed beforehand: the extremes over the calibration texts, padding left out, which are the
texts that are measured (kind to the model). One outlier therefore costs all other activations of the site their
resolution. Halves round to even numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from regtune.analyses.artefacts.sites import Batch, blocks_of, is_linear, is_norm, model_inputs, run_backbone
from regtune.analyses.outcomes import outcomes
from regtune.analyses.parts import ByExample, Verdict, Word, short, verdict_blocks
from regtune.analyses.reversible import only_reader, replace_forward, require_eval_mode
from regtune.errors import ConfigError, DataError, UnsupportedModelError, unknown_name
from regtune.interfaces import Block, Examples, Need, Rows
from regtune.registers.registers import Registers
from regtune.registers.surgery import backbone_of, find_registers
from regtune.session import Session
from regtune.stats.bootstrap import resampled_means
from regtune.token_classes import is_content

Weights = Literal["tensor", "channel"]
Scheme = Literal["bondarenko", "linear"]
SCHEMES: tuple[Scheme, ...] = ("bondarenko", "linear")
Range = tuple[float, float]
Ranges = Mapping[str, Range]
"""For each site the smallest and the largest value. Sites: `PATH.in`, `PATH.out` (modules by their path in the model),
`scores.K` and `probabilities.K` (the K-th softmax of a pass)."""
LEVELS = 127
_MASKED = torch.finfo(torch.float32).min / 4
"""Attention scores below this are masked."""
_POINT = 0.01


@dataclass(frozen=True, kw_only=True)
class Int8Settings:
    """How numbers are rounded."""

    schemes: tuple[Scheme, ...] = SCHEMES
    """`bondarenko` (as published) and `linear` (what integer kernels round)."""
    weights: Weights = "tensor"
    """One range for a weight matrix, or one for each of its output channels (`linear` alone)."""
    resamples: int = 2_000
    """Bootstrap draws."""

    def __post_init__(self) -> None:
        for scheme in self.schemes or ("",):
            if scheme not in SCHEMES:
                raise unknown_name("scheme of 8 bits", scheme, SCHEMES)
        if self.weights not in ("tensor", "channel"):
            raise unknown_name("range of weights", str(self.weights), ("tensor", "channel"))
        if self.resamples < 100:
            raise ConfigError(f"resamples={self.resamples} is too few for an interval; use 100 at least.")


def round_symmetric(x: Float[Tensor, "*shape"], largest: Float[Tensor, "*range"]) -> Float[Tensor, "*shape"]:
    """`x` on the grid of 255 values between −largest and largest; what lies outside is cut; 0 where that is 0."""
    step = largest / LEVELS
    return (x / torch.where(step > 0, step, 1)).round().clamp(-LEVELS, LEVELS) * step


def round_asymmetric(x: Float[Tensor, "*shape"], between: Range) -> Float[Tensor, "*shape"]:
    """`x` on the grid of 256 values between two ends, moved so that 0 is one of them (Bondarenko 2021, eq. 1)."""
    low, high = min(between[0], 0.0), max(between[1], 0.0)
    step = (high - low) / 255
    if step == 0:
        return torch.zeros_like(x)
    zero = round(-low / step)
    return ((x / step).round() + zero).clamp(0, 255).sub(zero) * step


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer by its path, the head's too."""
    return {path: module for path, module in model.named_modules() if is_linear(module)}


class _Softmaxes(TorchFunctionMode):
    """Hands each softmax of a pass its scores and probabilities, in turn."""

    def __init__(self, change: Callable[[str, Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change
        self.seen = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if getattr(func, "__name__", "") != "softmax" or not isinstance(args[0], Tensor) or args[0].dim() != 4:
            return func(*args, **(kwargs or {}))
        number, self.seen = self.seen, self.seen + 1
        # a masked score of float64 would become -inf in a softmax in float32, and a row that sees nothing NaN
        scores = self.change(f"scores.{number}", args[0]).clamp(min=torch.finfo(torch.float32).min)
        return self.change(f"probabilities.{number}", func(scores, *args[1:], **(kwargs or {})))


@contextmanager
def _every_site(model: nn.Module, change: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Inside the context `change(site, values)` takes the place of the values of every site of the backbone.

    Attention runs eagerly meanwhile, so that its scores exist.
    """
    backbone = backbone_of(model)
    names = {id(module): path for path, module in model.named_modules()}
    kinds = (nn.Embedding, nn.GELU, nn.ReLU, nn.SiLU, nn.Tanh)
    before = backbone.config._attn_implementation
    attention = _Softmaxes(change)
    with ExitStack() as stack:
        stack.enter_context(only_reader(model))
        if before != "eager":
            stack.callback(backbone.set_attn_implementation, before)
            backbone.set_attn_implementation("eager")

        def reads(path: str) -> Callable[..., tuple]:
            return lambda _module, args: (change(f"{path}.in", args[0]), *args[1:]) if args else args

        def gives(path: str) -> Callable[..., Any]:
            return lambda _module, _args, output: change(f"{path}.out", output)

        for module in backbone.modules():
            path = names[id(module)]
            activation = isinstance(module, kinds) or "activation" in type(module).__name__.lower()
            if is_linear(module) or is_norm(module):
                stack.callback(module.register_forward_pre_hook(reads(path)).remove)
            if is_linear(module) or is_norm(module) or (activation and not list(module.children())):
                stack.callback(module.register_forward_hook(gives(path)).remove)
        for block in blocks_of(model):
            stack.callback(block.register_forward_pre_hook(reads(names[id(block)])).remove)

        def around(forward: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(forward)  # its arguments are asked for
            def run(*args: Any, **kwargs: Any) -> Any:
                attention.seen = 0
                with attention:
                    return forward(*args, **kwargs)

            return run

        replace_forward(backbone, around, stack)
        yield


class _Extremes:
    """The smallest and the largest value of every site, over text and registers."""

    def __init__(self, registers: Registers | None) -> None:
        self.ranges: dict[str, Range] = {}
        self.registers = registers
        self.mask = torch.empty(0, dtype=torch.bool)

    def see(self, site: str, x: Tensor) -> Tensor:
        seen = self._counted(x)
        if seen.numel():
            low, high = float(seen.amin()), float(seen.amax())
            if not (abs(low) < float("inf") and abs(high) < float("inf")):
                raise UnsupportedModelError(f"{site} has values that are not finite, so they have no range.")
            before = self.ranges.get(site, (low, high))
            self.ranges[site] = (min(low, before[0]), max(high, before[1]))
        return x

    def _counted(self, x: Tensor) -> Tensor:
        """The entries that aren't padding; of attention those that aren't masked."""
        if x.dim() == 4:
            return x[x > _MASKED]
        if x.dim() < 3:
            return x
        if x.shape[:2] == self.mask.shape:
            return x[self.mask]
        registers = self.registers
        if registers is not None and x.shape[:2] == (len(self.mask), self.mask.shape[1] + registers.num_registers):
            kept = torch.ones(len(self.mask), registers.num_registers, dtype=torch.bool, device=self.mask.device)
            return x[registers.insert(kept, self.mask.to(kept.dtype))]
        return x


@torch.inference_mode()
def activation_ranges(model: nn.Module, batches: Iterable[Batch], scheme: Scheme = "linear") -> dict[str, Range]:
    """The extremes of every site of a scheme on these texts; padding doesn't count. The model is left as it was.

    Args:
        model: a Hugging Face model in eval mode, with or without registers.
        batches: analysis batches.
        scheme: which sites there are.

    Raises:
        DataError: no batch at all.
        UnsupportedModelError: training mode, a model without linear layers, or activations that are not numbers.
    """
    require_eval_mode(model)
    layers = linear_layers(model)
    if not layers:
        raise UnsupportedModelError(f"{type(model).__name__} has no linear layer, so there is nothing to quantise.")
    seen = _Extremes(find_registers(model))
    ran = False
    with ExitStack() as stack:
        if scheme == "bondarenko":
            stack.enter_context(_every_site(model, seen.see))
        else:
            for path, module in layers.items():
                hear = module.register_forward_pre_hook(
                    lambda _m, args, path=path: _only(seen.see(f"{path}.in", args[0]))
                )
                stack.callback(hear.remove)
        for batch in batches:
            seen.mask = batch["attention_mask"].bool().to(next(model.parameters()).device)
            model(**model_inputs(model, batch), return_dict=True)
            ran = True
    if not ran:
        raise DataError("There is no text to calibrate on. Give at least one batch.")
    return seen.ranges


def _only(_value: Tensor) -> None:
    """A hook's answer that changes nothing."""


@contextmanager
def quantised(
    model: nn.Module, ranges: Ranges, scheme: Scheme = "linear", *, weights: Weights = "tensor"
) -> Iterator[None]:
    """Inside the context the model computes with rounded weights and activations; then all is as it was.

    No parameter is written to, so tied weights (a masked-LM head) stay the embeddings they are.

    Args:
        model: the model that `ranges` were measured on.
        ranges: from `activation_ranges` of the same scheme; sites that it doesn't name are left as they are.
        scheme: `bondarenko` or `linear`.
        weights: one range for a whole weight matrix, or one for each output channel.

    Raises:
        ConfigError: `ranges` of another model or scheme, or an unknown choice of `weights`.
        UnsupportedModelError: training mode, or a model inside another context that changes it.
    """
    Int8Settings(weights=weights, schemes=(scheme,))
    require_eval_mode(model)
    layers = linear_layers(model)
    modules = {path for path, _ in model.named_modules()}
    linear = scheme == "linear"
    unknown = [
        site for site in ranges if not (site.removesuffix(".in") in layers if linear else _is_site(site, modules))
    ]
    if unknown or not ranges:
        raise ConfigError(
            f"These ranges are of another model or scheme: {unknown[0] if unknown else 'none at all'} is no site of "
            f"{scheme} in this {type(model).__name__}. Measure them with activation_ranges(model, batches, {scheme!r})."
        )
    with ExitStack() as stack:
        if linear:
            stack.enter_context(only_reader(model))
            for path, module in layers.items():
                if f"{path}.in" in ranges:
                    largest = max(map(abs, ranges[f"{path}.in"]))
                    replace_forward(module, _rounded(module, largest, weights), stack)
        else:
            inside = {id(module) for module in backbone_of(model).modules()}
            for module in layers.values():
                if id(module) in inside:
                    replace_forward(module, _rounded(module, None, weights), stack)

            def change(site: str, x: Tensor) -> Tensor:
                if site not in ranges:
                    return x
                rounded = round_asymmetric(x, ranges[site])
                return torch.where(x > _MASKED, rounded, x) if site.startswith("scores") else rounded

            stack.enter_context(_every_site(model, change))
        yield


def _is_site(site: str, modules: set[str]) -> bool:
    path, _, end = site.rpartition(".")
    return path in ("scores", "probabilities") or (end in ("in", "out") and path in modules)


def _rounded(
    module: Any, largest: float | None, weights: Weights
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A linear layer's forward with a rounded weight and, where an end is given, a symmetrically rounded input."""
    transposed = not isinstance(module, nn.Linear)  # GPT-2 keeps [in, out]
    weight = module.weight.detach().T if transposed else module.weight.detach()
    size = weight.abs()
    rounded = round_symmetric(weight, size.amax() if weights == "tensor" else size.amax(dim=1, keepdim=True))
    end = None if largest is None else torch.tensor(largest, dtype=weight.dtype, device=weight.device)

    def make(_forward: Callable[..., Any]) -> Callable[..., Any]:
        def forward(x: Tensor) -> Tensor:
            return nn.functional.linear(x if end is None else round_symmetric(x, end), rounded, module.bias)

        return forward

    return make


@torch.inference_mode()
def relative_errors(
    model: nn.Module,
    batches: Iterable[Batch],
    ranges: Ranges,
    scheme: Scheme = "linear",
    *,
    weights: Weights = "tensor",
) -> dict[int, float]:
    """‖h − h₈‖ / ‖h‖ over each text's content tokens, h being `last_hidden_state` and h₈ the quantised model's.

    Returns:
        For each example (`batch["example"]`, or the number of the text) its error.

    Raises:
        DataError: not one content token.
        ConfigError, UnsupportedModelError: as `quantised`.
    """
    found: dict[int, float] = {}
    seen = 0
    for batch in batches:
        exact = run_backbone(model, batch)
        with quantised(model, ranges, scheme, weights=weights):
            rounded = run_backbone(model, batch)
        numbers = batch["example"].tolist() if "example" in batch else range(seen, seen + len(exact))
        seen += len(exact)
        content = is_content(batch["token_classes"]).to(exact.device)
        for row, number in enumerate(numbers):
            if content[row].any():
                h, h8 = exact[row][content[row]].double(), rounded[row][content[row]].double()
                found[int(number)] = float((h - h8).norm() / h.norm().clamp(min=1e-30))
    if not found:
        raise DataError(f"{seen} texts and not one content token in them. Give text with words.")
    return found


# The part


class Int8Analysis:
    """The cost of W8A8: the task's metric where the model has a head and the data labels, else hidden states."""

    name: ClassVar[str] = "int8"
    title: ClassVar[str] = "8 bits"
    settings: ClassVar[type] = Int8Settings
    needs: ClassVar[frozenset[Need]] = frozenset()

    def measure(
        self, session: Session, rows: Rows[Any], examples: Examples, settings: Int8Settings
    ) -> Mapping[str, Any]:
        """See `Analysis.measure`."""
        batches = session.batches(rows.one_each())
        before = outcomes(session, rows, examples)
        found: dict[str, Any] = {}
        measures: dict[str, ByExample] = {}
        titles: dict[str, str] = {}
        for scheme in settings.schemes:
            ranges = activation_ranges(session.model, batches, scheme)
            if before.score is None:
                lost = relative_errors(session.model, batches, ranges, scheme, weights=settings.weights)
                metric, title = "relative_error", "relative error of the last hidden state"
            else:
                assert before.metric is not None
                with quantised(session.model, ranges, scheme, weights=settings.weights):
                    after = outcomes(session, rows, examples)
                assert after.score is not None
                sign = 1 if before.metric.higher_is_better else -1
                lost = dict(enumerate((sign * (before.score - after.score)).tolist()))
                metric, title = f"{before.metric.name}_loss", f"{before.metric.title} lost"
            values = np.array(list(lost.values()), dtype=np.float64)
            means = resampled_means(values[None], resamples=settings.resamples, seed=0)[0]
            low, high = (float(end) for end in np.quantile(means, (0.025, 0.975)))
            if before.score is not None and not values.any():
                high = 3 / len(values)  # nothing changed in n draws: up to 3/n would have gone unseen (rule of three)
            found[scheme] = {
                "metric": metric,
                "value": float(values.mean()),
                "low": low,
                "high": high,
                "examples": len(values),
                "before": None if before.score is None else float(before.score.mean()),
            }
            measures[f"int8.{scheme}.{metric}"] = lost
            titles[f"int8.{scheme}.{metric}"] = f"{title} with W8A8, {scheme}"
        return {
            "weights": settings.weights,
            "schemes": found,
            "verdicts": [int8_verdict(scheme, one) for scheme, one in found.items()],
            "measures": measures,
            "titles": titles,
        }

    def blocks(self, content: Mapping[str, Any]) -> list[Block]:
        """See `Analysis.blocks`."""
        rows = tuple(
            (
                *(scheme, one["metric"], short(one["before"])),
                *(f"{one[name]:+.4f}" for name in ("value", "low", "high")),
                str(one["examples"]),
            )
            for scheme, one in content["schemes"].items()
        )
        table = Block(
            kind="table",
            title="The cost of 8 bits",
            text="bondarenko: as published, activations asymmetric at every site; linear: weights and inputs of linear "
            "layers alone. Intervals: bootstrap over examples, 95 %.",
            columns=("scheme", "measure", "before", "lost", "from", "to", "examples"),
            rows=rows,
        )
        return [*verdict_blocks(content["verdicts"]), table]


_DEFINITION = (
    "ranges from the texts that are measured. Present: the task's first metric falls by a point and the interval "
    "leaves 0 out; weak: by less, and it leaves 0 out; unclear: it holds a point, so more examples are needed. Without "
    "a head or labels: relative error of the last hidden state, present 0.2, weak 0.1 (regtune)."
)


def int8_verdict(scheme: str, found: Mapping[str, Any]) -> Verdict:
    """The verdict on one scheme."""
    word: Word = "absent"
    if found["before"] is not None:
        if found["low"] > 0:
            word = "present" if found["value"] >= _POINT else "weak"
        elif found["high"] >= _POINT:
            word = "unclear"
        interval = f"[{100 * found['low']:.1f}, {100 * found['high']:.1f}]"
        strength = (
            f"{found['metric'].removesuffix('_loss')} {100 * found['before']:.1f} falls by "
            f"{100 * found['value']:.1f} {interval} points ({found['examples']} examples)"
        )
    else:
        word = "present" if found["value"] >= 0.2 else "weak" if found["value"] >= 0.1 else "absent"
        strength = f"last hidden state off by {found['value']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"
    return Verdict(
        artefact=f"W8A8 loss ({scheme})", verdict=word, strength=strength, definition=_DEFINITION, value=found["value"]
    )
