"""Adding registers to a Hugging Face model, in place, and taking them away again."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regtune.config import RegisterConfig
from regtune.errors import CheckpointError, ConfigError, UnsupportedModelError
from regtune.families import family_of, find_family, refuse_variants
from regtune.families._family import Family, embed_words, modules_at, num_layers, sides, submodule
from regtune.registers.card import HOOKED, WithCard
from regtune.registers.hooks import MODULE_NAME, RegisterHooks, registers_in
from regtune.registers.passes import Layout
from regtune.registers.registers import Registers, settings

ModelT = TypeVar("ModelT", bound=nn.Module)

CONFIG_KEY = "registers"
"""Name of the entry that `add_registers` writes into the model's `config.json`."""
NEURONS_KEY = "register_neurons"
"""Name of the module, and of the entry, of neurons that act at registers (`regtune.registers.moved_neurons`)."""
_SAMPLE = 256
_SHARED_OUT = ("torch.distributed.fsdp", "torch.nn.parallel.distributed")
"""Where the classes of FSDP (1 and 2) and DDP are."""


def add_registers(
    model: ModelT,
    config: RegisterConfig | None = None,
    *,
    sep_token_id: int | None = None,
    mask_token_id: int | None = None,
) -> ModelT:
    """Adds registers to a pretrained encoder or decoder, or a model with both, **in place** and returns it.

    Labels, logits, hidden states and the pooler keep meaning the text; `Trainer`, `save_pretrained` and the heads
    work as before. `num_registers=0` leaves the model untouched. Of a model with an encoder and a decoder, the encoder
    gets `num_registers` and the decoder `decoder_registers`. Mechanism: RegBERT (Parihar et al., 2024) after Darcet et
    al. 2024 (arXiv 2309.16588); see `regtune.registers.hooks`.

    Args:
        model: a Hugging Face model of a supported family, with any head or none.
        config: what registers; the defaults are the paper's.
        sep_token_id: id of [SEP] for `init="sep"`; taken from the model's config where that has it.
        mask_token_id: id of [MASK] for `init="mask"`.

    Raises:
        UnsupportedModelError: the family isn't supported, the model has registers already, it is distributed over
            several processes, or peft has put an adapter onto it.
        ConfigError: the configuration cannot work on this model; the message says why.
    """
    _refuse_adapted(model)
    return join_registers(model, config or RegisterConfig(), {"sep": sep_token_id, "mask": mask_token_id})


def join_registers(model: ModelT, config: RegisterConfig, ids: dict[str, int | None] | None = None) -> ModelT:
    """`add_registers`, on a model with peft's adapters too: for callers that see to it that they are saved."""
    _refuse_shared_out(model)
    backbone = backbone_of(model)
    _refuse_writer(backbone)
    family = family_of(backbone.config)
    if there := _all_owners(model):
        has = sum(registers.num_registers for owner in there if (registers := registers_in(owner)) is not None)
        raise UnsupportedModelError(
            f"{type(model).__name__} has {has} registers already. Train it with those (in a run: "
            "--registers.num-registers 0), or call remove_registers(model) first."
        )
    places = [(backbone, family)] if config.num_registers else []
    if config.decoder_registers:
        places.append((_require_decoder(config, model, family), family.decoder_side))
    for place, side in places:
        _check_parts(side, place)
        _check_fit(config, side, place)
    for place, side in places:
        registers = make_registers(config, place, ids, family=side)
        place.add_module(MODULE_NAME, registers.train(place.training))
        RegisterHooks(place, side).install(place, deep=registers.deep is not None)
    if places:
        write_config(model, config)
    return model


def _require_decoder(config: RegisterConfig, model: nn.Module, family: Family) -> Any:
    """The decoder beside a model's encoder, for registers of its own."""
    decoder = decoder_of(model)
    if decoder is None:
        it = "it is a decoder alone" if family.causal else "it has no decoder beside its encoder"
        raise ConfigError(
            f"decoder_registers={config.decoder_registers} doesn't fit this {type(model).__name__}: {it}. Use "
            "num_registers."
        )
    refuse_variants(family.decoder_side, decoder.config)
    return decoder


