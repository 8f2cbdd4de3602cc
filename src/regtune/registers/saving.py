"""Saving and loading: the whole model with its registers, or the registers alone. Safetensors only.

Registers are restored or missed aloud: whatever speaks of them, the config or the weights, the other must agree.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from regtune.config import RegisterConfig
from regtune.errors import CheckpointError, ConfigError, RegtuneError, UnsupportedModelError
from regtune.families import family_of
from regtune.families._family import submodule
from regtune.models.safety import (
    HUB_OPTIONS,
    check_model_config,
    check_model_files,
    needs_code,
    pickle_refused,
    read_model_config,
)
from regtune.registers.hooks import MODULE_NAME
from regtune.registers.surgery import CONFIG_KEY, add_registers, backbone_of, require_registers, write_config

ModelT = TypeVar("ModelT", bound=nn.Module)

WEIGHTS = "registers.safetensors"
SETTINGS = "registers.json"
FORMAT_VERSION = 1
_KEYS = re.compile(rf"(?:^|\.){MODULE_NAME}\.(?:tokens|positions|deep)$")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def from_pretrained(
    auto_class: Any,
    name: str | Path,
    *,
    trust_remote_code: bool = False,
    registers: RegisterConfig | None = None,
    **options: Any,
) -> Any:
    """Loads a model saved by `model.save_pretrained` together with its registers, from a folder or the hub.

    Models without registers load too, as transformers would load them.

    Args:
        auto_class: an Auto class or a model class, e.g. `AutoModelForQuestionAnswering`.
        name: a folder, or a repository name on the hub.
        trust_remote_code: run code from the repository; off unless asked for.
        registers: what the saved registers are, for a checkpoint whose config doesn't say it.
        options: what the class's own `from_pretrained` takes: `dtype`, `device_map`, `revision`, settings of the config
            (`num_labels`, `id2label`, `hidden_dropout_prob` ...), `output_loading_info` ...

    Returns:
        The model; with `output_loading_info=True` the pair of model and report that transformers gives.

    Raises:
        CheckpointError: missing, pickled, truncated or pointer files, a config that asks for code or for quantised
            weights, registers in the config that are not in the weights, or the other way round.
        UnsupportedModelError: the checkpoint has registers and its family isn't supported.
    """
    if options.pop("use_safetensors", True) is False:
        raise CheckpointError(f"use_safetensors=False would read a pickle of {name}; regtune reads safetensors only.")
    check_model_files(name, **options)
    given = options.get("config")
    settings = given.to_dict() if isinstance(given, PretrainedConfig) else read_model_config(given or name, **options)
    if options.get("quantization_config") is None:
        check_model_config(name, settings, trust_remote_code=trust_remote_code)
    options |= {"trust_remote_code": trust_remote_code, "use_safetensors": True}
    wants_report = options.pop("output_loading_info", False)
    may_differ = options.get("ignore_mismatched_sizes", False)
    options["ignore_mismatched_sizes"] = True  # so that what differs can be named
    try:
        if registers is None and not any(_spoken(settings)):
            model, report = auto_class.from_pretrained(name, output_loading_info=True, **options)
        else:
            model, report = _load_with_registers(auto_class, name, registers, options)
    except RegtuneError:
        raise
    except (SafetensorError, OSError, EOFError, ValueError, RuntimeError) as error:
        raise CheckpointError(_explain(name, error)) from error
    _require_restored(name, model, report)
    _require_sizes(name, report, may_differ)
    return (model, report) if wants_report else model


def _spoken(settings: Mapping[str, Any]) -> Iterator[Any]:
    """What a config and the configs inside it (an encoder's, a decoder's) say of registers."""
    if settings.get(CONFIG_KEY):
        yield settings[CONFIG_KEY]
    for value in settings.values():
        if isinstance(value, dict) and "model_type" in value:
            yield from _spoken(value)


def _load_with_registers(
    auto_class: Any, name: str | Path, registers: RegisterConfig | None, options: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    model_class = _concrete_class(auto_class, name, options)

    class WithRegisters(model_class):  # type: ignore[misc, valid-type]
        """Makes the registers part of the model before its weights are read, so they load like all others."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if registers is not None:
                _add(self, registers)
            else:
                _add_where_spoken(self, name)

    WithRegisters.__name__ = model_class.__name__
    WithRegisters.__module__ = model_class.__module__  # transformers renames no keys for classes that aren't its own
    model, report = WithRegisters.from_pretrained(name, output_loading_info=True, **options)
    model.__class__ = model_class
    return model, report


