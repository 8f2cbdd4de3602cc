"""From a path, or a name on the hub, to records: every way in which a file can be broken gets a message of its own."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from regtune.errors import ConfigError, DataError, MissingExtraError, shown
from regtune.interfaces import Examples

MAX_UNPACKED = 512 * 2**20
"""Most bytes that a gzip file may unpack to (SQuAD v2.0's training set has 42 million)."""

JSON = (".json", ".jsonl", ".ndjson")
"""Endings of files of JSON values."""
_CHUNK = 2**20
_GZIP_MAGIC = b"\x1f\x8b"
_LFS_POINTER = b"version https://git-lfs"


class Parsed(NamedTuple):
    """What a file holds: one JSON value, or one a line (JSON Lines)."""

    values: list[tuple[str, Any]]
    """Each value behind its place, `line 3`; the place is empty where the file is one value."""
    broken: list[tuple[str, str]]
    """Lines that are no JSON: their place and what is wrong."""
    repeated: int
    """Objects in which a field occurs twice; the last one counts."""


def read_bytes(path: Path, max_bytes: int = MAX_UNPACKED) -> bytes:
    """What a file holds, unpacked if it is gzip: piece by piece, and never further than `max_bytes`.

    Raises:
        ConfigError: `max_bytes` below 1.
        DataError: the file is missing, a folder, unreadable, a Git-LFS pointer, broken gzip or too large.
    """
    if max_bytes < 1:
        raise ConfigError(f"max_bytes={max_bytes} must be at least 1.")
    try:
        raw = _unpack(_read_bytes(path), path, max_bytes)
    except MemoryError as error:
        raise DataError(f"{path} does not fit into this machine's memory. Split it into smaller files.") from error
    _refuse_lfs_pointer(raw, str(path))
    return raw


def parse_json(raw: bytes, name: str) -> Parsed:
    """The JSON in these bytes (UTF-8, with or without a byte order mark); `name` is for messages.

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
    decoder = _Decoder()
    try:
        return Parsed([("", decoder.decode(text))], [], decoder.repeated)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            lines = _parse_lines(text, decoder)
            if lines is not None:
                return lines
        raise DataError(
            f"{name} is broken JSON: {error.msg} at line {error.lineno}, column {error.colno}, near "
            f"{shown(text[max(0, error.pos - 20) : error.pos + 20])}. Was it cut short? One JSON value is needed, or "
            "one a line."
        ) from error
    except RecursionError as error:
        raise DataError(f"{name} is JSON that cannot be read: it is nested too deep. Write the file again.") from error
    except ValueError as error:
        raise DataError(f"{name} is JSON that cannot be read: {error}. Write the file again.") from error


class _Decoder(json.JSONDecoder):
    """Counts objects that name a field twice."""

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=self._object)
        self.repeated = 0

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        self.repeated += len(made) < len(pairs)
        return made


def _parse_lines(text: str, decoder: _Decoder) -> Parsed | None:
    """JSON Lines; None if the first line is no JSON value, so that it can't be meant."""
    decoder.repeated = 0
    found = Parsed([], [], 0)
    for number, line in enumerate(_lines(text), 1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            found.values.append((place, decoder.decode(line)))
        except (ValueError, RecursionError) as error:
            if not found.values:
                return None
            found.broken.append((place, f"this line is no JSON ({error}). Was the file cut short?"))
    return found._replace(repeated=decoder.repeated)


def _lines(text: str) -> Iterator[str]:
    """Lines at line feeds alone (JSON may hold the other separators), one at a time."""
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield text[start:end]
        start = end + 1


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist.{_nearby(path)} Check the path.") from error
    except IsADirectoryError as error:
        files = sorted(file.name for file in path.iterdir() if ".json" in file.name)
        listed = ", ".join(files[:10]) if files else "no .json or .json.gz file"
        raise DataError(f"{path} is a folder. Name the file to read; it holds {listed}.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)!r} cannot be read: {error}. Check the path and its permissions.") from error


def _nearby(path: Path) -> str:
    try:
        names = [file.name for file in path.parent.iterdir()]
    except OSError:
        return f" Its folder {path.parent} does not exist either."
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f" Did you mean {str(path.parent / close[0])!r}?" if close else ""


def _unpack(raw: bytes, path: Path, max_bytes: int) -> bytes:
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
    unpacked = bytearray()
    try:
        with gzip.open(path) as stream:
            while piece := stream.read(_CHUNK):
                unpacked += piece
                if len(unpacked) > max_bytes:
                    raise DataError(
                        f"{path} ({len(raw):,} bytes) unpacks to more than {max_bytes:,} bytes, which is refused: it "
                        "could fill the memory. If you trust it, unpack it yourself (gunzip) and name the .json file, "
                        "or raise max_bytes in regtune.load_questions."
                    )
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is broken gzip: {error}. It was cut short or damaged; download it again.") from error
    return bytes(unpacked)


def _refuse_lfs_pointer(raw: bytes, name: str) -> None:
    if raw.startswith(_LFS_POINTER):
        raise DataError(f"{name} is a Git-LFS pointer, not the data itself. Fetch the data with: git lfs pull")


def hub_rows(name: str, *place: str | None, **options: Any) -> Any:
    """A set of the hub, read from its Parquet files by `datasets`; no code from there is run.

    Args:
        name: how messages call it.
        place: repository and config.
        options: `split`, `revision`.

    Raises:
        MissingExtraError: `datasets` is not installed.
        DataError: the set cannot be loaded.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "hub", f"Loading {name}") from error
    try:
        return datasets.load_dataset(*place, **options)
    except Exception as error:  # a dozen kinds, network and format alike; all mean the same to the user
        raise DataError(
            f"{name} cannot be loaded ({type(error).__name__}: {error}). Check the network (or HF_HUB_OFFLINE and the "
            "cache), or download the set and give the path of a file."
        ) from error


def hub_records(name: str, change: Callable[[Any], Any] = lambda found: found) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of `hub:NAME:SPLIT` or `hub:NAME:CONFIG:SPLIT` behind their places, numbers of classes as words.

    Args:
        name: of the set.
        change: of what `datasets` loaded, before it is read.

    Raises:
        ConfigError: a name of another shape.
        MissingExtraError, DataError: as `hub_rows`.
    """
    parts = name.split(":")[1:]
    if len(parts) not in (2, 3):
        raise ConfigError(f"The data set {name!r} must be written hub:NAME:SPLIT or hub:NAME:CONFIG:SPLIT.")
    found = change(hub_rows(name, *parts[:-1], split=parts[-1]))
    kinds = {column: getattr(kind, "feature", kind) for column, kind in found.features.items()}
    classes = {column: kind.names for column, kind in kinds.items() if hasattr(kind, "names")}
    for index, record in enumerate(found):
        yield f"{name}, record {index + 1}", {**record, **{key: _named(record[key], classes[key]) for key in classes}}


def _named(value: Any, names: Sequence[str]) -> Any:
    """A class by its name, each of a list of them; -1 is none, and stays."""
    if isinstance(value, list):
        return [_named(one, names) for one in value]
    return names[value] if isinstance(value, int) and value >= 0 else value


def read_examples(
    names: Sequence[str],
    records: Callable[[str, Any], Iterable[tuple[str, Any]]],
    example: Callable[[str, Any, str, Any], Any],
    settings: Any,
    *,
    limit: int | None,
    one: str,
    many: str,
) -> Examples:
    """The examples of data sets, one a record; those that were left out are in `skipped`, `notes` and `facts`.

    Args:
        names: the sets.
        records: of a set, behind their places; a `DataError` in place of one says what is wrong with it.
        example: makes one of its id, its record, its place and the settings, or raises a `DataError`.
        settings: the task's; `on_bad_record` is `raise` to stop at the first bad record, otherwise it is left out.
        limit: at most so many examples.
        one: what a person calls an example with what is to be learnt: "labelled text".
        many: what a person calls them.

    Raises:
        DataError: as `records` and `example`, or a set without any example.
    """
    items: list[Any] = []
    skipped: list[str] = []
    short = [Path(name).name for name in names]
    for name, file in zip(names, short, strict=True):
        count, called = len(items), file if short.count(file) == 1 else name
        for place, record in records(name, settings):
            try:
                if isinstance(record, DataError):
                    raise record
                items.append(example(f"{called}:{len(items) - count + 1}", record, place, settings))
            except DataError as error:
                if settings.on_bad_record == "raise":
                    raise
                skipped.append(str(error))
        if len(items) == count:
            raise DataError(f"{name} holds no {one}. Write at least one record.")
    read = len(items) + len(skipped)
    notes = (f"{len(skipped)} of {read} {many} were left out, the first: {skipped[0]}",) if skipped else ()
    facts = {"read": read, "left_out": len(skipped), "skipped": skipped}
    return Examples(items=tuple(items[:limit]), names=tuple(names), skipped=tuple(skipped), notes=notes, facts=facts)


def text_of(value: Any, place: str) -> str:
    """A value that has to be a text.

    Raises:
        DataError: it is none, or has no word.
    """
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place}: the text is {shown(value)}; a text with at least one word is needed.")
    return value


def cell(record: Mapping[str, Any], asked: str | None, usual: Sequence[str], setting: str, place: str) -> Any:
    """The value of a record's column: the one that is asked for, or the first that is called as usual.

    Args:
        record: columns to values.
        asked: its name, as a person set it.
        usual: names that are looked for otherwise.
        setting: which names the column, `text_column`.
        place: where the record is, for messages.

    Raises:
        DataError: there is none; the message says which there are.
    """
    what, there = setting.removesuffix("_column"), ", ".join(map(str, record)) or "none"
    if asked is not None:
        if asked in record:
            return record[asked]
        raise DataError(f"{place}: there is no column {asked!r} for the {what}; there are {there}.")
    for column in usual:
        if column in record:
            return record[column]
    raise DataError(
        f"{place}: no column is called like a {what} ({', '.join(usual)}); there are {there}. "
        f"Name it: --settings.{setting.replace('_', '-')} COLUMN."
    )


def records_of(path: Path, *, encoding: str = "auto", header: bool = True) -> Iterator[tuple[str, Any]]:
    """The records of a `.json`, `.jsonl`, `.csv` or `.tsv` file, or the lines of any other; each may end in `.gz`.

    Args:
        path: the file.
        encoding: of tables and lines; `auto` takes UTF-8 or, where it isn't valid, latin-1.
        header: whether a table has one; otherwise its columns are called `0`, `1`, …

    Yields:
        Places, and mappings or lines; a `DataError` in place of one says what is wrong with it.

    Raises:
        DataError: as `read_bytes` and `parse_json`, or an encoding that isn't the file's.
        ConfigError: no such encoding.
    """
    raw, name = read_bytes(path), str(path)
    kind = ending(path)
    if kind in JSON:
        yield from _objects(parse_json(raw, name), name)
    elif kind in (".csv", ".tsv"):
        yield from table(decoded(raw, name, encoding), "," if kind == ".csv" else "\t", name, header=header)
    else:
        lines = decoded(raw, name, encoding).replace("\r\n", "\n").removesuffix("\n").split("\n")
        yield from ((f"{name}, line {number}", line) for number, line in enumerate(lines, start=1))


def ending(path: Path) -> str:
    """The ending of a file's name, `.gz` aside."""
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def _objects(parsed: Parsed, name: str) -> Iterator[tuple[str, Any]]:
    for place, problem in parsed.broken:
        yield f"{name}, {place}", DataError(f"{name}, {place}: {problem}")
    for place, value in parsed.values:
        for index, record in enumerate(value if isinstance(value, list) else [value]):
            where = f"{name}, {place or f'record {index + 1}'}"
            wrong = DataError(f"{where}: {shown(record)} is no object with fields.")
            yield where, record if isinstance(record, dict) else wrong


def table(text: str, delimiter: str, name: str, *, header: bool = True) -> Iterator[tuple[str, Any]]:
    """The rows of a CSV or TSV text as `records_of` gives them; empty ones are left out.

    Raises:
        DataError: quotes that don't close.
    """
    first = text.partition("\n")[0]
    if header and delimiter == "," and delimiter not in first and ";" in first:  # where numbers have commas
        delimiter = ";"
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] | None = None if header else []
    try:
        for row in reader:
            place = f"{name}, line {reader.line_num}"
            if columns is None:
                columns = [column.strip() for column in row]
            elif not any(cell.strip() for cell in row):
                continue
            elif columns and len(row) != len(columns):
                yield place, DataError(f"{place}: it has {len(row)} cells where the header has {len(columns)}.")
            else:
                yield place, dict(zip(columns or map(str, range(len(row))), row, strict=True))
    except csv.Error as error:
        raise DataError(f"{name}, line {reader.line_num}: {error}. Quote cells that hold quotes or breaks.") from error


def decoded(raw: bytes, name: str, encoding: str) -> str:
    """Text in an encoding; raises as `records_of`."""
    for one in ("utf-8-sig", "latin-1") if encoding == "auto" else (encoding,):
        try:
            text = raw.decode(one)
        except UnicodeDecodeError:
            continue
        except LookupError as error:
            raise ConfigError(f"encoding={encoding!r} is none that Python knows; try utf-8 or latin-1.") from error
        if not text.strip():
            raise DataError(f"{name} is empty. Download or write it again.")
        return text
    raise DataError(f"{name} is not {encoding} text. Name its encoding, for example --settings.encoding latin-1.")