def remove_registers(model: ModelT) -> ModelT:
    """Takes all registers and hooks away, in place: the state dict has the original model's keys again.

    Neurons that act at registers (`test_time_registers`) act where they did.

    Raises:
        UnsupportedModelError: the model has no registers, another library has wrapped them, or it is
            distributed over several processes.
    """
    if find_registers(model) is None and find_decoder_registers(model) is None:
        require_registers(model)
    _refuse_shared_out(model)
    for backbone in _all_owners(model):
        neurons: Any = backbone._modules.get(NEURONS_KEY)
        if neurons is not None:
            neurons.take_back(model)
        place = getattr(backbone, MODULE_NAME)
        if not isinstance(place, Registers):
            raise UnsupportedModelError(
                f"The registers are inside a {type(place).__name__}; undo that first (peft: model.unload())."
            )
        RegisterHooks.uninstall(model, backbone)
        delattr(backbone, MODULE_NAME)
    forget_config(model)
    return model


@contextmanager
def disable_registers(model: nn.Module) -> Iterator[None]:
    """Inside the context the model runs as if it had no registers, bit for bit. Does nothing without registers.

    Holds for this thread (or asyncio task) alone, for all copies of the registers in `model` and all sets of them.

    Raises:
        CheckpointError: the registers were lost when the model was loaded without regtune.
    """
    found = _all_registers(model)
    if not found:
        _refuse_lost(model)
    with settings({module: module.setting._replace(enabled=False) for module in found}):
        yield


@contextmanager
def mask_registers(model: nn.Module, which: Sequence[int] | None = None) -> Iterator[None]:
    """Inside the context no token attends to the registers named by `which` (all of them by default).

    Holds for this thread (or asyncio task) alone. `which` counts within each set of registers.

    Raises:
        ConfigError: an index that isn't one of the model's registers.
        UnsupportedModelError: the model has no registers.
    """
    found = _all_registers(model)
    if not found:
        require_registers(model)
    changes = {}
    for module in found:
        indices = list(range(module.num_registers)) if which is None else list(which)
        for index in indices:
            if not 0 <= index < module.num_registers:
                raise ConfigError(f"register {index} doesn't exist; this model has 0 to {module.num_registers - 1}.")
        changes[module] = module.setting._replace(masked=module.masked | set(indices))
    with settings(changes):
        yield


class AttentionSplit(NamedTuple):
    """Attention maps by who looks at whom; heads first, e.g. `text_to_registers: [batch, heads, seq, registers]`."""

    text_to_text: Float[Tensor, "batch heads seq seq"]
    text_to_registers: Float[Tensor, "batch heads seq registers"]
    registers_to_text: Float[Tensor, "batch heads registers seq"]
    registers_to_registers: Float[Tensor, "batch heads registers registers"]


def split_attention(attention: Float[Tensor, "batch heads total total"], num_registers: int) -> AttentionSplit:
    """Splits an attention map of a model with registers (`[registers, text]` on both axes) into its four parts."""
    n = num_registers
    return AttentionSplit(
        attention[..., n:, n:], attention[..., n:, :n], attention[..., :n, n:], attention[..., :n, :n]
    )


def backbone_of(model: nn.Module) -> Any:
    """The stack under the head: the one with registers, else a Hugging Face model's `base_model`, or its encoder.

    Wrappers (PEFT, DDP, FSDP, `torch.compile`, a module of your own) are seen through.

    Raises:
        UnsupportedModelError: no Hugging Face model, or several.
    """
    owners = _owners(model)
    if len(owners) == 1:
        return owners[0]
    outermost = _outermost(model, _is_pretrained)
    if len(outermost) == 1:
        base = outermost[0].base_model
        if find_family(base.config):
            return _encoder_in(base) or base
        known = _outermost(base, lambda part: _is_pretrained(part) and find_family(part.config))
        return _encoder_in(known[0]) or known[0] if len(known) == 1 else base
    if not outermost:
        raise UnsupportedModelError(
            f"{type(model).__name__} is not a Hugging Face model (it has no base_model with a config), and there is "
            "none inside it."
        )
    raise UnsupportedModelError(
        f"There are {len(outermost)} Hugging Face models in this {type(model).__name__} "
        f"({', '.join(type(one).__name__ for one in outermost)}); pass the one that you mean."
    )


def base_of(model: nn.Module) -> Any:
    """All that is under the head: the backbone or, where that is the encoder of a model with a decoder, both."""
    backbone = backbone_of(model)
    whole = (part for part in model.modules() if _is_pretrained(part) and _encoder_in(part) is backbone)
    return next(whole, backbone)


