"""Multiple choice: which of several options answers a question; from JSON, tables or a hub set.

Training reads a question's options together, `[batch, options, seq]`, so each question needs as many. Everything else
reads them one by one, and a question may have any number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from scipy.special import softmax

from regtune.errors import DataError, shown
from regtune.interfaces import Batch, Examples, Floats, Metric, Rows, Shown, Task
from regtune.registers.surgery import register_positions
from regtune.rows.texts import TextRow, text_rows
from regtune.tasks.files import cell, hub_records, read_examples, records_of
from regtune.tasks.labels import all_labelled, label_table
from regtune.tasks.metrics import ACCURACY
from regtune.tasks.text_settings import TextSettings

if TYPE_CHECKING:
    from regtune.session import Session

QUESTIONS = ("question", "question_stem", "goal", "startphrase", "sent2", "ctx", "sentence", "prompt")
CONTEXTS = ("context", "article", "passage", "sent1", "story")
CHOICES = ("choices", "options", "endings", "answers")
ANSWERS = ("answer", "label", "answerKey", "answer_key", "correct", "gold")
"""Columns that are looked for, in this order, where the settings name none."""
_NUMBERED = re.compile(r"(?:ending|option|choice|sol)_?(\d+)")
"""Columns that hold an option each, as SWAG's, PIQA's and WinoGrande's do."""


@dataclass(frozen=True, kw_only=True)
class ChooseSettings(TextSettings):
    """Which columns hold what, and how long a question with one option may be."""

    question_column: str | None = None
    """Column of the question."""
    context_column: str | None = None
    """Column of a text that is read before the question."""
    choices_column: str | None = None
    """Column of the options: a list or, in a table, a text with one a line."""
    answer_column: str | None = None
    """Column of the right one: its number from 0, its letter, or the option itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question and its options."""

    id: str
    text: str
    """The context, if there is one, and the question."""
    options: tuple[str, ...]
    answer: int | None = None
    """Number of the right option; None where nobody says it."""

    @property
    def question(self) -> str:
        """The text."""
        return self.text

    @property
    def choices(self) -> str:
        """The options, one a line."""
        return "\n".join(self.options)


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One option of a question, as it is explained."""

    id: str
    text: str
    pair: str
    """The option."""
    of: Question
    number: int

    @property
    def options(self) -> tuple[str, ...]:
        """It alone."""
        return (self.pair,)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoicePrediction:
    """What a model says of one question."""

    id: str
    number: int
    """Of the option, from 0."""
    text: str
    """The option."""
    probabilities: Mapping[str, float]
    """By letter."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "id": self.id,
            "label": letter(self.number),
            "text": self.text,
            "probabilities": dict(self.probabilities),
        }


