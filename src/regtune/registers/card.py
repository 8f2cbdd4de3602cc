"""The model card: `README.md` beside saved weights says which registers they have, their scores, and how to load them.

regtune writes one section between two marks. Whatever else a card says stays as it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regtune.errors import RegtuneError
from regtune.models.minilm import PACKAGE
from regtune.records import RUN_FILE, RunRecord, checksums, is_local, load_record, set_name, write_bytes
from regtune.tables import Column, Table

CARD = "README.md"
START, END = "<!-- regtune: this section is written anew with the weights -->", "<!-- /regtune -->"
HOOKED = ("save_pretrained", "_upload_modified_files")
"""Of a transformers model: what writes its folder, and what `push_to_hub` ends with."""
_MINILM = "sentence-transformers/all-MiniLM-L6-v2"
_METADATA = re.compile(r"---\n.*?\n---\s*", re.DOTALL)
_SHOWN = ("num_registers", "decoder_registers", "placement", "depth", "position", "init", "layer_norm", "trainable")


class WithCard:
    """What one of `HOOKED` is while a model has registers: the model's own, and the card's section."""

    def __init__(self, model: Any, name: str) -> None:
        self.model = model
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Saves or uploads."""
        own = getattr(type(self.model), self.name)
        if self.name == "save_pretrained":
            given = inspect.signature(own).bind(self.model, *args, **kwargs)
            saved = own(self.model, *args, **kwargs)
            if self.model.should_save_on_this_rank(given.arguments.get("is_main_process", True)):
                write_card(given.args[1], self.model)
            return saved
        folder, repository, *_ = args
        write_uploaded_card(folder, self.model, repository, kwargs.get("token"))
        return own(self.model, *args, **kwargs)


def write_card(folder: str | Path, model: Any, *, place: str = "PATH/OF/THIS/FOLDER", new: bool = False) -> None:
    """Writes the section into the card of a folder that holds saved weights, and the card if there is none.

    Args:
        folder: where the weights are.
        model: what was saved: a transformers model, or peft's.
        place: what loads it, a folder or the name of a repository.
        new: the card that lies there is nobody's text (a library's blank form): only its metadata stay.
    """
    from huggingface_hub import ModelCard, ModelCardData

    folder = Path(folder)
    file, record = folder / CARD, _record_of(folder, model)
    section = f"{START}\n{_section(model, record, place)}\n{END}"
    there = file.read_bytes().decode("utf-8", "surrogateescape") if file.is_file() else ""
    before, _, rest = there.partition(START)
    _, ended, after = rest.partition(END)
    alone = bool(ended and _METADATA.fullmatch(before) and not after.strip())
    if there and not new and not alone:
        text = f"{before}{section}{after}" if ended else f"{there.rstrip()}\n\n{section}\n"
    else:
        plain = ModelCardData(library_name="transformers")
        data: Any = ModelCard(there, ignore_metadata_errors=True).data if there else plain
        base = _on_hub(_base(model, record))
        data.base_model = base if base or new else data.base_model
        own = ("regtune", "registers") if _registers(model) else ("regtune",)
        data.tags = [*dict.fromkeys([*(data.tags or []), *own])]
        text = f"---\n{data.to_yaml()}\n---\n\n{section}\n"
    write_bytes(file, text.encode("utf-8", "surrogateescape"))


def write_uploaded_card(folder: str | Path, model: Any, repository: str, token: Any) -> None:
    """Writes the section into what goes to the hub; a form that transformers has just made is replaced."""
    from huggingface_hub import ModelCard
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    new = False
    try:
        ModelCard.load(repository, token=token, ignore_metadata_errors=True)
    except (EntryNotFoundError, RepositoryNotFoundError):
        new = True
    write_card(folder, model, place=repository, new=new)


