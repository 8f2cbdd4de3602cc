"""Registers inside peft: one adapter holds registers and LoRA (or another of peft's methods) and is saved as one.

For each of peft's configs there is one with registers, `RegisterLoraConfig` and so on. In `adapter_config.json` its
kind has a name of its own, `REGISTER_LORA`: peft without regtune refuses it, where it would lose registers silently.
`import regtune` sees to it that peft knows these kinds (`regtune.methods.peft_kinds`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from regtune.errors import CheckpointError, ConfigError, InputError, MissingExtraError

try:
    import peft
except ImportError as error:
    raise MissingExtraError("peft", "peft", "LoRA and peft's other methods") from error
from peft import PeftModel, PeftType
from peft.auto import MODEL_TYPE_TO_PEFT_MODEL_MAPPING
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper, set_additional_trainable_modules
from torch import Tensor, nn

from regtune.config import RegisterConfig
from regtune.families import family_of
from regtune.families._family import modules_at
from regtune.models.loading import ADAPTER_FILE, base_of_adapter, resolve_model
from regtune.models.safety import check_model_files
from regtune.registers.cache_names import cache_argument, put_cache
from regtune.registers.card import CARD, write_card, write_uploaded_card
from regtune.registers.hooks import MODULE_NAME, RegisterHooks
from regtune.registers.registers import Registers
from regtune.registers.saving import from_pretrained, read_settings
from regtune.registers.surgery import backbone_of, forget_config, join_registers, make_registers, write_config

ADAPTED = "REGTUNE"
"""The task type by which peft finds `AdaptedModel`."""


# The registers of adapters


class _NoRegisters(nn.Module):
    """What stands in a base model's place of registers: it has none."""

    itself = None


class AdapterRegisters(ModulesToSaveWrapper):  # type: ignore[misc]
    """The registers of a model's adapters, each with its own N. The active adapter's act; none while it is disabled."""

    def __init__(self, adapter: str, registers: Registers) -> None:
        super().__init__(_NoRegisters(), adapter)
        self.put(adapter, registers)

    def put(self, adapter: str, registers: Registers) -> None:
        """Gives an adapter its registers."""
        self.update(adapter)
        self.modules_to_save[adapter] = registers

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Chooses whose registers act."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        self._keep_frozen()

    def enable_adapters(self, enabled: bool) -> None:
        """Switches them on or off."""
        super().enable_adapters(enabled)
        self._keep_frozen()

    def _keep_frozen(self) -> None:
        for registers in self.modules_to_save.values():
            if isinstance(registers, Registers) and not registers.config.trainable:
                registers.requires_grad_(False)


def _give_registers(model: nn.Module, adapter: str, config: Any, *, active: bool) -> None:
    """Puts an adapter's registers onto the model that the adapter is on."""
    if config.registers is not None and config.registers.decoder_registers:
        raise ConfigError(
            f"decoder_registers={config.registers.decoder_registers} can't be part of an adapter, which brings those "
            "of one stack. Leave it 0; or add them first, regtune.add_registers(model, ...), and then the adapter with "
            f"modules_to_save=[{MODULE_NAME!r}]."
        )
    if config.registers is None or not config.registers.num_registers:
        return
    backbone = backbone_of(model)
    place = backbone._modules.get(MODULE_NAME)
    if place is None:
        join_registers(model, config.registers)
        forget_config(model)  # they are the adapter's, and the base has none
        place = AdapterRegisters(adapter, backbone.registers)
        backbone.registers = place
    elif isinstance(place, AdapterRegisters):
        _require_same_depth(place, config.registers, adapter)
        place.put(adapter, make_registers(config.registers, backbone))
    else:
        raise ConfigError(
            f"The base model has {place.num_registers} registers of its own, so adapter {adapter!r} can't bring "
            f"{config.registers.num_registers} more. Leave them out of the adapter (the base's stay, frozen), or take "
            "them off first: regtune.remove_registers(model)."
        )
    acting = adapter if active else [name for name in place.active_adapters if name in place.modules_to_save]
    place.set_adapter(acting, inference_mode=config.inference_mode)
    if backbone.training is False:
        place.eval()


def _require_same_depth(place: AdapterRegisters, config: RegisterConfig, adapter: str) -> None:
    for name, other in place.modules_to_save.items():
        if isinstance(other, Registers) and other.config.depth != config.depth:
            raise ConfigError(
                f"Adapter {adapter!r} has registers of depth={config.depth!r} and {name!r} of {other.config.depth!r}; "
                "on one base model all adapters need the same depth."
            )


