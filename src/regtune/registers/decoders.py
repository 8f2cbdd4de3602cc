"""Registers in causal decoders: masks, positions and caches.

A decoder reads `[r_1 ... r_N, x_1 ... x_T]`. Every token sees the registers; a register sees those before it and no
text, or the text would read its own future through it. The first pass with a cache writes the registers' keys and
values into it, and later passes find them there.

A decoder beside an encoder keeps them in the part of its cache that is its own; what it attends to there is as it was.

Whatever is asked of a cache is answered about the text alone: its length, its room, cropping, the sizes of masks. What
attention gets from it is always `[registers, what it would get without them]`. So transformers makes the masks as it
does for the text, and the registers' columns are put in front of them here.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    EncoderDecoderCache,
    StaticLayer,
)
from transformers.masking_utils import create_masks_for_generate, find_first_full_attention_index

from regtune.errors import InputError
from regtune.families._family import Family, num_layers
from regtune.registers.cache_names import CACHE, given_cache, put_cache
from regtune.registers.passes import Layout, Pass, hidden_score, open_pass, seen_places
from regtune.registers.registers import Setting


class Held(NamedTuple):
    """Which registers a cache holds.

    Attributes:
        key: of the set of registers (`RegisterHooks.key`).
        num_registers: N.
        setting: which of them were masked when they were written.
        places: those before each text's first position, `[batch or 1, registers]`, for windows that registers leave
            and for texts that don't start at place 0 where distances are counted along the sequence.
        ahead: whether they were read before any text, so that each text has to start at position 0.
    """

    key: str
    num_registers: int
    setting: Setting
    places: Tensor | None = None
    ahead: bool = False


# Caches


_AnyLayer: Any = CacheLayerMixin


class _Layer(_AnyLayer):  # type: ignore[misc]
    """A layer of a cache that holds registers; `written` once their keys and values are there."""

    held: Held
    written: bool
    register_keys: Tensor
    register_values: Tensor

    def reset(self) -> None:
        super().reset()
        self.written = False

    def _of_this_pass(self) -> None:
        now = open_pass()
        if now is None or now.key != self.held.key:
            raise InputError(
                f"{CACHE} holds {self.held.num_registers} registers, and the model that runs has none of them. "
                f"Start with an empty cache: {CACHE}=None, or call reset() on it."
            )


class _InFront(_Layer):
    """Registers are the first places of the layer's own tensors."""

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self._of_this_pass()
        found: tuple[Tensor, Tensor] = super().update(keys, values, *args, **kwargs)
        self.written = True
        return found

    def get_seq_length(self) -> Any:
        return super().get_seq_length() - self.held.num_registers if self.written else 0


class _InFrontOfFixed(_InFront):
    """The same in tensors of a fixed size, which get N places more."""

    max_cache_len: int

    def lazy_initialization(self, keys: Tensor, values: Tensor) -> None:
        self.max_cache_len += self.held.num_registers
        super().lazy_initialization(keys, values)
        self.max_cache_len -= self.held.num_registers


class _Beside(_Layer):
    """Registers have tensors of their own: in windows, which let go of what is old, and where the text is quantised."""

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self._of_this_pass()
        if not self.written:
            n = self.held.num_registers
            self.register_keys, keys = keys[:, :, :n].clone(), keys[:, :, n:]
            self.register_values, values = values[:, :, :n].clone(), values[:, :, n:]
            self.written = True
        keys, values = super().update(keys, values, *args, **kwargs)
        return torch.cat([self.register_keys, keys], dim=2), torch.cat([self.register_values, values], dim=2)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._take_rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._take_rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        if self.written:
            self._take_rows(torch.arange(len(self.register_keys)).repeat_interleave(repeats))

    def _take_rows(self, rows: Tensor) -> None:
        if self.written:
            self.register_keys = self.register_keys[rows.to(self.register_keys.device)]
            self.register_values = self.register_values[rows.to(self.register_values.device)]


@functools.cache
def _with_registers(kind: type) -> type:
    """The class of a cache's layer with registers, a subclass of the layer's own: copies and pickles keep it."""
    kinds: dict[type, type] = {DynamicLayer: _InFront, StaticLayer: _InFrontOfFixed}
    return type(f"{kind.__name__}WithRegisters", (kinds.get(kind, _Beside), kind), {"plain": kind, "_layer_type": None})