def _concrete_class(auto_class: Any, name: str | Path, options: Mapping[str, Any]) -> type:
    from transformers import AutoConfig

    if isinstance(auto_class, type) and issubclass(auto_class, PreTrainedModel):
        return auto_class
    trust, config = options["trust_remote_code"], options.get("config")
    if not isinstance(config, PretrainedConfig):
        hub = {key: options[key] for key in HUB_OPTIONS if key in options}
        config = AutoConfig.from_pretrained(config or name, trust_remote_code=trust, **hub)
    with torch.device("meta"):
        return type(auto_class.from_config(config, trust_remote_code=trust))


def _add_where_spoken(model: PreTrainedModel, name: str | Path) -> None:
    """Adds registers to every model inside this one whose own config speaks of them, the outermost that takes them."""
    refused: UnsupportedModelError | None = None
    done: list[str] = []
    for path, part in list(model.named_modules()):
        settings = getattr(part.config, CONFIG_KEY, None) if isinstance(part, PreTrainedModel) else None
        if not settings or any(not above or path.startswith(f"{above}.") for above in done):
            continue
        try:
            _add(part, read_settings(settings, f"config.json of {name}"))
            done.append(path)
        except UnsupportedModelError as error:  # a frame of the user's own around the encoder: look inside
            refused = refused or error
    if not done:
        raise refused or CheckpointError(f"{name}: its config speaks of registers, and no part of it can have any.")


def _add(model: Any, config: RegisterConfig) -> None:
    """Adds registers whose values will be read from a file; the config says how they were made at first."""
    add_registers(model, dataclasses.replace(config, init="normal"))
    require_registers(model).config = config
    write_config(model, config)


def _require_restored(name: str | Path, model: Any, report: Mapping[str, Any]) -> None:
    """Refuses a model whose registers are not all those of its checkpoint."""
    config = getattr(model, "config", None)
    missing = _register_keys(report["missing_keys"])
    left = _register_keys(report["unexpected_keys"])
    if missing:
        raise CheckpointError(
            f"{name}: config.json speaks of registers, but the weights lack {', '.join(missing)}. "
            "Save the model with model.save_pretrained while its registers are on it."
        )
    if left:
        raise CheckpointError(
            f"{name}: the weights hold registers ({', '.join(left)}) that the config of "
            f"{type(config).__name__} doesn't speak of, and without them this is another model. It was saved from a "
            "model whose config didn't see add_registers (a second head on the same encoder). Say what they are: "
            "from_pretrained(..., registers=RegisterConfig(num_registers=..., placement=..., ...)); or, before saving: "
            "model.config.registers = model.base_model.config.registers."
        )


def _require_sizes(name: str | Path, report: Mapping[str, Any], may_differ: bool) -> None:
    different = sorted(key for key in report["mismatched_keys"] if not may_differ or _KEYS.search(key[0]))
    if different:
        listed = "; ".join(f"{key} {tuple(saved)} there, {tuple(made)} here" for key, saved, made in different[:5])
        raise CheckpointError(
            f"{name}: {len(different)} weights have another size than its config and the settings given ask for: "
            f"{listed}. A head may start anew with ignore_mismatched_sizes=True; registers may not."
        )


def _register_keys(keys: Iterable[str]) -> list[str]:
    return sorted(key for key in keys if _KEYS.search(key))


def save_registers(model: nn.Module, folder: str | Path) -> Path:
    """Writes the registers alone: `registers.safetensors` (a few kB) and `registers.json`. Returns the folder.

    Registers that FSDP2 has shared out are gathered: then every process calls this, and the first one writes.

    Raises:
        UnsupportedModelError: the model has no registers.
    """
    registers = require_registers(model)
    folder = Path(folder)
    weights = {name: _whole(value) for name, value in registers.named_parameters()}
    backbone = backbone_of(model)
    settings = {
        "format_version": FORMAT_VERSION,
        "registers": dataclasses.asdict(registers.config),
        "family": family_of(backbone.config).name,
        "hidden_size": backbone.config.hidden_size,
        "num_hidden_layers": backbone.config.num_hidden_layers,
        "base_model": getattr(backbone, "name_or_path", ""),
    }
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / WEIGHTS)
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
    return folder


def _whole(value: Tensor) -> Tensor:
    """A parameter on the CPU, gathered from all processes where FSDP2 has shared it out (a DTensor)."""
    gather = getattr(value, "full_tensor", None)
    found: Tensor = value.detach() if gather is None else gather().detach()
    return found.cpu().contiguous()


