"""Classification of texts and pairs of texts: any labelled CSV, TSV, JSON lines, lines of `label text`, or hub set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from regtune.config import Count, DataConfig, Tokens
from regtune.errors import ConfigError, DataError, shown
from regtune.interfaces import Examples, Floats, Metric, Rows, Task
from regtune.registers.surgery import register_positions
from regtune.tasks.files import hub_rows, records_of, table
from regtune.texts import TextRow, text_rows
from regtune.typed import Checked

if TYPE_CHECKING:
    from regtune.session import Session

LABELS = ("label", "labels", "class", "category", "sentiment", "target", "intent", "coarse_label", "y")
TEXTS = ("text", "sentence", "sentence1", "premise", "question1", "content", "review", "question", "tweet", "title")
PAIRS = ("sentence2", "hypothesis", "question2", "text2", "text_pair")
"""Columns that are looked for, in this order, where the settings name none."""
_EMBEDDED = ("embedded:train", "embedded:dev")
_NO_LABEL = ("", None)


def macro_f1(means: Floats) -> Floats:
    """Mean over classes of 2·right / (gold + predicted); classes that occur in neither are left out."""
    gold, predicted, right = np.split(means, 3, axis=-1)
    total = gold + predicted
    seen = total > 0
    shares = np.where(seen, 2 * right / np.where(seen, total, 1.0), 0.0)
    found: Floats = np.asarray(shares.sum(-1) / seen.sum(-1))
    return found


def correlation(means: Floats) -> Floats:
    """Matthews's correlation for any number of classes (Gorodkin 2004, R_K); 0 where one class is all there is."""
    gold, predicted, right = np.split(means, 3, axis=-1)
    together = right.sum(-1) - (gold * predicted).sum(-1)
    spread = (1 - (gold**2).sum(-1)) * (1 - (predicted**2).sum(-1))
    some = spread > 1e-15
    found: Floats = np.asarray(np.where(some, together / np.sqrt(np.where(some, spread, 1.0)), 0.0))
    return found


