"""How registers are carried through a model.

This is the whole mechanism:

1. the backbone's `forward` opens a pass: the attention mask (and rotary position ids) are extended by N;
2. behind the embeddings, the registers join the sequence;
3. behind the last layer, before any pooler or head, they leave it again.

`forward` is replaced on the instance, so `model(...)` and `model.forward(...)` are alike; all else are hooks on
instances. Every one is removable, and nothing is patched class-wide. Hooks hold no module: which registers act is read
from the backbone that runs, and a hook does nothing unless a pass of its own set of registers is open.
"""

from __future__ import annotations

import functools
import inspect
import uuid
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from regtune.errors import InputError
from regtune.families._family import Family, embed_words, sides, stack_of, submodule
from regtune.registers import decoders
from regtune.registers.cache_names import CACHE, cache_argument, given_cache
from regtune.registers.passes import (
    Layout,
    Pass,
    Unclear,
    forget,
    hidden_score,
    in_backward,
    lost,
    recall,
    remember,
    take_columns,
    thread,
)
from regtune.registers.registers import Registers

MODULE_NAME = "registers"
"""Name of the `Registers` module on the backbone, and so of its keys in a state dict."""


def registers_in(backbone: nn.Module) -> Registers | None:
    """The registers with which a backbone runs: of PEFT's copies (`modules_to_save`) the active one."""
    place = backbone._modules.get(MODULE_NAME)
    if place is None or isinstance(place, Registers):
        return place
    if hasattr(place, "itself"):  # PEFT's copies hand it on; an adapter's set says None while it is off
        found: Registers | None = place.itself  # type: ignore[assignment]
        return found
    return next((module for module in place.modules() if isinstance(module, Registers)), None)


