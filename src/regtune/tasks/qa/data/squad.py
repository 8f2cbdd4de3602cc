"""Question-answering files: SQuAD v1.1 and v2.0, MRQA, CMRC and rows as on the hub; and writing SQuAD.

SQuAD is `data → paragraphs → qas → answers` (Rajpurkar et al., 2016, arXiv 1606.05250; 2018, arXiv 1806.03822). The
other shapes are known by their fields, wherever they stand: MRQA's JSON lines (`context`, `qas`, `detected_answers`;
Fisch et al., 2019, arXiv 1910.09753), CMRC's list (`context_text`, `qas`, `query_text`; Cui et al., 2019, arXiv
1810.07366), and flat rows (`id`, `context`, `question`, `answers`) as a list, under `data` or one a line.
Offsets count characters (code points).
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from regtune.errors import DataError, shown
from regtune.tasks.qa.data.files import MAX_UNPACKED, Parsed, read_json
from regtune.tasks.qa.data.records import BadRecord, Mend, OnBadRecord, OnDuplicateId, RecordCollector, SquadData
from regtune.tasks.qa.examples import QAExample

__all__ = ["BadRecord", "Mend", "SquadData", "collect_files", "collect_parsed", "read_squad", "write_squad"]

_SHAPE = (
    'A SQuAD file is {"data": [{"paragraphs": [{"context": …, "qas": […]}]}]}; MRQA, CMRC and rows with id, context, '
    "question and answers are read, too."
)


def read_squad(
    paths: str | Path | Sequence[str | Path],
    *,
    on_bad_record: OnBadRecord = "raise",
    on_duplicate_id: OnDuplicateId = "refuse",
    for_training: bool = True,
    max_bytes: int = MAX_UNPACKED,
) -> SquadData:
    """Reads one file of questions or several, `.json`, `.jsonl` or either with `.gz`, and checks every question.

    The shape (SQuAD, MRQA, CMRC, rows) is found from the content. A record is bad when a field is missing or of the
    wrong type, a question or context is empty, no answer is usable, or its id was used before (in any file). An answer
    is usable when it has a text and, in training, an offset that gives it. Beside a usable one, answers without a text
    are left out and answers with a wrong offset keep their text alone (`start` is None). Ids and offsets of another
    type, `is_impossible` as a number or text, and missing ids are converted. All of that is counted in `notes`.
    `plausible_answers` and unknown fields are ignored.

    Args:
        paths: the file or files.
        on_bad_record: "raise" at the first bad record; "skip": leave it out and list it in `skipped`; "mend": move a
            wrong offset to the only near occurrence of its answer (within 3 characters, or where it counts UTF-16
            units or UTF-8 bytes; case and kinds of space may differ), list that in `mended`, and skip what stays bad.
        on_duplicate_id: "refuse" a second use of an id, or "renumber" it (`id#2`).
        for_training: False where answers are only compared with: their text is enough then.
        max_bytes: most bytes that a gzip file may unpack to.

    Returns:
        The questions in the order of the files, and the account.

    Raises:
        DataError: a bad record (unless skipped), or a file that cannot be read, is broken, is of no known shape, holds
            no question or is named twice. The message names the file, the item and what to do.
    """
    collector = RecordCollector(on_bad_record, on_duplicate_id, for_training=for_training)
    collect_files([paths] if isinstance(paths, str | Path) else paths, collector, max_bytes)
    return collector.finish()


def collect_files(paths: Iterable[str | Path], collector: RecordCollector, max_bytes: int = MAX_UNPACKED) -> None:
    """Adds every question of these files to the collector; raises as `read_squad` does."""
    seen: set[str] = set()
    for path in map(Path, paths):
        real = os.path.realpath(os.fspath(path).replace("\0", ""))
        if real in seen:
            raise DataError(f"{path} is named twice. Name every file once.")
        seen.add(real)
        collect_parsed(read_json(path, max_bytes), str(path), collector)


def collect_parsed(parsed: Parsed, file: str, collector: RecordCollector) -> None:
    """Adds every question of one file's JSON to the collector; raises as `read_squad` does."""
    before = collector.count
    for place, value in parsed.values:
        items = _items(value, place)
        if items is None:
            raise DataError(
                f"{file} is JSON, but not in SQuAD format: {place or 'it'} has no list under 'data'. {_SHAPE}"
            )
        for item, content in items:
            _collect_item(content, file, item, collector)
    for place, reason in parsed.broken:
        collector.reject(reason, file=file, item=place)
    if collector.count == before:
        raise DataError(f"{file} holds no question. Check that it is the file you meant. {_SHAPE}")
    collector.note("objects that name a field twice, of which the last one counts", parsed.repeated)


def _items(value: Any, place: str) -> list[tuple[str, Any]] | None:
    """The articles, paragraphs or rows of one JSON value, each behind its place; None if it is of no known shape."""
    if isinstance(value, Mapping):
        if {"paragraphs", "qas"} & value.keys() or {"context", "question"} <= value.keys():
            return [(place or "the file", value)]
        if place and value.keys() == {"header"}:  # the first line of MRQA
            return []
        value, place = value.get("data"), f"{place}: data" if place else "data"
        return [(f"{place}[{index}]", item) for index, item in enumerate(value)] if isinstance(value, list) else None
    if isinstance(value, list) and value:
        return [(f"{place}[{index}]", item) for index, item in enumerate(value)]
    return None


