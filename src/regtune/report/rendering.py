"""Templates, and files written with words where they can't be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regtune.errors import DataError, MissingExtraError
from regtune.records import write_bytes


def environment() -> Any:
    """jinja2's, with the report's templates; everything is escaped.

    Raises:
        MissingExtraError: the `report` extra isn't installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("jinja2", "report", "The report") from error
    return Environment(
        loader=PackageLoader("regtune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write(path: Path, text: str) -> Path:
    """Writes a file, and its folder if there is none; a reader sees the old page or the whole new one.

    Raises:
        DataError: it can't be written.
    """
    try:
        return write_bytes(path, text.encode(errors="backslashreplace"))
    except OSError as error:
        raise DataError(f"{path} can't be written: {error.strerror}. Name another output folder.") from error
