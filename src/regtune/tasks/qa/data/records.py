"""One question at a time: the checks that files and hub data sets share, and the account of what they changed.

A question counts as long as one of its answers does. What is harmless is converted (an id that is a number, an offset
that is text) and counted by kind; what is not is left out and listed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from regtune.errors import ConfigError, DataError, shown
from regtune.interfaces import Examples
from regtune.tasks.qa.examples import Answer, QAExample

OnBadRecord = Literal["raise", "skip", "mend"]
OnDuplicateId = Literal["refuse", "renumber"]

_NEAR = 3
"""An offset that is wrong by at most so many characters can be mended."""
_SEARCHED = 200_000_000
"""Characters that are searched at most for the advice in messages and for answers without an offset."""
_IDS = ("id", "guid", "qid", "query_id")
_QUESTIONS = ("question", "query_text")
_WORDS_OF_TRUTH = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordNote:
    """What is wrong with a record, or what was done to it, in words."""

    place: str
    """The file (or hub set) that it is in, and where there."""
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


class RecordFaultError(Exception):
    """What is wrong with one record; `RecordCollector` turns it into a `DataError` or a `RecordNote`."""


class RecordCollector:
    """Takes records one by one, keeps the good ones and raises at, or lists, the bad ones, as `load_questions` says.

    Raises:
        ConfigError: one of the two choices is not a known word.
    """

    def __init__(
        self, on_bad_record: str = "raise", on_duplicate_id: str = "refuse", *, for_training: bool = True
    ) -> None:
        for name, value, known in (
            ("on_bad_record", on_bad_record, OnBadRecord),
            ("on_duplicate_id", on_duplicate_id, OnDuplicateId),
        ):
            if value not in get_args(known):
                raise ConfigError(f"{name}={value!r} is not one of {', '.join(get_args(known))}.")
        self.on_bad_record = on_bad_record
        self.on_duplicate_id = on_duplicate_id
        self.for_training = for_training
        self.examples: list[QAExample] = []
        self.skipped: list[RecordNote] = []
        self.mended: list[RecordNote] = []
        self.notes: Counter[str] = Counter()
        self._places: dict[str, str] = {}
        self._numbers: Counter[str] = Counter()
        self._context: _Context | None = None
        self._budget = _SEARCHED

    @property
    def count(self) -> int:
        """Records seen so far, good and bad."""
        return len(self.examples) + len(self.skipped)

    def add(self, record: Any, place: str, *, empty_is_impossible: bool = False) -> None:
        """Checks one question and keeps it.

        Args:
            record: a mapping with `id`, `question`, `context`, `answers` (a list of `text` and `answer_start`, a
                mapping of two such lists, or a list of texts) and optionally `title` and `is_impossible`.
            place: where the record was read from, for messages.
            empty_is_impossible: the source has no `is_impossible` field and marks such questions by empty answers.

        Raises:
            DataError: the record is bad and `on_bad_record` is "raise".
        """
        key = _id_key(record)
        place = place if key is None else f"{place} id={shown(record[key])}"
        draft = _Draft()
        try:
            example = self._example(record, empty_is_impossible, draft)
        except RecordFaultError as fault:
            self.reject(str(fault), place)
            return
        self._places[example.id] = place
        self.examples.append(example)
        self.notes += draft.notes
        for answer, before, found in draft.moved:
            moved = f"answer_start {before} became {found.start} ({found.cause})"
            self.mended.append(RecordNote(place=f"{place}.{answer}", reason=moved))

    def reject(self, reason: str, place: str) -> None:
        """Lists a bad record, or raises a `DataError` about it."""
        bad = RecordNote(place=place, reason=reason)
        if self.on_bad_record == "raise":
            raise DataError(
                f"{bad} Mend it, or leave such records out: --data.on-bad-record skip of `regtune train`, "
                "--on-bad-record skip of `regtune evaluate`, on_bad_record='skip' in Python, where "
                "regtune.write_squad writes a clean file for every command."
            )
        self.skipped.append(bad)

    def finish(self, names: Sequence[str] = (), max_examples: int | None = None) -> Examples:
        """Everything that was collected, and the account of what was left out, moved or converted.

        Args:
            names: the sets, as they were named.
            max_examples: keep only the first so many questions.

        Raises:
            DataError: not one question is left.
        """
        if not self.examples:
            first = f" {len(self.skipped)} were skipped, the first one: {self.skipped[0]}" if self.skipped else ""
            raise DataError(f"There is not one usable question in the data.{first}")
        items, usable = tuple(self.examples[:max_examples]), len(self.examples)
        told, read = [], usable + len(self.skipped)
        if self.skipped:
            told.append(f"{len(self.skipped)} of {read} questions were left out, the first: {self.skipped[0]}")
        if usable > len(items):
            told.append(f"the first {len(items)} of {usable} usable questions are used, as asked for")
        if self.mended:
            told.append(f"{len(self.mended)} offsets were mended, the first: {self.mended[0]}")
        notes = dict(+self.notes)
        return Examples(
            items=items,
            names=tuple(names),
            skipped=tuple(self.skipped),
            notes=(*told, *(f"{count} {kind}" for kind, count in notes.items())),
            facts={
                "read": read,
                "left_out": len(self.skipped),
                "skipped": [asdict(record) for record in self.skipped],
                "mended": [asdict(record) for record in self.mended],
                "notes": notes,
            },
        )

    def _example(self, record: Any, empty_is_impossible: bool, draft: _Draft) -> QAExample:
        if not isinstance(record, Mapping):
            raise RecordFaultError(f"a question must be an object, but this is {_kind(record)}.")
        identifier = _identifier(record, draft)
        question = _text(record, next((key for key in _QUESTIONS if key in record), "question"))
        context = _field(record, "context")
        if self._context is None or context != self._context.text:
            self._context = _Context(_text(record, "context"))
        answers, impossible = self._answers(record, self._context, empty_is_impossible, draft)
        title = record.get("title")
        if title is not None and not (isinstance(title, str) and is_unicode(title)):
            draft.notes["titles that are no text, left empty"] += 1
            title = None
        return QAExample(
            id=self._unique(identifier, draft),
            question=question,
            context=self._context.text,
            answers=answers,
            title=title or "",
            is_impossible=impossible,
        )

    def _answers(
        self, record: Mapping[str, Any], context: _Context, empty_is_impossible: bool, draft: _Draft
    ) -> tuple[tuple[Answer, ...], bool]:
        given = _given_answers(_field(record, "answers"))
        impossible = _impossible(record, draft)
        texts = [answer for answer in given if isinstance(answer.text, str) and answer.text.strip()]
        if impossible is None:
            impossible = empty_is_impossible and not texts
        if impossible:
            if texts:
                raise RecordFaultError(
                    f"is_impossible is true, yet there are answers ({shown(texts[0].text)}); remove one."
                )
            draft.notes["empty answers of questions without an answer, dropped"] += len(given)
            return (), True
        if not given:
            raise RecordFaultError("there is no answer; give one, or set is_impossible to true (SQuAD v2.0).")
        made, faults = [], []
        for answer in given:
            try:
                made.append(self._answer(answer, context, draft))
            except RecordFaultError as fault:
                draft.notes["answers without a text beside good ones, left out"] += 1
                faults.append(str(fault))
        placed = any(answer.start is not None for answer in made)
        if not made or (self.for_training and not placed):
            raise RecordFaultError((draft.misplaced or faults)[0])
        draft.notes["answers whose offset is wrong or not known, which count by their text"] += len(draft.misplaced)
        return tuple(made), False

    def _answer(self, answer: _Given, context: _Context, draft: _Draft) -> Answer:
        """The answer with its place, or without one where that is wrong (said in the draft)."""
        text = answer.text
        if not isinstance(text, str) or not text.strip() or not is_unicode(text):
            raise RecordFaultError(answer.fault or f"{answer.place}: {_fault_of_text('text', text)}")
        start = _whole_number(answer.start, draft)
        if start is None and answer.start is not None:
            draft.misplaced.append(
                f"{answer.place}: answer_start must be a whole number, but it is {_kind(answer.start)}."
            )
            return Answer(text=text, start=None)
        if start is None or start == -1:
            found = context.only(text) if self._may_search(context) else None
            if found is not None:
                draft.notes["answers without an offset, found where their text occurs the only time"] += 1
                return Answer(text=text, start=found)
            draft.misplaced.append(
                f"{answer.place}: answer_start is not given, and the text {shown(text)} does not occur exactly once in "
                "the context, so it has no place to train on; give answer_start."
            )
            return Answer(text=text, start=None)
        if start >= 0 and context.text.startswith(text, start):
            return Answer(text=text, start=start)
        near = context.near(text, start)
        if near is not None and self.on_bad_record == "mend":
            draft.moved.append((answer.place, start, near))
            # The context's own letters: they differ in case or kind of space alone, which no metric looks at.
            return Answer(text=context.text[near.start : near.start + len(text)], start=near.start)
        draft.misplaced.append(f"{answer.place}: {self._misplaced(text, context, start, near)}")
        return Answer(text=text, start=None)

    def _misplaced(self, text: str, context: _Context, start: int, near: _Found | None) -> str:
        """What is wrong with an offset. An occurrence is named only where no other can be meant."""
        if start < 0 or start + len(text) > len(context.text):
            wrong = f"answer_start={shown(start)} lies outside the context of {len(context.text)} characters"
        else:
            wrong = f"answer_start={start} gives {shown(context.text[start : start + len(text)])}"
        if near is not None:
            advice = (
                f"the text occurs at {near.start} ({near.cause}): correct answer_start, or let on_bad_record='mend' do "
                "it."
            )
        elif not self._may_search(context):
            advice = "correct answer_start."
        elif (only := context.only(text)) is not None:
            advice = f"the text occurs once, at {only}: correct answer_start."
        elif text in context.text:
            advice = "the text occurs more than once, at no place that is certain: correct answer_start."
        else:
            advice = "the text does not occur in the context (a difference in case, spaces or Unicode form?)."
        return f"{wrong}, where the answer is {shown(text)}; {advice}"

    def _may_search(self, context: _Context) -> bool:
        """Whether another search through this context keeps the reading of a bad file short."""
        self._budget -= len(context.text)
        return self._budget > 0

    def _unique(self, identifier: str | None, draft: _Draft) -> str:
        if identifier is not None and identifier not in self._places:
            return identifier
        if identifier is None:
            draft.notes["questions without an id, numbered (unnamed#1, unnamed#2, …)"] += 1
        elif self.on_duplicate_id == "refuse":
            raise RecordFaultError(
                f"the id {shown(identifier)} was already used by {self._places[identifier]}. Predictions are kept "
                "by id, so each needs its own. Sets that share ids are to be evaluated one by one; a copy whose ids "
                "were cut short (some copies of TyDi QA) can be read in Python with on_duplicate_id='renumber', and "
                "written anew with regtune.write_squad."
            )
        else:
            draft.notes["ids that were used before, numbered anew"] += 1
        stem, first = (identifier, 2) if identifier is not None else ("unnamed", 1)
        number = max(self._numbers[stem], first)
        while f"{stem}#{number}" in self._places:
            number += 1
        self._numbers[stem] = number + 1
        return f"{stem}#{number}"


class _Found(NamedTuple):
    """Where a misplaced answer must be, and why its offset was wrong."""

    start: int
    cause: str


class _Given(NamedTuple):
    """An answer as the source has it."""

    place: str
    text: Any
    start: Any
    fault: str = ""


class _Draft:
    """What was done to one record; counted only if the record is kept."""

    def __init__(self) -> None:
        self.notes: Counter[str] = Counter()
        self.moved: list[tuple[str, int, _Found]] = []
        self.misplaced: list[str] = []


class _Context:
    """A context, and where the answers in it are."""

    def __init__(self, text: str) -> None:
        self.text = text

    def only(self, text: str) -> int | None:
        """Where the text occurs, if it occurs once."""
        found = self.text.find(text)
        return found if found >= 0 and self.text.find(text, found + 1) < 0 else None

    def near(self, text: str, start: int) -> _Found | None:
        """The one place that a wrong offset can mean; None if there is none, or more than one."""
        if not -_NEAR <= start <= 4 * len(self.text):
            return None
        places = range(max(0, start - _NEAR), start + _NEAR + 1)
        found = {place: f"off by {abs(place - start)}" for place in places if self.text.startswith(text, place)}
        if not found:
            wanted = _folded(text)
            found = {
                place: "it differs in case or kind of space" + f", off by {abs(place - start)}" * (place != start)
                for place in places
                if _folded(self.text[place : place + len(text)]) == wanted
            }
        if not self.text.isascii():
            for unit, counted in (("UTF-16 units", self._utf16), ("UTF-8 bytes", self._utf8)):
                place = int(np.searchsorted(counted, start))
                if counted[min(place, len(counted) - 1)] == start and self.text.startswith(text, place):
                    found[place] = f"it counts {unit}, and offsets count characters"
        return _Found(*found.popitem()) if len(found) == 1 else None

    @cached_property
    def _codes(self) -> np.ndarray:
        return np.frombuffer(self.text.encode("utf-32-le"), dtype=np.uint32)

    @cached_property
    def _utf16(self) -> np.ndarray:
        """For each character the UTF-16 units before it, and all of them."""
        return np.append(0, np.cumsum(1 + (self._codes > 0xFFFF)))

    @cached_property
    def _utf8(self) -> np.ndarray:
        sizes = 1 + sum((self._codes > least).astype(np.int64) for least in (0x7F, 0x7FF, 0xFFFF))
        return np.append(0, np.cumsum(sizes))


def _folded(text: str) -> str:
    """Without case and kinds of space; compared for texts of one length alone."""
    return re.sub(r"\s", " ", text).lower()


def is_unicode(text: str) -> bool:
    r"""Whether the text can be written as UTF-8 (lone halves of surrogate pairs, `"\ud83d"` in JSON, cannot)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true/false", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}") + ("" if value is None else f" ({shown(value)})")


