"""Pretrained models and tokenizers by name: those of the extras, a local folder, or the hub. Safetensors only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from regtune.errors import CheckpointError
from regtune.models.e5_multilingual import e5_multilingual_folder
from regtune.models.minilm import minilm_folder
from regtune.models.safety import needs_code, read_model_config
from regtune.models.smollm2 import smollm2_folder
from regtune.records import read_typed

MINILM = "minilm"
"""The name of the model that comes with the `demo` extra."""
ADAPTER_FILE = "adapter_config.json"
"""What makes a folder an adapter's."""
READY = Path(__file__).parent / "ready"
"""Adapters that come with regtune, trained, each in a folder that is its name."""


def resolve_model(name: str | Path) -> str:
    """A model's name as transformers understands it.

    Raises:
        MissingExtraError: a model that comes with an extra, without that.
        CheckpointError: something that looks like a folder and isn't there.
    """
    packaged = {MINILM: minilm_folder, "smollm2": smollm2_folder, "e5-multilingual": e5_multilingual_folder}
    if str(name) in packaged:
        return str(packaged[str(name)]())
    if str(name) in ready_adapters():
        return str(READY / name)
    path = Path(name)
    looks_local = isinstance(name, Path) or path.is_absolute() or str(name).startswith((".", "~")) or path.exists()
    if looks_local and not path.expanduser().is_dir():
        raise CheckpointError(f"{name} is not a folder with a model in it.")
    return str(path.expanduser()) if looks_local else str(name)


def ready_adapters() -> list[str]:
    """Names of the trained adapters that come with regtune."""
    return sorted(file.parent.name for file in READY.glob(f"*/{ADAPTER_FILE}"))


def adapter_settings(folder: str | Path) -> dict[str, Any] | None:
    """What an adapter's folder says of it; None where a folder or a hub name isn't one.

    Raises:
        DataError: a file that holds no settings.
    """
    file = Path(folder) / ADAPTER_FILE
    if not file.is_file():
        return None
    found: dict[str, Any] = read_typed(file, dict[str, Any], remedy="Copy or download it again.")
    return found


def base_of_adapter(folder: str | Path) -> str:
    """The model that an adapter in a folder was made for.

    Raises:
        CheckpointError: it names none.
        DataError: a file that holds no settings.
    """
    name = (adapter_settings(folder) or {}).get("base_model_name_or_path")
    if not name:
        raise CheckpointError(f"{folder}: {ADAPTER_FILE} names no base model (base_model_name_or_path).")
    return str(name)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Inside, transformers shows no progress bar and says nothing below an error; afterwards it is as before."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def load_config(name: str | Path) -> Any:
    """A model's config, as transformers has it.

    Raises:
        CheckpointError: there is none, it holds no settings, or it would run code.
    """
    from transformers import AutoConfig

    read_model_config(name)  # says what is wrong with a config that is none
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        code = "trust_remote_code" in str(error)
        raise CheckpointError(needs_code(name) if code else f"{name} can't be loaded: {error}") from error


Need = Literal["pad", "sep"]


def load_tokenizer(name: str | Path, *, trust_remote_code: bool = False, needs: tuple[Need, ...] = ()) -> Any:
    """The model's fast tokenizer.

    Args:
        name: as `resolve_model` takes it.
        trust_remote_code: run code from the repository; off unless asked for.
        needs: special tokens that the task can't do without.

    Raises:
        CheckpointError: there is none, it would run code, or it lacks one of these tokens.
    """
    from transformers import AutoTokenizer

    try:
        source = resolve_model(name)
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise CheckpointError(needs_code(name)) from error
        raise CheckpointError(f"{name} has no tokenizer that can be loaded: {error}") from error
    files = {"tokenizer.json", *getattr(tokenizer, "vocab_files_names", {}).values()}
    if Path(source).is_dir() and not any(Path(source, file).is_file() for file in files):
        # transformers makes an empty tokenizer of a folder without one, and every word would be unknown to it.
        raise CheckpointError(
            f"{name} has no tokenizer files ({', '.join(sorted(files))}). Save the tokenizer there too."
        )
    for need in needs:
        if getattr(tokenizer, f"{need}_token_id") is None:
            raise CheckpointError(_LACKS[need].format(name=name))
    return tokenizer


def load_image_processor(name: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The model's image processor, which works with Pillow and numpy, so that it gives the same everywhere.

    Args:
        name: as `resolve_model` takes it.
        trust_remote_code: run code from the repository; off unless asked for.

    Raises:
        CheckpointError: there is none, or it would run code.
    """
    from transformers import AutoImageProcessor

    kind: Any = AutoImageProcessor
    try:
        return kind.from_pretrained(resolve_model(name), backend="pil", trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        if "trust_remote_code" in str(error):
            raise CheckpointError(needs_code(name)) from error
        raise CheckpointError(
            f"{name} has no image processor that can be loaded: {error} Save the one that the model was trained with "
            "beside it: processor.save_pretrained(folder)."
        ) from error


_LACKS = {
    "pad": (
        "The tokenizer of {name} has no padding token, so texts of different lengths make no batch. Give it one that "
        "the model knows and save it beside the model: tokenizer.pad_token = tokenizer.eos_token; "
        "tokenizer.save_pretrained(folder)."
    ),
    "sep": (
        "The tokenizer of {name} has no separator token, so a model can't tell two texts of a row apart. Name the one "
        "that the model was trained with (tokenizer.sep_token = ...) and save it beside the model, or take another."
    ),
}
