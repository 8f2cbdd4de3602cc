"""Classification of texts and pairs of texts: any labelled CSV, TSV, JSON lines, lines of `label text`, or hub set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from regtune.config import Count, DataConfig, Tokens
from regtune.errors import DataError, shown
from regtune.interfaces import Examples, Floats, Metric, Rows, Task
from regtune.registers.surgery import register_positions
from regtune.rows.texts import text_rows
from regtune.tasks.files import cell, hub_records, read_examples, records_of, table
from regtune.tasks.metrics import ACCURACY, MACRO_F1, MCC
from regtune.typed import Checked

if TYPE_CHECKING:
    from regtune.session import Session

LABELS = ("label", "labels", "class", "category", "sentiment", "target", "intent", "coarse_label", "y")
TEXTS = ("text", "sentence", "sentence1", "premise", "question1", "content", "review", "question", "tweet", "title")
PAIRS = ("sentence2", "hypothesis", "question2", "text2", "text_pair")
"""Columns that are looked for, in this order, where the settings name none."""
_EMBEDDED = ("embedded:train", "embedded:dev")
_NO_LABEL = ("", None)


@dataclass(frozen=True, kw_only=True)
class ClassifySettings(Checked, section="settings"):
    """Which columns hold what, and how long a text may be."""

    label_column: str | None = None
    """Column (or its number, in a file without a header) of the label; the first of the usual names by default."""
    text_column: str | None = None
    """Column of the text."""
    pair_column: str | None = None
    """Column of a second text, read together with the first."""
    label_names: tuple[str, ...] = ()
    """What labels 0, 1, ... of the files are called."""
    encoding: str = "auto"
    """Of text files: UTF-8 or, where it isn't valid, latin-1; or a name that Python knows."""
    max_length: Tokens = DataConfig.max_length
    """Longest text in tokens, special tokens included, registers not; longer ones are cut and counted."""
    batch_size: Count = 32
    """Texts in a batch at inference."""
    on_bad_record: Literal["raise", "skip", "mend"] = "raise"
    """Stop at the first bad record, or leave it out, count it and list it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledText:
    """A text, or a pair of texts, and its class."""

    id: str
    text: str
    pair: str | None = None
    label: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassPrediction:
    """What a model says of one text."""

    id: str
    label: str
    probabilities: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"id": self.id, "label": self.label, "probabilities": dict(self.probabilities)}


class Classification(Task):
    """One label a text."""

    name: ClassVar[str] = "classify"
    title: ClassVar[str] = "classification"
    head: ClassVar[str] = "AutoModelForSequenceClassification"
    settings: ClassVar[type] = ClassifySettings
    needs: ClassVar[tuple[Literal["pad", "sep"], ...]] = ("pad",)
    reads_text: ClassVar[bool] = True
    metrics: ClassVar[tuple[Metric, ...]] = (ACCURACY, MACRO_F1, MCC)
    examples: ClassVar[str] = "texts"
    gold: ClassVar[str | None] = "label"
    given: ClassVar[tuple[str, ...]] = ("text", "pair")
    perturbs: ClassVar[tuple[str, ...]] = ("text", "pair")

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
        found = read_examples(
            names,
            lambda name: _records(name, settings),
            lambda id_, record, place: _example(id_, record, place, settings),
            on_bad_record=settings.on_bad_record,
            limit=limit,
            one="labelled text",
            many=self.examples,
        )
        labels = dict(Counter(str(item.label) for item in found.items))
        return replace(found, facts={**found.facts, "labels": labels})

    def prepare(self, examples: Examples, settings: Any) -> Mapping[str, Any]:
        """The labels of the training data, numbers in their order, words in the alphabet's."""
        found = {item.label for item in examples.items if item.label is not None}
        if len(found) < 2:
            raise DataError(
                f"The training data have {len(found)} label{'s' * (len(found) != 1)} "
                f"({', '.join(sorted(found)) or 'none'}); a classifier needs at least two."
            )
        names = [name for name in settings.label_names if name in found]
        rest = found - set(names)
        numbers = all(name.lstrip("-").isdecimal() for name in rest)
        names += sorted(rest, key=(lambda name: (int(name), name)) if numbers else (lambda name: (0, name)))
        return {
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
            "problem_type": "single_label_classification",
        }

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

    def numbered(self, items: Sequence[Any], session: Session, *, training: bool) -> list[int] | None:
        """Every example's label as the model numbers it; None where none has one.

        Raises:
            DataError: one without a label among those that have one (in training, any), or one that the model lacks.
        """
        labelled = [item.label is not None for item in items]
        if (training or any(labelled)) and not all(labelled):
            bad = items[labelled.index(False)]
            raise DataError(f"{bad.id} has no label ({shown(self.text(bad))}); give it one or leave it out.")
        known = _names(session)
        return [_index(item, known) for item in items] if all(labelled) else None

    def decode(
        self,
        rows: Rows[Any],
        outputs: Iterable[tuple[Sequence[int], Any]],
        examples: Examples,
        session: Session,
    ) -> list[ClassPrediction]:
        """The likeliest class and all probabilities (softmax in float64)."""
        names = _names(session)
        found: list[Any] = [None] * len(examples)
        for indices, output in outputs:
            shares = output.logits.double().softmax(-1).cpu().numpy()
            for index, row in zip(indices, shares, strict=True):
                example = rows.example[index]
                found[example] = ClassPrediction(
                    id=examples.items[example].id,
                    label=names[int(row.argmax())],
                    probabilities=dict(zip(names, row.tolist(), strict=True)),
                )
        return found

    def score(self, predictions: Sequence[ClassPrediction], examples: Examples) -> Mapping[str, Floats]:
        """Accuracy and, for each label, whether it is the gold one, the predicted one, and both."""
        names = list(predictions[0].probabilities)
        gold = np.array([_named(str(item.label), names) for item in examples.items])
        said = np.array([names.index(one.label) for one in predictions])
        labels = np.arange(len(names))[:, None]
        hits = {"gold": gold == labels, "predicted": said == labels}
        hits["right"] = hits["gold"] & hits["predicted"]
        columns = {f"{kind}:{name}": row for kind, rows in hits.items() for name, row in zip(names, rows, strict=True)}
        return {name: column.astype(np.float64) for name, column in {"accuracy": gold == said, **columns}.items()}

    def choices(self, predictions: Sequence[ClassPrediction], examples: Examples) -> list[tuple[Floats, int]]:
        """Every class, and the gold one."""
        names = list(predictions[0].probabilities)
        shares = np.array([list(one.probabilities.values()) for one in predictions])
        scores = np.log(np.maximum(shares, np.finfo(np.float64).tiny))
        return [(row, _named(str(item.label), names)) for row, item in zip(scores, examples.items, strict=True)]

    def stratum(self, example: Any) -> str:
        """The label."""
        return str(example.label)

    def example(self, record: Mapping[str, Any], settings: Any) -> Any:
        """From `text` (and `pair`), or from the columns that the settings name."""
        given = [one for one in self.given if one in record and getattr(settings, f"{one}_column") not in record]
        settings = replace(settings, **{f"{one}_column": None for one in given})
        return _example(str(record.get("id", "0")), record, "the text given", settings, need_label=False)