def _field(record: Mapping[str, Any], name: str) -> Any:
    if name not in record:
        has = ", ".join(shown(str(key), 30)[1:-1] for key in list(record)[:12]) or "no fields"
        raise RecordFaultError(f"the field {name!r} is missing; it has {has}.")
    return record[name]


def _text(record: Mapping[str, Any], name: str) -> str:
    value = _field(record, name)
    if not isinstance(value, str) or not value.strip() or not is_unicode(value):
        raise RecordFaultError(_fault_of_text(name, value))
    return value


def _fault_of_text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        return f"{name} must be text, but it is {_kind(value)}."
    if not value.strip():
        return f"{name} is empty ({shown(value)})."
    return f"{name} holds half a surrogate pair and is no valid Unicode ({shown(value)})."


def _id_key(record: Any) -> str | None:
    """The field that names a record: the first one that is there and not blank."""
    if not isinstance(record, Mapping):
        return None
    given = ((key, record.get(key)) for key in _IDS)
    return next(
        (key for key, value in given if value is not None and not (isinstance(value, str) and not value.strip())), None
    )


def _identifier(record: Mapping[str, Any], draft: _Draft) -> str | None:
    """The id as text; None if there is none."""
    name = _id_key(record)
    if name is None:
        return None
    value = record[name]
    if name != "id":
        draft.notes[f"ids that stand under {name!r}"] += 1
    number = value if isinstance(value, int) and not isinstance(value, bool) else None
    if isinstance(value, float) and value.is_integer():
        number = int(value)
    if number is not None:
        draft.notes["ids that are numbers, taken as text"] += 1
        return str(number)
    return _text(record, name)