def _section(model: Any, record: RunRecord | None, place: str) -> str:
    registers, base = _registers(model), _on_hub(_base(model, record))
    rows: list[tuple[Any, ...]] = [("base model", base or "a local folder")]
    shown = [name for name in _SHOWN if name in registers and (registers[name] or name != "decoder_registers")]
    rows += [(name, str(registers[name])) for name in shown] or [("registers", "none")]
    if record is not None:
        rows += _trained(record)
    parts = [
        "## Registers" if registers else "## Fine-tuned with regtune",
        "Learned vectors beside each text that attention uses in every layer; they are dropped before the head."
        if registers
        else "",
        Table(columns=("", ""), rows=tuple(rows)).markdown().strip(),
        *(_scores(record) if record is not None else ()),
        f"```python\n{_loading(model, place)}\n```",
        "Transformers alone loads it without its registers, and then it is another model." if registers else "",
    ]
    return "\n\n".join(part for part in parts if part)


def _trained(record: RunRecord) -> list[tuple[Any, ...]]:
    """What a run's record says of the training; of local files the names alone."""
    data, training = record.config.get("data", {}), record.config.get("training", {})
    sets = [set_name(name) if is_local(name) else name for name in data.get("train", ())]
    return [
        ("task", record.task),
        ("methods", record.label),
        ("training data", ", ".join(sets)),
        ("training", f"{training.get('epochs')} epochs, seed {training.get('seed')}"),
        ("regtune", record.versions.get("regtune", "")),
    ]


def _scores(record: RunRecord) -> list[str]:
    names = list(dict.fromkeys(name for values in record.metrics.values() for name in values))
    rows = [
        (name, record.data.get(name, {}).get("examples"), *(values.get(metric) for metric in names))
        for name, values in record.metrics.items()
    ]
    columns: tuple[str | Column, ...] = ("set", Column("examples", ",d"), *(Column(name, ".3f") for name in names))
    table = Table(columns=columns, rows=tuple(rows)).markdown().strip()
    return [table, "Scores of this one run; how much other seeds differ can't be read from it."]


def _loading(model: Any, place: str) -> str:
    name = type(model).__name__.removeprefix("FSDP")
    if hasattr(model, "peft_config"):
        return f'import regtune\nfrom peft import PeftModel\nmodel = PeftModel.from_pretrained(base_model, "{place}")'
    if not type(model).__module__.startswith("transformers."):
        name = "AutoModel"
    return f'import regtune\nfrom transformers import {name}\nmodel = regtune.from_pretrained({name}, "{place}")'


def _registers(model: Any) -> Mapping[str, Any]:
    """The settings of a model's registers, or of its active adapter's; empty without any."""
    if hasattr(model, "peft_config"):
        config = getattr(model.peft_config[model.active_adapter], "registers", None)
        return dataclasses.asdict(config) if dataclasses.is_dataclass(config) else {}  # type: ignore[arg-type]
    return getattr(model.config, "registers", None) or {}


def _base(model: Any, record: RunRecord | None) -> str:
    if record is not None:
        return str(record.config.get("model", ""))
    return _loaded_from(model)


def _loaded_from(model: Any) -> str:
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    return str(inner.config.name_or_path or "")


def _on_hub(name: str) -> str | None:
    """The name of a repository on the hub, or None: paths of this machine are nobody's business."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    if name == "minilm" or PACKAGE in name:
        return _MINILM
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if not name or is_local(name) or Path(name).exists() else name


def _record_of(folder: Path, model: Any) -> RunRecord | None:
    """The record beside these weights, or beside those that were loaded: only if it is of the very same ones."""
    for run_dir in (folder.parent, Path(_loaded_from(model)).parent):
        if (run_dir / RUN_FILE).is_file():
            with contextlib.suppress(RegtuneError, OSError):
                record = load_record(run_dir)
                named = {Path(name).name: seal for name, seal in record.files.items() if name.endswith(".safetensors")}
                if named and checksums(folder, named) == named:
                    return record
    return None
