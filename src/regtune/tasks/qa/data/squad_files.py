"""From a path to JSON: every way in which a file can be broken gets a message of its own."""

from __future__ import annotations

import difflib
import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from regtune.errors import DataError

_GZIP_MAGIC = b"\x1f\x8b"
_LFS_POINTER = b"version https://git-lfs"


def read_json(path: Path) -> Any:
    """The JSON value in a `.json` or `.json.gz` file.

    Raises:
        DataError: the file is missing, a folder, unreadable, a Git-LFS pointer, broken gzip, not UTF-8 or not JSON.
    """
    return parse_json(_unpack(_read_bytes(path), path), str(path))


def parse_json(raw: bytes, name: str) -> Any:
    """The JSON value in these bytes (UTF-8, with or without a byte order mark); `name` is for messages.

    Raises:
        DataError: the bytes are empty, a Git-LFS pointer, not UTF-8 or not JSON.
    """
    _refuse_lfs_pointer(raw, name)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name} is not UTF-8: byte {error.start} is 0x{raw[error.start]:02x} ({error.reason}). "
            "Convert the file to UTF-8 (for example with iconv)."
        ) from error
    if not text.strip():
        raise DataError(f"{name} is empty. Download or write it again.")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        hint = "It looks like JSON Lines; " if error.msg == "Extra data" else ""
        raise DataError(
            f"{name} is broken JSON: {error.msg} at line {error.lineno}, column {error.colno}, near "
            f"{text[max(0, error.pos - 20) : error.pos + 20]!r}. {hint}Was it cut short? One JSON object is needed."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is JSON that cannot be read: {error}. Write the file again.") from error


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist.{_nearby(path)} Check the path.") from error
    except IsADirectoryError as error:
        files = sorted(file.name for file in path.iterdir() if file.name.endswith((".json", ".json.gz")))
        shown = ", ".join(files[:10]) if files else "no .json or .json.gz file"
        raise DataError(f"{path} is a folder. Name the file to read; it holds {shown}.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)!r} cannot be read: {error}. Check the path and its permissions.") from error


def _nearby(path: Path) -> str:
    try:
        names = [file.name for file in path.parent.iterdir()]
    except OSError:
        return f" Its folder {path.parent} does not exist either."
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f" Did you mean {str(path.parent / close[0])!r}?" if close else ""


def _unpack(raw: bytes, path: Path) -> bytes:
    _refuse_lfs_pointer(raw, str(path))
    packed = raw.startswith(_GZIP_MAGIC)
    if path.suffix == ".gz" and not packed:
        raise DataError(
            f"{path} is no gzip file (it starts with {raw[:8]!r}). If it is already unpacked, drop the .gz."
        )
    if path.suffix != ".gz" and packed:
        raise DataError(f"{path} is a gzip file. Unpack it, or rename it to {path.name}.gz.")
    if not packed:
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is broken gzip: {error}. It was cut short or damaged; download it again.") from error


def _refuse_lfs_pointer(raw: bytes, name: str) -> None:
    if raw.startswith(_LFS_POINTER):
        raise DataError(f"{name} is a Git-LFS pointer, not the data itself. Fetch the data with: git lfs pull")