def _collect_item(item: Any, file: str, place: str, collector: RecordCollector) -> None:
    """An article, a paragraph or a row."""
    if isinstance(item, Mapping) and "paragraphs" not in item:
        if "qas" in item:
            return _collect_paragraph(item, item.get("title"), file, place, collector)
        if {"question", "context"} & item.keys():
            return collector.add(item, file=file, item=place)
    for number, paragraph in enumerate(_list_of(item, "paragraphs", file, place, collector)):
        _collect_paragraph(paragraph, item.get("title"), file, f"{place}.paragraphs[{number}]", collector)
    return None


def _collect_paragraph(paragraph: Any, title: Any, file: str, item: str, collector: RecordCollector) -> None:
    questions = _list_of(paragraph, "qas", file, item, collector)
    shared = {"title": title}
    for name in ("context_text", "context"):
        if questions and name in paragraph:
            shared["context"] = paragraph[name]
    for index, question in enumerate(questions):
        record = question
        if isinstance(question, dict):
            record = {name: value for name, value in question.items() if name not in ("title", "context")} | shared
            if "detected_answers" in question:
                record["answers"] = _mrqa_answers(question, record.get("context"))
        collector.add(record, file=file, item=f"{item}.qas[{index}]")


def _mrqa_answers(question: Mapping[str, Any], context: Any) -> Any:
    """MRQA's answers: each detected one at its first place, and the texts that were detected nowhere."""
    detected, texts = question["detected_answers"], question.get("answers", [])
    if not isinstance(detected, list) or not isinstance(texts, list) or not isinstance(context, str):
        return detected
    found: list[Any] = []
    for answer in detected:
        spans = answer.get("char_spans") if isinstance(answer, Mapping) else None
        first = spans[0] if isinstance(spans, list) and spans else None
        if isinstance(first, list) and len(first) == 2 and all(type(end) is int and end >= 0 for end in first):
            text = answer.get("text")
            there = context[first[0] : first[1] + 1]  # the end is inclusive
            same = isinstance(text, str) and there.split() and there.lower().split() == text.lower().split()
            found.append({"text": there if same else text, "answer_start": first[0]})
        else:
            found.append(answer)
    seen = {answer["text"] for answer in found if isinstance(answer, Mapping) and isinstance(answer.get("text"), str)}
    return found + [text for text in texts if not (isinstance(text, str) and text in seen)]


def _list_of(parent: Any, name: str, file: str, item: str, collector: RecordCollector) -> list[Any]:
    """The list under `name`; when there is none the whole item is one bad record."""
    if not isinstance(parent, dict):
        collector.reject(f"an object is needed here, not a {type(parent).__name__}.", file=file, item=item)
    elif name not in parent:
        has = ", ".join(shown(key, 30)[1:-1] for key in list(parent)[:12]) or "no fields"
        collector.reject(f"the field {name!r} is missing; it has {has}. {_SHAPE}", file=file, item=item)
    elif not isinstance(parent[name], list):
        collector.reject(f"{name} must be a list, not a {type(parent[name]).__name__}.", file=file, item=item)
    else:
        items: list[Any] = parent[name]
        return items
    return []


def write_squad(examples: Iterable[QAExample], path: str | Path) -> Path:
    """Writes examples as a SQuAD file, atomically; `read_squad` gives the same examples back.

    An answer without a place is written without `answer_start`. Neighbours with the same title share an article,
    neighbours with the same context a paragraph. The file is v2.0 when a question is impossible, and gzip when the name
    ends in `.gz` (the same bytes every time).

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
    collector = RecordCollector(for_training=False)
    for index, example in enumerate(examples):
        record = _question(example, v2=True) | {"context": example.context, "title": example.title}
        # Each answer by itself: reading accepts a wrong one beside a good one.
        collector.for_training = any(answer.start is not None for answer in example.answers)
        file, item = f"{path} (to be written)", f"examples[{index}]"
        collector.add(record, file=file, item=item)
        for answer in example.answers:
            if answer.start is not None and not example.context.startswith(answer.text, answer.start):
                collector.reject(
                    f"answer_start={answer.start} does not give {shown(answer.text)}.", file=file, item=item
                )
    collector.finish()


def _article(title: str, examples: list[QAExample], v2: bool) -> dict[str, Any]:
    paragraphs = [
        {"context": context, "qas": [_question(example, v2=v2) for example in group]}
        for context, group in groupby(examples, key=lambda example: example.context)
    ]
    return {"title": title, "paragraphs": paragraphs}


def _question(example: QAExample, *, v2: bool) -> dict[str, Any]:
    answers = [
        {"text": answer.text} | ({} if answer.start is None else {"answer_start": answer.start})
        for answer in example.answers
    ]
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
