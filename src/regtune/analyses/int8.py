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
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from regtune.analyses.artefacts.sites import blocks_of, is_linear, is_norm
from regtune.analyses.batches import check, run
from regtune.analyses.outcomes import Runs, outcomes
from regtune.analyses.parts import Verdict, Word, graded, mean_interval, table, verdict_blocks
from regtune.analyses.reversible import only_reader, replace_forward, require_eval_mode
from regtune.errors import DataError, UnsupportedModelError
from regtune.interfaces import Analysis, Batch, Block, Examples, Rows
from regtune.progress import each
from regtune.registers.registers import Registers
from regtune.registers.surgery import backbone_of, find_decoder_registers, find_registers
from regtune.session import Session
from regtune.tables import Column
from regtune.typed import Checked

Weights = Literal["tensor", "channel"]
Scheme = Literal["bondarenko", "linear"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
Range = tuple[float, float]
Ranges = Mapping[str, Range]
"""For each site the smallest and the largest value. Sites: `PATH.in`, `PATH.out` (modules by their path in the model),
`scores.K` and `probabilities.K` (the K-th softmax of a pass)."""
LEVELS = 127
_MASKED = torch.finfo(torch.float32).min / 4
"""Attention scores below this are masked."""
_POINT = 0.01


@dataclass(frozen=True, kw_only=True)
class Int8Settings(Checked, section="int8"):
    """How numbers are rounded."""

    schemes: tuple[Scheme, ...] = SCHEMES
    """`bondarenko` (as published) and `linear` (what integer kernels round)."""
    weights: Weights = "tensor"
    """One range for a weight matrix, or one for each of its output channels."""


def round_symmetric(x: Float[Tensor, "*shape"], largest: Float[Tensor, "*range"]) -> Float[Tensor, "*shape"]:
    """`x` on the grid of 255 values between −largest and largest; what lies outside is cut; 0 where that is 0."""
    step = largest / LEVELS
    return x.div(torch.where(step > 0, step, 1)).round_().clamp_(-LEVELS, LEVELS).mul_(step)


def round_asymmetric(x: Float[Tensor, "*shape"], between: Range) -> Float[Tensor, "*shape"]:
    """`x` on the grid of 256 values between two ends, moved so that 0 is one of them (Bondarenko 2021, eq. 1)."""
    low, high = min(between[0], 0.0), max(between[1], 0.0)
    step = (high - low) / 255
    if step == 0:
        return torch.zeros_like(x)
    zero = round(-low / step)
    return x.div(step).round_().add_(zero).clamp_(0, 255).sub_(zero).mul_(step)


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
    """Inside the context `change(site, values)` takes the place of the values of every site, the head's among them.

    Attention runs eagerly meanwhile, so that its scores exist.
    """
    backbone = backbone_of(model)
    kinds = (nn.Embedding, nn.GELU, nn.ReLU, nn.SiLU, nn.Tanh)
    before = backbone.config._attn_implementation
    attention = _Softmaxes(change)
    blocks = set(map(id, blocks_of(model)))
    with ExitStack() as stack:
        stack.enter_context(only_reader(model))
        if before != "eager":
            stack.callback(backbone.set_attn_implementation, before)
            backbone.set_attn_implementation("eager")

        def reads(path: str) -> Callable[..., tuple]:
            return lambda _module, args: (change(f"{path}.in", args[0]), *args[1:]) if args else args

        def gives(path: str) -> Callable[..., Any]:
            return lambda _module, _args, output: change(f"{path}.out", output)

        for path, module in model.named_modules():
            activation = isinstance(module, kinds) or "activation" in type(module).__name__.lower()
            rounded = is_linear(module) or is_norm(module)
            if rounded or id(module) in blocks:
                stack.callback(module.register_forward_pre_hook(reads(path)).remove)
            if rounded or (activation and not list(module.children())):
                stack.callback(module.register_forward_hook(gives(path)).remove)

        def around(forward: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(forward)  # its arguments are asked for
            def run_once(*args: Any, **kwargs: Any) -> Any:
                attention.seen = 0
                with attention:
                    return forward(*args, **kwargs)

            return run_once

        replace_forward(backbone, around, stack)
        yield


class _Extremes:
    """The smallest and the largest value of every site, over text and registers."""

    def __init__(self, registers: Registers | None) -> None:
        self.ranges: dict[str, Range] = {}
        self.registers = registers
        self.mask = torch.empty(0, dtype=torch.bool)

    def see(self, site: str, x: Tensor) -> Tensor:
        counted, inf = self._counted(x), float("inf")
        least, most = (x, x) if counted is None else (x.masked_fill(~counted, end) for end in (inf, -inf))
        low, high = float(least.amin()), float(most.amax())
        if not (abs(low) < inf and abs(high) < inf):
            raise UnsupportedModelError(f"{site} has values that are not finite, so they have no range.")
        before = self.ranges.get(site, (low, high))
        self.ranges[site] = (min(low, before[0]), max(high, before[1]))
        return x

    def _counted(self, x: Tensor) -> Tensor | None:
        """Which entries aren't padding's; of attention scores those of queries and keys that aren't; None for all."""
        if x.dim() == 4 and (kept := self._kept(x.shape[-1])) is not None:
            return (x > _MASKED) & kept[:, None, :, None] & kept[:, None, None, :]
        if x.dim() == 3 and (kept := self._kept(x.shape[1])) is not None and len(x) in (1, len(kept)):
            return (kept if len(x) == len(kept) else kept.any(0, keepdim=True)).unsqueeze(-1)  # one row of positions
        return None

    def _kept(self, length: int) -> Tensor | None:
        """Where there are registers or text, `[rows, length]`; None if that is no length of theirs."""
        if length == self.mask.shape[1]:
            return self.mask
        registers = self.registers
        if registers is None or length != self.mask.shape[1] + registers.num_registers:
            return None
        ones = torch.ones(len(self.mask), registers.num_registers, dtype=torch.bool, device=self.mask.device)
        return registers.insert(ones, self.mask)


@torch.inference_mode()
def activation_ranges(model: nn.Module, batches: Iterable[Batch]) -> dict[str, Range]:
    """The extremes of every site on these texts; padding doesn't count. The model is left as it was."""
    require_eval_mode(model)
    if not linear_layers(model):
        raise UnsupportedModelError(f"{type(model).__name__} has no linear layer, so there is nothing to quantise.")
    if find_decoder_registers(model) is not None:
        raise UnsupportedModelError(
            f"This {type(model).__name__} has registers in its decoder, and which of its places are padding isn't told "
            "by the text's mask. Measure it without them: remove_registers(model), or decoder_registers=0."
        )
    seen = _Extremes(find_registers(model))
    with _every_site(model, seen.see):
        for batch in each(batches, "batches"):
            check(batch)
            seen.mask = batch["attention_mask"].bool().to(next(model.parameters()).device)
            run(model, batch)
    if not seen.ranges:
        raise DataError("There is no text to calibrate on. Give at least one batch.")
    return seen.ranges


@contextmanager
def quantised(
    model: nn.Module, ranges: Ranges, scheme: Scheme = "linear", *, weights: Weights = "tensor"
) -> Iterator[None]:
    """Inside the context the model computes with rounded weights and activations; then all is as it was.

    No parameter is written to, so tied weights (a masked-LM head) stay the embeddings they are. `ranges` are of
    `activation_ranges` on this model; sites that they don't name are left as they are.
    """
    require_eval_mode(model)
    layers, inside = linear_layers(model), set(map(id, backbone_of(model).modules()))
    backbone = {path for path, module in model.named_modules() if id(module) in inside} | {"scores", "probabilities"}

    def change(site: str, x: Tensor) -> Tensor:
        if site not in ranges or site.rpartition(".")[0] not in backbone:  # the head is left as it is
            return x
        rounded = round_asymmetric(x, ranges[site])
        return torch.where(x > _MASKED, rounded, x) if site.startswith("scores") else rounded

    with ExitStack() as stack:
        stack.enter_context(only_reader(model) if scheme == "linear" else _every_site(model, change))
        for path, module in layers.items():
            if scheme == "bondarenko" and path in backbone:
                replace_forward(module, _rounded(module, None, weights), stack)
            elif scheme == "linear" and f"{path}.in" in ranges:
                largest = max(map(abs, ranges[f"{path}.in"]))
                replace_forward(module, _rounded(module, largest, weights), stack)
        yield


def _rounded(
    module: Any, largest: float | None, weights: Weights
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A linear layer's forward with a rounded weight and, where an end is given, a symmetrically rounded input."""
    transposed = not isinstance(module, nn.Linear)  # GPT-2 keeps [in, out]
    weight = module.weight.detach().T if transposed else module.weight.detach()
    size = weight.abs()
    rounded = round_symmetric(weight, size.amax() if weights == "tensor" else size.amax(dim=1, keepdim=True))
    end = None if largest is None else weight.new_full((), largest)

    def make(_forward: Callable[..., Any]) -> Callable[..., Any]:
        def forward(x: Tensor) -> Tensor:
            return nn.functional.linear(x if end is None else round_symmetric(x, end), rounded, module.bias)

        return forward

    return make


# The part


class Int8Analysis(Analysis):
    """The cost of W8A8: the task's metric where the model has a head and the data labels, else hidden states."""

    name = "int8"
    title = "8 bits"
    settings = Int8Settings

    def measure(
        self, session: Session, rows: Rows[Any], examples: Examples, settings: Int8Settings
    ) -> Mapping[str, Any]:
        """See `Analysis.measure`."""
        batches = session.batches(rows.one_each())
        before = outcomes(session, rows, examples)
        moved = Runs(session, batches, len(examples), states=True)
        if before.score is None:
            moved()
        ranges = activation_ranges(session.model, batches)
        schemes: dict[str, Any] = {}
        measures: dict[str, Any] = {}
        titles: dict[str, str] = {}
        for scheme in settings.schemes:

            def change(_batch: int, scheme: Scheme = scheme) -> AbstractContextManager[None]:
                return quantised(session.model, ranges, scheme, weights=settings.weights)

            if before.metric is None or before.score is None:
                lost = moved(change)
                metric, title = "relative_error", "relative error of the last hidden state"
            else:
                with change(0):
                    after = outcomes(session, rows, examples)
                assert after.score is not None
                sign = 1 if before.metric.higher_is_better else -1
                lost = sign * (before.score - after.score)
                metric, title = f"{before.metric.name}_loss", f"{before.metric.title} lost"
            known = lost[np.isfinite(lost)]
            found = mean_interval(known)
            low, high = (found.value if end is None else end for end in (found.low, found.high))
            if before.score is not None and not known.any():
                high = 3 / len(known)  # nothing changed in n draws: up to 3/n would have gone unseen (rule of three)
            schemes[scheme] = {
                "metric": metric,
                "value": found.value,
                "low": low,
                "high": high,
                "examples": len(known),
                "before": None if before.score is None else float(before.score.mean()),
            }
            measures[f"int8.{scheme}.{metric}"] = lost
            titles[f"int8.{scheme}.{metric}"] = f"{title} with W8A8, {scheme}"
        return {
            "weights": settings.weights,
            "schemes": schemes,
            "verdicts": [int8_verdict(scheme, one) for scheme, one in schemes.items()],
            "measures": measures,
            "titles": titles,
        }

    def blocks(self, content: Mapping[str, Any]) -> Iterator[Block]:
        """See `Analysis.blocks`."""
        yield from verdict_blocks(content["verdicts"])
        ends = [Column(name, "+.4f") for name in ("lost", "from", "to")]
        yield table(
            "The cost of 8 bits",
            ("scheme", "measure", "before", *ends, "examples"),
            [
                (scheme, *(one[name] for name in ("metric", "before", "value", "low", "high", "examples")))
                for scheme, one in content["schemes"].items()
            ],
            "bondarenko: as published, activations asymmetric at every site; linear: weights and inputs of linear "
            "layers alone. Intervals: bootstrap over examples, 95 %.",
        )


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
        word = graded(found["value"], 0.1, 0.2)
        strength = f"last hidden state off by {found['value']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"
    return Verdict(
        artefact=f"W8A8 loss ({scheme})", verdict=word, strength=strength, definition=_DEFINITION, value=found["value"]
    )