class MultipleChoice(Task):
    """The likeliest of a question's options, each scored by the question and the option read together."""

    name: ClassVar[str] = "choose"
    title: ClassVar[str] = "multiple choice"
    head: ClassVar[str] = "AutoModelForMultipleChoice"
    settings: ClassVar[type] = ChooseSettings
    needs: ClassVar[tuple[Literal["pad", "sep"], ...]] = ("pad", "sep")
    metrics: ClassVar[tuple[Metric, ...]] = (ACCURACY,)
    examples: ClassVar[str] = "questions"
    given: ClassVar[tuple[str, ...]] = ("question", "choices")
    perturbs: ClassVar[tuple[str, ...]] = ("text",)

    def read(
        self, names: Sequence[str], settings: ChooseSettings, *, limit: int | None = None, training: bool = False
    ) -> Examples:
        """Reads JSON, JSON lines, CSV and TSV with a header, each maybe with `.gz`, and `hub:NAME[:CONFIG]:SPLIT`.

        Options are a list, a mapping of `text` to a list (with `label`, their names), or numbered columns (`ending0`).

        Raises:
            DataError: a file that can't be read or is empty, fewer than two options, or an answer that is none of them;
                in training a question with more or fewer options than the first one; with its place.
        """
        count: list[int] = []

        def example(id_: str, record: Mapping[str, Any], place: str, settings: Any) -> Question:
            found = _question(id_, record, place, settings)
            wanted = (count or [len(found.options)])[0]
            if training and len(found.options) != wanted:
                raise DataError(
                    f"{place}: the question has {len(found.options)} options and the first one {wanted}; in training "
                    "all need as many. Leave the others out: --data.on-bad-record skip."
                )
            count.append(wanted)
            return found

        return read_examples(
            names,
            _records,
            example,
            settings,
            limit=limit,
            one="question with options and an answer",
            many=self.examples,
        )

    def prepare(self, examples: Examples, settings: ChooseSettings) -> Mapping[str, Any]:
        """One logit, the score of an option."""
        del examples, settings
        return label_table(["score"])

    def rows(self, examples: Examples, session: Session, *, training: bool = False) -> Rows[Any]:
        """A row an option; in training a row a question, a tuple of its options' rows."""
        items: Sequence[Question | Option] = examples.items
        answers = [getattr(item, "answer", None) for item in items]
        all_labelled(items, answers, self.text, training=training)
        owners = [index for index, item in enumerate(items) for _ in item.options]
        found = text_rows(
            [items[index].text for index in owners],
            session.reader,
            max_length=session.task_settings.max_length - register_positions(session.model),
            pairs=[option for item in items for option in item.options],
        )
        starts = np.cumsum([0, *(len(item.options) for item in items)]).tolist()
        if not training:
            main = [start + (answer or 0) for start, answer in zip(starts[:-1], answers, strict=True)]
            return replace(found, example=owners, main=main)
        parts = [slice(*ends) for ends in pairwise(starts)]
        return Rows(
            rows=[(tuple(found.rows[part]), answer) for part, answer in zip(parts, answers, strict=True)],
            lengths=[max(found.lengths[part]) for part in parts],
            example=list(range(len(items))),
            collate=partial(_collate, found),
            roles=partial(_roles, found),
            facts=found.facts,
        )

    def decode(
        self,
        rows: Rows[TextRow],
        outputs: Iterable[tuple[Sequence[int], Any]],
        examples: Examples,
        session: Session,
    ) -> list[ChoicePrediction]:
        """The likeliest option, and all probabilities (softmax over a question's options, in float64)."""
        del session
        logits = np.full(len(rows), np.nan)
        for indices, output in outputs:
            logits[list(indices)] = output.logits.double().flatten().cpu().numpy()
        owner, found = np.asarray(rows.example), []
        for index, item in enumerate(examples.items):
            shares = softmax(logits[owner == index])
            best = int(shares.argmax())
            by_letter = {letter(number): share for number, share in enumerate(shares.tolist())}
            found.append(ChoicePrediction(id=item.id, number=best, text=item.options[best], probabilities=by_letter))
        return found

    def score(self, predictions: Sequence[ChoicePrediction], examples: Examples) -> Mapping[str, Floats]:
        """Accuracy."""
        pairs = zip(predictions, examples.items, strict=True)
        return {"accuracy": np.array([one.number == item.answer for one, item in pairs], dtype=np.float64)}

    def choices(self, predictions: Sequence[ChoicePrediction], examples: Examples) -> list[tuple[Floats, int]]:
        """Every option, and the right one."""
        tiny = np.finfo(np.float64).tiny
        shares = (np.array(list(one.probabilities.values())) for one in predictions)
        return [(np.log(np.maximum(row, tiny)), item.answer) for row, item in zip(shares, examples.items, strict=True)]

    def described(self, example: Question) -> tuple[str, tuple[str, ...]]:
        """The question and its options, and the right one."""
        options = "; ".join(f"{letter(number)}: {option}" for number, option in enumerate(example.options))
        return f"{example.text} {options}", () if example.answer is None else (letter(example.answer),)

    def example(self, record: Mapping[str, Any], settings: ChooseSettings) -> Question:
        """From `question` (and `context`) and `choices`: a list, or a text with one a line."""
        return _question(str(record.get("id", "0")), record, "the question given", settings, need_answer=False)

    def explained(self, example: Question, session: Session) -> Option:
        """The option that the model chooses."""
        (said,) = session.predict(Examples(items=(example,), names=("given",)))
        return Option(id=example.id, text=example.text, pair=said.text, of=example, number=said.number)

    def shown(self, rows: Rows[Any], examples: Examples, session: Session) -> Shown:
        """The score of an option is explained: it depends on the question and this option alone."""
        (item,) = examples.items
        question = item.of if isinstance(item, Option) else item
        (said,) = session.predict(Examples(items=(question,), names=("given",)))
        number = item.number if isinstance(item, Option) else said.number
        cut = ("The text is cut to the longest that the model reads.",) if rows.facts.get("truncated_texts") else ()
        other = "" if number == said.number else f" The model chooses {letter(said.number)}: {said.text!r}."
        return Shown(
            text=question.options[number],
            probability=said.probabilities[letter(number)],
            row=0 if isinstance(item, Option) else number,
            notes=(f"Explained is the score of option {letter(number)}.{other}", *cut),
        )


