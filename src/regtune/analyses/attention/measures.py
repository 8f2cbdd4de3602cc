"""What one layer's attention weights say of each window and head: weights and token classes in, numbers out.

The weights are `A[i, k]`, how much query i attends to key k; each row sums to 1. Every number is a mean over the
window's *queries*: its text tokens (no padding, no registers), or those with content if asked for. What registers
themselves attend to is reported apart. `T` is the number of keys: text tokens and visible registers, no padding.

- mass of a class: the attention that queries give to its tokens. The classes' masses sum to 1; with sink logits
  (`regtune.registers.sinks`) to 1 less what those take.
- text mass: the same with `A` renormalised over text, `A[i, k] / sum over text of A[i, :]`, so that models with and
  without registers can be compared: N more keys take mass from the others by being there.
- entropy: `-sum_k A[i, k] ln A[i, k]` over `ln T`: 1 is uniform attention, 0 a single key. Text entropy: of the
  renormalised weights, over ln of the number of text tokens.
- received attention of key k (Gu et al. 2025, arXiv 2410.10781): `alpha_k`, the mean of `A[i, k]` over the queries
  that can see k. Key k is a *sink* if `alpha_k > 0.3`. A head has a sink (in a class) if any key (of the class) is
  one; for [CLS] that is Gu's rate. Lift: the largest `alpha_k` over what uniform attention would give that key (1/T).
  Text sink rate and text lift: the same of the renormalised weights and text keys. The raw rate also falls if a sink
  is merely shared, 15 % for [CLS] and 15 % for a register in place of 30 %; the classes' masses show that.
- value-weighted mass (Kobayashi et al. 2020, arXiv 2004.10102): `A[i, k] |f(x_k)|`, f being the head's value and
  output projections; as shares of the sum over all classes.
- write: the sum of `A[i, k] |f(x_k)|` over the window's mean `|f(x)|` of content tokens. 1: the head reads tokens that
  say as much as an average word. It leaves out that vectors may cancel, so it is an upper bound.
- idle: a head does nothing in a window if it attends almost only (0.9) to tokens without content (special tokens,
  punctuation, registers) *and* what it reads there is small (write at most 0.5): the two signs of a "no-op" in
  Bondarenko et al. 2023 (arXiv 2306.12929); the two thresholds are regtune's. Mass alone would count heads that read
  much from [CLS].
- column deviation, of a layer: `A` is the mean over heads, over text and renormalised. Column k's mean is what token k
  receives; T of them have the mean 1/T, and their standard deviation times T is given: 0 where all receive the same,
  √(T − 1) where one receives all. After Bai et al. 2024 (arXiv 2410.05648), who tie it to over-smoothing: rows that all
  mix the same few tokens make all tokens alike.

Causal models: a query sees the keys up to its own, and `T`, the uniform share and `alpha_k` count visible ones only; a
query with one visible key has no entropy; keys that less than half of the queries see are never sinks (the last one is
seen by itself alone). Layers with a local window are measured like full ones: keys out of reach count as not attended.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

from regtune.rows.token_classes import TokenClass, is_content
from regtune.typed import Checked, Range

CLASSES: tuple[str, ...] = tuple(kind.name.lower() for kind in TokenClass if kind >= 0)
"""Names of the token classes, at the place of their number."""
_WITHOUT_CONTENT = (TokenClass.CLS, TokenClass.SEP, TokenClass.PUNCTUATION, TokenClass.REGISTER)


Share = Annotated[float, Range(0, 1, above=True, below=True)]


@dataclass(frozen=True, kw_only=True)
class AttentionSettings(Checked):
    """The choices behind the numbers."""

    queries: Literal["text", "content"] = "text"
    """Whose attention is averaged: all text tokens, or those with content (no special tokens)."""
    sink_above: Share = 0.3
    """Received attention that makes a key a sink."""
    idle_mass: Share = 0.9
    """Least attention to tokens without content that an idle head gives."""
    idle_write: Annotated[float, Range(0, math.inf, above=True)] = 0.5
    """Most that an idle head writes."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """What stands where in the windows of a batch, in the order inside the model; made by `places_of`."""

    one_hot: Float[Tensor, "batch total classes"]
    """The class of every key; all 0 for padding and for masked registers."""
    text: Float[Tensor, "batch total"]
    content: Float[Tensor, "batch total"]
    registers: Int[Tensor, "batch registers"]
    """Where each register stands."""
    queries: Float[Tensor, "batch total"]
    """Each query's share of the mean; sums to 1."""
    entropy_scale: Float[Tensor, "batch total"]
    """The weights of the mean of entropy / ln(visible keys) over the queries that see more than one key."""
    text_entropy_scale: Float[Tensor, "batch total"]
    seen_by: Float[Tensor, "batch total"]
    """The share of the queries that see a key."""
    uniform: Float[Tensor, "batch total"]
    """What uniform attention would let a key receive."""
    text_uniform: Float[Tensor, "batch total"]
    """The same of attention over text alone."""
    may_sink: Bool[Tensor, "batch total"]