def is_adapter(module: nn.Module) -> bool:
    """Whether a module is a part that peft put in, or its whole wrapper."""
    return hasattr(type(module), "adapter_layer_names") or hasattr(module, "peft_type")


def accepted_arguments(model: Any) -> frozenset[str]:
    """Names of what a model's `forward` takes; of the model inside a PEFT model, which takes any."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return frozenset(inspect.signature(inner.forward).parameters)


def decoder_of(model: nn.Module) -> Any:
    """The decoder beside the model's encoder, or None."""
    base = base_of(model)
    family = find_family(base.config)
    return None if family is None else submodule(base, family.decoder)


def _encoder_in(part: Any) -> nn.Module | None:
    """The encoder in a model that has a decoder beside it, if its family says where."""
    family = find_family(part.config)
    return None if family is None else submodule(part, family.encoder)


def _outermost(model: nn.Module, wanted: Callable[[nn.Module], Any]) -> list[Any]:
    """The modules that are wanted and inside no other one."""
    found: list[Any] = []
    for module in model.modules():
        if wanted(module) and not any(module is inner for other in found for inner in other.modules()):
            found.append(module)
    return found


def _is_pretrained(module: Any) -> bool:
    return hasattr(type(module), "base_model_prefix") and hasattr(module, "config")


def _all_owners(model: nn.Module) -> list[Any]:
    """Every module below `model` that runs with registers of its own."""
    return [module for module in model.modules() if registers_in(module) is not None]


def _owners(model: nn.Module) -> list[Any]:
    """The same without decoders beside an encoder, unless one of these is what is asked about."""
    return [owner for owner in _all_owners(model) if owner is model or not _writes(owner)]


def _writes(owner: nn.Module) -> bool:
    registers = registers_in(owner)
    return registers is not None and registers.of_decoder


def _all_registers(model: nn.Module) -> list[Registers]:
    return [module for module in model.modules() if isinstance(module, Registers)]


def _saved_parts(model: nn.Module, backbone: Any) -> list[Any]:
    """The models that can be saved with this backbone: itself, and it with a head."""
    bases = (backbone, base_of(model))
    parts = [part for part in model.modules() if _is_pretrained(part) and part.base_model in bases]
    return parts if backbone in parts else [*parts, backbone]


def write_config(model: nn.Module, config: RegisterConfig) -> None:
    """Writes what registers a model has into the configs, and model cards, that are saved with it."""
    write_entry(model, CONFIG_KEY, dataclasses.asdict(config))
    for part in _saved_parts(model, backbone_of(model)):
        for name in HOOKED:
            setattr(part, name, WithCard(part, name))


def forget_config(model: nn.Module) -> None:
    """Takes out of a model's configs what they say of registers; no card is written any more."""
    forget_entry(model, CONFIG_KEY)
    for part in _parts_with_configs(model):
        for name in HOOKED:
            part.__dict__.pop(name, None)


def write_entry(model: nn.Module, key: str, value: Any) -> None:
    """Writes what a model has into the configs that are saved with it."""
    for part in _saved_parts(model, backbone_of(model)):
        setattr(part.config, key, value)


def forget_entry(model: nn.Module, key: str) -> None:
    """Takes an entry out of a model's configs."""
    for part in _parts_with_configs(model):
        if hasattr(part.config, key):
            delattr(part.config, key)


def _parts_with_configs(model: nn.Module) -> list[Any]:
    copies = filter(_is_pretrained, base_of(model).modules())  # T5's decoder keeps a config of its own
    return [*_saved_parts(model, backbone_of(model)), *copies]


def find_registers(model: nn.Module) -> Registers | None:
    """The model's `Registers` module, or None. Of copies that PEFT made, the one that acts.

    Of a model with an encoder and a decoder it is the encoder's; `find_decoder_registers` finds the decoder's own.

    Raises:
        UnsupportedModelError: there are several sets of registers (two towers).
    """
    return _only(model, _owners(model))


def find_decoder_registers(model: nn.Module) -> Registers | None:
    """The registers of the decoder's own in a model that has an encoder too, or None. Raises as `find_registers`."""
    return _only(model, [owner for owner in _all_owners(model) if _writes(owner)])


def _only(model: nn.Module, owners: list[Any]) -> Registers | None:
    if len(owners) > 1:
        raise UnsupportedModelError(
            f"This {type(model).__name__} has {len(owners)} sets of registers (in "
            f"{', '.join(name for name, part in model.named_modules() if part in owners)}); pass the part that you "
            "mean: model.get_submodule(...)."
        )
    return registers_in(owners[0]) if owners else None