def letter(number: int) -> str:
    """A for 0; numbers from 26 on."""
    return chr(ord("A") + number) if number < 26 else str(number)


def _collate(options: Rows[TextRow], rows: Sequence[tuple[Sequence[TextRow], int]], pad_to: int | None) -> Batch:
    """`[batch, options, seq]`, and `labels` `[batch]`."""
    flat = options.collate([row for rows_, _ in rows for row in rows_], pad_to)
    batch = {name: values.reshape(len(rows), -1, *values.shape[1:]) for name, values in flat.items()}
    return {**batch, "labels": torch.tensor([answer for _, answer in rows])}


def _roles(options: Rows[TextRow], rows: Sequence[tuple[Sequence[TextRow], int]]) -> Batch:
    flat = options.roles([row for rows_, _ in rows for row in rows_])
    return {name: values.reshape(len(rows), -1, *values.shape[1:]) for name, values in flat.items()}


# Reading


def _records(name: str, settings: ChooseSettings) -> Iterator[tuple[str, Any]]:
    found = hub_records(name) if name.startswith("hub:") else records_of(Path(name), encoding=settings.encoding)
    for place, record in found:
        wrong = DataError(f"{place}: {shown(record)} is no object with fields. Give JSON lines, CSV or TSV.")
        yield place, wrong if isinstance(record, str) else record


def _question(
    id_: str, record: Mapping[str, Any], place: str, settings: ChooseSettings, *, need_answer: bool = True
) -> Question:
    parts = []
    if settings.context_column is not None or any(column in record for column in CONTEXTS):
        parts.append(cell(record, settings.context_column, CONTEXTS, "context_column", place))
    if not parts or settings.question_column is not None or any(column in record for column in QUESTIONS):
        parts.append(cell(record, settings.question_column, QUESTIONS, "question_column", place))
    text = " ".join(part.strip() for part in parts if isinstance(part, str)).strip()
    if not text or not all(isinstance(part, str) for part in parts):
        raise DataError(f"{place}: the question is {shown(parts[-1])}; a text with at least one word is needed.")
    options, names = _options(record, place, settings)
    answer = None
    if need_answer:
        answer = _answer(cell(record, settings.answer_column, ANSWERS, "answer_column", place), options, names, place)
    return Question(id=id_, text=text, options=options, answer=answer)


def _options(record: Mapping[str, Any], place: str, settings: ChooseSettings) -> tuple[tuple[str, ...], list[str]]:
    """The options, and what the record calls them, if it does."""
    numbered = {match[1]: column for column in record if (match := _NUMBERED.fullmatch(str(column)))}
    names: list[Any] = []
    if settings.choices_column is None and len(numbered) > 1 and not any(column in record for column in CHOICES):
        names = sorted(numbered, key=int)
        found: Any = [record[numbered[name]] for name in names]
    else:
        found = cell(record, settings.choices_column, CHOICES, "choices_column", place)
    if isinstance(found, str):
        found = [line for line in found.splitlines() if line.strip()]
    elif isinstance(found, dict):
        found, names = found.get("text"), list(found.get("label") or ())
    whole = isinstance(found, list) and len(found) > 1 and all(isinstance(one, str) and one.strip() for one in found)
    if not whole:
        raise DataError(f"{place}: the options are {shown(found)}; a list of at least two texts is needed.")
    return tuple(found), [str(name) for name in names] if len(names) == len(found) else []


def _answer(value: Any, options: Sequence[str], names: Sequence[str], place: str) -> int:
    """The number of the right option: by the record's own name for it, by number, by its text or by its letter."""
    letters = [letter(number) for number in range(len(options))]
    if isinstance(value, str):
        for known in (names, options, letters, [each.lower() for each in letters]):
            if value.strip() in known:
                return list(known).index(value.strip())
        value = int(value) if value.strip().isdecimal() else value
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(options):
        return value
    raise DataError(
        f"{place}: the answer is {shown(value)}; the number of an option (0 to {len(options) - 1}), its letter "
        f"({letters[0]} to {letters[-1]}) or its text is needed."
    )
