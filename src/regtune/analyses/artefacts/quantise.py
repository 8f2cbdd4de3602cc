"""What rounding to 8 bits does to a model: weights and activations (W8A8), simulated.

Symmetric integers: with s = max|x| / 127, x becomes s · clamp(round(x / s), −127, 127); halves round to even numbers.
Every linear layer, the head's too, gets its weight and its input rounded so; what is between (LayerNorm, softmax, skip
connections, embeddings, biases) stays as it is, as in integer kernels that add up in 32 bits. Ranges of activations are
one number a layer (per tensor) and fixed beforehand: the largest |x| over the calibration texts, padding left out.
One outlier therefore costs all other activations of the layer their resolution, which is why outliers matter
(Bondarenko 2021, 2023; Dettmers 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regtune.analyses.artefacts.sites import Batch, is_linear, model_inputs
from regtune.analyses.reversible import only_reader, replace_forward, require_eval_mode
from regtune.errors import ConfigError, DataError, UnsupportedModelError, unknown_name
from regtune.registers.registers import Registers
from regtune.registers.surgery import find_registers

LEVELS = 127
"""Largest integer of symmetric int8; −128 is left unused."""
Weights = Literal["tensor", "channel"]
Ranges = Mapping[str, float]
"""For each linear layer, by its path in the model, the largest |x| of its input."""


def round_to_int8(x: Float[Tensor, "*shape"], largest: Float[Tensor, "*range"]) -> Float[Tensor, "*shape"]:
    """`x` rounded to the grid of 255 values between −largest and largest; values outside are cut.

    Args:
        x: any values.
        largest: end of the range, of a shape that broadcasts; where it is 0 the result is 0.
    """
    step = largest / LEVELS
    grid = (x / torch.where(step > 0, step, 1)).round().clamp(-LEVELS, LEVELS)
    return grid * step


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer by its path, the head's too."""
    return {path: module for path, module in model.named_modules() if is_linear(module)}


@torch.inference_mode()
def activation_ranges(model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
    """The largest |x| that each linear layer reads on these texts; padding doesn't count. The model is left as it was.

    Args:
        model: a Hugging Face model in eval mode, with or without registers.
        batches: analysis batches.

    Raises:
        DataError: no batch at all.
        UnsupportedModelError: training mode, a model without linear layers, or activations that are not numbers.
    """
    require_eval_mode(model)
    layers = linear_layers(model)
    if not layers:
        raise UnsupportedModelError(f"{type(model).__name__} has no linear layer, so there is nothing to quantise.")
    ranges: dict[str, float] = {}
    listener = _Ranges(ranges, find_registers(model))
    ran = False
    with ExitStack() as stack:
        for path, module in layers.items():
            stack.callback(module.register_forward_pre_hook(listener.listen(path)).remove)
        for batch in batches:
            listener.mask = batch["attention_mask"].bool().to(next(model.parameters()).device)
            model(**model_inputs(model, batch), return_dict=True)
            ran = True
    if not ran:
        raise DataError("There is no text to calibrate on. Give at least one batch.")
    broken = [path for path, value in ranges.items() if not value < float("inf")]
    if broken:
        raise UnsupportedModelError(f"{broken[0]} reads values that are not finite, so they have no range.")
    return ranges


class _Ranges:
    """Collects the largest |x| of text and registers."""

    def __init__(self, ranges: dict[str, float], registers: Registers | None) -> None:
        self.ranges = ranges
        self.registers = registers
        self.mask = torch.empty(0, dtype=torch.bool)

    def listen(self, path: str) -> Callable[..., None]:
        def heard(_module: nn.Module, args: tuple) -> None:
            largest = float(self.counted(args[0]).abs().amax())
            # max() would forget a value that is not a number
            before = self.ranges.get(path, 0.0)
            self.ranges[path] = largest if not largest <= before else before

        return heard

    def counted(self, x: Tensor) -> Tensor:
        """The entries that aren't padding, where `x` is `[rows, total or seq, ...]`; else all of them."""
        if x.dim() < 3:
            return x
        if x.shape[:2] == self.mask.shape:
            return x[self.mask]
        registers = self.registers
        if registers is not None and x.shape[:2] == (len(self.mask), self.mask.shape[1] + registers.num_registers):
            kept = torch.ones(len(self.mask), registers.num_registers, dtype=torch.bool, device=self.mask.device)
            return x[registers.insert(kept, self.mask.to(kept.dtype))]
        return x


@contextmanager
def quantised(model: nn.Module, ranges: Ranges, *, weights: Weights = "tensor") -> Iterator[None]:
    """Inside the context every linear layer computes with rounded weights and inputs; then all is as it was.

    No parameter is written to, so tied weights (a masked-LM head) stay the embeddings they are.

    Args:
        model: the model that `ranges` were measured on.
        ranges: from `activation_ranges`; layers that it doesn't name (they never ran) are left as they are.
        weights: one range for a whole weight matrix, or one for each output channel.

    Raises:
        ConfigError: `ranges` of another model, or an unknown choice of `weights`.
        UnsupportedModelError: training mode, or a model inside another context that changes it.
    """
    if weights not in ("tensor", "channel"):
        raise unknown_name("range of weights", str(weights), ("tensor", "channel"))
    require_eval_mode(model)
    layers = linear_layers(model)
    unknown = sorted(ranges.keys() - layers.keys())
    if unknown or not ranges:
        raise ConfigError(
            f"These ranges are of another model: {unknown[0] if unknown else 'none at all'} is no linear layer of this "
            f"{type(model).__name__}. Measure them with activation_ranges(model, batches)."
        )
    with ExitStack() as stack:
        stack.enter_context(only_reader(model))
        for path, largest in ranges.items():
            replace_forward(layers[path], _rounded(layers[path], largest, weights), stack)
        yield


def _rounded(module: Any, largest: float, weights: Weights) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A linear layer's forward with everything rounded."""
    transposed = not isinstance(module, nn.Linear)  # GPT-2 keeps [in, out]
    weight = module.weight.detach().T if transposed else module.weight.detach()
    size = weight.abs()
    ends = size.amax() if weights == "tensor" else size.amax(dim=1, keepdim=True)
    rounded = round_to_int8(weight, ends)
    end = torch.tensor(largest, dtype=weight.dtype, device=weight.device)

    def make(_forward: Callable[..., Any]) -> Callable[..., Any]:
        def forward(x: Tensor) -> Tensor:
            return nn.functional.linear(round_to_int8(x, end), rounded, module.bias)

        return forward

    return make


@torch.inference_mode()
def relative_errors(
    model: nn.Module, batches: Iterable[Batch], ranges: Ranges, *, weights: Weights = "tensor"
) -> dict[int, float]:
    """‖h − h₈‖ / ‖h‖ over each text's content tokens, h being `last_hidden_state` and h₈ the quantised model's.

    Returns:
        For each example (`batch["example"]`, or the number of the text) its error.

    Raises:
        DataError: not one content token.
        ConfigError, UnsupportedModelError: as `quantised`.
    """
    from regtune.analyses.artefacts.sites import run_backbone
    from regtune.token_classes import is_content

    found: dict[int, float] = {}
    seen = 0
    for batch in batches:
        exact = run_backbone(model, batch)
        with quantised(model, ranges, weights=weights):
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
