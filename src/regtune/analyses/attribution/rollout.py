"""Explanations from attention weights: the weights themselves, their roll-out, and weights times gradient.

Roll-out: Abnar, Zuidema 2020 (arXiv 2005.00928): a block passes on half of what a token is and half of what it attends
to, A = (I + mean over heads of the weights) / 2, and the blocks' maps are multiplied. Attention weights are no proof
of influence; these are here to compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from regtune.analyses.attention.tap import attention_tap
from regtune.analyses.attribution.attribution import Scores
from regtune.analyses.attribution.batch import Batch, given_embeddings, word_embeddings
from regtune.analyses.reversible import freeze
from regtune.errors import UnsupportedModelError, unknown_name
from regtune.registers.passes import Layout
from regtune.registers.surgery import (
    active_sets,
    backbone_of,
    base_of,
    find_decoder_registers,
    find_registers,
    layout_of,
)
from regtune.rows.targets import LOGITS, Resolved, TargetError, values_of
from regtune.rows.token_classes import is_content


def rollout_scores(batch: Batch) -> Scores:
    """Attention roll-out from the tokens that the target is read from; scores are shares that sum to 1."""
    registers = registers_of(batch)
    rolled: list[Tensor] = []

    def follow(weights: Tensor) -> None:
        eye = torch.eye(weights.shape[-1], dtype=torch.float64, device=weights.device)
        block = (eye + weights) / 2
        rolled[:] = [block @ fresh_rows(rolled[0], registers) if rolled else block]

    outputs, targets = _watch(batch, follow)
    tokens, of_registers = read_from(rolled[0], _require_reading(batch, targets), registers, patches=_pooled(batch))
    return Scores(targets=targets, values=values_of(outputs, targets), tokens=tokens, registers=of_registers)


def attention_scores(batch: Batch, *, layers: str = "last") -> Scores:
    """The attention that the tokens which the target is read from pay to each token; shares that sum to 1.

    `layers`: `last` takes the mean over the heads of the last layer, `all` that of all layers.
    """
    _check_layers(layers)
    kept: list[Tensor] = []

    def follow(weights: Tensor) -> None:
        kept[:] = [weights] if layers == "last" or not kept else [kept[0] + weights]

    outputs, targets = _watch(batch, follow, across=True)
    weights = kept[0] / kept[0].sum(-1, keepdim=True)
    read = _require_reading(batch, targets)
    beside = batch.decodes  # what a decoder pays to the text, beside whose states no registers stand
    tokens, registers = read_from(weights, read, None if beside else registers_of(batch), patches=_pooled(batch))
    if beside:
        registers = tokens.new_zeros(len(tokens), sum(one.num_registers for _, one in active_sets(batch.model)))
    return Scores(targets=targets, values=values_of(outputs, targets), tokens=tokens, registers=registers)


def attention_gradient_scores(batch: Batch, *, layers: str = "all") -> Scores:
    """Attention weights times the target's gradient with regard to them, in logits.

    A token's score is the sum over layers, heads and queries of weight times gradient: how much the target would
    change, to first order, if nobody attended to it. `layers`: `all`, or the `last` alone.
    """
    _check_layers(layers)
    if find_decoder_registers(batch.model) is not None:
        raise UnsupportedModelError(
            f"This {type(batch.model).__name__} has registers in its decoder, which attend to the text beside what is "
            f"written, and no gradient of these weights is at hand. {_INSTEAD}"
        )
    kept: list[Tensor] = []
    with ExitStack() as stack:
        freeze(batch.model, stack)
        stack.enter_context(given_embeddings(batch)).words = word_embeddings(batch).requires_grad_()
        outputs = _listen(batch, kept.append, across=True)
        targets = batch.resolve(outputs)
        values = values_of(outputs, targets)
        chosen = kept if layers == "all" else kept[-1:]
        gradients = torch.autograd.grad(values.sum(), chosen)
    pairs = zip(chosen, gradients, strict=True)
    total = torch.stack([(weights.detach() * gradient).sum((1, 2), dtype=torch.float64) for weights, gradient in pairs])
    total = total.sum(0)
    tokens, registers = split(total.unsqueeze(-1), registers_of(batch))
    return Scores(targets=targets, values=values, tokens=tokens.squeeze(-1), registers=registers.squeeze(-1))


def registers_of(batch: Batch, rows: Tensor | None = None) -> tuple[Layout, bool] | None:
    """Where the registers of a batch (or of its named rows) stand, and whether each layer gets fresh ones."""
    registers, mask = find_registers(batch.model), batch.inputs["attention_mask"]
    layout = layout_of(batch.model, mask if rows is None else mask[rows])
    return None if layout is None or registers is None else (layout, registers.deep is not None)


def fresh_rows(joint: Float64[Tensor, "batch total total"], registers: tuple[Layout, bool] | None) -> Tensor:
    """What came before a layer that gets registers of its own (depth `every_layer`): these start from themselves."""
    if registers is None or not registers[1]:
        return joint
    eye = torch.eye(joint.shape[-1], dtype=joint.dtype, device=joint.device).expand_as(joint)
    return registers[0].insert(registers[0].registers_of(eye), registers[0].strip(joint))


def read_from(
    joint: Float64[Tensor, "batch queries total"],
    targets: Sequence[Resolved],
    registers: tuple[Layout, bool] | None,
    *,
    patches: tuple[Tensor, float] | None = None,
) -> tuple[Tensor, Tensor]:
    """The rows of a map (query, key) that the targets are read from, split into text and registers.

    Args:
        joint: the map.
        targets: one a row.
        registers: where they stand.
        patches: of a class that is read from the mean over patches too, each position's part of that mean, `[batch,
            seq]`, and the mean's share.

    Returns:
        `[batch, seq]` and `[batch, registers]`; where a target has several terms, the mean weighted by their sizes.
    """
    by_query, _ = split(joint, registers)
    read = torch.zeros(by_query.shape[:2], dtype=torch.float64, device=joint.device)
    for row, target in enumerate(targets):
        for term in target.terms:
            read[row, term.position] += abs(term.weight)
    read = read / read.sum(1, keepdim=True)
    if patches is not None:
        read = (1 - patches[1]) * read + patches[1] * patches[0]
    tokens, of_registers = split(torch.einsum("bq,bqk->bk", read, by_query).unsqueeze(-1), registers)
    return tokens.squeeze(-1), of_registers.squeeze(-1)


def _pooled(batch: Batch) -> tuple[Tensor, float] | None:
    """The patches over whose mean an image's class is read, and its share; None where it is read from one token."""
    if batch.family is None or batch.family.pooling == "token" or batch.token_classes is None:
        return None
    patches = is_content(batch.token_classes).to(batch.text.device, torch.float64)
    return patches / patches.sum(1, keepdim=True), 1.0 if batch.family.pooling == "mean" else 0.5


def split(total: Tensor, registers: tuple[Layout, bool] | None) -> tuple[Tensor, Tensor]:
    """`[batch, total, ...]` as text `[batch, seq, ...]` and registers `[batch, registers, ...]`."""
    if registers is None:
        return total, total[:, :0]
    return registers[0].strip(total), registers[0].registers_of(total)


def _watch(batch: Batch, follow: Callable[[Tensor], None], *, across: bool = False) -> tuple[Any, list[Resolved]]:
    """Runs the batch and hands on each layer's weights, the mean over heads, `[batch, total, total]`."""
    with torch.no_grad():
        outputs = _listen(batch, lambda w: follow(w.mean(1, dtype=torch.float64)), across=across, within=False)
    return outputs, batch.resolve(outputs)


_INSTEAD = "Use gradient-input, occlusion or integrated-gradients."


def _listen(batch: Batch, hear: Callable[[Tensor], None], *, across: bool = False, within: bool = True) -> Any:
    """Runs the batch and hands on each layer's weights, `[batch, heads, total, total]`.

    Args:
        batch: the texts.
        hear: receives them, in order.
        across: of a model whose decoder writes what an encoder reads, the weights with which the decoder attends to the
            text, `[batch, heads, written, seq]`; such a model is refused otherwise.
        within: and before them those of the encoder.
    """
    backbone = base_of(batch.model)
    decodes = bool(backbone.config.is_encoder_decoder)
    if decodes and not (across and batch.decodes):
        raise TargetError(
            f"{type(batch.model).__name__} answers through a decoder, which attends to the encoder's states: no token "
            f"of the text is what the target is read from. {_INSTEAD}"
        )
    if batch.family is not None and batch.family.relevance:
        with attention_tap(batch.model, lambda _layer, weights, *_: hear(weights)):
            return batch.run()
    with torch.no_grad():
        plain = _logits(batch.run())
    with eager_attention(batch.model):
        outputs = batch.run(output_attentions=True)
    total = batch.text.shape[1]
    names = ("encoder_attentions",) * within + ("cross_attentions",) if decodes else ("attentions",)
    found: list[Any] = [weights for name in names for weights in outputs.get(name) or (None,)]
    if any(weights is None or weights.shape[-1] != total for weights in found):
        raise UnsupportedModelError(
            f"{type(batch.model).__name__} gives no attention weights of every token to every token. {_INSTEAD}"
        )
    if not torch.allclose(_logits(outputs), plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max())):
        raise UnsupportedModelError(
            f"{type(batch.model).__name__} says something else when it is asked for its attention weights. Load it "
            f"with attn_implementation='eager'. {_INSTEAD}"
        )
    for weights in found:
        hear(weights)
    return outputs


def _logits(outputs: Any) -> Tensor:
    found: Tensor = next(value for name, value in outputs.items() if "logits" in name)
    return found


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Inside the context the model attends by the implementation that hands its weights back."""
    before = getattr(model.config, "_attn_implementation", None)
    if before in (None, "eager"):
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _check_layers(layers: str) -> None:
    if layers not in ("all", "last"):
        raise unknown_name("choice of layers", layers, ("all", "last"))


def _require_reading(batch: Batch, targets: Sequence[Resolved]) -> Sequence[Resolved]:
    """Refuses heads that read a mean over the text, where no token's attention is the target's."""
    pooling = getattr(backbone_of(batch.model).config, "classifier_pooling", "cls")
    if pooling == "mean" and any(term.output == LOGITS and len(term.index) == 1 for t in targets for term in t.terms):
        raise TargetError(
            "This head reads its class from the mean over the text (classifier_pooling='mean'), so there is no token "
            "whose attention could be read. Use attention-gradient, occlusion or integrated-gradients."
        )
    return targets
