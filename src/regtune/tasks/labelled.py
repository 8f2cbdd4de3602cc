"""Texts, and pairs of texts, with something to be learnt of each: from CSV, TSV, JSON lines, lines or a hub set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

from regtune.errors import DataError, shown
from regtune.interfaces import Examples, Rows, Task
from regtune.registers.surgery import register_positions
from regtune.rows.texts import text_rows
from regtune.tasks.files import cell, hub_records, read_examples, records_of, table, text_of
from regtune.tasks.labels import all_labelled, names_of
from regtune.tasks.text_settings import TextSettings

if TYPE_CHECKING:
    from regtune.session import Session

LABELS = ("label", "labels", "class", "category", "sentiment", "target", "intent", "coarse_label", "y")
TEXTS = ("text", "sentence", "sentence1", "premise", "question1", "content", "review", "question", "tweet", "title")
PAIRS = ("sentence2", "hypothesis", "question2", "text2", "text_pair", "pair")
"""Columns that are looked for, in this order, where the settings name none."""
_EMBEDDED = ("embedded:train", "embedded:dev")


@dataclass(frozen=True, kw_only=True)
class LabelledSettings(TextSettings):
    """Which columns hold what, and how long a text may be."""

    label_column: str | None = None
    """Column (or its number, in a file without a header) of the label; the first of the usual names by default."""
    text_column: str | None = None
    """Column of the text."""
    pair_column: str | None = None
    """Column of a second text, read together with the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledText:
    """A text, or a pair of texts, and what is to be learnt of it."""

    id: str
    text: str
    pair: str | None = None
    label: Any = None
    """None where nobody says it."""


class LabelledTexts(Task):
    """One row a text; a task says how a label is written, what a model learns from it, and what logits mean."""

    head: ClassVar[str] = "AutoModelForSequenceClassification"
    needs: ClassVar[tuple[Literal["pad", "sep"], ...]] = ("pad",)
    reads_text: ClassVar[bool] = True
    examples: ClassVar[str] = "texts"
    gold: ClassVar[str | None] = "label"
    given: ClassVar[tuple[str, ...]] = ("text", "pair")
    perturbs: ClassVar[tuple[str, ...]] = ("text", "pair")
    label_columns: ClassVar[tuple[str, ...]] = LABELS
    """Columns that are looked for."""

    def label(self, value: Any, place: str, settings: Any) -> Any:
        """A label from what a record holds; raises `DataError` with the place."""
        raise NotImplementedError

    def learnt(self, item: LabelledText, names: Sequence[str]) -> Any:
        """What `labels` in a batch holds of an item: a number, or a list of them."""
        raise NotImplementedError

    def predicted(self, id_: str, logits: Tensor, names: Sequence[str], settings: Any) -> Any:
        """The prediction of one text from its logits `[labels]`, float64."""
        raise NotImplementedError

    def read(
        self, names: Sequence[str], settings: Any, *, limit: int | None = None, training: bool = False
    ) -> Examples:
        """Reads files and named sets: `embedded:train`, `hub:NAME[:CONFIG]:SPLIT`, or a file by its ending.

        `.csv` and `.tsv` have a header; `.json` and `.jsonl` hold objects; everything else is a label, a space and a
        text a line. Each may end in `.gz`.

        Raises:
            DataError: a file that can't be read or is empty, a column or a label that is missing; with its place.
        """
        del training

        def example(id_: str, record: Mapping[str, Any], place: str, settings: Any) -> LabelledText:
            found = cell(record, settings.label_column, self.label_columns, "label_column", place)
            return _text(id_, record, place, settings, self.label(found, place, settings))

        return read_examples(
            names,
            _records,
            example,
            settings,
            limit=limit,
            one="labelled text",
            many=self.examples,
        )

    def rows(self, examples: Examples, session: Session, *, training: bool = False) -> Rows[Any]:
        """A row a text. In training every text needs a label; in evaluation either all have one or none."""
        items: Sequence[LabelledText] = examples.items
        pairs = [item.pair for item in items]
        return text_rows(
            [item.text for item in items],
            session.reader,
            max_length=session.task_settings.max_length - register_positions(session.model),
            pairs=None if None in pairs else [str(pair) for pair in pairs],
            labels=self.numbered(items, session, training=training),
        )

    def numbered(self, items: Sequence[Any], session: Session, *, training: bool) -> list[Any] | None:
        """What is learnt of every example; None where none has a label.

        Raises:
            DataError: one without a label among those that have one (in training, any), or one that the model lacks.
        """
        labels, known = [item.label for item in items], names_of(session)
        if not all_labelled(items, labels, self.text, training=training):
            return None
        return [self.learnt(item, known) for item in items]

    def decode(
        self,
        rows: Rows[Any],
        outputs: Iterable[tuple[Sequence[int], Any]],
        examples: Examples,
        session: Session,
    ) -> list[Any]:
        """See `predicted`."""
        names, settings = names_of(session), session.task_settings
        found: list[Any] = [None] * len(examples)
        for indices, output in outputs:
            for index, logits in zip(indices, output.logits.double().cpu(), strict=True):
                example = rows.example[index]
                found[example] = self.predicted(examples.items[example].id, logits, names, settings)
        return found

    def example(self, record: Mapping[str, Any], settings: Any) -> Any:
        """From `text` (and `pair`), or from the columns that the settings name."""
        given = [one for one in self.given if one in record and getattr(settings, f"{one}_column") not in record]
        settings = replace(settings, **{f"{one}_column": None for one in given})
        return _text(str(record.get("id", "0")), record, "the text given", settings, None)


def _records(name: str, settings: LabelledSettings) -> Iterator[tuple[str, Any]]:
    """Every record of a set behind its place; a `DataError` in place of one says what is wrong."""
    header = not any((column or "").isdecimal() for column in (settings.label_column, settings.text_column))
    if name in _EMBEDDED:
        path = resources.files("regtune.tasks").joinpath(f"classes/{name.partition(':')[2]}.tsv")
        yield from table(path.read_text(encoding="utf-8"), "\t", name)
    elif name.startswith("hub:"):
        yield from hub_records(name)
    else:
        for place, record in records_of(Path(name), encoding=settings.encoding, header=header):
            yield place, _line(record, place) if isinstance(record, str) else record


def _line(line: str, place: str) -> Any:
    label, space, rest = line.partition(" ")
    if not space or not label or not rest.strip():
        return DataError(f"{place}: {shown(line)} is not a label, a space and a text, as in '1 a stirring film'.")
    return {"label": label, "text": rest.strip()}


def _text(id_: str, record: Mapping[str, Any], place: str, settings: LabelledSettings, label: Any) -> LabelledText:
    text = text_of(cell(record, settings.text_column, TEXTS, "text_column", place), place)
    pair = None
    if settings.pair_column is not None or any(column in record for column in PAIRS):
        pair = str(cell(record, settings.pair_column, PAIRS, "pair_column", place))
    return LabelledText(id=id_, text=text, pair=pair, label=label)
