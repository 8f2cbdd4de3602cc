"""Pretrained models and tokenizers by name: `minilm`, a local folder, or the hub. Safetensors only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel

from regtune.errors import CheckpointError
from regtune.models.minilm import minilm_folder
from regtune.registers.saving import from_pretrained

MINILM = "minilm"
"""The name of the model that comes with the `demo` extra."""


def resolve_model(name: str | Path) -> str:
    """A model's name as transformers understands it.

    Raises:
        MissingExtraError: `minilm` without the `demo` extra.
        CheckpointError: something that looks like a folder and isn't there.
    """
    if str(name) == MINILM:
        return str(minilm_folder())
    path = Path(name)
    looks_local = isinstance(name, Path) or path.is_absolute() or str(name).startswith((".", "~")) or path.exists()
    if looks_local and not path.expanduser().is_dir():
        raise CheckpointError(f"{name} is not a folder with a model in it.")
    return str(path.expanduser()) if looks_local else str(name)


def load_question_answering_model(
    name: str | Path,
    *,
    attention: Literal["auto", "sdpa", "eager"] = "auto",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A model with a head for start and end logits; the head is new (from torch's random state) where there is none.

    Raises:
        CheckpointError: the model can't be found or read.
        MissingExtraError: `minilm` without the `demo` extra.
    """
    from transformers import AutoModelForQuestionAnswering

    options: dict[str, Any] = {} if attention == "auto" else {"attn_implementation": attention}
    try:
        with quiet_transformers():  # the report on the new head's weights is expected, not news
            return from_pretrained(
                AutoModelForQuestionAnswering, resolve_model(name), trust_remote_code=trust_remote_code, **options
            )
    except ValueError as error:
        raise CheckpointError(f"{name} can't be loaded for question answering: {error}") from error


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


def load_tokenizer(name: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The model's fast tokenizer.

    Raises:
        CheckpointError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        source = resolve_model(name)
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name} has no tokenizer that can be loaded: {error}") from error
    files = {"tokenizer.json", *getattr(tokenizer, "vocab_files_names", {}).values()}
    if Path(source).is_dir() and not any(Path(source, file).is_file() for file in files):
        # transformers makes an empty tokenizer of a folder without one, and every word would be unknown to it.
        raise CheckpointError(
            f"{name} has no tokenizer files ({', '.join(sorted(files))}). Save the tokenizer there too."
        )
    return tokenizer