def _names(session: Session) -> list[str]:
    """The model's labels, in the order of its logits."""
    table = session.model.config.id2label
    return [str(table[index]) for index in range(len(table))]


def _named(label: str, names: Sequence[str]) -> int:
    """The number of a label, as it is written or as transformers calls one without a name; -1 for an unknown one."""
    for written in (label, f"LABEL_{label}"):
        if written in names:
            return names.index(written)
    return -1


def _index(item: Any, names: Sequence[str]) -> int:
    found = _named(str(item.label), names)
    if found < 0:
        raise DataError(
            f"{item.id} has the label {shown(item.label)}, which the model doesn't know: its labels are "
            f"{', '.join(names)}. Add examples of it to the training data, or leave it out."
        )
    return found


# Reading


def _records(name: str, settings: ClassifySettings) -> Iterator[tuple[str, Any]]:
    """Every record of a set behind its place; a `DataError` in place of one says what is wrong."""
    header = not any((column or "").isdecimal() for column in (settings.label_column, settings.text_column))
    if name in _EMBEDDED:
        path = resources.files("regtune.tasks").joinpath(f"classes/{name.partition(':')[2]}.tsv")
        yield from table(path.read_text(encoding="utf-8"), "\t", name)
    elif name.startswith("hub:"):
        yield from hub_records(name)
    else:
        for place, record in records_of(Path(name), encoding=settings.encoding, header=header):
            yield place, _labelled(record, place) if isinstance(record, str) else record


def _labelled(line: str, place: str) -> Any:
    label, space, rest = line.partition(" ")
    if not space or not label or not rest.strip():
        return DataError(f"{place}: {shown(line)} is not a label, a space and a text, as in '1 a stirring film'.")
    return {"label": label, "text": rest.strip()}


def _example(
    id_: str, record: Mapping[str, Any], place: str, settings: ClassifySettings, *, need_label: bool = True
) -> LabelledText:
    text = cell(record, settings.text_column, TEXTS, "text_column", place)
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{place}: the text is {shown(text)}; a text with at least one word is needed.")
    pair = None
    if settings.pair_column is not None or any(column in record for column in (*PAIRS, "pair")):
        pair = str(cell(record, settings.pair_column, (*PAIRS, "pair"), "pair_column", place))
    label = None
    if need_label:
        label = label_of(cell(record, settings.label_column, LABELS, "label_column", place), place, settings)
    return LabelledText(id=id_, text=text, pair=pair, label=label)


def label_of(value: Any, place: str, settings: Any) -> str:
    """A label as text, or as `label_names` call it.

    Raises:
        DataError: it is neither a word nor a whole number.
    """
    if value in _NO_LABEL or isinstance(value, (float, dict, list)) or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{place}: the label is {shown(value)}; a word or a whole number is needed.")
    label = str(value).strip()
    if settings.label_names and label.isdecimal() and int(label) < len(settings.label_names):
        return str(settings.label_names[int(label)])
    return label