def active_registers(model: nn.Module) -> Registers | None:
    """The model's registers, unless it has none or they are switched off here. Raises as `find_registers`."""
    registers = find_registers(model)
    return registers if registers is not None and registers.enabled else None


def active_sets(model: nn.Module) -> list[tuple[Any, Registers]]:
    """Every set of registers that is switched on, behind the module that runs with it.

    Of a model with an encoder and a decoder they are the encoder's, and then the decoder's own. Raises as
    `find_registers`.
    """
    owners = {registers_in(owner): owner for owner in _all_owners(model)}
    sets = dict.fromkeys((find_registers(model), find_decoder_registers(model)))
    return [(owners[one], one) for one in sets if one is not None and one.enabled]


def layout_of(model: nn.Module, attention_mask: Tensor) -> Layout | None:
    """Where the registers stand for a batch with this mask, `[batch, seq]`; None without registers that are on."""
    registers = active_registers(model)
    if registers is None:
        return None
    hooks = RegisterHooks.of(backbone_of(model))
    batch, seq = attention_mask.shape
    first = hooks.first_column(registers, attention_mask, batch, seq, attention_mask.device)
    return Layout(registers.num_registers, first, seq)


def num_registers(model: nn.Module) -> int:
    """How many registers a model has; 0 if none. Of a model with an encoder and a decoder, the encoder's.

    Raises:
        CheckpointError: its config has registers that were lost when it was loaded without regtune.
    """
    registers = find_registers(model) or _refuse_lost(model)
    return 0 if registers is None else registers.num_registers


@contextmanager
def keeping_flags(model: nn.Module) -> Iterator[None]:
    """Inside the context parameters may be made to learn or not; behind it, those learn that did before."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        yield
    finally:
        for parameter, flag in before.items():
            parameter.requires_grad_(flag)


def register_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The registers' parameters, for a parameter group of their own; of several sets, all."""
    return [parameter for owner in _all_owners(model) for parameter in _parameters_of(owner)]


def _parameters_of(owner: nn.Module) -> list[nn.Parameter]:
    registers = registers_in(owner)
    return [] if registers is None else list(registers.parameters())


def register_positions(model: nn.Module) -> int:
    """Places of the model's position range that its registers use up: N where they have positions of their own."""
    registers = find_registers(model)
    if registers is None:  # the architecture may be an unknown one
        return 0
    family = family_of(backbone_of(model).config)
    own = family.positions_run_out or (family.positions == "rotary" and registers.config.rotary == "before")
    return num_registers(model) if own else 0


def max_text_length(model: nn.Module) -> int | None:
    """Longest text in tokens that the model's positions allow beside its registers; None if unlimited."""
    config = backbone_of(model).config
    family = family_of(config)
    limit = getattr(config, "max_position_embeddings", None)
    unlimited = family.positions == "relative" and not getattr(config, "position_biased_input", True)
    if limit is None or limit < 0 or unlimited or family.reads_images:  # XLNet says -1
        return None
    return int(limit) - family.position_offset - register_positions(model)


def require_registers(model: nn.Module) -> Registers:
    """The model's `Registers` module.

    Raises:
        UnsupportedModelError: it has none.
        CheckpointError: they were lost when the model was loaded without regtune.
    """
    registers = find_registers(model) or _refuse_lost(model)
    if registers is None and _all_owners(model):
        raise UnsupportedModelError(
            f"{type(model).__name__} has registers in its decoder alone, and this is about those of an encoder. Give "
            "it some: num_registers beside decoder_registers."
        )
    if registers is None:
        raise UnsupportedModelError(f"{type(model).__name__} has no registers; call add_registers(model, ...) first.")
    return registers


def _refuse_lost(model: nn.Module) -> Registers | None:
    """Refuses a model without registers whose config, or that of a part, mentions some: plain transformers read it."""
    parts = list(model.modules())
    if any(isinstance(part, Registers) for part in parts):
        return None
    for part in parts:
        settings = getattr(getattr(part, "config", None), CONFIG_KEY, None)
        number = _promised(part, settings)
        if number:
            raise CheckpointError(
                f"{type(part).__name__} was loaded without regtune: its config has {number} registers and it has "
                "none, so it computes without what it was trained with. Load it with regtune.from_pretrained(...); to "
                f"use it without them on purpose: del model.config.{CONFIG_KEY}."
            )
        for name, adapter in getattr(part, "peft_config", {}).items():
            if MODULE_NAME in (getattr(adapter, "modules_to_save", None) or ()):
                raise CheckpointError(
                    f"The adapter {name!r} was trained with registers (its modules_to_save), and the model that it was "
                    "loaded onto has none. Give it those that it had first: add_registers(model, "
                    "RegisterConfig(num_registers=...)), then PeftModel.from_pretrained(model, ...)."
                )
    return None