def _take_in(cache: Any, held: Held, layers: int) -> None:
    """Makes an empty cache ready for registers."""
    while len(cache.layers) < layers and cache.layer_class_to_replicate is not None:
        cache.layers.append(cache.layer_class_to_replicate())
    strange = [type(layer).__name__ for layer in cache.layers if not isinstance(layer, CacheLayerMixin)]
    if strange:
        raise InputError(f"Registers can't be written to a cache with a {strange[0]}.")
    for layer in cache.layers:
        layer.__class__ = _with_registers(layer.__class__)
        layer.held, layer.written = held, False
        if layer.is_initialized and isinstance(layer, _InFrontOfFixed):
            layer.lazy_initialization(layer.keys, layer.values)
    cache.registers = held


def release(cache: Any) -> None:
    """Empties a cache that holds registers; afterwards it is one like any other."""
    cache.reset()
    for layer in cache.layers:
        if isinstance(layer, _Layer):
            layer.__class__ = layer.plain
            if isinstance(layer, StaticLayer):
                layer.is_initialized, layer.keys, layer.values = False, None, None
    del cache.registers


def _joins(cache: Any, held: Held) -> bool:
    """Whether registers are still to be written to this cache; one that doesn't fit is refused."""
    if not isinstance(cache, Cache) or not hasattr(cache, "layers"):
        raise InputError(f"{CACHE} is a {type(cache).__name__}; with registers it must be a transformers Cache.")
    before: Held | None = getattr(cache, "registers", None)
    if before is not None and not getattr(cache.layers[0], "written", False):  # reset() was called
        release(cache)
        before = None
    if before is None:
        if held.setting.enabled and cache.get_seq_length() > 0:
            raise InputError(_refusal("no registers (they were switched off, or another model wrote it)", held))
        return held.setting.enabled
    if before[:3] != held[:3]:
        whose = " of another model" if before.key != held.key else _masked(before.setting)
        raise InputError(_refusal(f"{before.num_registers} registers{whose}", held))
    return False


def _refusal(found: str, held: Held) -> str:
    wanted = f"{held.num_registers} of its own{_masked(held.setting)}" if held.setting.enabled else "them switched off"
    return (
        f"{CACHE} holds text that was read with {found}; this model runs with {wanted}. Start with an empty "
        f"cache ({CACHE}=None, or call reset() on it), or use it as it was filled."
    )


def _masked(setting: Setting) -> str:
    return f", of which {sorted(setting.masked)} masked" if setting.masked else ""


# One pass


def begin(now: Pass, family: Family, named: dict[str, Any], source: Tensor, cache_name: str | None) -> None:
    """Finds out whether registers join in this pass, and gives the backbone its cache, masks and positions.

    Args:
        now: the pass; where registers join it gets a layout, and the cache that they are written to.
        family: of the backbone.
        named: the backbone's arguments by name; changed in place.
        source: `input_ids` or `inputs_embeds`.
        cache_name: what the backbone calls its cache.

    Raises:
        InputError: arguments that registers don't fit, or a cache with other ones; the message says what to do.
    """
    backbone: Any = now.backbone
    enabled, n = now.setting.enabled, now.registers.num_registers
    if enabled and given_cache(named) is None and _wants_cache(backbone, named):
        if backbone.training and getattr(backbone, "gradient_checkpointing", False):
            named["use_cache"] = False
        else:
            put_cache(named, _new_cache(backbone, family), cache_name)
    cache = _own_cache(named, family)
    held = Held(now.key, n, now.setting)
    joins = enabled if cache is None else _joins(cache, held)
    if not enabled:
        return
    step = _Step(now, named, source, cache, joins)
    step.check()
    if step.ahead and not torch.compiler.is_compiling():
        step.check_kept(family)
    if joins and family.positions == "relative":
        now.places = step.places_beside()
        held = held._replace(places=now.places)
    if joins and cache is not None:
        _take_in(cache, held, num_layers(backbone, family))
        now.cache = cache
    masks = step.text_masks()
    if joins:
        now.layout = Layout(n, None, step.seq)
        if family.positions == "rotary":
            named["position_ids"] = step.join_positions()
    named["attention_mask"] = step.extend(masks, explicit=family.masks_always)
    if named["attention_mask"] is None and joins:  # any mask keeps transformers from looking for packed sequences
        total = step.seq + n * (family.joins_words or family.masks_first)
        named["attention_mask"] = torch.ones(step.batch, total, dtype=torch.bool, device=source.device)


