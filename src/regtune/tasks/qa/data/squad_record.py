"""One question at a time, strictly: the checks that files and hub data sets share, and what they leave behind."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from regtune.errors import ConfigError, DataError
from regtune.tasks.qa.examples import Answer, QAExample

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80

OnBadRecord = Literal["raise", "skip"]
OnDuplicateId = Literal["refuse", "renumber"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BadRecord:
    """A record that was left out: the file (or hub set) it is in, its place there, and what is wrong with it."""

    file: str
    item: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.item}: {self.reason}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SquadData:
    """Questions that passed every check, in the order of their files, and the records that were skipped."""

    examples: tuple[QAExample, ...]
    skipped: tuple[BadRecord, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[QAExample]:
        return iter(self.examples)


class RecordFaultError(Exception):
    """What is wrong with one record; `RecordCollector` turns it into a `DataError` or a `BadRecord`."""


class RecordCollector:
    """Takes records one by one, keeps the good ones and raises at, or lists, the bad ones.

    Args:
        on_bad_record: "raise" stops at the first bad record, "skip" lists it and goes on.
        on_duplicate_id: "refuse" treats a second use of an id as a bad record; "renumber" keeps the question under
            `id#2`, `id#3` …, for copies of data sets whose ids were cut short.

    Raises:
        ConfigError: one of the two choices is not a known word.
    """

    def __init__(self, on_bad_record: str = "raise", on_duplicate_id: str = "refuse") -> None:
        _require_choice("on_bad_record", on_bad_record, ("raise", "skip"))
        _require_choice("on_duplicate_id", on_duplicate_id, ("refuse", "renumber"))
        self.on_bad_record = on_bad_record
        self.on_duplicate_id = on_duplicate_id
        self.examples: list[QAExample] = []
        self.skipped: list[BadRecord] = []
        self._places: dict[str, str] = {}
        self._checked_context: str | None = None

    @property
    def count(self) -> int:
        """Records seen so far, good and bad."""
        return len(self.examples) + len(self.skipped)

    def add(self, record: Any, *, file: str, item: str, empty_is_impossible: bool = False) -> None:
        """Checks one question and keeps it.

        Args:
            record: a mapping with `id`, `question`, `context`, `answers` (a list of `text` and `answer_start`) and
                optionally `title` and `is_impossible`.
            file: what the record was read from, for messages.
            item: the record's place in it, for messages.
            empty_is_impossible: the source has no `is_impossible` field and marks such questions by empty answers.

        Raises:
            DataError: the record is bad and `on_bad_record` is "raise".
        """
        if isinstance(record, Mapping) and "id" in record:
            item = f"{item} id={_shorten(record['id'])}"
        try:
            example = self._example(record, empty_is_impossible)
            self._places[example.id] = f"{file}: {item}"
            self.examples.append(example)
        except RecordFaultError as fault:
            self.reject(str(fault), file=file, item=item)

    def reject(self, reason: str, *, file: str, item: str) -> None:
        """Lists a bad record, or raises a `DataError` about it."""
        bad = BadRecord(file=file, item=item, reason=reason)
        if self.on_bad_record == "raise":
            raise DataError(f"{bad} Mend it, or leave such records out with on_bad_record='skip'.")
        self.skipped.append(bad)

    def finish(self, max_examples: int | None = None) -> SquadData:
        """Everything that was collected; `max_examples` keeps only the first so many questions.

        Raises:
            DataError: not one question is left.
        """
        if not self.examples:
            first = f" {len(self.skipped)} were skipped, the first one: {self.skipped[0]}" if self.skipped else ""
            raise DataError(f"There is not one usable question in the data.{first}")
        return SquadData(examples=tuple(self.examples[:max_examples]), skipped=tuple(self.skipped))

    def _example(self, record: Any, empty_is_impossible: bool) -> QAExample:
        if not isinstance(record, Mapping):
            raise RecordFaultError(f"a question must be an object, but this is {_kind(record)}.")
        identifier = _text(record, "id", may_be_blank=False)
        question = _text(record, "question", may_be_blank=False)
        context = _field(record, "context")
        if context is None or context is not self._checked_context:
            context = _text(record, "context", may_be_blank=False)
            self._checked_context = context
        title = _text(record, "title", may_be_blank=True) if record.get("title") is not None else ""
        answers = _answers(_field(record, "answers"), context)
        impossible = _impossible(record, answers, empty_is_impossible)
        return QAExample(
            id=self._unique(identifier),
            question=question,
            context=context,
            answers=answers,
            title=title,
            is_impossible=impossible,
        )

    def _unique(self, identifier: str) -> str:
        if identifier not in self._places:
            return identifier
        if self.on_duplicate_id == "refuse":
            raise RecordFaultError(
                f"the id {_shorten(identifier)} was already used by {self._places[identifier]}. Predictions are kept "
                "by id, so each needs its own. Sets that share ids are to be evaluated one by one; a copy whose ids "
                "were cut short (some copies of TyDi QA) can be read with on_duplicate_id='renumber'."
            )
        number = 2
        while f"{identifier}#{number}" in self._places:
            number += 1
        return f"{identifier}#{number}"


def is_unicode(text: str) -> bool:
    r"""Whether the text can be written as UTF-8 (lone halves of surrogate pairs, `"\ud83d"` in JSON, cannot)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _require_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name}={value!r} is not one of {', '.join(known)}.")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true/false", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}") + ("" if value is None else f" ({_shorten(value)})")


