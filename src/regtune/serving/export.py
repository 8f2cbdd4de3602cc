"""`export`: writes a model with registers so that it runs without regtune, and proves that it computes the same."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from regtune.errors import CheckpointError, ConfigError, UnsupportedModelError
from regtune.progress import begin_stage, stages
from regtune.records import now, plain, versions, write_json
from regtune.registers.surgery import CONFIG_KEY, num_registers
from regtune.serving.proof import Check, Written, prove
from regtune.session import Session
from regtune.session import open as open_session
from regtune.tables import Column, Table

Format = Literal["onnx", "torch", "plain"]
RECORD = "export.json"
TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Export:
    """What `export` wrote and measured."""

    folder: Path
    format: Format
    num_registers: int
    files: tuple[str, ...]
    """Relative to the folder."""
    inputs: tuple[str, ...]
    """What the model reads, by name."""
    checks: tuple[Check, ...]
    """Each batch that ran through the model and through what was written."""
    tolerance: float
    notes: tuple[str, ...] = ()

    @property
    def largest(self) -> float:
        """The largest difference of any output."""
        return max(check.difference for check in self.checks)

    def __str__(self) -> str:
        rows = tuple(
            (" × ".join(map(str, check.shape)), "yes" if check.padded else "no", check.difference)
            for check in self.checks
        )
        table = Table(columns=("batch × length", "padding", Column("largest difference", ".2g")), rows=rows)
        head = (
            f"{self.folder}: {self.format}, {self.num_registers} registers, reads {', '.join(self.inputs)}. "
            f"Its outputs are those of the model within {self.largest:.2g} (tolerance {self.tolerance:g})."
        )
        return "\n\n".join([head, table.text, f"Files: {', '.join(self.files)}", *self.notes])


def export(
    model: str | Path | Session,
    folder: str | Path,
    *,
    format: Format = "onnx",  # noqa: A002 - what everybody calls it
    tolerance: float = TOLERANCE,
    data: Sequence[str] = (),
    limit: int = 64,
    progress: bool = True,
) -> Export:
    """Writes a model so that it runs without regtune, runs what was written, and keeps it if its outputs are equal.

    Args:
        model: a run directory, a model's folder, a hub name, or an open session; with or without registers.
        folder: what is made; it must not exist, or be empty.
        format: `onnx` for onnxruntime (`model.onnx`), `torch` for torch.export (`model.pt2`); both hold the registers
            inside, for any head, and a decoder's reads whole texts without a cache. `plain` is a folder for
            transformers alone: a decoder's registers become words of its vocabulary or a prefix for peft, an encoder's
            constant registers key and value biases in such a prefix.
        tolerance: largest difference of any output, padding left out, over several batches, lengths and paddings.
        data: data sets on which an encoder's registers are audited for `plain`; the run's first evaluation set if none.
        limit: examples of them.
        progress: say on standard error how far it is.

    Returns:
        What was written and the difference of every batch that was tried; also in `export.json`.

    Raises:
        MissingExtraError: a package of the extra `onnx`, or for a prefix `peft`, is missing.
        UnsupportedModelError: the model has no such form; the message says why.
        CheckpointError: what was written computes something else, by how much; nothing is kept.
        ConfigError: a folder that holds something, or a tolerance that isn't positive.
    """
    folder = Path(folder).expanduser()
    if tolerance <= 0:
        raise ConfigError(f"tolerance={tolerance} must be above 0; {TOLERANCE:g} allows for rounding alone.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and holds something. Name a new folder, or delete it first.")
    write = _writer(format)
    with stages(3, shown=progress):
        begin_stage(f"opening {model.name if isinstance(model, Session) else model}")
        session = model if isinstance(model, Session) else open_session(model, device="cpu")
        _check(session)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as nearby:
            made = Path(nearby) / folder.name
            made.mkdir()
            begin_stage(f"writing {format}")
            training = session.model.training
            session.model.eval()
            try:
                written = write(session, made, data, limit)
                begin_stage(f"running it on {len(written.inputs)} batches")
                found = _keep(session, made, folder, format, written, tolerance)
            finally:
                session.model.train(training)
    return found


def _writer(name: str) -> Any:
    """The function that writes a format. Raises as it does where a package is missing."""
    if name == "plain":
        from regtune.serving.plain import write_plain

        return lambda session, folder, data, limit: write_plain(session, folder, data=data, limit=limit)
    from regtune.serving.programs import require_onnx, write_onnx, write_torch

    if name == "onnx":
        require_onnx()
    elif name != "torch":
        raise ConfigError(f"format={name!r} must be onnx, torch or plain.")
    write = write_onnx if name == "onnx" else write_torch

    def whole(session: Session, folder: Path, _data: Sequence[str], _limit: int) -> Written:
        _save_beside(session, folder)
        return write(session, folder)

    return whole


def _check(session: Session) -> None:
    config = session.model.config
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{session.name} is a {config.model_type}, an encoder with a decoder, which answers in many passes with a "
            "cache and not in one. Serve it through regtune.open, or export its encoder: "
            "model.get_encoder().save_pretrained(...)."
        )


def _save_beside(session: Session, folder: Path) -> None:
    """The config (which says nothing of registers: they are in the program) and the tokenizer or image processor."""
    inner = session.model.get_base_model() if hasattr(session.model, "get_base_model") else session.model
    config = copy.deepcopy(inner.config)
    with contextlib.suppress(AttributeError):
        delattr(config, CONFIG_KEY)
    config.architectures = [type(inner).__name__]
    config.save_pretrained(folder)
    session.reader.save_pretrained(folder)


def _keep(session: Session, made: Path, folder: Path, name: Format, written: Written, tolerance: float) -> Export:
    """Moves what was written to its place if it computes what the model computes."""
    checks = prove(session, written)
    files = sorted(path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file())
    found = Export(
        folder=folder,
        format=name,
        num_registers=num_registers(session.model),
        files=(*files, RECORD),
        inputs=tuple(written.inputs[0]),
        checks=checks,
        tolerance=tolerance,
        notes=written.notes,
    )
    if not found.largest <= tolerance:
        worst = max(checks, key=lambda check: check.difference)
        raise CheckpointError(
            f"{session.name} as {name} gives outputs that differ by {worst.difference:.3g} (batch of shape "
            f"{' × '.join(map(str, worst.shape))}{', padded' if worst.padded else ''}), more than tolerance="
            f"{tolerance:g}, so nothing was kept. If that is near enough for you, give a higher tolerance; if not, "
            "take another format or serve it through regtune.open."
        )
    write_json(made / RECORD, plain(found) | {"largest": found.largest, "versions": versions(), "made": now()})
    if folder.exists():
        folder.rmdir()
    made.replace(folder)
    return found
