"""The hooks that carry registers through a model.

This is the whole mechanism:

1. before the backbone runs, the attention mask (and rotary position ids) are extended by N;
2. behind the embeddings, the registers join the sequence;
3. behind the last layer, before any pooler or head, they leave it again.

All hooks sit on instances and every one is removable; nothing is patched class-wide.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from regtune.families._family import Family, submodule
from regtune.registers.registers import Registers, take_columns


class RegisterHooks:
    """The hooks of one backbone; `install` hangs them up and returns their handles."""

    def __init__(self, backbone: Any, registers: Registers, family: Family) -> None:
        self.registers = registers
        self.family = family
        self.parameter_names = tuple(inspect.signature(backbone.forward).parameters)
        # Lists keep the modules out of reach of anything that walks this object's attributes.
        self.norm = [submodule(backbone, family.norm), submodule(backbone, family.dropout)]
        self.window: int | None = getattr(backbone.config, family.local_window) if family.local_window else None
        self.kept: Tensor | None = None

    def install(self, backbone: nn.Module) -> list[RemovableHandle]:
        """Registers every hook that the family and the configuration need."""
        embeddings = backbone.get_submodule(self.family.embeddings)
        handles = [
            backbone.register_forward_pre_hook(self.extend_inputs, with_kwargs=True),
            embeddings.register_forward_hook(self.join),
            backbone.get_submodule(self.family.stack).register_forward_hook(self.leave),
            backbone.register_forward_hook(self.tidy_outputs),
        ]
        if self.family.embeddings_mask is not None:
            handles.append(embeddings.register_forward_pre_hook(self.hide_mask, with_kwargs=True))
        for path in self.family.mixing:
            module = submodule(backbone, path)
            if module is not None:
                handles.append(module.register_forward_pre_hook(self.step_aside))
                handles.append(module.register_forward_hook(self.step_back))
        if self.registers.deep is not None:
            layers = backbone.get_submodule(self.family.layers)
            for index, layer in enumerate(list(layers.children())[1:]):
                handles.append(layer.register_forward_pre_hook(_Refresh(self.registers, index), with_kwargs=True))
        return handles

    # 1. Before the backbone

    def extend_inputs(self, backbone: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        """Plans where the registers go and widens the mask (made if none is given) and the position ids."""
        if not self.registers.enabled:
            return None
        named: dict[str, Any] = {**dict(zip(self.parameter_names, args, strict=False)), **kwargs}
        source = named.get("input_ids")
        if source is None:
            source = named.get("inputs_embeds")
        if source is None:
            return None  # the backbone's own error is the right one
        batch, seq = source.shape[0], source.shape[1]
        mask = named.get("attention_mask")
        self.registers.plan(self._first_column(mask, batch, seq, source.device), seq)
        if self.family.positions == "rotary":
            named["position_ids"] = self._position_ids(named.get("position_ids"), mask, batch, seq, source.device)
        if mask is None:
            mask = torch.ones(batch, seq, dtype=torch.long, device=source.device)
        self.registers.text_mask = mask if isinstance(mask, Tensor) else None
        named["attention_mask"] = self._extend_mask(backbone, mask)
        return (), named

    def _first_column(self, mask: Any, batch: int, seq: int, device: torch.device) -> Tensor | None:
        placement = self.registers.config.placement
        padded = isinstance(mask, Tensor) and mask.dim() == 2
        if placement == "prefix" and (self.family.positions == "absolute" or not padded):
            return None
        start = torch.zeros(batch, dtype=torch.long, device=device)
        end = torch.full((batch,), seq, dtype=torch.long, device=device)
        if padded:
            attended = mask.bool().int()
            start = attended.argmax(dim=1)
            end = seq - attended.flip(1).argmax(dim=1)
        return {"prefix": start, "after_cls": start + 1, "suffix": end}[placement]

    def _position_ids(self, given: Tensor | None, mask: Any, batch: int, seq: int, device: torch.device) -> Tensor:
        """The text keeps its positions; registers count down from its first or up from its last."""
        n = self.registers.num_registers
        text = torch.arange(seq, device=device).unsqueeze(0) if given is None else given
        text = text.expand(batch, seq)
        steps = torch.arange(n, device=device).unsqueeze(0)
        first = self._first_column(mask, batch, seq, device)
        if self.registers.config.placement == "prefix":
            start = text[:, :1] if first is None else text.gather(1, first.unsqueeze(1))
            return self.registers.insert(start - n + steps, text)
        assert first is not None
        return self.registers.insert(text.gather(1, first.unsqueeze(1) - 1) + 1 + steps, text)

    def _extend_mask(self, backbone: Any, mask: Any) -> Any:
        if isinstance(mask, dict):
            return {name: self._extend_full_mask(part) for name, part in mask.items()}
        if mask.dim() == 4:
            return self._extend_full_mask(mask)
        if mask.dim() != 2:
            raise ValueError(
                f"attention_mask has shape {tuple(mask.shape)}; with registers it must be [batch, seq] or "
                "[batch, 1, query, key]."
            )
        visible = self.registers.visible(mask.device).to(mask.dtype).expand(mask.shape[0], -1)
        extended = self.registers.insert(visible, mask)
        return extended if self.window is None else self._windowed_masks(backbone, extended.bool(), self.window)

    def _extend_full_mask(self, mask: Tensor | None) -> Tensor | None:
        if mask is None:
            return None
        registers = self.registers
        hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        seen = True if mask.dtype == torch.bool else 0.0
        keys = torch.where(registers.visible(mask.device), seen, hidden).to(mask.dtype)
        mask = torch.cat([keys.expand(*mask.shape[:-1], -1), mask], dim=-1)
        if mask.shape[-2] > 1:  # a register sees every token that some token sees
            reach = mask.any(-2, keepdim=True) if mask.dtype == torch.bool else mask.amax(-2, keepdim=True)
            mask = torch.cat([reach.expand(*mask.shape[:-2], registers.num_registers, -1), mask], dim=-2)
        if registers.order is None:
            return mask
        mask = mask.expand(registers.order.shape[0], *mask.shape[1:])
        mask = take_columns(mask.transpose(1, 3), registers.order).transpose(1, 3)
        return take_columns(mask.transpose(1, 2), registers.order).transpose(1, 2) if mask.shape[-2] > 1 else mask

    def _windowed_masks(self, backbone: Any, visible: Tensor, window: int) -> dict[str, Tensor]:
        """Masks for full and local layers, `[batch, 1, total, total]`: the local window never hides a register."""
        attention = backbone.config._attn_implementation
        if attention not in ("sdpa", "eager"):
            raise ValueError(
                f"Registers in {self.family.name} need attn_implementation 'sdpa' or 'eager', not {attention!r}: "
                "other kernels cannot let registers through the local attention window."
            )
        total = visible.shape[1]
        place = torch.arange(total, device=visible.device)
        near = (place.unsqueeze(0) - place.unsqueeze(1)).abs() <= window
        origin = self.registers.order if self.registers.order is not None else place.unsqueeze(0)
        register = origin < self.registers.num_registers
        local = near | register.unsqueeze(1) | register.unsqueeze(2)
        full = visible[:, None, None, :].expand(-1, 1, total, -1)
        masks = {"full_attention": full, "sliding_attention": full & local.unsqueeze(1)}
        if attention == "sdpa":
            return masks
        dtype = next(backbone.parameters()).dtype
        lowest = torch.finfo(dtype).min
        return {name: torch.zeros_like(m, dtype=dtype).masked_fill(~m, lowest) for name, m in masks.items()}

    # 2. Behind the embeddings

    def join(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        """Lets the registers join the embedded text, `[batch, seq, width]` to `[batch, total, width]`."""
        if not self.registers.enabled:
            return None
        vectors = self.registers(output.shape[0])
        if self.registers.config.layer_norm:
            for step in self.norm:
                vectors = step(vectors) if step is not None else vectors
        return self.registers.insert(vectors, output)

    def hide_mask(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        """Gives embeddings that multiply by the mask the mask of the text alone."""
        name = self.family.embeddings_mask
        if not self.registers.enabled or name is None or kwargs.get(name) is None:
            return None
        return args, {**kwargs, name: self.registers.text_mask}

    def step_aside(self, module: nn.Module, args: tuple) -> tuple | None:
        """Before a module that mixes neighbours: hands it the text alone and keeps the registers' states."""
        if not self.registers.enabled:
            return None
        hidden, residual, mask = args
        self.kept = self.registers.registers_of(residual)
        return self.registers.strip(hidden), self.registers.strip(residual), self.registers.strip(mask)

    def step_back(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        """Behind a module that mixes neighbours: the registers' states join again."""
        if not self.registers.enabled or self.kept is None:
            return None
        kept, self.kept = self.kept, None
        return self.registers.insert(kept, output)

    # 3. Behind the last layer

    def leave(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """Takes the registers out of what the encoder stack returns."""
        if not self.registers.enabled:
            return None
        if isinstance(output, Tensor):
            return self.registers.strip(output)
        if isinstance(output, tuple):
            return tuple(self._strip_states(part) for part in output)
        output["last_hidden_state"] = self.registers.strip(output["last_hidden_state"])
        if output.get("hidden_states") is not None:
            output["hidden_states"] = self._strip_states(output["hidden_states"])
        return output

    def _strip_states(self, part: Any) -> Any:
        if isinstance(part, Tensor):
            return self.registers.strip(part) if part.dim() == 3 else part
        if isinstance(part, (tuple, list)):
            return type(part)(self._strip_states(item) for item in part)
        return part

    def tidy_outputs(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """Cuts collected hidden states to the text, and puts attentions in the order `[registers, text]`."""
        if not self.registers.enabled:
            return None
        if isinstance(output, tuple):
            length = output[0].shape[1]
            return tuple(self._tidy(part, length) if isinstance(part, (tuple, list)) else part for part in output)
        length = output["last_hidden_state"].shape[1]
        for name in ("hidden_states", "attentions"):
            if output.get(name) is not None:
                output[name] = self._tidy(output[name], length)
        return output

    def _tidy(self, collected: Any, length: int) -> tuple:
        return tuple(self._tidy_one(item, length) for item in collected)

    def _tidy_one(self, item: Tensor | None, length: int) -> Tensor | None:
        if item is None or (item.dim() == 3 and item.shape[1] == length):
            return item
        if item.dim() == 3:
            return self.registers.strip(item)
        if self.registers.order is None:
            return item
        columns = self.registers.columns()
        item = take_columns(item.transpose(1, 2), columns).transpose(1, 2)
        return take_columns(item.transpose(1, 3), columns).transpose(1, 3)


class _Refresh:
    """Before a layer: puts that layer's fresh registers in the place of the old ones (depth `every_layer`)."""

    def __init__(self, registers: Registers, index: int) -> None:
        self.registers = registers
        self.index = index

    def __call__(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        registers = self.registers
        if not registers.enabled or registers.deep is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        fresh = registers.deep[self.index].unsqueeze(0).expand(hidden.shape[0], -1, -1)
        hidden = registers.insert(fresh, registers.strip(hidden))
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})
