"""What a model's folder may make regtune do: read numbers. Everything else that its files can ask for is refused.

Nothing here loads anything but JSON; `docs/security.md` says what is promised.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from regtune.errors import CheckpointError

HUB_OPTIONS = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download", "proxies")
"""Options of `from_pretrained` that say where files come from."""
_INDEX = "model.safetensors.index.json"
_LFS_HEADER = b"version https://git-lfs"
_IN_PLACE = re.compile(r"[^/\\:]+\.safetensors")
_KERNEL_KEYS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")


def read_model_config(name: str | Path, **options: Any) -> dict[str, Any]:
    """A model's `config.json` as plain values, from a folder or the hub; `{}` for a GGUF file.

    Args:
        name: a folder, or a repository name on the hub.
        options: those of `from_pretrained`; the ones in `HUB_OPTIONS` are used.

    Raises:
        CheckpointError: it isn't there or holds no settings.
    """
    from transformers import PretrainedConfig

    if options.get("gguf_file"):
        return {}
    found: Any = None
    try:
        found = PretrainedConfig.get_config_dict(name, **{k: options[k] for k in HUB_OPTIONS if k in options})[0]
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} can't be loaded: {error}") from error
    except (TypeError, AttributeError):
        pass  # JSON, but no object: transformers looks for keys in it
    if not isinstance(found, dict):
        raise CheckpointError(f"{name} can't be loaded: its config.json holds no settings (a JSON object is expected).")
    return found


def check_model_config(name: str | Path, settings: Mapping[str, Any], *, trust_remote_code: bool) -> None:
    """Refuses a config that names code, a pickle, or weights that are no floating-point numbers.

    Raises:
        CheckpointError: what it asks for, and what to do.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = settings.get("model_type")
    if not trust_remote_code:
        if "auto_map" in settings and kind not in CONFIG_MAPPING:
            raise CheckpointError(needs_code(name))
        for key, value in _kernels(settings):
            raise CheckpointError(
                f"{name}: config.json has {key}={value!r}, which would fetch and run code from the hub. Delete that "
                "entry; attention is chosen by whoever loads the model (attn_implementation='sdpa' or 'eager')."
            )
    weights = settings.get("transformers_weights")
    if weights is not None and not (
        isinstance(weights, str) and _IN_PLACE.fullmatch(weights.removesuffix(".index.json"))
    ):
        raise CheckpointError(
            f"{name}: config.json names {weights!r} as the file with the weights; regtune reads safetensors files that "
            "lie in the model's own folder."
        )
    quantised = settings.get("quantization_config")
    if quantised is not None:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise CheckpointError(
            f"{name} was saved quantised (quantization_config in its config.json, quant_method={method!r}). regtune "
            "trains and measures weights in floating point: take the model that it was made from, and quantise that "
            "while loading where you want it small (from_pretrained(..., quantization_config=...))."
        )


def needs_code(name: str | Path) -> str:
    """The sentence for a model or tokenizer whose own Python code would have to run."""
    return (
        f"{name} needs Python code of its own (auto_map in its config), and regtune never runs code that comes with a "
        "model unless told to. If you have read that code: trust_remote_code=True in Python, or "
        f"--trust-remote-code {name} for a run of your own."
    )


def _kernels(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    stack: list[Any] = [settings]
    while stack:
        for key, value in stack.pop().items():
            named = value.values() if isinstance(value, dict) else [value]
            if key in _KERNEL_KEYS and any(isinstance(choice, str) and "/" in choice for choice in named):
                yield key, value
            if isinstance(value, dict):
                stack.append(value)


def check_model_files(name: str | Path, **options: Any) -> None:
    """Refuses a folder with Git-LFS pointers or a pickled adapter, and an index that leads elsewhere.

    Of a model on the hub the index alone is looked at; the rest is what `use_safetensors=True` makes of it.

    Raises:
        CheckpointError: the file is named. Nothing but the index has been read then.
    """
    folder = Path(name) / (options.get("subfolder") or "")
    if not folder.is_dir():
        _check_hub_index(name, options)
        return
    for index in sorted(folder.glob("*.safetensors.index.json")):
        _check_index(index, index)
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            if stream.read(len(_LFS_HEADER)) == _LFS_HEADER:
                raise CheckpointError(f"{file} is a Git-LFS pointer, not the weights. Fetch them with: git lfs pull")
    adapter = folder / "adapter_model.bin"
    if (folder / "adapter_config.json").is_file() and adapter.is_file():
        raise CheckpointError(pickle_refused(adapter))


def pickle_refused(file: Path) -> str:
    """The sentence for weights in a pickle."""
    return (
        f"{file} is a pickle, and loading a pickle can run any code, so regtune reads safetensors only. "
        "Convert it once on a machine you trust: model.save_pretrained(folder) writes safetensors."
    )


def _check_hub_index(name: str | Path, options: Mapping[str, Any]) -> None:
    from transformers.utils.hub import cached_file

    quiet = {f"_raise_exceptions_for_{what}": False for what in ("gated_repo", "missing_entries", "connection_errors")}
    try:
        found = cached_file(str(name), _INDEX, **{k: options[k] for k in HUB_OPTIONS if k in options}, **quiet)
    except (OSError, ValueError):
        return  # no such model: loading it says so
    if found is not None:
        _check_index(Path(found), f"{name}/{_INDEX}")


def _check_index(file: Path, shown: str | Path) -> None:
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        shards = index["weight_map"]
        if not isinstance(shards, dict) or not isinstance(index.get("metadata", {}), dict):
            raise TypeError("weight_map and metadata must be objects")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{shown} is not an index of weights: {type(error).__name__}: {error}. Copy or download the model again."
        ) from error
    for shard in shards.values():
        if not (isinstance(shard, str) and _IN_PLACE.fullmatch(shard)):
            raise CheckpointError(
                f"{shown} says that weights are in {str(shard)[:200]!r}; regtune reads safetensors files that lie "
                "beside the index, and nothing of this model was read."
            )