def _promised(part: Any, settings: Any) -> Any:
    """How many registers a part of a model ought to have by its config; what the config says if that is no mapping."""
    if not isinstance(settings, dict):
        return settings
    family = find_family(part.config)
    has_decoder = family is not None and submodule(getattr(part, "base_model", part), family.decoder) is not None
    return settings.get("num_registers", 0) + has_decoder * settings.get("decoder_registers", 0)


def _refuse_shared_out(model: nn.Module) -> None:
    """Registers that come or go now would be unknown to what brings the processes' gradients together."""
    for module in model.modules():
        for kind in type(module).__mro__:
            if kind.__module__.startswith(_SHARED_OUT):
                raise UnsupportedModelError(
                    f"This model is distributed over several processes ({kind.__name__}), so its registers can't be "
                    "changed any more: each process would have others. Call add_registers or remove_registers first, "
                    "and wrap the model then."
                )


def _refuse_adapted(model: nn.Module) -> None:
    """peft saves its adapters alone: registers that join behind them would learn and be left out without a word."""
    for module in model.modules():
        if is_adapter(module):
            raise UnsupportedModelError(
                f"This {type(model).__name__} has an adapter of peft, which would be saved without these registers. "
                "Put both into one adapter: get_peft_model(base, regtune.RegisterLoraConfig(registers="
                "RegisterConfig(...), ...)); or add the registers first, and then the adapter with "
                f"modules_to_save=[{MODULE_NAME!r}]."
            )


def _check_parts(family: Family, backbone: nn.Module) -> None:
    """Names what registers need and isn't where the family says."""
    for part in ("word_embeddings", "embeddings", "joined", "layers", "stack"):
        path = getattr(family, part)
        if not any(modules_at(backbone, path)):
            raise UnsupportedModelError(
                f"The family {family.name!r} says {part}={path!r}, and {type(backbone).__name__} has no such module. "
                f"Correct the path in the family's file; print({type(backbone).__name__}) shows what there is."
            )


def _refuse_writer(backbone: Any) -> None:
    """Refuses the decoder of a model that has an encoder: its masks, positions and caches are made otherwise."""
    family = find_family(backbone.config)
    path = None if family is None else family.cross_attention
    if family is not None and path is not None and any(at.endswith(path) for at, _ in backbone.named_modules()):
        raise UnsupportedModelError(
            f"This is the decoder of {family.name} without its encoder. Pass the whole model, and say with "
            "decoder_registers=N how many the decoder gets (num_registers are the encoder's)."
        )


def _check_fit(config: RegisterConfig, family: Family, backbone: Any) -> None:
    if config.placement not in family.placements and not family.beside_encoder:
        reason = "its positions are distances, so registers behind [CLS] would move the text away from it"
        if not family.leading:
            reason = "it has no [CLS]"
        if family.causal:
            reason = "its tokens see earlier ones alone, so they wouldn't see registers that come later"
        raise ConfigError(
            f"placement={config.placement!r} doesn't fit {family.name}: {reason}. "
            f"Use one of {', '.join(family.placements)}."
        )
    _check_decoder_settings(config, family, backbone)
    if config.depth == "every_layer" and family.shared_layers:
        raise ConfigError(
            f"depth='every_layer' doesn't fit {family.name}: its layers share one set of weights. Use depth='input'."
        )
    if family.reads_images:
        if config.init in ("sep", "mask"):
            raise ConfigError(f"init={config.init!r} doesn't fit {family.name}, which reads no words. Use 'normal'.")
        return
    limit = getattr(backbone.config, "max_position_embeddings", None)
    if limit is not None and config.num_registers >= limit and not family.beside_encoder:
        raise ConfigError(
            f"num_registers={config.num_registers} leaves no room: {type(backbone).__name__} has positions for "
            f"{limit} tokens. Use fewer registers (0 to 100 have been studied)."
        )


