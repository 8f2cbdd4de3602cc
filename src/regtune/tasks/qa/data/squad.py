"""SQuAD-format question answering files, v1.1 and v2.0: strict reading, and writing.

The format is that of Rajpurkar et al., 2016 (arXiv 1606.05250) and 2018 (arXiv 1806.03822):
`data → paragraphs → qas → answers`. Offsets count characters (code points).
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from regtune.errors import DataError
from regtune.tasks.qa.data.squad_files import read_json
from regtune.tasks.qa.data.squad_record import BadRecord, OnBadRecord, OnDuplicateId, RecordCollector, SquadData
from regtune.tasks.qa.examples import QAExample

__all__ = ["BadRecord", "SquadData", "collect_document", "collect_files", "read_squad", "write_squad"]

_SHAPE = 'A SQuAD file is {"data": [{"paragraphs": [{"context": …, "qas": […]}]}]}.'


def read_squad(
    paths: str | Path | Sequence[str | Path],
    *,
    on_bad_record: OnBadRecord = "raise",
    on_duplicate_id: OnDuplicateId = "refuse",
) -> SquadData:
    """Reads one SQuAD file or several, `.json` or `.json.gz`, and checks every question in them.

    A record is bad when a field is missing or of the wrong type, a question, context or answer is empty, an offset
    does not give its answer's text, an answer lies outside the context, or its id was used before (in any file).
    `plausible_answers` and unknown fields are ignored.

    Args:
        paths: the file or files.
        on_bad_record: "raise" at the first bad record, or "skip": leave it out and list it in `skipped`.
        on_duplicate_id: "refuse" a second use of an id, or "renumber" it (`id#2`).

    Returns:
        The questions in the order of the files, and the skipped records.

    Raises:
        DataError: a bad record (unless skipped), or a file that cannot be read, is broken, is no SQuAD file, holds
            no question or is named twice. The message names the file, the item and what to do.
    """
    collector = RecordCollector(on_bad_record, on_duplicate_id)
    collect_files([paths] if isinstance(paths, str | Path) else paths, collector)
    return collector.finish()


def collect_files(paths: Iterable[str | Path], collector: RecordCollector) -> None:
    """Adds every question of these files to the collector; raises as `read_squad` does."""
    seen: set[str] = set()
    for path in map(Path, paths):
        real = os.path.realpath(os.fspath(path).replace("\0", ""))
        if real in seen:
            raise DataError(f"{path} is named twice. Name every file once.")
        seen.add(real)
        collect_document(read_json(path), str(path), collector)


def collect_document(document: Any, file: str, collector: RecordCollector) -> None:
    """Adds every question of one SQuAD document to the collector; raises as `read_squad` does."""
    if not isinstance(document, dict) or not isinstance(document.get("data"), list):
        raise DataError(f"{file} is JSON, but not in SQuAD format: there is no list under 'data'. {_SHAPE}")
    before = collector.count
    for index, article in enumerate(document["data"]):
        paragraphs = _list_of(article, "paragraphs", file, f"data[{index}]", collector)
        for number, paragraph in enumerate(paragraphs):
            _collect_paragraph(paragraph, article.get("title"), file, f"data[{index}].paragraphs[{number}]", collector)
    if collector.count == before:
        raise DataError(f"{file} holds no question. Check that it is the file you meant. {_SHAPE}")


def _collect_paragraph(paragraph: Any, title: Any, file: str, item: str, collector: RecordCollector) -> None:
    for index, question in enumerate(_list_of(paragraph, "qas", file, item, collector)):
        record = question
        if isinstance(question, dict):
            own = {name: value for name, value in question.items() if name not in ("title", "context")}
            record = own | {"title": title} | {name: paragraph[name] for name in ("context",) if name in paragraph}
        collector.add(record, file=file, item=f"{item}.qas[{index}]")


def _list_of(parent: Any, name: str, file: str, item: str, collector: RecordCollector) -> list[Any]:
    """The list under `name`; when there is none the whole item is one bad record."""
    if not isinstance(parent, dict):
        collector.reject(f"an object is needed here, not a {type(parent).__name__}.", file=file, item=item)
    elif name not in parent:
        collector.reject(f"the field {name!r} is missing.", file=file, item=item)
    elif not isinstance(parent[name], list):
        collector.reject(f"{name} must be a list, not a {type(parent[name]).__name__}.", file=file, item=item)
    else:
        items: list[Any] = parent[name]
        return items
    return []


def write_squad(examples: Iterable[QAExample], path: str | Path) -> Path:
    """Writes examples as a SQuAD file, atomically; `read_squad` gives the same examples back.

    Neighbours with the same title share an article, neighbours with the same context a paragraph. The file is v2.0
    when a question is impossible, and gzip when the name ends in `.gz` (the same bytes every time).

    Args:
        examples: the questions to write.
        path: the file; its folder must exist.

    Returns:
        The path.

    Raises:
        DataError: an example that `read_squad` would refuse, or a path that cannot be written.
    """
    path, examples = Path(path), list(examples)
    _require_readable(examples, path)
    v2 = any(example.is_impossible for example in examples)
    articles = [_article(title, list(group), v2) for title, group in groupby(examples, key=lambda e: e.title)]
    document = {"version": "v2.0" if v2 else "1.1", "data": articles}
    raw = json.dumps(document, ensure_ascii=False, indent=1).encode()
    _replace(path, gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)
    return path


def _require_readable(examples: list[QAExample], path: Path) -> None:
    collector = RecordCollector()
    for index, example in enumerate(examples):
        record = _question(example, v2=True) | {"context": example.context, "title": example.title}
        collector.add(record, file=f"{path} (to be written)", item=f"examples[{index}]")
    collector.finish()


def _article(title: str, examples: list[QAExample], v2: bool) -> dict[str, Any]:
    paragraphs = [
        {"context": context, "qas": [_question(example, v2=v2) for example in group]}
        for context, group in groupby(examples, key=lambda example: example.context)
    ]
    return {"title": title, "paragraphs": paragraphs}


def _question(example: QAExample, *, v2: bool) -> dict[str, Any]:
    answers = [{"text": answer.text, "answer_start": answer.start} for answer in example.answers]
    record: dict[str, Any] = {"id": example.id, "question": example.question, "answers": answers}
    return record | ({"is_impossible": example.is_impossible} if v2 else {})


def _replace(path: Path, raw: bytes) -> None:
    """Puts the bytes in place in one step, so that a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(raw)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"{path} cannot be written: {error}. Check the folder and the space on the disk.") from error
