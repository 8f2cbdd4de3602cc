"""How unevenly tokens are attended to: the column deviation of attention, which goes with over-smoothing."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from regtune.analyses.artefacts.sites import Batch, run_backbone
from regtune.analyses.attention.tap import attention_tap, registers_first
from regtune.registers.surgery import find_registers
from regtune.token_classes import TokenClass, is_content


def column_deviation(
    model: nn.Module, batches: Iterable[Batch]
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
    reader = _Reader(model)
    examples: list[int] = []
    seen = 0
    with torch.inference_mode(), attention_tap(model, reader.read):
        for batch in batches:
            classes = batch["token_classes"]
            reader.begin(classes.to(next(model.parameters()).device) != TokenClass.PADDING, is_content(classes).any(1))
            run_backbone(model, batch)
            numbers = batch["example"].tolist() if "example" in batch else range(seen, seen + len(classes))
            examples += [int(number) for number, kept in zip(numbers, reader.kept.tolist(), strict=True) if kept]
            seen += len(classes)
            reader.end()
    return np.concatenate(reader.found), tuple(examples)


class _Reader:
    def __init__(self, model: nn.Module) -> None:
        self.registers = find_registers(model)
        self.found: list[np.ndarray] = []
        self.layers: list[Tensor] = []

    def begin(self, text: Tensor, kept: Tensor) -> None:
        self.text, self.kept, self.layers = text, kept, []

    def read(self, _layer: int, weights: Tensor, _values: Tensor, _module: nn.Module) -> None:
        """The tap's callback: `[rows, heads, total, total]` to `[rows]`."""
        ordered = registers_first(weights.mean(1, dtype=torch.float64), self.registers, 1, 2)
        extra = ordered.shape[1] - self.text.shape[1]
        text = self.text.double()
        counts = text.sum(1, keepdim=True)
        on_text = ordered[:, extra:, extra:] * text.unsqueeze(1)
        rows = on_text / on_text.sum(-1, keepdim=True).clamp(min=1e-30)
        received = (rows * text.unsqueeze(2)).sum(1) / counts
        spread = ((received - 1 / counts).square() * text).sum(1, keepdim=True) / counts
        self.layers.append((spread.sqrt() * counts).squeeze(1))

    def end(self) -> None:
        self.found.append(torch.stack(self.layers, dim=1).cpu().numpy()[self.kept.numpy()])
