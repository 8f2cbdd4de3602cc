"""Saving and loading: the whole model with its registers, or the registers alone. Safetensors only.

Registers are restored or there is an error: what config and weights say of them must agree.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from regtune.config import RegisterConfig
from regtune.errors import CheckpointError, RegtuneError, UnsupportedModelError, shown
from regtune.families import family_of, find_family
from regtune.families._family import Family, num_layers, submodule
from regtune.models.safety import (
    HUB_OPTIONS,
    check_model_config,
    check_model_files,
    needs_code,
    pickle_refused,
    read_model_config,
)
from regtune.records import read_typed, write_bytes, write_json
from regtune.registers.hooks import MODULE_NAME
from regtune.registers.moved_neurons import move_neurons, read_neurons
from regtune.registers.registers import Registers
from regtune.registers.sinks import SINKS_KEY, add_sink_logits
from regtune.registers.surgery import (
    CONFIG_KEY,
    NEURONS_KEY,
    backbone_of,
    decoder_of,
    find_decoder_registers,
    find_registers,
    join_registers,
    require_registers,
    write_config,
)
from regtune.typed import typed

ModelT = TypeVar("ModelT", bound=nn.Module)

WEIGHTS = "registers.safetensors"
SETTINGS = "registers.json"
_KEYS = re.compile(rf"(?:^|\.){MODULE_NAME}\.(?:tokens|positions|deep)$")
_OF_DECODER = "decoder."
_SINKS = re.compile(rf"\.{SINKS_KEY}\.logits$")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, kw_only=True)
class _Saved:
    """What `save_registers` writes beside the weights."""

    format_version: Literal[1] = 1
    registers: RegisterConfig
    family: str
    hidden_size: int
    num_hidden_layers: int
    base_model: str = ""
    sha256: str = ""
    """Of the weights' file; empty in files of the first days."""


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
        if registers is None and not any(spoken(settings, key) for key in _JOINING):
            model, report = auto_class.from_pretrained(name, output_loading_info=True, **options)
        else:
            model, report = _load_with_registers(auto_class, name, registers, settings, options)
    except RegtuneError:
        raise
    except (SafetensorError, OSError, EOFError, ValueError, RuntimeError) as error:
        raise CheckpointError(_explain(name, error)) from error
    _require_restored(name, model, report)
    _require_sizes(name, report, may_differ)
    return (model, report) if wants_report else model


def spoken(settings: Mapping[str, Any], key: str = CONFIG_KEY) -> bool:
    """Whether a config, or one inside it (an encoder's, a decoder's), says that the model has this."""
    inner = (value for value in settings.values() if isinstance(value, dict) and "model_type" in value)
    return bool(settings.get(key)) or any(spoken(value, key) for value in inner)