def _new_cache(backbone: Any, family: Family) -> Any:
    made = DynamicCache(config=backbone.config)
    return EncoderDecoderCache(made, DynamicCache(config=backbone.config)) if family.beside_encoder else made


def _own_cache(named: dict[str, Any], family: Family) -> Any:
    """What a decoder's own tokens are kept in, of the cache that it is given."""
    given = given_cache(named)
    if given is None or not family.beside_encoder:
        return given
    if isinstance(given, EncoderDecoderCache):
        return given.self_attention_cache
    if named.get("encoder_hidden_states") is not None:
        raise InputError(
            f"{CACHE} is a {type(given).__name__}; beside an encoder it must be an EncoderDecoderCache: "
            "EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config))."
        )
    return given


def bias_from_cache(attention: Any, cache: Any, n: int, states: Tensor) -> Tensor:
    """The bias of distances, `[batch or 1, heads, seq, registers + keys]`, of tokens behind what a cache holds (T5).

    Args:
        attention: the first layer's, which makes it.
        cache: with n registers.
        n: how many.
        states: that it reads, `[batch, seq, hidden]`.
    """
    batch, seq = states.shape[:2]
    own: Any = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    past = own.get_seq_length()
    past = past.clone() if isinstance(past, Tensor) else past  # which a fixed cache goes on counting in
    keys, places = own.get_mask_sizes(seq, 0)[0], own.registers.places
    if places is None:
        found: Tensor = attention.compute_bias(seq, keys + n, device=states.device, past_seen_tokens=past + n)
        return found
    if len(places) != batch:
        raise InputError(
            f"{CACHE} was filled with {len(places)} texts padded differently, and this call has {batch}. Fill "
            "it with as many."
        )
    queries = torch.arange(seq, device=states.device) + past
    return bias_beside(attention, places, queries.expand(batch, -1), keys)


def bias_beside(attention: Any, places: Tensor, queries: Tensor, keys: int) -> Tensor:
    """The same, `[batch, heads, queries, registers + keys]`, for texts that start elsewhere than at place 0.

    Args:
        attention: the first layer's.
        places: of the registers, `[batch, registers]`; the first of `keys` tokens is at 0.
        queries: places of what attends, `[batch, queries]`.
        keys: tokens of text.
    """
    seen = torch.arange(keys, device=places.device).expand(len(places), -1)
    farthest = places.shape[1] + keys - 1
    behind = torch.cat([places, seen], dim=1).unsqueeze(1) - queries.unsqueeze(2) + farthest  # later keys are hidden
    by_distance: Tensor = attention.compute_bias(1, farthest + 1, device=places.device, past_seen_tokens=farthest)[
        0, :, 0
    ]
    return by_distance[:, behind.clamp(0, farthest)].transpose(0, 1)


def _wants_cache(backbone: Any, named: dict[str, Any]) -> bool:
    wanted = named.get("use_cache")
    wanted = getattr(backbone.config, "use_cache", False) if wanted is None else wanted
    return bool(wanted)