_CELLS = ("gold:*", "predicted:*", "right:*")
ACCURACY = Metric(name="accuracy", title="accuracy", columns=("accuracy",))
MACRO_F1 = Metric(name="macro_f1", title="macro-F1", columns=_CELLS, value=macro_f1)
MCC = Metric(name="mcc", title="MCC", columns=_CELLS, value=correlation, bounds=(-1.0, 1.0))


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
    given: ClassVar[tuple[str, ...]] = ("text", "pair")

    def read(
        self, names: Sequence[str], settings: ClassifySettings, *, limit: int | None = None, training: bool = False
    ) -> Examples:
        """Reads files and named sets: `embedded:train`, `hub:NAME[:CONFIG]:SPLIT`, or a file by its ending.

        `.csv` and `.tsv` have a header; `.json` and `.jsonl` hold objects; everything else is a label, a space and a
        text a line. Each may end in `.gz`.

        Raises:
            DataError: a file that can't be read or is empty, a column or a label that is missing; with its place.
        """
        del training
        items: list[LabelledText] = []
        skipped: list[str] = []
        for name in names:
            count = len(items)
            for place, record in _records(name, settings):
                try:
                    if isinstance(record, DataError):
                        raise record
                    items.append(_example(f"{Path(name).name}:{len(items) - count + 1}", record, place, settings))
                except DataError as error:
                    if settings.on_bad_record == "raise":
                        raise
                    skipped.append(str(error))
            if len(items) == count:
                raise DataError(f"{name} holds no labelled text. Write a header and at least one record.")
        kept, read = tuple(items[:limit]), len(items) + len(skipped)
        notes = (f"{len(skipped)} of {read} texts were left out, the first: {skipped[0]}",) if skipped else ()
        labels = dict(Counter(str(item.label) for item in kept))
        facts = {"read": read, "left_out": len(skipped), "skipped": skipped, "labels": labels}
        return Examples(items=kept, names=tuple(names), skipped=tuple(skipped), notes=notes, facts=facts)

    def prepare(self, examples: Examples, settings: ClassifySettings) -> Mapping[str, Any]:
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

    def rows(self, examples: Examples, session: Session, *, training: bool = False) -> Rows[TextRow]:
        """A row a text. In training every text needs a label; in evaluation either all have one or none."""
        items: Sequence[LabelledText] = examples.items
        labelled = [item.label is not None for item in items]
        if (training or any(labelled)) and not all(labelled):
            bad = items[labelled.index(False)]
            raise DataError(f"The text {bad.id} has no label ({shown(bad.text)}); give it one or leave it out.")
        known = _names(session)
        pairs = [item.pair for item in items]
        return text_rows(
            [item.text for item in items],
            session.reader,
            max_length=session.task_settings.max_length - register_positions(session.model),
            pairs=None if None in pairs else [str(pair) for pair in pairs],
            labels=[_index(item, known) for item in items] if all(labelled) else None,
        )

    def decode(
        self,
        rows: Rows[TextRow],
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

    def example(self, record: Mapping[str, Any], settings: ClassifySettings) -> LabelledText:
        """From `text` (and `pair`), or from the columns that the settings name."""
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


def _index(item: LabelledText, names: Sequence[str]) -> int:
    found = _named(str(item.label), names)
    if found < 0:
        raise DataError(
            f"The text {item.id} has the label {shown(item.label)}, which the model doesn't know: its labels are "
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
        yield from _hub(name)
    else:
        for place, record in records_of(Path(name), encoding=settings.encoding, header=header):
            yield place, _labelled(record, place) if isinstance(record, str) else record


def _labelled(line: str, place: str) -> Any:
    label, space, rest = line.partition(" ")
    if not space or not label or not rest.strip():
        return DataError(f"{place}: {shown(line)} is not a label, a space and a text, as in '1 a stirring film'.")
    return {"label": label, "text": rest.strip()}


def _hub(name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    parts = name.split(":")[1:]
    if len(parts) not in (2, 3):
        raise ConfigError(f"The data set {name!r} must be written hub:NAME:SPLIT or hub:NAME:CONFIG:SPLIT.")
    found = hub_rows(name, *parts[:-1], split=parts[-1])
    classes = {column: kind.names for column, kind in found.features.items() if hasattr(kind, "names")}
    for index, record in enumerate(found):
        named = {key: classes[key][record[key]] for key in classes if isinstance(record[key], int) and record[key] >= 0}
        yield f"{name}, record {index + 1}", {**record, **named}


def _example(
    id_: str, record: Mapping[str, Any], place: str, settings: ClassifySettings, *, need_label: bool = True
) -> LabelledText:
    text = _cell(record, settings.text_column, TEXTS, "text", place)
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{place}: the text is {shown(text)}; a text with at least one word is needed.")
    pair = None
    if settings.pair_column is not None or any(column in record for column in (*PAIRS, "pair")):
        pair = str(_cell(record, settings.pair_column, (*PAIRS, "pair"), "second text", place))
    label = None
    if need_label:
        label = _label(_cell(record, settings.label_column, LABELS, "label", place), place, settings)
    return LabelledText(id=id_, text=text, pair=pair, label=label)


def _cell(record: Mapping[str, Any], asked: str | None, usual: Sequence[str], what: str, place: str) -> Any:
    if asked is not None:
        if asked in record:
            return record[asked]
        raise DataError(f"{place}: there is no column {asked!r} for the {what}; there are {', '.join(record)}.")
    for column in usual:
        if column in record:
            return record[column]
    option = f"{'pair' if what == 'second text' else what}_column"
    raise DataError(
        f"{place}: no column is called like a {what} ({', '.join(usual)}); there are {', '.join(map(str, record))}. "
        f"Name it: --settings.{option.replace('_', '-')} COLUMN."
    )


def _label(value: Any, place: str, settings: ClassifySettings) -> str:
    if value in _NO_LABEL or isinstance(value, (float, dict, list)) or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{place}: the label is {shown(value)}; a word or a whole number is needed.")
    label = str(value).strip()
    if settings.label_names and label.isdecimal() and int(label) < len(settings.label_names):
        return settings.label_names[int(label)]
    return label