def load_registers(model: ModelT, folder: str | Path) -> ModelT:
    """Adds the registers that `save_registers` wrote to a plain model of the same architecture, in place.

    Everything is checked first: a model whose registers were refused is as it was.

    Raises:
        CheckpointError: files that are missing, broken, of a newer format, that belong to another architecture, or
            that hold something else than finite floating-point numbers of the right shapes.
        UnsupportedModelError: the model has registers already, or its family isn't supported.
    """
    folder = Path(folder)
    check_model_files(folder)
    try:
        saved = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        weights = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(_explain(folder, error)) from error
    config = _check_origin(saved, model, folder)
    _check_weights(weights, config, backbone_of(model), folder / WEIGHTS)
    _add(model, config)
    require_registers(model).load_state_dict(weights)
    return model


def _check_origin(saved: Any, model: nn.Module, folder: Path) -> RegisterConfig:
    if not isinstance(saved, dict):
        raise CheckpointError(f"{folder / SETTINGS} holds {_shown(saved)}, not the registers' settings.")
    version = saved.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise CheckpointError(
            f"{folder / SETTINGS} has format_version={_shown(version)}; this regtune reads {FORMAT_VERSION}. "
            "Update regtune."
        )
    config = backbone_of(model).config
    here = {
        "family": family_of(config).name,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
    }
    for name, value in here.items():
        if saved.get(name) != value:
            raise CheckpointError(
                f"{folder}: these registers were made for {name}={_shown(saved.get(name))}, this model has {value!r}. "
                f"They were trained on {saved.get('base_model') or 'an unnamed model'!s:.200}; load them onto that."
            )
    return read_settings(saved.get("registers"), str(folder / SETTINGS))


def _check_weights(weights: Mapping[str, Tensor], config: RegisterConfig, backbone: Any, file: Path) -> None:
    family = family_of(backbone.config)
    joined = submodule(backbone, family.norm or family.word_embeddings)
    width = backbone.config.hidden_size if joined is None else next(joined.parameters()).shape[-1]
    n, hidden, layers = config.num_registers, backbone.config.hidden_size, backbone.config.num_hidden_layers
    shapes: dict[str, tuple[int, ...]] = {"tokens": (n, width)}
    if config.position == "learned":
        shapes["positions"] = (n, width)
    if config.depth == "every_layer":
        shapes["deep"] = (layers - 1, n, hidden)
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if n == 0 or found != shapes:
        raise CheckpointError(
            f"{file} doesn't hold the registers its JSON describes: it has {_shown(found)}, expected {shapes}."
        )
    for name, value in weights.items():
        if value.dtype not in _FLOATS:
            raise CheckpointError(f"{file}: {name} holds {value.dtype}; registers are floating-point numbers.")
        if not torch.isfinite(value).all():
            raise CheckpointError(
                f"{file}: {name} holds numbers that are NaN or infinite, so every output would be NaN. "
                "The training that made them had broken down; take an earlier checkpoint."
            )


def read_settings(settings: Any, where: str) -> RegisterConfig:
    """A `RegisterConfig` from JSON: known names alone, each with the type that its default has."""
    if not isinstance(settings, dict):
        raise CheckpointError(f"{where}: the registers' settings can't be read: {_shown(settings)} is not a table.")
    kinds = {field.name: type(field.default) for field in dataclasses.fields(RegisterConfig)}
    for name, value in settings.items():
        kind = kinds.get(name)
        if kind is None:
            raise CheckpointError(
                f"{where}: the registers' settings can't be read: {_shown(name)} is not among {', '.join(kinds)}."
            )
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise CheckpointError(
                f"{where}: the registers' settings can't be read: {name}={_shown(value)} is no {kind.__name__}."
            )
    try:
        return RegisterConfig(**settings)
    except (ConfigError, OverflowError) as error:
        raise CheckpointError(f"{where}: the registers' settings can't be read: {str(error)[:500]}") from error


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _explain(name: str | Path, error: Exception) -> str:
    folder = Path(name)
    pickles = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt")) if folder.is_dir() else []
    if pickles and not list(folder.glob("*.safetensors")):
        return pickle_refused(pickles[0])
    if isinstance(error, SafetensorError):
        return f"{name}: the weights are cut short or damaged ({error}). Copy or download them again."
    if "trust_remote_code" in str(error):
        return needs_code(name)
    return f"{name} can't be loaded: {error}"