class _Step:
    """What one pass was asked for, and what the backbone gets instead."""

    def __init__(self, now: Pass, named: dict[str, Any], source: Tensor, cache: Any, joins: bool) -> None:
        backbone: Any = now.backbone
        self.config = backbone.config
        self.settings = now.registers.config
        self.n = now.registers.num_registers
        self.hides = bool(now.setting.masked)
        self.visible = now.registers.visible(source.device, now.setting.masked)
        self.cache = cache
        self.joins = joins
        self.batch, self.seq = source.shape[:2]
        self.device = source.device
        self.dtype = source.dtype if source.is_floating_point() else backbone.get_input_embeddings().weight.dtype
        self.mask = named.get("attention_mask")
        self.position_ids: Tensor | None = named.get("position_ids")
        self.is_causal = named.get("is_causal")
        self.past: Any = 0 if cache is None or joins else cache.get_seq_length()
        self.places: Tensor | None = None if cache is None or joins else cache.registers.places
        self.ahead = cache is not None and not joins and cache.registers.ahead

    def check(self) -> None:
        """Refuses what can't be right before anything is computed."""
        kernel = self.config._attn_implementation
        if kernel not in ("sdpa", "eager"):
            raise InputError(
                f"Registers in decoders need attn_implementation 'sdpa' or 'eager', not {kernel!r}: other kernels take "
                "no mask in which all tokens see the registers. Call model.set_attn_implementation('sdpa')."
            )
        if self.is_causal is False:
            raise InputError("is_causal=False would let registers see the text. Leave it out, or disable_registers.")
        given = self.position_ids
        if given is not None and (
            given.dim() != 2 or given.shape[1] != self.seq or given.shape[0] not in (1, self.batch)
        ):
            raise InputError(
                f"position_ids has shape {tuple(given.shape)}, which doesn't fit {self.batch} x {self.seq} tokens. "
                "Give one to each token of this call; registers have their own."
            )
        if torch.compiler.is_compiling():
            return
        for part in self.mask.values() if isinstance(self.mask, dict) else (self.mask,):
            self._check_mask(part)
        layers = getattr(self.cache, "layers", ())
        room = [layer.max_cache_len for layer in layers if isinstance(layer, StaticLayer) and not layer.is_sliding]
        if room and int(self.past) + self.seq > room[0]:
            raise InputError(
                f"{CACHE} has room for {room[0]} tokens (registers have their own) and holds "
                f"{int(self.past)}; {self.seq} more don't fit. Make it with max_cache_len={int(self.past) + self.seq} "
                "or more."
            )

    def check_kept(self, family: Family) -> None:
        """Refuses texts that don't fit registers which were read before them: how many, and where they start."""
        rows = len(self.cache.layers[0].keys)
        if rows != self.batch:
            raise InputError(
                f"{CACHE} holds the registers of {rows} texts, and this call has {self.batch} (beams and "
                f"samples count). Make it with start({self.batch})."
            )
        if family.positions == "rotary" and not int(self.past) and bool(self._start().any()):
            raise InputError(
                f"{CACHE} holds registers that were read before any text, for texts that start at position 0, "
                "and these start elsewhere (padding on the left). Give position_ids in which each text starts at 0: "
                "(attention_mask.cumsum(1) - 1).clamp(min=0)."
            )

    def places_beside(self) -> Tensor | None:
        """Places directly before each text, `[batch, registers]`, where distances are counted; None: all start at 0."""
        if self.mask is None:
            return None
        start = self._start()
        if not torch.compiler.is_compiling():
            if not bool(start.any()):
                return None
            if bool((start == self.seq).any()):
                raise InputError(
                    f"Row {int((start == self.seq).int().argmax())} of what the decoder reads first is nothing but "
                    "padding, so it isn't known where its registers go. Give the first call at least a token of each."
                )
        return (start - self.n + torch.arange(self.n, device=self.device)).expand(self.batch, -1)

    def _check_mask(self, mask: Any) -> None:
        if mask is None:
            return
        if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
            kind = f"has shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"is a {type(mask).__name__}"
            raise InputError(
                f"attention_mask {kind}; with registers it must be [batch, past + seq] or [batch, 1, query, key]."
            )
        if mask.dim() == 4:
            hidden_score(mask)
        tokens = int(self.past) + self.seq
        if mask.dim() == 2 and mask.shape[1] != tokens:
            raise InputError(
                f"attention_mask has {mask.shape[1]} columns, and there are {int(self.past)} tokens in the cache and "
                f"{self.seq} in this call. Give a mask for all {tokens}; registers aren't counted."
            )
        if mask.dim() == 4 and (mask.shape[2] != self.seq or mask.shape[3] < self.seq):
            raise InputError(f"attention_mask has shape {tuple(mask.shape)}, which doesn't fit {self.seq} tokens.")

    def text_masks(self) -> Any:
        """The text's: `[batch or 1, 1, seq, keys]`, a dict of such by kind of layer, or None (causal, or all seen)."""
        if isinstance(self.mask, dict) or (isinstance(self.mask, Tensor) and self.mask.dim() == 4):
            return self.mask
        return create_masks_for_generate(
            config=self.config,
            inputs_embeds=torch.empty((self.batch, self.seq, 0), dtype=self.dtype, device=self.device),
            attention_mask=self.mask,
            position_ids=self.position_ids,
            **{CACHE: self.cache},
        )

    def extend(self, masks: Any, *, explicit: bool = False) -> Any:
        """The same with the registers' columns in front, and their rows where they join; `explicit`: never None."""
        if isinstance(masks, dict):
            windows = {"sliding_attention": getattr(self.config, "sliding_window", None)}
            return {kind: self._extend(mask, windows.get(kind), explicit=explicit) for kind, mask in masks.items()}
        window = None if hasattr(self.config, "layer_types") else getattr(self.config, "sliding_window", None)
        # transformers makes masks again where it is given none, and would count registers among the window's tokens
        near_end = window is not None and self.joins and self.n + self.seq >= window
        return self._extend(masks, window, explicit=explicit or near_end)

    def _extend(self, mask: Tensor | None, window: int | None, *, explicit: bool = False) -> Tensor | None:
        leaves = window is not None and self.settings.windows == "leave"
        if mask is None:
            if not (explicit or self.hides or leaves or (self.ahead and self.seq > 1)):
                return None
            keys, queries = (torch.arange(size, device=self.device) for size in (self._keys(window), self.seq))
            mask = (keys <= queries.unsqueeze(1) + (keys.shape[0] - self.seq))[None, None]
        seen = self.visible.expand(1, 1, self.seq, -1)
        if self.joins:
            own = torch.ones(self.n, self.n, dtype=torch.bool, device=self.device).tril() & self.visible
            own |= torch.eye(self.n, dtype=torch.bool, device=self.device)  # a row that sees nothing is not a number
            seen = torch.cat([own[None, None], seen], dim=2)
        if leaves:
            assert window is not None
            seen = seen & self._within(window)
        hidden = hidden_score(mask)
        columns = (
            seen if mask.dtype == torch.bool else torch.zeros_like(seen, dtype=mask.dtype).masked_fill(~seen, hidden)
        )
        if self.joins:
            mask = torch.nn.functional.pad(mask, (0, 0, self.n, 0), value=hidden)
        rows = max(mask.shape[0], columns.shape[0])  # not len, which would fix the number while a program is traced
        return torch.cat([columns.expand(rows, *mask.shape[1:3], -1), mask.expand(rows, -1, -1, -1)], dim=3)

    def _keys(self, window: int | None) -> int:
        """How many keys of text there are, as transformers counts them."""
        if self.cache is None:
            return self.seq
        layer = find_first_full_attention_index(self.cache)
        if window is not None and True in self.cache.is_sliding:
            layer = self.cache.is_sliding.index(True)
        return int(self.cache.get_mask_sizes(self.seq, layer)[0])

    # Positions

    def join_positions(self) -> Int[Tensor, "batch total"]:
        """Positions of `[registers, text]`; the text keeps its own."""
        text, start = self._text_positions(), self._start()
        before = start - self.n + torch.arange(self.n, device=self.device)
        if self.settings.windows == "leave":
            self.places = before
            if self.cache is not None:
                kept = before[:1] if bool((before == before[:1]).all()) else before
                self.cache.registers = self.cache.registers._replace(places=kept)
        own = before if self.settings.rotary == "before" else start.expand(-1, self.n)
        rows = max(own.shape[0], text.shape[0])
        return torch.cat([own.expand(rows, -1), text.expand(rows, -1)], dim=1)

    def _text_positions(self) -> Int[Tensor, "batch seq"]:
        if self.position_ids is not None:
            return self.position_ids
        counted: Tensor = torch.arange(self.seq, device=self.device).unsqueeze(0) + self.past
        return counted

    def _start(self) -> Int[Tensor, "batch 1"]:
        """The position of each row's first token; padding that is counted comes before it."""
        if self.position_ids is not None:
            return self.position_ids.amin(dim=1, keepdim=True)
        seen = seen_places(self.mask)
        if seen is None or self.seq == 0:
            return torch.zeros(1, 1, dtype=torch.long, device=self.device)
        attended = seen[:, : self.seq]
        first = torch.where(attended.any(1), attended.int().argmax(1), self.seq)
        return first.unsqueeze(1)

    def _within(self, window: int) -> Bool[Tensor, "batch 1 queries registers"]:
        """Which registers are still in the window of each token."""
        own, queries = self.places, self._text_positions()
        assert own is not None
        if self.joins:
            rows = max(own.shape[0], queries.shape[0])
            queries = torch.cat([own.expand(rows, -1), queries.expand(rows, -1)], dim=1)
        if own.shape[0] not in (1, self.batch):
            raise InputError(
                f"{CACHE} was filled with {own.shape[0]} texts padded differently, and this call has "
                f"{self.batch}. Give position_ids in which each text starts at 0."
            )
        return (queries.unsqueeze(2) - own.unsqueeze(1) < window).unsqueeze(1)