def _check_decoder_settings(config: RegisterConfig, family: Family, backbone: Any) -> None:
    if config.layer_norm and family.norm is None:
        raise ConfigError(f"layer_norm=True doesn't fit {family.name}: its embeddings have no LayerNorm. Leave it out.")
    if config.rotary != "before" and not (family.causal and family.positions == "rotary"):
        raise ConfigError(
            f"rotary={config.rotary!r} doesn't fit {family.name}: it is for rotary positions of decoders. Leave it out."
        )
    if config.windows != "stay" and not (family.causal and getattr(backbone.config, "sliding_window", None)):
        raise ConfigError(
            f"windows={config.windows!r} doesn't fit this {family.name}: it is for decoders with layers that see a "
            "window of the text (config.sliding_window). Leave it out."
        )


def make_registers(
    config: RegisterConfig,
    backbone: Any,
    token_ids: dict[str, int | None] | None = None,
    *,
    family: Family | None = None,
) -> Registers:
    """New registers for a backbone, not yet on it.

    Args:
        config: what registers.
        backbone: that they are for.
        token_ids: of `sep` and `mask` where its config lacks them.
        family: the backbone's where its config doesn't say it (`Family.decoder_side`).
    """
    family, token_ids = family or family_of(backbone.config), token_ids or {"sep": None, "mask": None}
    weight = _joined(backbone, family)
    registers = Registers(
        config,
        width=weight.shape[-1],
        hidden=backbone.config.hidden_size,
        num_layers=num_layers(backbone, family),
        of_decoder=family.beside_encoder,
    )
    if registers.tokens.device.type != "meta":
        registers.to(device=weight.device, dtype=weight.dtype)
    if config.init in ("embedding", "sep", "mask") and weight.device.type != "meta":
        registers.reset_parameters(_embedding_scale(config, family, backbone, token_ids))
    return registers


def _joined(backbone: Any, family: Family) -> Tensor:
    """A weight as wide as what registers join, on its device and in its type: of the norm there, or the embeddings."""
    weight: Tensor = next(backbone.get_submodule(family.joined).parameters())
    return weight


@torch.no_grad()
def _embedding_scale(
    config: RegisterConfig, family: Family, backbone: Any, token_ids: dict[str, int | None]
) -> tuple[Tensor, Tensor]:
    """Mean and deviation per dimension of what registers join: the embeddings' output, or their LayerNorm's input."""
    embeddings = backbone.get_submodule(family.embeddings)
    table = backbone.get_input_embeddings()
    if family.reads_images:
        shape = (backbone.config.num_channels, *sides(backbone.config.image_size))
        given = torch.randn(1, *shape)
    elif config.init in token_ids:
        given = torch.tensor([[_token_id(config.init, backbone.config, token_ids[config.init])]])
    else:
        limit = getattr(backbone.config, "max_position_embeddings", _SAMPLE) - family.position_offset
        given = torch.randint(table.num_embeddings, (1, min(_SAMPLE, limit)))
    given = given.to(next(table.parameters()).device)
    if family.norm is None and not family.reads_images:
        words = embed_words(backbone, family, given)[0]
        scale = 1.0 if family.scale_behind is None else getattr(backbone, family.scale_behind)
        return _spread(words * scale, config.init in token_ids)
    captured: list[Tensor] = []
    if config.layer_norm:
        norm = backbone.get_submodule(family.norm)
        handle = norm.register_forward_pre_hook(lambda _, args: captured.append(args[0]))
    else:
        handle = embeddings.register_forward_hook(lambda *given: captured.append(given[2]))
    run = backbone if family.reads_images or family.masks_first else embeddings
    was_training = run.training
    run.eval()
    try:
        run(**{family.inputs[0]: given})
    finally:
        run.train(was_training)
        handle.remove()
    return _spread(captured[0][0], config.init in token_ids)


def _spread(sample: Float[Tensor, "sample width"], one_token: bool) -> tuple[Tensor, Tensor]:
    mean = sample.mean(dim=0)
    return mean, torch.zeros_like(mean) if one_token else sample.std(dim=0)


def _token_id(name: str, config: Any, given: int | None) -> int:
    others = ("sep_token_id", "eos_token_id") if name == "sep" else ("mask_token_id",)
    for value in (given, *(getattr(config, other, None) for other in others)):
        if value is not None:
            return int(value)
    raise ConfigError(
        f"init={name!r} needs the id of [{name.upper()}]; "
        f"pass {name}_token_id=tokenizer.{name}_token_id to add_registers."
    )