def _shorten(value: Any) -> str:
    return _REPR.repr(value)


def _field(record: Mapping[str, Any], name: str) -> Any:
    if name not in record:
        raise RecordFaultError(f"the field {name!r} is missing; it has {', '.join(map(str, record)) or 'no fields'}.")
    return record[name]


def _text(record: Mapping[str, Any], name: str, *, may_be_blank: bool) -> str:
    value = _field(record, name)
    if not isinstance(value, str):
        raise RecordFaultError(f"{name} must be text, but it is {_kind(value)}.")
    if not may_be_blank and not value.strip():
        raise RecordFaultError(f"{name} is empty ({_shorten(value)}).")
    if not is_unicode(value):
        raise RecordFaultError(f"{name} holds half a surrogate pair and is no valid Unicode ({_shorten(value)}).")
    return value


def _impossible(record: Mapping[str, Any], answers: tuple[Answer, ...], empty_is_impossible: bool) -> bool:
    impossible = record.get("is_impossible", empty_is_impossible and not answers)
    if not isinstance(impossible, bool):
        raise RecordFaultError(f"is_impossible must be true or false, but it is {_kind(impossible)}.")
    if impossible and answers:
        raise RecordFaultError(
            f"is_impossible is true, yet there are answers ({_shorten(answers[0].text)}); remove one."
        )
    if not impossible and not answers:
        raise RecordFaultError("there is no answer; give one, or set is_impossible to true (SQuAD v2.0).")
    return impossible


def _answers(answers: Any, context: str) -> tuple[Answer, ...]:
    if not isinstance(answers, list):
        raise RecordFaultError(f"answers must be a list, but it is {_kind(answers)}.")
    return tuple(_answer(answer, context, f"answers[{index}]") for index, answer in enumerate(answers))


def _answer(answer: Any, context: str, place: str) -> Answer:
    if not isinstance(answer, Mapping):
        raise RecordFaultError(f"{place} must be an object with text and answer_start, but it is {_kind(answer)}.")
    text, start = _text(answer, "text", may_be_blank=False), _field(answer, "answer_start")
    if not isinstance(start, int) or isinstance(start, bool):
        raise RecordFaultError(f"{place}: answer_start must be a whole number, but it is {_kind(start)}.")
    if start >= 0 and context.startswith(text, start):
        return Answer(text=text, start=start)
    end = start + len(text)
    if start < 0 or end > len(context):
        wrong = f"answer_start={_shorten(start)} lies outside the context of {len(context)} characters"
    else:
        wrong = f"answer_start={start} gives {_shorten(context[start:end])}"
    raise RecordFaultError(
        f"{place}: {wrong}, where the answer is {_shorten(text)}; {_whereabouts(text, context, start)}"
    )


def _whereabouts(text: str, context: str, start: int) -> str:
    """Where the text does occur: the advice in the message about a wrong offset."""
    places = []
    found = context.find(text)
    while found >= 0:
        places.append(found)
        found = context.find(text, found + 1)
    if not places:
        return "the text does not occur in the context (a difference in case, spaces or Unicode form?)."
    nearest = sorted(places, key=lambda place: abs(place - start))[:3]
    counted = ""
    for unit, encoding, width in (("UTF-8 bytes", "utf-8", 1), ("UTF-16 units", "utf-16-le", 2)):
        if start in (len(context[:place].encode(encoding)) // width for place in nearest):
            counted = f" It seems to count {unit}; offsets count code points."
    return f"the text occurs at {', '.join(map(str, nearest))}: correct answer_start.{counted}"