def _whole_number(value: Any, draft: _Draft) -> int | None:
    """An offset; None if it is no whole number in any spelling."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    whole = isinstance(value, float) and value.is_integer()
    if whole or (isinstance(value, str) and value.strip().removeprefix("-").isdecimal() and len(value) < 20):
        draft.notes["offsets given as text or as decimal numbers, taken as whole numbers"] += 1
        return int(value)
    return None


def _impossible(record: Mapping[str, Any], draft: _Draft) -> bool | None:
    """Whether a question says of itself that it has no answer; None if it says nothing."""
    value = record.get("is_impossible")
    if "is_impossible" not in record or isinstance(value, bool):
        return value
    if value is None:
        draft.notes["is_impossible given as null, taken as not given"] += 1
        return None
    truth = None
    if isinstance(value, int | float | str):
        truth = _WORDS_OF_TRUTH.get(str(value).strip().lower().removesuffix(".0"))
    if truth is None:
        raise RecordFaultError(f"is_impossible must be true or false, but it is {_kind(value)}.")
    draft.notes["is_impossible given as a number or as text"] += 1
    return truth


def _given_answers(answers: Any) -> list[_Given]:
    if isinstance(answers, Mapping):
        texts, starts = answers.get("text"), answers.get("answer_start")
        if isinstance(texts, list):
            starts = [None] * len(texts) if starts is None else starts
            if not isinstance(starts, list) or len(starts) != len(texts):
                raise RecordFaultError(
                    f"answers has {len(texts)} texts, but as answer_start {_kind(starts)}; one is needed for each."
                )
            pairs = list(zip(texts, starts, strict=True))
        elif isinstance(texts, str):
            pairs = [(texts, starts)]
        else:
            raise RecordFaultError(f"answers must hold texts under 'text', but it is {_kind(answers)}.")
        return [_Given(f"answers[{index}]", *pair) for index, pair in enumerate(pairs)]
    if not isinstance(answers, list):
        raise RecordFaultError(f"answers must be a list, but it is {_kind(answers)}.")
    return [_given_answer(answer, f"answers[{index}]") for index, answer in enumerate(answers)]


def _given_answer(answer: Any, place: str) -> _Given:
    if isinstance(answer, str):
        return _Given(place, answer, None)
    if not isinstance(answer, Mapping):
        fault = f"{place} must be an object with text and answer_start, but it is {_kind(answer)}."
        return _Given(place, None, None, fault)
    fault = "" if "text" in answer else f"{place}: the field 'text' is missing."
    return _Given(place, answer.get("text"), answer.get("answer_start"), fault)