# Configs with registers


class _RegisterTuner:
    """What a tuner of peft gets to know: registers join with the adapter, and leave with it."""

    def inject_adapter(self: Any, model: nn.Module, adapter_name: str, *args: Any, **options: Any) -> None:
        """Adds an adapter with its registers; the base that it was made for is noted, or compared."""
        config = self.peft_config[adapter_name]
        if "facts" not in self.__dict__:
            self.facts = base_facts(model)
        config.base_facts = config.base_facts or _noted(self.facts, config)
        require_same_base(config.base_facts, self.facts, f"The adapter {adapter_name!r}")
        named = MODULE_NAME in (config.modules_to_save or ())
        if named and not (config.registers or MODULE_NAME in backbone_of(model)._modules):
            raise ConfigError(
                f"modules_to_save names {MODULE_NAME!r}, and there are none. Say which: "
                f"{type(config).__name__}(registers=RegisterConfig(num_registers=4), ...)."
            )
        bits = {name: getattr(other, "quantised", False) for name, other in self.peft_config.items()}
        if len(set(bits.values())) > 1:
            raise ConfigError(
                f"The adapters {', '.join(bits)} can't share a base model: "
                f"{', '.join(name for name in bits if bits[name])} (quantised=True) was made for one in 4 bits. Load "
                "the base model once more for it."
            )
        if config.quantised and len(bits) == 1:
            quantise(model)
        super().inject_adapter(model, adapter_name, *args, **options)  # type: ignore[misc]
        _give_registers(model, adapter_name, config, active=adapter_name in self.active_adapters)

    def _enable_peft_forward_hooks(self: Any, *args: Any, **options: Any) -> Any:
        if options.pop("adapter_names", None) is not None:
            raise InputError(
                "adapter_names: rows of one batch would need different registers, and a batch has one sequence length. "
                "Group the requests by adapter and switch: model.set_adapter(name); for the base: "
                "model.disable_adapter()."
            )
        plain = getattr(super(), "_enable_peft_forward_hooks", None)
        return contextlib.nullcontext() if plain is None else plain(*args, **options)

    def _unload_and_optionally_merge(self: Any, merge: bool = True, **options: Any) -> Any:
        """The base model: merged with the adapter, whose registers stay on it, or as it was."""
        backbone = backbone_of(self.model)
        place = backbone._modules.get(MODULE_NAME)
        names = options.get("adapter_names") or self.active_adapters
        if not isinstance(place, AdapterRegisters):
            return super()._unload_and_optionally_merge(merge=merge, **options)  # type: ignore[misc]
        kept = [place.modules_to_save[name] for name in names if merge and name in place.modules_to_save]
        delattr(backbone, MODULE_NAME)
        model = super()._unload_and_optionally_merge(merge=merge, **options)  # type: ignore[misc]
        if kept:
            backbone.registers = kept[0]
            write_config(model, kept[0].config)
        else:
            RegisterHooks.uninstall(model, backbone)
        return model


@functools.cache
def with_registers(base: Any) -> Any:
    """The config class of an adapter that holds registers and what `base`, one of peft's config classes, makes.

    Its fields are those of `base`; `registers`, a `RegisterConfig` or its fields as a dictionary; and `quantised`: the
    base's linear layers are brought to 4 bits before the adapter is put onto them (LoRA alone).
    """
    if hasattr(base, "registers"):
        return base
    own = base()
    kind, tuner = (
        f"REGISTER_{getattr(own.peft_type, 'value', own.peft_type)}",
        PEFT_TYPE_TO_TUNER_MAPPING[own.peft_type],
    )
    injected = isinstance(tuner, type) and issubclass(tuner, BaseTuner)

    @dataclasses.dataclass
    class WithRegisters(base):  # type: ignore[misc]
        registers: RegisterConfig | dict[str, Any] | None = None
        base_facts: dict[str, Any] | None = None
        quantised: bool = False
        modules_to_save: list[str] | None = None

        def __post_init__(self) -> None:
            self.task_type = None
            super().__post_init__()
            self.task_type = ADAPTED
            if injected:
                self.peft_type = kind
            if self.quantised and not issubclass(base, peft.LoraConfig):
                raise ConfigError(f"quantised=True is for LoRA alone, not for {kind}. Use RegisterLoraConfig.")
            if isinstance(self.registers, Mapping):
                self.registers = read_settings(self.registers, f"{kind} adapter")

        def to_dict(self) -> dict[str, Any]:
            return {**super().to_dict(), "peft_type": kind}

    WithRegisters.__name__ = WithRegisters.__qualname__ = f"Register{base.__name__}"
    PEFT_TYPE_TO_CONFIG_MAPPING[kind] = WithRegisters
    PEFT_TYPE_TO_PREFIX_MAPPING[kind] = PEFT_TYPE_TO_PREFIX_MAPPING.get(own.peft_type, "")
    if injected:
        PEFT_TYPE_TO_TUNER_MAPPING[kind] = type(f"Register{tuner.__name__}", (_RegisterTuner, tuner), {})
    return WithRegisters


