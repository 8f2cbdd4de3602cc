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
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from regtune.errors import DataError, shown
from regtune.records import write_bytes
from regtune.tasks.files import Parsed
from regtune.tasks.qa.data.records import RecordCollector
from regtune.tasks.qa.examples import QAExample

_SHAPE = (
    'A SQuAD file is {"data": [{"paragraphs": [{"context": …, "qas": […]}]}]}; MRQA, CMRC and rows with id, context, '
    "question and answers are read, too."
)


def collect_parsed(parsed: Parsed, file: str, collector: RecordCollector) -> None:
    """Adds every question of one file's JSON to the collector; raises as `load_questions` does."""
    before = collector.count
    for place, value in parsed.values:
        items = _items(value, place)
        if items is None:
            raise DataError(
                f"{file} is JSON, but not in SQuAD format: {place or 'it'} has no list under 'data'. {_SHAPE}"
            )
        for item, content in items:
            _collect_item(content, f"{file}: {item}", collector)
    for place, reason in parsed.broken:
        collector.reject(reason, f"{file}: {place}")
    if collector.count == before:
        raise DataError(f"{file} holds no question. Check that it is the file you meant. {_SHAPE}")
    collector.notes["objects that name a field twice, of which the last one counts"] += parsed.repeated


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


def _collect_item(item: Any, place: str, collector: RecordCollector) -> None:
    """An article, a paragraph or a row."""
    if isinstance(item, Mapping) and "paragraphs" not in item:
        if "qas" in item:
            return _collect_paragraph(item, item.get("title"), place, collector)
        if {"question", "context"} & item.keys():
            return collector.add(item, place)
    for number, paragraph in enumerate(_list_of(item, "paragraphs", place, collector)):
        _collect_paragraph(paragraph, item.get("title"), f"{place}.paragraphs[{number}]", collector)
    return None


def _collect_paragraph(paragraph: Any, title: Any, place: str, collector: RecordCollector) -> None:
    questions = _list_of(paragraph, "qas", place, collector)
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
        collector.add(record, f"{place}.qas[{index}]")


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


def _list_of(parent: Any, name: str, place: str, collector: RecordCollector) -> list[Any]:
    """The list under `name`; when there is none the whole item is one bad record."""
    if not isinstance(parent, dict):
        collector.reject(f"an object is needed here, not a {type(parent).__name__}.", place)
    elif name not in parent:
        has = ", ".join(shown(key, 30)[1:-1] for key in list(parent)[:12]) or "no fields"
        collector.reject(f"the field {name!r} is missing; it has {has}. {_SHAPE}", place)
    elif not isinstance(parent[name], list):
        collector.reject(f"{name} must be a list, not a {type(parent[name]).__name__}.", place)
    else:
        items: list[Any] = parent[name]
        return items
    return []


def write_squad(examples: Iterable[QAExample], path: str | Path) -> Path:
    """Writes examples as a SQuAD file, atomically; `load_questions` gives the same examples back.

    An answer without a place is written without `answer_start`. Neighbours with the same title share an article,
    neighbours with the same context a paragraph. The file is v2.0 when a question is impossible, and gzip when the name
    ends in `.gz` (the same bytes every time).

    Args:
        examples: the questions to write.
        path: the file; its folder is made where there is none.

    Returns:
        The path.

    Raises:
        DataError: an example that `load_questions` would refuse, or a path that cannot be written.
    """
    path, examples = Path(path), list(examples)
    _require_readable(examples, path)
    v2 = any(example.is_impossible for example in examples)
    articles = []
    for title, group in groupby(examples, key=lambda e: e.title):
        paragraphs = groupby(group, key=lambda e: e.context)
        made = [{"context": context, "qas": [_question(e, v2=v2) for e in asked]} for context, asked in paragraphs]
        articles.append({"title": title, "paragraphs": made})
    document = {"version": "v2.0" if v2 else "1.1", "data": articles}
    raw = json.dumps(document, ensure_ascii=False, indent=1).encode()
    try:
        return write_bytes(path, gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}. Check the folder and the space on the disk.") from error


def _require_readable(examples: list[QAExample], path: Path) -> None:
    collector = RecordCollector(for_training=False)
    for index, example in enumerate(examples):
        record = _question(example, v2=True) | {"context": example.context, "title": example.title}
        # Each answer by itself: reading accepts a wrong one beside a good one.
        collector.for_training = any(answer.start is not None for answer in example.answers)
        place = f"{path} (to be written): examples[{index}]"
        collector.add(record, place)
        for answer in example.answers:
            if answer.start is not None and not example.context.startswith(answer.text, answer.start):
                collector.reject(f"answer_start={answer.start} does not give {shown(answer.text)}.", place)
    collector.finish()


def _question(example: QAExample, *, v2: bool) -> dict[str, Any]:
    answers = [
        {"text": answer.text} | ({} if answer.start is None else {"answer_start": answer.start})
        for answer in example.answers
    ]
    record: dict[str, Any] = {"id": example.id, "question": example.question, "answers": answers}
    return record | ({"is_impossible": example.is_impossible} if v2 else {})
