"""Saving and loading: the whole model with its registers, or the registers alone. Safetensors only."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from regtune.config import RegisterConfig
from regtune.errors import CheckpointError, ConfigError
from regtune.families import family_of
from regtune.registers.surgery import CONFIG_KEY, MODULE_NAME, add_registers, backbone_of, require_registers

ModelT = TypeVar("ModelT", bound=nn.Module)

WEIGHTS = "registers.safetensors"
SETTINGS = "registers.json"
FORMAT_VERSION = 1
_LFS_HEADER = b"version https://git-lfs"


def from_pretrained(
    auto_class: Any, name: str | Path, *, trust_remote_code: bool = False, **options: Any
) -> PreTrainedModel:
    """Loads a model saved by `model.save_pretrained` together with its registers, from a folder or the hub.

    Models without registers load too, as transformers would load them.

    Args:
        auto_class: an Auto class or a model class, e.g. `AutoModelForQuestionAnswering`.
        name: a folder, or a repository name on the hub.
        trust_remote_code: run code from the repository; off unless asked for.
        options: what the class's own `from_pretrained` takes (`dtype`, `device_map`, `revision` ...).

    Raises:
        CheckpointError: missing, pickled, truncated or pointer files, or registers that are not in the weights.
        UnsupportedModelError: the checkpoint has registers and its family isn't supported.
    """
    from transformers import AutoConfig

    refuse_pointers(name)
    hub = {key: options[key] for key in ("revision", "token", "cache_dir", "subfolder") if key in options}
    try:
        config = options.pop("config", None) or AutoConfig.from_pretrained(
            name, trust_remote_code=trust_remote_code, **hub
        )
        settings = getattr(config, CONFIG_KEY, None)
        options["attn_implementation"] = options.pop("attn_implementation", None)
        shared = {"config": config, "trust_remote_code": trust_remote_code, "use_safetensors": True}
        if not settings:
            plain: PreTrainedModel = auto_class.from_pretrained(name, **shared, **options)
            return plain
        return _load_with_registers(auto_class, name, settings, shared | options)
    except (SafetensorError, OSError, EOFError, json.JSONDecodeError) as error:
        raise CheckpointError(_explain(name, error)) from error


def _load_with_registers(
    auto_class: Any, name: str | Path, settings: dict[str, Any], options: dict[str, Any]
) -> PreTrainedModel:
    registers = _read_settings(settings, f"config.json of {name}")
    model_class = _concrete_class(auto_class, options["config"], options["trust_remote_code"])

    class WithRegisters(model_class):  # type: ignore[misc, valid-type]
        """Makes the registers part of the model before its weights are read, so they load like all others."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            add_registers(self, dataclasses.replace(registers, init="normal"))

    WithRegisters.__name__ = model_class.__name__
    options.pop("trust_remote_code")
    model, report = WithRegisters.from_pretrained(name, output_loading_info=True, **options)
    missing = sorted(key for key in report["missing_keys"] if f"{MODULE_NAME}." in key)
    if missing:
        raise CheckpointError(
            f"{name}: config.json speaks of {registers.num_registers} registers, but the weights lack "
            f"{', '.join(missing)}. Save the model with model.save_pretrained while its registers are on it."
        )
    model.__class__ = model_class
    for part in {id(m.config): m.config for m in (model, backbone_of(model))}.values():
        setattr(part, CONFIG_KEY, dataclasses.asdict(registers))
    require_registers(model).config = registers
    result: PreTrainedModel = model
    return result


def _concrete_class(auto_class: Any, config: Any, trust_remote_code: bool) -> type:
    if isinstance(auto_class, type) and issubclass(auto_class, PreTrainedModel):
        return auto_class
    with torch.device("meta"):
        return type(auto_class.from_config(config, trust_remote_code=trust_remote_code))


def save_registers(model: nn.Module, folder: str | Path) -> Path:
    """Writes the registers alone: `registers.safetensors` (a few kB) and `registers.json`. Returns the folder.

    Raises:
        UnsupportedModelError: the model has no registers.
    """
    registers = require_registers(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in registers.named_parameters()}, folder / WEIGHTS
    )
    backbone = backbone_of(model)
    settings = {
        "format_version": FORMAT_VERSION,
        "registers": dataclasses.asdict(registers.config),
        "family": family_of(backbone.config).name,
        "hidden_size": backbone.config.hidden_size,
        "num_hidden_layers": backbone.config.num_hidden_layers,
        "base_model": getattr(backbone, "name_or_path", ""),
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
    return folder


def load_registers(model: ModelT, folder: str | Path) -> ModelT:
    """Adds the registers that `save_registers` wrote to a plain model of the same architecture, in place.

    Raises:
        CheckpointError: files that are missing, broken, of a newer format, or that belong to another architecture.
        UnsupportedModelError: the model has registers already, or its family isn't supported.
    """
    folder = Path(folder)
    refuse_pointers(folder)
    try:
        saved = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        weights = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(_explain(folder, error)) from error
    _check_origin(saved, model, folder)
    config = _read_settings(saved["registers"], str(folder / SETTINGS))
    add_registers(model, dataclasses.replace(config, init="normal"))
    registers = require_registers(model)
    try:
        registers.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{folder / WEIGHTS} doesn't hold the registers its JSON describes: {error}") from error
    registers.config = config
    for part in {id(m.config): m.config for m in (model, backbone_of(model))}.values():
        setattr(part, CONFIG_KEY, dataclasses.asdict(config))
    return model


def _check_origin(saved: dict[str, Any], model: nn.Module, folder: Path) -> None:
    version = saved.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder / SETTINGS} has format_version={version!r}; this regtune reads {FORMAT_VERSION}. Update regtune."
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
                f"{folder}: these registers were made for {name}={saved.get(name)!r}, this model has {value!r}. "
                f"They were trained on {saved.get('base_model') or 'an unnamed model'}; load them onto that."
            )


def _read_settings(settings: Any, where: str) -> RegisterConfig:
    try:
        return RegisterConfig(**settings)
    except (TypeError, ConfigError) as error:
        raise CheckpointError(f"{where}: the registers' settings can't be read: {error}") from error


def refuse_pointers(name: str | Path) -> None:
    """Refuses a folder whose weights are Git-LFS pointers.

    Raises:
        CheckpointError: the pointer file is named.
    """
    folder = Path(name)
    if not folder.is_dir():
        return
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            if stream.read(len(_LFS_HEADER)) == _LFS_HEADER:
                raise CheckpointError(f"{file} is a Git-LFS pointer, not the weights. Fetch them with: git lfs pull")


def _explain(name: str | Path, error: Exception) -> str:
    folder = Path(name)
    pickles = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt")) if folder.is_dir() else []
    if pickles and not list(folder.glob("*.safetensors")):
        return (
            f"{pickles[0]} is a pickle, and loading a pickle can run any code, so regtune reads safetensors only. "
            "Convert it once on a machine you trust: model.save_pretrained(folder) writes safetensors."
        )
    if isinstance(error, SafetensorError):
        return f"{name}: the weights are cut short or damaged ({error}). Copy or download them again."
    return f"{name} can't be loaded: {error}"
