"""SST-2 files as they are passed around as `stsa.binary.{train,dev,test}`: a label, a space and a sentence a line.

Source: Socher et al. 2013, "Recursive Deep Models for Semantic Compositionality", the sentences alone (6,920 / 872 /
1,821), negative and positive; for research. The files hold lower-case, tokenised text in UTF-8 (older copies: latin-1).
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

from regtune.errors import DataError

FILES = {"train": "stsa.binary.train", "dev": "stsa.binary.dev", "test": "stsa.binary.test"}
"""The splits' files; each may end in `.gz`."""
LABELS = ("negative", "positive")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sentence:
    """A sentence and its class: 0 negative, 1 positive."""

    text: str
    label: int


def sentiment_file(folder: Path, split: str) -> Path:
    """Where a split is, packed or not.

    Raises:
        DataError: it isn't there, or there is no such split.
    """
    if split not in FILES:
        raise DataError(f"SST-2 has no split {split!r}; it has {', '.join(FILES)}.")
    for name in (f"{FILES[split]}.gz", FILES[split]):
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder} holds neither {FILES[split]} nor {FILES[split]}.gz. Name the folder of the SST-2 files.")


def read_sentiment(path: Path) -> list[Sentence]:
    """Every line of a file.

    Raises:
        DataError: missing, broken gzip, empty, or a line that isn't a label and a sentence; the line is named.
    """
    lines = text_of(path).replace("\r\n", "\n").removesuffix("\n").split("\n")
    if lines == [""]:
        raise DataError(f"{path} is empty. Download or write it again.")
    return [_sentence(line, number, path) for number, line in enumerate(lines, start=1)]


def text_of(path: Path) -> str:
    """A text file, unpacked if its name ends in `.gz`: UTF-8, or latin-1 where it isn't valid UTF-8.

    Raises:
        DataError: it can't be read.
    """
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} can't be read: {error}. Check the path, or download the file again.") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _sentence(line: str, number: int, path: Path) -> Sentence:
    label, space, text = line.partition(" ")
    if label not in ("0", "1") or not space or not text.strip():
        raise DataError(
            f"{path}, line {number}: {line[:60]!r} is not a label (0 or 1), a space and a sentence, as in "
            "'1 a stirring film'."
        )
    return Sentence(text=text.strip(), label=int(label))