RegisterLoraConfig: Any = with_registers(peft.LoraConfig)
"""LoRA and registers in one adapter: `RegisterLoraConfig(registers=RegisterConfig(num_registers=4), r=8, ...)`."""


# The base that an adapter was made for


def base_facts(model: nn.Module) -> dict[str, Any]:
    """What tells a base model from others: name, shape, data types, and digests of all weights.

    One digest leaves out the pooler, which is drawn anew at every loading where a checkpoint has none.
    """
    backbone = backbone_of(model)
    config = backbone.config
    weights = {n: p.detach() for n, p in backbone.named_parameters() if f"{MODULE_NAME}." not in n}
    return {
        "name": str(getattr(model, "name_or_path", "") or type(model).__name__),
        "model_type": config.model_type,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "dtype": " ".join(sorted({str(weight.dtype) for weight in weights.values()})),
        "digest": _digest(weights),
        _WITHOUT_POOLER: _digest({n: p for n, p in weights.items() if not n.startswith("pooler.")}),
    }


_WITHOUT_POOLER = "digest_without_pooler"


def _digest(weights: Mapping[str, Tensor]) -> str:
    """Of eight numbers of every weight, in the order of their names; none where one isn't there yet."""
    if any(weight.is_meta for weight in weights.values()):
        return ""
    digest = hashlib.sha256()
    for _, weight in sorted(weights.items()):
        flat = weight.flatten()
        digest.update(flat[:: max(1, len(flat) // 8)][:8].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _noted(facts: dict[str, Any], config: Any) -> dict[str, Any]:
    """The facts under the name that an adapter has for its base: `minilm` is found on every machine, a folder isn't."""
    return facts | {"name": config.base_model_name_or_path or facts["name"]}


def require_same_base(saved: Mapping[str, Any], here: Mapping[str, Any], what: str) -> None:
    """Refuses an adapter on another base model. Where data types differ (a smaller copy), the shape must do.

    Raises:
        CheckpointError: both are named.
    """
    names = ["model_type", "hidden_size", "num_hidden_layers"]
    digest = _WITHOUT_POOLER if saved.get(_WITHOUT_POOLER) else "digest"  # older adapters have the whole one alone
    if saved.get("dtype") == here["dtype"] and here[digest] and saved.get(digest):
        names.append(digest)
    different = [name for name in names if saved.get(name) != here[name]]
    if different:
        told = ", ".join(f"{name} {saved.get(name)} there, {here[name]} here" for name in different)
        raise CheckpointError(
            f"{what} was made for the base model {saved.get('name')}, and this one is {here['name']} ({told}). Load it "
            "onto the model that it was trained on."
        )


def quantise(model: Any) -> None:
    """Brings the linear layers of a model's layers to 4 bits (nf4, double quantisation), in place; on a CPU too.

    Raises:
        MissingExtraError: no bitsandbytes.
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise MissingExtraError("bitsandbytes", "qlora", "QLoRA") from error
    backbone = backbone_of(model)
    layers = modules_at(backbone, *family_of(backbone.config).within_layers())
    for parent in dict.fromkeys(part for layer in layers for part in layer.modules()):
        for name, linear in parent.named_children():
            if type(linear) is nn.Linear:
                weight = linear.weight
                sizes = {"input_features": linear.in_features, "output_features": linear.out_features}
                small = bitsandbytes.nn.Linear4bit(**sizes, compute_dtype=weight.dtype, quant_type="nf4", device="meta")
                small.weight = bitsandbytes.nn.Params4bit(
                    weight.detach().clone(), requires_grad=False, quant_type="nf4", module=small
                )
                small.bias = linear.bias
                small.support_avx512bf16_for_cpu = False  # packs weights anew, with other bits, in evaluation mode
                setattr(parent, name, small.to(weight.device))
    model.is_loaded_in_4bit = True  # peft asks for it


# The model around a base and its adapters


class AdaptedModel(PeftModel):  # type: ignore[misc]
    """peft's model, with what its prompt methods lack.

    Prompts join the backbone's input whatever the task is, with token types and positions; they leave again before any
    head, so that outputs and labels have the text's length; disabled, the base's own head answers. The base's config is
    saved beside the adapter, since it says which classes there are.
    """

    def __init__(self, model: Any, peft_config: Any, adapter_name: str = "default", **options: Any) -> None:
        facts = base_facts(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
            warnings.filterwarnings("ignore", message="Unsupported layer type")  # norms are none that it has sizes for
            super().__init__(model, peft_config, adapter_name, **options)
        self.facts = facts
        self._adapters_disabled: bool
        self.handles: list[Any] = []
        if peft_config.is_adaption_prompt:
            self._complete(adapter_name, peft_config, facts)
            set_additional_trainable_modules(model, peft_config, model.config.to_dict(), adapter_name)
        if peft_config.is_prompt_learning:
            backbone = backbone_of(model)
            stack = backbone.get_submodule(family_of(backbone.config).stack)
            self.handles.append(backbone.register_forward_pre_hook(self._join, with_kwargs=True))
            self.handles.append(stack.register_forward_hook(self._leave))

    def add_adapter(self, adapter_name: str, peft_config: Any, **options: Any) -> None:
        """One more adapter on the same base."""
        facts = self.__dict__.get("facts") or base_facts(self.base_model)
        super().add_adapter(adapter_name, peft_config, **options)
        if not isinstance(self.base_model, BaseTuner):
            self._complete(adapter_name, peft_config, facts)

    def _complete(self, adapter_name: str, config: Any, facts: dict[str, Any]) -> None:
        """What tuners do: registers, and the base that the adapter was made for."""
        config.base_facts = config.base_facts or _noted(facts, config)
        require_same_base(config.base_facts, facts, f"The adapter {adapter_name!r}")
        _give_registers(self.get_base_model(), adapter_name, config, active=adapter_name == self.active_adapter)

    @property
    def _steps_in(self) -> bool:
        config = self.active_peft_config
        return bool(config.is_prompt_learning and not self._adapters_disabled)

    def _join(self, backbone: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """Before the backbone: soft tokens in front of the text, or keys and values in front of every layer's."""
        if not self._steps_in:
            return None
        config = self.active_peft_config
        named = {
            **dict(zip(inspect.signature(type(backbone).forward).parameters, (None, *args), strict=False)),
            **kwargs,
        }
        named.pop("self", None)
        source = named["input_ids"] if named.get("input_ids") is not None else named["inputs_embeds"]
        batch, seq, n, device = source.shape[0], source.shape[1], config.num_virtual_tokens, source.device
        mask = named.get("attention_mask")
        mask = torch.ones(batch, seq, dtype=torch.long, device=device) if mask is None else mask
        if mask.dim() != 2:
            raise InputError(f"attention_mask has shape {tuple(mask.shape)}; with {config.peft_type.value} it is 2D.")
        named["attention_mask"] = torch.cat([mask.new_ones(batch, n), mask], dim=1)
        if named.get("position_ids") is not None:
            named["position_ids"] = named["position_ids"] + n
        if config.peft_type == PeftType.PREFIX_TUNING:
            put_cache(named, self.get_prompt(batch), cache_argument(type(backbone).forward))
            return (), named
        if named.get("inputs_embeds") is None:
            named["inputs_embeds"] = backbone.get_input_embeddings()(named["input_ids"])
        named["input_ids"] = None
        prompts = self.get_prompt(batch, torch.zeros(batch, dtype=torch.long, device=device))
        named["inputs_embeds"] = torch.cat([prompts.to(named["inputs_embeds"].dtype), named["inputs_embeds"]], dim=1)
        for name, first in (("token_type_ids", torch.zeros(n)), ("position_ids", torch.arange(n))):
            if named.get(name) is not None:
                before = first.to(device, torch.long).expand(batch, n)
                named[name] = torch.cat([before, named[name].expand(batch, seq)], dim=1)
        return (), named

    def _leave(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """Behind the last layer, before any pooler: the text alone."""
        config = self.active_peft_config
        if not self._steps_in or config.peft_type == PeftType.PREFIX_TUNING:
            return None
        n = config.num_virtual_tokens
        if isinstance(output, Tensor):
            return output[:, n:]
        if isinstance(output, tuple):
            return (output[0][:, n:], *output[1:])
        output["last_hidden_state"] = output["last_hidden_state"][:, n:]
        return output

    @contextlib.contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Inside, the base model answers, bit for bit."""
        config = self.active_peft_config
        if not (config.is_prompt_learning or config.is_adaption_prompt):
            with super().disable_adapter():
                yield
            return
        before = self._adapters_disabled
        self._adapters_disabled = True
        wrappers = [module for module in self.modules() if isinstance(module, AuxiliaryTrainingWrapper)]
        if not before:
            for wrapper in wrappers:
                wrapper.enable_adapters(False)
            if config.is_adaption_prompt:
                self.base_model.disable_adapter_layers()
        try:
            yield
        finally:
            self._adapters_disabled = before
            if not before:
                for wrapper in wrappers:
                    wrapper.enable_adapters(True)
                if config.is_adaption_prompt:
                    self.base_model.enable_adapter_layers()

    def unload(self) -> Any:
        """The base model as it was, with its own head, without adapters."""
        model = self.get_base_model()
        for handle in self.handles:
            handle.remove()
        backbone = backbone_of(model)
        for path, module in list(model.named_modules()):
            if isinstance(module, AdapterRegisters):
                delattr(backbone, MODULE_NAME)
                RegisterHooks.uninstall(model, backbone)
            elif isinstance(module, ModulesToSaveWrapper):
                parent, _, name = path.rpartition(".")
                setattr(model.get_submodule(parent), name, module.original_module)
        if isinstance(self.base_model, BaseTuner):
            return self.base_model.unload()
        if not self.active_peft_config.is_prompt_learning:
            self.base_model.disable_adapter_layers()
        return model

    def create_or_update_model_card(self, output_dir: str) -> None:
        """peft's metadata, and regtune's section; peft's blank form for the rest is left out."""
        new = not (Path(output_dir) / CARD).is_file()
        super().create_or_update_model_card(output_dir)
        write_card(output_dir, self, new=new)

    def _upload_modified_files(self, working_dir: str, repo_id: str, *args: Any, **options: Any) -> Any:
        write_uploaded_card(working_dir, self, repo_id, options.get("token"))
        return super()._upload_modified_files(working_dir, repo_id, *args, **options)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """The adapter, and the base's config."""
        options.setdefault("save_embedding_layers", False)  # "auto" would ask the hub for the base's vocabulary
        super().save_pretrained(str(save_directory), **options)
        model = self.get_base_model()
        model.config.architectures = [type(model).__name__]
        model.config.base_facts = _noted(self.facts, self.active_peft_config)
        model.config.save_pretrained(save_directory)
        del model.config.base_facts


def load_adapted(auto_class: Any, folder: str | Path, **options: Any) -> Any:
    """A base model with the adapter that a folder holds, in evaluation mode.

    Args:
        auto_class: the Auto class of the base.
        folder: what `AdaptedModel.save_pretrained` wrote; its `adapter_config.json` names the base.
        options: those of `from_pretrained`.

    Raises:
        CheckpointError: files that are missing or pickled, a base that can't be found, or another base.
    """
    from transformers import AutoConfig

    check_model_files(folder)
    name = base_of_adapter(folder)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    facts = config.__dict__.pop("base_facts", None)
    try:
        model = from_pretrained(auto_class, resolve_model(name), config=config, ignore_mismatched_sizes=True, **options)
    except CheckpointError as error:
        raise CheckpointError(
            f"The adapter in {folder} needs its base model {name}, and that can't be opened: {error} Bring it there, "
            f"or name the place where it is: base_model_name_or_path in {Path(folder) / ADAPTER_FILE}."
        ) from error
    if facts:
        require_same_base(facts, base_facts(model) | {"name": name}, f"The adapter in {folder}")
    return AdaptedModel.from_pretrained(model, str(folder))


MODEL_TYPE_TO_PEFT_MODEL_MAPPING[ADAPTED] = AdaptedModel