class Forward:
    """What `backbone.forward` is while there are registers on it: the backbone's own inside a pass."""

    def __init__(self, backbone: nn.Module, hooks: RegisterHooks) -> None:
        self.backbone = backbone
        self.hooks = hooks
        self.before: Callable[..., Any] | None = backbone.__dict__.get("forward")
        """What another library had put there, if anything."""

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.before or functools.partial(type(self.backbone).forward, self.backbone))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the backbone that was called: this one, or a shallow copy or replica of it."""
        called, thread.called = thread.called, None
        backbone = self.backbone if called is None or called.__dict__.get("forward") is not self else called
        registers = registers_in(backbone)
        if registers is None:
            return self._run(backbone, args, kwargs)
        now = Pass(self.hooks.key, backbone, registers, registers.setting)
        args, kwargs = self.hooks.open(now, args, kwargs)
        outer, aside, thread.top = thread.top, thread.aside, now
        try:
            output = self._run(backbone, args, kwargs)
        except BaseException:
            if now.cache is not None:
                decoders.release(now.cache)
            raise
        finally:
            thread.top, thread.aside = outer, aside
            now.backbone = None
        return output if now.layout is None else self.hooks.tidy(now.layout, output)

    def _run(self, backbone: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        if self.before is not None:
            return self.before(*args, **kwargs)
        return type(backbone).forward(backbone, *args, **kwargs)


class RegisterHooks:
    """The hooks of one set of registers; `install` hangs them up. Plain data: copies of a module keep theirs."""

    def __init__(self, backbone: Any, family: Family) -> None:
        self.key = uuid.uuid4().hex
        self.family = family
        self.parameter_names = tuple(inspect.signature(backbone.forward).parameters)
        self.cache_name = cache_argument(backbone.forward)
        self.among_words = family.joins_words or family.masks_first
        self.starts_later = False
        """Whether texts were read, where distances are counted, that didn't start at place 0."""
        self.window: int | None = getattr(backbone.config, family.local_window) if family.local_window else None

    def install(self, backbone: Any, *, deep: bool) -> None:
        """Hangs up every hook that the family and the registers need (`deep`: fresh ones at every layer)."""
        embeddings = backbone.get_submodule(self.family.embeddings)
        backbone.register_forward_pre_hook(self.announce)
        if not self.family.joins_words:
            embeddings.register_forward_hook(self.join)
        self._install_positions(backbone)
        stack_of(backbone, self.family).register_forward_hook(self.leave, with_kwargs=True)
        if self.family.embeddings_mask is not None:
            embeddings.register_forward_pre_hook(self.hide_mask, with_kwargs=True)
        for path in self.family.mixing:
            module = submodule(backbone, path)
            if module is not None:
                module.register_forward_pre_hook(self.step_aside)
                module.register_forward_hook(self.step_back)
        if deep:
            layers = backbone.get_submodule(self.family.layers)
            for depth, layer in enumerate(list(layers.children())[1:], start=1):
                layer.register_forward_pre_hook(functools.partial(self.refresh, depth), with_kwargs=True)
        backbone.forward = Forward(backbone, self)

    def _install_positions(self, backbone: Any) -> None:
        """The hooks that keep the text's positions what they are without registers."""
        numbered = self.among_words and (not self.family.causal or self.family.beside_encoder)
        if numbered and self.family.position_embeddings is not None:
            positions = backbone.get_submodule(self.family.position_embeddings)
            if self.family.causal:
                positions.register_forward_pre_hook(self.number_text, with_kwargs=True)
                positions.register_forward_hook(self.leave_front_unnumbered)
            else:
                positions.register_forward_pre_hook(self.count_text)
                positions.register_forward_hook(self.leave_unnumbered)
        if self.family.beside_encoder and self.family.positions == "relative":
            first = next(backbone.get_submodule(self.family.layers).children())
            first.get_submodule(self.family.attention).register_forward_pre_hook(self.measure, with_kwargs=True)
            first.register_forward_pre_hook(self.measure_beside, with_kwargs=True)

    @staticmethod
    def of(backbone: nn.Module) -> RegisterHooks:
        """The hooks of the registers on this backbone."""
        for hook in backbone._forward_pre_hooks.values():
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, RegisterHooks):
                return owner
        raise AssertionError(f"{type(backbone).__name__} has registers and no hooks")

    @staticmethod
    def uninstall(root: nn.Module, backbone: nn.Module) -> None:
        """Takes the hooks of this backbone's registers away, wherever below `root` they or their copies are."""
        key = RegisterHooks.of(backbone).key
        for module in {*root.modules(), *backbone.modules()}:
            for kind in ("_forward_pre_hooks", "_forward_hooks"):
                hooks = module.__dict__[kind]
                for number, hook in list(hooks.items()):
                    owner = getattr(getattr(hook, "func", hook), "__self__", None)
                    if isinstance(owner, RegisterHooks) and owner.key == key:
                        del hooks[number]
                        module.__dict__[f"{kind}_with_kwargs"].pop(number, None)
        forward = backbone.__dict__.get("forward")
        if isinstance(forward, Forward):  # if another library wrapped it, it stays, and without registers does nothing
            del backbone.__dict__["forward"]
            if forward.before is not None:
                backbone.forward = forward.before

    # Which pass

    def announce(self, backbone: nn.Module, args: tuple) -> None:
        """Tells `Forward` which module torch has called: a replica shares the object with its original."""
        thread.called = backbone

    def running(self, states: Tensor, what: str) -> Pass | None:
        """The pass that states belong to, if it is one of these registers and they are in its sequence."""
        now = thread.top
        if now is not None and (now.key != self.key or not now.joined or states.shape[1] != now.total):
            now = None
        if torch.compiler.is_compiling():
            return now
        if in_backward():
            first = recall(states, self.key)
            if first is Unclear.AMBIGUOUS or (first is Unclear.UNKNOWN and now is None):
                raise lost(what)
            if first is not Unclear.UNKNOWN:
                return None if first is None or first.layout is None else first
        remember(states, self.key, now)
        return now

    # 1. The backbone

    def open(self, now: Pass, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Finds out where the registers go, and widens the mask (made if none is given) and the position ids."""
        named: dict[str, Any] = {**dict(zip(self.parameter_names, args, strict=False)), **kwargs}
        source = next((named[name] for name in self.family.inputs if named.get(name) is not None), None)
        if source is None:
            return args, kwargs  # the backbone's own error is the right one
        if not torch.compiler.is_compiling():
            self._same_setting(now, source)
        if self.family.causal:
            decoders.begin(now, self.family, named, source, self.cache_name)
            self._join_words(now, named, source)
            return (), named
        if not now.setting.enabled:
            return args, kwargs
        batch, seq = source.shape[0], self._patches(now, named, source) if self.family.reads_images else source.shape[1]
        mask = named.get("attention_mask")
        past = self._past(named, mask, seq)
        if mask is None and self.family.reads_images:
            now.layout = Layout(
                now.registers.num_registers, self.first_column(now.registers, None, batch, seq, source.device), seq
            )
            return (), named | self._only_masked(now, source.device)
        if mask is None:
            mask = torch.ones(batch, past + seq, dtype=torch.long, device=source.device)
        padding = mask[:, past:] if isinstance(mask, Tensor) and mask.dim() == 2 else None
        given = padding if named.get("attention_mask") is not None else None
        first = self.first_column(now.registers, given, batch, seq, source.device)
        now.layout = Layout(now.registers.num_registers, first, seq)
        now.text_mask = mask if padding is None else padding
        if self.family.positions == "rotary":
            named["position_ids"] = self._position_ids(now, named.get("position_ids"), given, batch, seq, source.device)
        named["attention_mask"] = self._extend_mask(now, mask, past, seq)
        self._join_words(now, named, source)
        return (), named

    def _join_words(self, now: Pass, named: dict[str, Any], source: Tensor) -> None:
        """Where embeddings are made of `[registers, text]`: registers, or places for them, join the words."""
        if now.layout is None or not self.among_words or now.backbone is None:
            return
        words = named.get("inputs_embeds")
        words = embed_words(now.backbone, self.family, source) if words is None else words
        now.joined = self.family.joins_words
        shape = (words.shape[0], now.layout.num_registers, words.shape[-1])
        vectors = now.registers(words.shape[0]) if now.joined else words.new_zeros(shape)
        if self.family.scale_behind is not None:
            vectors = vectors / getattr(now.backbone, self.family.scale_behind)
        named["input_ids"], named["inputs_embeds"] = None, now.layout.insert(vectors, words)

    def _same_setting(self, now: Pass, source: Tensor) -> None:
        """A pass that is run again as a whole has the settings that it had the first time."""
        forget()
        key = f"{self.key} inputs"
        if not in_backward():
            return remember(source, key, now.setting)
        first = recall(source, key)
        if first is Unclear.AMBIGUOUS:
            raise InputError(
                "This model is run again in a backward pass (gradient checkpointing), and it ran on the same inputs "
                "with registers switched on and off (or masked), so it isn't clear which is meant. Give each pass "
                "inputs of its own (input_ids.clone()), or checkpoint the layers: "
                "model.gradient_checkpointing_enable()."
            )
        now.setting = now.setting if first is Unclear.UNKNOWN else first
        return None

    def _patches(self, now: Pass, named: dict[str, Any], images: Tensor) -> int:
        """How many tokens images become, [CLS] and the like included.

        Raises:
            InputError: they have another size than the model's, and nobody said that positions are to be resized.
        """
        config: Any = now.backbone.config  # type: ignore[union-attr]
        height, width = sides(config.patch_size)
        size, resized = tuple(images.shape[-2:]), "interpolate_pos_encoding"
        if size != sides(config.image_size) and resized in self.parameter_names and not named.get(resized):
            raise InputError(
                f"These images have {size[0]} x {size[1]} pixels, and this {self.family.name} reads "
                f"{' x '.join(map(str, sides(config.image_size)))}. Resize them (its image processor does), or let the "
                f"model resize its positions: model(pixel_values, {resized}=True)."
            )
        return self.family.leading + (size[0] // height) * (size[1] // width)

    def _only_masked(self, now: Pass, device: torch.device) -> dict[str, Tensor]:
        """The mask of images, which have no padding: none, or one that hides masked registers, `[_, 1, 1, total]`."""
        if not now.setting.masked:
            return {}
        assert now.layout is not None
        seen = torch.ones(1, 1, 1, now.layout.total - now.layout.num_registers, dtype=torch.bool, device=device)
        mask = self._extend_full_mask(now, seen, 0)
        assert mask is not None
        return {"attention_mask": self._for_attention(now, {"": mask})[""]}

    def _past(self, named: dict[str, Any], mask: Any, seq: int) -> int:
        """How many keys come before this text (prefix tuning hands them in as a cache)."""
        cache = given_cache(named)
        past = 0 if cache is None else int(cache.get_seq_length())
        if not isinstance(mask, Tensor | dict | None):
            raise InputError(f"attention_mask is a {type(mask).__name__}; with registers it must be a tensor.")
        if past and self.cache_name is None:
            raise InputError(f"{self.family.name} takes no {CACHE}, so prefix tuning has no effect on it.")
        if isinstance(mask, Tensor) and mask.shape[-1] != past + seq:
            known = f"{seq} tokens" if not past else f"{past} past keys and {seq} tokens"
            raise InputError(f"attention_mask has shape {tuple(mask.shape)}, which doesn't fit {known}.")
        return past

    def first_column(
        self, registers: Registers, mask: Tensor | None, batch: int, seq: int, device: torch.device
    ) -> Tensor | None:
        """The column of the text at which the registers of each row go, `[batch]`; None: at the front of all rows."""
        placement = registers.config.placement
        anywhere = self.family.positions == "absolute" or self.family.causal
        if placement == "prefix" and (anywhere or mask is None):
            return None
        start = torch.zeros(batch, dtype=torch.long, device=device)
        end = torch.full((batch,), seq, dtype=torch.long, device=device)
        if mask is not None:
            attended = mask.bool().int()
            start = attended.argmax(dim=1)
            end = seq - attended.flip(1).argmax(dim=1)
        return {"prefix": start, "after_cls": start + 1, "suffix": end}[placement]

    def _position_ids(
        self, now: Pass, given: Tensor | None, mask: Tensor | None, batch: int, seq: int, device: torch.device
    ) -> Tensor:
        """The text keeps its positions; registers count down from its first or up from its last."""
        assert now.layout is not None
        n = now.registers.num_registers
        if given is not None and (given.dim() != 2 or given.shape[1] != seq or given.shape[0] not in (1, batch)):
            raise InputError(
                f"position_ids has shape {tuple(given.shape)}, which doesn't fit {batch} x {seq} tokens. Give one to "
                "each token of this call; registers have their own."
            )
        text = torch.arange(seq, device=device).unsqueeze(0) if given is None else given
        text = text.expand(batch, seq)
        steps = torch.arange(n, device=device).unsqueeze(0)
        first = self.first_column(now.registers, mask, batch, seq, device)
        if now.registers.config.placement == "prefix":
            start = text[:, :1] if first is None else text.gather(1, first.unsqueeze(1))
            return now.layout.insert(start - n + steps, text)
        assert first is not None
        return now.layout.insert(text.gather(1, first.unsqueeze(1) - 1) + 1 + steps, text)

    def _extend_mask(self, now: Pass, mask: Any, past: int, seq: int) -> Any:
        if isinstance(mask, dict):
            return {name: self._extend_full_mask(now, part, past) for name, part in mask.items()}
        if mask.dim() == 4:
            return self._extend_full_mask(now, mask, past)
        if mask.dim() != 2:
            raise InputError(
                f"attention_mask has shape {tuple(mask.shape)}; with registers it must be [batch, seq] or "
                "[batch, 1, query, key]."
            )
        assert now.layout is not None
        visible = now.registers.visible(mask.device, now.setting.masked).to(mask.dtype).expand(mask.shape[0], -1)
        extended = now.layout.insert(visible, mask[:, past:])
        if past:
            extended = torch.cat([mask[:, :past], extended], dim=1)
        return extended if self.window is None else self._windowed_masks(now, extended.bool(), self.window)

    def _extend_full_mask(self, now: Pass, mask: Tensor | None, past: int) -> Tensor | None:
        if mask is None:
            return None
        hidden = hidden_score(mask)
        assert now.layout is not None
        before, mask = mask[..., :past], mask[..., past:]
        seen = True if mask.dtype == torch.bool else 0.0
        keys = torch.where(now.registers.visible(mask.device, now.setting.masked), seen, hidden).to(mask.dtype)
        order = now.layout.order
        mask = torch.cat([keys.expand(*mask.shape[:-1], -1), mask], dim=-1)
        if order is not None:
            mask = mask.expand(order.shape[0], *mask.shape[1:])
            mask = take_columns(mask.transpose(1, 3), order).transpose(1, 3)
        if past:
            mask = torch.cat([before.expand(*mask.shape[:-1], -1), mask], dim=-1)
        if mask.shape[-2] > 1:  # a register sees every token that some token sees
            reach = mask.any(-2, keepdim=True) if mask.dtype == torch.bool else mask.amax(-2, keepdim=True)
            mask = torch.cat([reach.expand(*mask.shape[:-2], now.layout.num_registers, -1), mask], dim=-2)
            if order is not None:
                mask = take_columns(mask.transpose(1, 2), order).transpose(1, 2)
        return mask

    def _windowed_masks(self, now: Pass, visible: Tensor, window: int) -> dict[str, Tensor]:
        """Masks for full and local layers, `[batch, 1, total, total]`: the local window never hides a register."""
        assert now.layout is not None
        total = visible.shape[1]
        place = torch.arange(total, device=visible.device)
        near = (place.unsqueeze(0) - place.unsqueeze(1)).abs() <= window
        origin = now.layout.order if now.layout.order is not None else place.unsqueeze(0)
        register = origin < now.layout.num_registers
        local = near | register.unsqueeze(1) | register.unsqueeze(2)
        full = visible[:, None, None, :].expand(-1, 1, total, -1)
        return self._for_attention(now, {"full_attention": full, "sliding_attention": full & local.unsqueeze(1)})

    def _for_attention(self, now: Pass, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """Full masks of truth values, as the attention that is in use takes them."""
        backbone: Any = now.backbone
        attention = backbone.config._attn_implementation
        if attention not in ("sdpa", "eager"):
            raise InputError(
                f"Registers in {self.family.name} need attn_implementation 'sdpa' or 'eager' here, not {attention!r}: "
                "other kernels take no mask that says who sees what."
            )
        if attention == "sdpa":
            return masks
        dtype = now.registers.tokens.dtype
        lowest = torch.finfo(dtype).min
        return {name: torch.zeros_like(m, dtype=dtype).masked_fill(~m, lowest) for name, m in masks.items()}

    # 2. Behind the embeddings

    def join(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        """Lets the registers join the embedded text, `[batch, seq, width]` to `[batch, total, width]`."""
        now = thread.top
        if now is None or now.key != self.key:
            if in_backward():
                raise lost("Embeddings")
            return None
        if now.layout is None or now.joined:
            return None
        now.joined = True
        vectors: Tensor = now.registers(output.shape[0])
        if now.registers.config.layer_norm and now.backbone is not None:
            for path in (self.family.norm, self.family.dropout):
                step = submodule(now.backbone, path)
                vectors = step(vectors) if step is not None else vectors
        return now.layout.insert(vectors, now.layout.strip(output) if self.family.masks_first else output)

    def count_text(self, module: nn.Module, args: tuple) -> tuple | None:
        """Before a module that numbers the places of its input (or of its shape): shows it the text's alone."""
        layout, given = self._numbered(), args[0]
        if layout is None:
            return None
        text = layout.strip(given) if isinstance(given, Tensor) else (given[0], given[1] - layout.num_registers)
        return (text, *args[1:])

    def leave_unnumbered(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        """Behind it: registers get positions of zero."""
        layout, text = self._numbered(), args[0]
        if layout is None:
            return None
        batch = text.shape[0] if isinstance(text, Tensor) else text[0]
        positions = output.expand(batch, -1, -1)
        return layout.insert(positions.new_zeros(batch, layout.num_registers, positions.shape[-1]), positions)

    def number_text(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        """Before a module that is given the numbers of all places, `[total]`, in a decoder: gives it the text's."""
        layout = self._numbered()
        if layout is None:
            return None
        return args, {**kwargs, "position_ids": kwargs["position_ids"][: layout.total - layout.num_registers]}

    def leave_front_unnumbered(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        """Behind it: registers, which are in front, get positions of zero; `[..., seq, width]`."""
        layout = self._numbered()
        return None if layout is None else nn.functional.pad(output, (0, 0, layout.num_registers, 0))

    def measure(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        """Where distances are counted along the sequence: counts the registers that the cache holds before it (T5)."""
        now = thread.top
        if now is None or now.key != self.key or now.layout is not None or not now.setting.enabled:
            return None
        cache = given_cache(kwargs)
        if cache is None:  # a layer that is run again
            return None
        states, n = args[0] if args else kwargs["hidden_states"], now.registers.num_registers
        bias = decoders.bias_from_cache(module, cache, n, states)
        return args, {**kwargs, self.family.position_bias or "": bias}

    def measure_beside(self, layer: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        """Before the first layer: counts distances to registers that stand beside texts which start later (T5)."""
        name, states = self.family.position_bias or "", args[0] if args else kwargs["hidden_states"]
        if not self.starts_later and thread.top is None:  # run again, of a model that never read such texts
            return None
        now = self.running(states, "Layers")
        if now is None or now.layout is None or now.places is None:
            return None
        self.starts_later = True
        seq = states.shape[1] - now.layout.num_registers
        queries = torch.cat([now.places, torch.arange(seq, device=states.device).expand(len(now.places), -1)], dim=1)
        attention = layer.get_submodule(self.family.attention)
        keys = seq if now.cache is None else now.cache.get_mask_sizes(seq, 0)[0]  # a fixed one has room for more
        bias = decoders.bias_beside(attention, now.places, queries, keys)
        named = dict(zip(inspect.signature(layer.forward).parameters, args, strict=False))
        return (), {**named, **kwargs, name: bias}

    def _numbered(self) -> Layout | None:
        now = thread.top
        return None if now is None or now.key != self.key else now.layout

    def hide_mask(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        """Gives embeddings that multiply by the mask the mask of the text alone."""
        name, now = self.family.embeddings_mask, thread.top
        if now is None or now.key != self.key or now.layout is None or now.joined or kwargs.get(name or "") is None:
            return None
        return args, {**kwargs, name: now.text_mask}

    def step_aside(self, module: nn.Module, args: tuple) -> tuple | None:
        """Before a module that mixes neighbours: hands it the text alone and keeps the registers' states."""
        hidden, residual, mask = args
        now = self.running(residual, "Layers")
        layout = None if now is None else now.layout
        states = None if layout is None else layout.registers_of(residual)
        thread.aside = (*thread.aside, (self.key, layout, states))
        return None if layout is None else (layout.strip(hidden), layout.strip(residual), layout.strip(mask))

    def step_back(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        """Behind a module that mixes neighbours: the registers' states join again."""
        place = max(place for place, aside in enumerate(thread.aside) if aside[0] == self.key)
        _, layout, states = thread.aside[place]
        thread.aside = thread.aside[:place] + thread.aside[place + 1 :]
        return None if layout is None or states is None else layout.insert(states, output)

    def refresh(self, depth: int, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        """Before a layer: puts that layer's fresh registers in the place of the old ones (depth `every_layer`)."""
        hidden = args[0] if args else kwargs["hidden_states"]
        now = self.running(hidden, "Layers")
        if now is None or now.layout is None:
            return None
        hidden = now.layout.insert(now.registers(hidden.shape[0], depth), now.layout.strip(hidden))
        if not torch.compiler.is_compiling():
            remember(hidden, self.key, now)  # where they leave behind this layer, it may be run again
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    # 3. Behind the last layer

    def leave(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """Takes the registers out of what the encoder stack returns."""
        states = args[0] if args else kwargs["hidden_states" if "hidden_states" in kwargs else "inputs_embeds"]
        now = self.running(states, "Layers")
        if now is None or now.layout is None:
            return None
        layout = now.layout
        if isinstance(output, Tensor):
            return layout.strip(output)
        if isinstance(output, tuple):
            return tuple(_strip_states(layout, part) for part in output)
        output["last_hidden_state"] = layout.strip(output["last_hidden_state"])
        if output.get("hidden_states") is not None:
            output["hidden_states"] = _strip_states(layout, output["hidden_states"])
        return output

    def tidy(self, layout: Layout, output: Any) -> Any:
        """Cuts collected hidden states to the text, and puts attentions in the order `[registers, text]`."""
        length = layout.total - layout.num_registers
        if isinstance(output, tuple):
            return self._tidy_all(layout, output, length)
        for name in ("hidden_states", "attentions"):
            if output.get(name) is not None:
                output[name] = _tidy(layout, output[name], length)
        if output.get("cross_attentions") is not None:
            output["cross_attentions"] = _rows_of_text(layout, output["cross_attentions"])
        return output

    def _tidy_all(self, layout: Layout, output: tuple, length: int) -> tuple:
        maps = [index for index, part in enumerate(output) if _holds_maps(part)]
        across = maps[1] if len(maps) > 1 and self.family.beside_encoder else None
        return tuple(
            _rows_of_text(layout, part)
            if index == across
            else _tidy(layout, part, length)
            if isinstance(part, (tuple, list))
            else part
            for index, part in enumerate(output)
        )


def _holds_maps(part: Any) -> bool:
    return isinstance(part, (tuple, list)) and any(isinstance(item, Tensor) and item.dim() == 4 for item in part)


def _rows_of_text(layout: Layout, maps: Any) -> tuple:
    """The text's queries of a decoder's maps over what an encoder gave, `[batch, heads, total, keys]`."""
    return tuple(None if weights is None else weights[:, :, layout.num_registers :] for weights in maps)


def _strip_states(layout: Layout, part: Any) -> Any:
    if isinstance(part, Tensor):
        return layout.strip(part) if part.dim() == 3 else part
    if isinstance(part, (tuple, list)):
        return type(part)(_strip_states(layout, item) for item in part)
    return part


def _tidy(layout: Layout, collected: Any, length: int) -> tuple:
    return tuple(_tidy_one(layout, item, length) for item in collected)


def _tidy_one(layout: Layout, item: Tensor | None, length: int) -> Tensor | None:
    if item is None or (item.dim() == 3 and item.shape[1] == length):
        return item
    return layout.strip(item) if item.dim() == 3 else layout.registers_first(item, 2, 3)