def _load_with_registers(
    auto_class: Any,
    name: str | Path,
    registers: RegisterConfig | None,
    settings: Mapping[str, Any],
    options: dict[str, Any],
) -> tuple[PreTrainedModel, dict[str, Any]]:
    model_class = _concrete_class(auto_class, name, options)

    class WithRegisters(model_class):  # type: ignore[misc, valid-type]
        """Makes the registers part of the model before its weights are read, so they load like all others."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if registers is not None:
                _add(self, registers)
            for key, add in _JOINING.items():
                if spoken(settings, key) and (registers is None or key != CONFIG_KEY):
                    _add_where_spoken(self, key, add, f"config.json of {name}")

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


def _add_where_spoken(model: PreTrainedModel, key: str, add: Callable[[Any, Any, str], object], where: str) -> None:
    """Adds what configs speak of to every model inside this one whose own does, the outermost that takes it."""
    refused: UnsupportedModelError | None = None
    done: list[str] = []
    for path, part in list(model.named_modules()):
        settings = getattr(part.config, key, None) if isinstance(part, PreTrainedModel) else None
        if not settings or any(not above or path.startswith(f"{above}.") for above in done):
            continue
        try:
            add(part, settings, where)
            done.append(path)
        except UnsupportedModelError as error:  # a frame of the user's own around the encoder: look inside
            refused = refused or error
    if not done:
        raise refused or CheckpointError(f"{where} has {key}, and no part of the model can have any.")


def _add(model: Any, config: RegisterConfig) -> None:
    """Adds registers whose values will be read from a file; the config says how they were made at first."""
    if decoder_of(model) is None:  # the encoder alone, of a model whose decoder has some too
        config = dataclasses.replace(config, decoder_registers=0)
    join_registers(model, dataclasses.replace(config, init="normal"))
    found = _sets(model)
    for registers in found.values():
        registers.config = config
    if found:
        write_config(model, config)


def _sets(model: nn.Module) -> dict[str, Registers]:
    """A model's registers by what their names begin with in the registers' own file."""
    both = {"": find_registers(model), _OF_DECODER: find_decoder_registers(model)}
    return {prefix: registers for prefix, registers in both.items() if registers is not None}


def _add_sinks(model: Any, said: Any, where: str) -> None:
    if said is not True:
        raise CheckpointError(f"{where}: {SINKS_KEY} is {shown(said)}, and true is what regtune writes.")
    add_sink_logits(model)


_JOINING: Mapping[str, Callable[[Any, Any, str], object]] = {
    CONFIG_KEY: lambda model, said, where: _add(model, read_settings(said, where)),
    SINKS_KEY: _add_sinks,
    NEURONS_KEY: lambda model, said, where: move_neurons(model, read_neurons(said, where)),
}
"""What a config can speak of, in the order in which it is put onto the model before its weights are read."""


def _require_restored(name: str | Path, model: Any, report: Mapping[str, Any]) -> None:
    """Refuses a model whose registers are not all those of its checkpoint."""
    config = getattr(model, "config", None)
    missing, left = (sorted(filter(_SINKS.search, report[kind])) for kind in ("missing_keys", "unexpected_keys"))
    if missing:
        raise CheckpointError(
            f"{name}: config.json has sink logits, but the weights lack {', '.join(missing)}. "
            "Save the model with model.save_pretrained while they are on it."
        )
    if left:
        raise CheckpointError(
            f"{name}: the weights hold sink logits ({', '.join(left)}) that the config of {type(config).__name__} "
            f"doesn't mention, and without them this is another model. Set {SINKS_KEY} to true in its config.json."
        )
    missing = _register_keys(report["missing_keys"])
    left = [key for key in _register_keys(report["unexpected_keys"]) if not _of_absent_decoder(model, key)]
    if missing:
        raise CheckpointError(
            f"{name}: config.json has registers, but the weights lack {', '.join(missing)}. "
            "Save the model with model.save_pretrained while its registers are on it."
        )
    if left:
        raise CheckpointError(
            f"{name}: the weights hold registers ({', '.join(left)}) that the config of "
            f"{type(config).__name__} doesn't mention, and without them this is another model. It was saved from a "
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


def _of_absent_decoder(model: Any, key: str) -> bool:
    """Whether registers are those of a decoder that this class of model leaves out, with all its other weights."""
    path = key.rpartition(f".{MODULE_NAME}.")[0]
    family = find_family(getattr(model, "config", None))
    is_decoder = family is not None and family.decoder is not None and path.split(".")[-1] == family.decoder
    return is_decoder and submodule(model, path) is None


def save_registers(model: nn.Module, folder: str | Path) -> Path:
    """Writes the registers alone: `registers.safetensors` (a few kB) and `registers.json`. Returns the folder.

    Each file is whole or the old one, and a pair of different writings is refused by `load_registers`.

    Registers that FSDP2 has sharded are gathered: then every process calls this, and the first one writes.

    Raises:
        UnsupportedModelError: the model has no registers.
    """
    found = _sets(model) or {"": require_registers(model)}
    folder = Path(folder)
    weights = {f"{at}{name}": _whole(value) for at, part in found.items() for name, value in part.named_parameters()}
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        raw = save(weights)
        saved = _Saved(
            **_described(model), registers=next(iter(found.values())).config, sha256=hashlib.sha256(raw).hexdigest()
        )
        write_bytes(folder / WEIGHTS, raw)
        write_json(folder / SETTINGS, dataclasses.asdict(saved))
    return folder


def _described(model: nn.Module) -> dict[str, Any]:
    """What a model must have in common with the one whose registers it takes, and its name."""
    backbone = backbone_of(model)
    return {
        "family": family_of(backbone.config).name,
        "hidden_size": backbone.config.hidden_size,
        "num_hidden_layers": backbone.config.num_hidden_layers,
        "base_model": str(getattr(backbone, "name_or_path", "")),
    }


def _whole(value: Tensor) -> Tensor:
    """A parameter on the CPU, gathered from all processes where FSDP2 has sharded it (a DTensor)."""
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
    remedy = "Save the registers again with save_registers; if a newer regtune made them, update this one."
    saved: _Saved = read_typed(folder / SETTINGS, _Saved, remedy=remedy, wrong=CheckpointError)
    try:
        raw = (folder / WEIGHTS).read_bytes()
        weights = load(raw)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(_explain(folder, error)) from error
    for name, value in _described(model).items():
        found = getattr(saved, name)
        if found != value and name != "base_model":
            raise CheckpointError(
                f"{folder}: these registers were made for {name}={shown(found)}, this model has {value!r}. "
                f"They were trained on {shown(saved.base_model or 'an unnamed model')}; load them onto that."
            )
    _check_weights(weights, saved.registers, model, folder / WEIGHTS)
    if saved.sha256 not in ("", hashlib.sha256(raw).hexdigest()):
        raise CheckpointError(f"{folder / WEIGHTS} is not the file that {SETTINGS} was written with. {remedy}")
    _add(model, saved.registers)
    for prefix, registers in _sets(model).items():
        registers.load_state_dict({name: weights[f"{prefix}{name}"] for name in registers.state_dict()})
    return model


def _shapes(config: RegisterConfig, backbone: Any, family: Family) -> dict[str, tuple[int, ...]]:
    """Of a backbone's registers, by name; none where it has none."""
    joined = submodule(backbone, family.joined)
    width = backbone.config.hidden_size if joined is None else next(joined.parameters()).shape[-1]
    n = config.decoder_registers if family.beside_encoder else config.num_registers
    shapes: dict[str, tuple[int, ...]] = {"tokens": (n, width)} if n else {}
    if n and config.position == "learned":
        shapes["positions"] = (n, width)
    if n and config.depth == "every_layer":
        shapes["deep"] = (num_layers(backbone, family) - 1, n, backbone.config.hidden_size)
    return shapes


def _check_weights(weights: Mapping[str, Tensor], config: RegisterConfig, model: nn.Module, file: Path) -> None:
    backbone, decoder = backbone_of(model), decoder_of(model)
    family = family_of(backbone.config)
    shapes = _shapes(config, backbone, family)
    if config.decoder_registers and decoder is None:
        raise CheckpointError(
            f"{file} holds registers of a decoder too, and this {type(model).__name__} has none beside its encoder. "
            "Load them onto the whole model."
        )
    if decoder is not None:
        own = _shapes(config, decoder, family.decoder_side)
        shapes |= {f"{_OF_DECODER}{name}": shape for name, shape in own.items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if not shapes or found != shapes:
        raise CheckpointError(
            f"{file} doesn't hold the registers its JSON describes: it has {shown(found, 200)}, expected {shapes}."
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
    """A `RegisterConfig` from plain values; `where` they are, for the message."""
    return typed(RegisterConfig, settings, f"the registers' settings in {where}", wrong=CheckpointError)


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