def places_of(
    classes: Int8[Tensor, "batch total"],
    registers: Int[Tensor, "batch registers"],
    *,
    queries: Literal["text", "content"] = "text",
    causal: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Places:
    """Prepares the windows of a batch; every layer is then measured with the same `Places`.

    Args:
        classes: a `TokenClass` for each position, registers included; masked registers count as padding.
        registers: where each register stands, `[batch, 0]` if there are none.
        queries: whose attention is averaged.
        causal: whether queries see only keys up to their own place.
        dtype: that of the weights, at least float32.
    """
    numbers = torch.arange(len(CLASSES), device=classes.device)
    one_hot = (classes.unsqueeze(-1) == numbers).to(dtype)
    text = ((classes >= TokenClass.CLS) & (classes <= TokenClass.CONTEXT)).to(dtype)
    content = is_content(classes).to(dtype)
    chosen = text if queries == "text" else content
    share = chosen / chosen.sum(1, keepdim=True)
    keys = (classes >= TokenClass.CLS).to(dtype)
    if causal:
        visible, visible_text = keys.cumsum(1), text.cumsum(1)
        seen_by = _from_here_on(share)
    else:
        visible, visible_text = (count.sum(1, keepdim=True).expand_as(keys) for count in (keys, text))
        seen_by = torch.ones_like(keys)
    uniform, text_uniform = (
        (_from_here_on(share / seen.clamp(min=1)) / seen_by.clamp(min=1e-12) if causal else 1 / seen)
        for seen in (visible, visible_text)
    )
    return Places(
        one_hot=one_hot,
        text=text,
        content=content,
        registers=registers,
        queries=share,
        entropy_scale=_entropy_scale(share, visible),
        text_entropy_scale=_entropy_scale(share, visible_text),
        seen_by=seen_by,
        uniform=uniform * keys,
        text_uniform=text_uniform * text,
        may_sink=keys.bool() & (seen_by >= 0.5),
    )


def measure_layer(
    weights: Float[Tensor, "batch heads total total"],
    norms: Float[Tensor, "batch heads total"],
    places: Places,
    settings: AttentionSettings,
) -> dict[str, Float[Tensor, "batch heads *rest"]]:
    """All measures of one layer, by name; see the module's text for what they mean.

    `mass`, `mass_text`, `value_weighted_mass` and `sink_rate_by_class` are `[batch, heads, classes]`, `register_share`
    is `[batch, heads, registers]`, `register_attention_out` `[batch, heads, registers, classes]`; all others are
    `[batch, heads]`. `norms` are `|f(x)|`; the weights are read three times and copied once.
    """
    entropy, entropy_text, received, received_text = _read_weights(weights, places)
    mass = received @ places.one_hot
    by_norm = received * norms
    weighted = by_norm @ places.one_hot
    written = weighted.sum(-1)
    content = places.content.unsqueeze(1)
    usual = (norms * content).sum(-1) / content.sum(-1)
    write = written / usual.clamp(min=1e-30)
    sinks, lift = _sinks(received, places.uniform, places, settings)
    text_sinks, text_lift = _sinks(received_text, places.text_uniform, places, settings)
    without_content = mass[..., list(_WITHOUT_CONTENT)].sum(-1)
    idle = (without_content >= settings.idle_mass) & (write <= settings.idle_write)
    return {
        "mass": mass,
        "mass_text": received_text @ places.one_hot,
        "value_weighted_mass": weighted / written.clamp(min=1e-30).unsqueeze(-1),
        "entropy": entropy,
        "entropy_text": entropy_text,
        "sink_rate": sinks.amax(-1),
        "sink_rate_text": text_sinks.amax(-1),
        "sink_rate_by_class": sinks,
        "sink_lift": lift,
        "sink_lift_text": text_lift,
        "write": write,
        "idle": idle.to(mass.dtype),
        "register_share": received.gather(-1, places.registers.unsqueeze(1).expand(-1, mass.shape[1], -1)),
        "register_attention_out": _attention_out(weights, places),
    }


def column_deviation(weights: Float[Tensor, "batch heads total total"], places: Places) -> Float[Tensor, " batch"]:
    """The deviation of what text tokens receive, in units of its mean; see the module's text."""
    text = places.text
    count = text.sum(1, keepdim=True)
    mixed = weights.mean(1) * text.unsqueeze(1)
    mixed = mixed / mixed.sum(-1, keepdim=True).clamp(min=torch.finfo(mixed.dtype).tiny)
    received = (text.unsqueeze(1) @ mixed).squeeze(1) / count
    spread = ((received - 1 / count).square() * text).sum(1, keepdim=True) / count
    return (spread.sqrt() * count).squeeze(1)


def _read_weights(weights: Tensor, places: Places) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean entropies `[batch, heads]` and mean received attention `[batch, heads, total]`, each raw and over text."""
    queries = places.queries[:, None, None, :].expand(-1, weights.shape[1], -1, -1)
    # A ln A, with 0 ln 0 = 0, in one copy of the weights.
    surprise = weights.clamp(min=torch.finfo(weights.dtype).tiny).log_().mul_(weights)
    if not places.registers.shape[1]:
        received = (queries @ weights).squeeze(2)
        entropy = -(surprise.sum(-1) * places.entropy_scale.unsqueeze(1)).sum(-1)
        return entropy, entropy, received, received
    text = places.text[:, None, :, None]
    # Summed, not 1 - registers: what is left beside a strong register may be smaller than the rounding of 1.
    on_text = (weights @ text).squeeze(-1).clamp(min=torch.finfo(weights.dtype).tiny)
    received, received_text = (torch.cat([queries, queries / on_text.unsqueeze(2)], 2) @ weights).unbind(2)
    whole, part = (surprise @ torch.cat([torch.ones_like(text), text], -1)).unbind(-1)
    entropy = -(whole * places.entropy_scale.unsqueeze(1)).sum(-1)
    text_rows = (on_text.log() - part / on_text).clamp(min=0)
    entropy_text = (text_rows * places.text_entropy_scale.unsqueeze(1)).sum(-1)
    return entropy, entropy_text, received, received_text * places.text.unsqueeze(1)


def _sinks(received: Tensor, uniform: Tensor, places: Places, settings: AttentionSettings) -> tuple[Tensor, Tensor]:
    """1.0 for the classes that hold a sink, `[batch, heads, classes]`, and the largest lift `[batch, heads]`."""
    candidates = (places.may_sink & (uniform > 0)).unsqueeze(1)
    alpha = received / places.seen_by.unsqueeze(1).clamp(min=1e-12)
    above = ((alpha > settings.sink_above) & candidates).to(received.dtype)
    lift = (alpha / uniform.unsqueeze(1).clamp(min=1e-12)).masked_fill(~candidates, 0)
    return ((above @ places.one_hot) > 0).to(received.dtype), lift.amax(-1)


def _attention_out(weights: Tensor, places: Places) -> Tensor:
    """Whom each register attends to, `[batch, heads, registers, classes]`."""
    rows = places.registers[:, None, :, None].expand(-1, weights.shape[1], -1, weights.shape[-1])
    return weights.gather(2, rows) @ places.one_hot.unsqueeze(1)


def _entropy_scale(share: Tensor, visible: Tensor) -> Tensor:
    several = (visible > 1).to(share.dtype)
    counted = share * several
    counted = counted / counted.sum(1, keepdim=True).clamp(min=1e-12)
    return counted / visible.clamp(min=2).log()


def _from_here_on(values: Tensor) -> Tensor:
    return values.flip(1).cumsum(1).flip(1)
