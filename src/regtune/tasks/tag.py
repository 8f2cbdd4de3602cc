"""Tags of words: entities (BIO) and parts of speech, read from CoNLL columns, JSON lines or a hub set.

A text is tokenized as one; the tag of a word is learnt and predicted at its first piece. Words that the model doesn't
read, because the sentence is cut or because the tokenizer makes no piece of them, get no tag and count as wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from regtune.errors import ConfigError, DataError, shown
from regtune.interfaces import Examples, Floats, Metric, Rows, Shown, Task
from regtune.registers.surgery import register_positions
from regtune.rows.targets import TokenLogit
from regtune.rows.texts import NOT_SCORED, TextRow, collate_labels, text_rows
from regtune.tasks.files import JSON, cell, decoded, ending, hub_records, read_bytes, read_examples, records_of
from regtune.tasks.labels import all_labelled, in_order, known_number, label_of, label_table, names_of
from regtune.tasks.text_settings import TextSettings

if TYPE_CHECKING:
    from regtune.session import Session

Tag = str | None
"""None for a word that the model didn't read."""
TOKENS = ("tokens", "words", "token", "form", "text")
TAGS = ("tags", "ner_tags", "pos_tags", "upos", "labels", "tag", "label")
"""Fields that are looked for, in this order, where the settings name none."""
OUTSIDE = "O"
_PREFIXES = {"B": "B", "I": "I", "E": "I", "L": "I", "M": "I", "S": "B", "U": "B"}
"""Of BIO, IOBES, BILOU and BMES: what they are in BIO."""
_ENTITY = re.compile("[BIELMSU]-.+", re.DOTALL)
_WORD = re.compile(r"\w(?:\S*\w)?|\S")
"""A word of a text that nobody has cut into words: signs before and behind it are words of their own."""
_SHOWN = 5
"""Tags that are explained of a text where nobody names some."""


def spans(tags: Sequence[Tag]) -> set[tuple[str, int, int]]:
    """What the tags mark: type, first word, and the word behind the last.

    The strict rule of BIO: `B-` begins an entity and `I-` of its type goes on with it; another `I-` is none. A tag
    without either is a span of one word, so that the F1 of parts of speech is the share of right words.
    """
    found: list[tuple[str, int, int]] = []
    for place, tag in enumerate(tags):
        if tag is None or tag == OUTSIDE:
            continue
        prefix, dash, kind = tag.partition("-")
        if dash and prefix == "I":
            if found and found[-1] == (kind, found[-1][1], place) and tags[place - 1] in (f"B-{kind}", tag):
                found[-1] = (kind, found[-1][1], place + 1)
        else:
            found.append((kind if dash and prefix == "B" else tag, place, place + 1))
    return set(found)


def f1_of_counts(means: Floats) -> Floats:
    """2·tp / (2·tp + fp + fn), from their means; 0 where there is nothing."""
    right, false, missed = np.moveaxis(means, -1, 0)
    return _ratio(2 * right, 2 * right + false + missed)


def share(means: Floats) -> Floats:
    """The first column's sum over the second's; 0 where that is 0."""
    return _ratio(*np.moveaxis(means, -1, 0))


def _ratio(part: Any, whole: Any) -> Floats:
    found: Floats = np.asarray(np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), 0.0))
    return found


SPAN_F1 = Metric(name="f1", title="span F1", columns=("tp", "fp", "fn"), value=f1_of_counts)
WORD_ACCURACY = Metric(name="accuracy", title="accuracy", columns=("right", "words"), value=share)


@dataclass(frozen=True, kw_only=True)
class TagSettings(TextSettings):
    """Which columns hold what."""

    token_column: str | None = None
    """Of the words: a field of JSON or of a hub set, or a column's number from 0 in CoNLL files, where it is 0."""
    tag_column: str | None = None
    """Of the tags; in CoNLL files the last column by default."""
    label_names: tuple[str, ...] = ()
    """What tags 0, 1, ... of the files are called."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sentence:
    """A text cut into words, and their tags."""

    id: str
    text: str
    words: tuple[tuple[int, int], ...]
    """Half-open ranges of characters."""
    tags: tuple[str, ...] | None = None
    """In BIO where they are entities; None where nobody says them."""

    def marked(self, tags: Sequence[Tag]) -> list[tuple[str, int, int]]:
        """What tags mark, in the text's order: the type, and its half-open range of characters."""
        found = sorted(spans(tags), key=lambda span: span[1:])
        return [(kind, self.words[first][0], self.words[behind - 1][1]) for kind, first, behind in found]


@dataclass(frozen=True, kw_only=True, slots=True)
class TagPrediction:
    """What a model says of one sentence."""

    id: str
    tags: tuple[Tag, ...]
    spans: tuple[Mapping[str, Any], ...]
    """What they mark: `tag`, `text`, and `start` and `end` in characters."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `text` says the spans in words."""
        said = ", ".join(f"{span['text']} {span['tag']}" for span in self.spans)
        return {"id": self.id, "text": said, "tags": list(self.tags), "spans": [dict(span) for span in self.spans]}


class Tagging(Task):
    """A tag a word: named entities (scored as CoNLL-2003's, Tjong Kim Sang and De Meulder 2003), parts of speech."""

    name: ClassVar[str] = "tag"
    title: ClassVar[str] = "tags of words: entities, parts of speech"
    head: ClassVar[str] = "AutoModelForTokenClassification"
    settings: ClassVar[type] = TagSettings
    needs: ClassVar[tuple[Literal["pad", "sep"], ...]] = ("pad",)
    reads_text: ClassVar[bool] = True
    metrics: ClassVar[tuple[Metric, ...]] = (SPAN_F1, WORD_ACCURACY)
    titles: ClassVar[Mapping[str, str]] = {"precision": "precision", "recall": "recall"}
    examples: ClassVar[str] = "sentences"
    said: ClassVar[str] = "text"
    gold: ClassVar[str | None] = "tags"
    guess: ClassVar[str] = "tags"

    def read(
        self, names: Sequence[str], settings: TagSettings, *, limit: int | None = None, training: bool = False
    ) -> Examples:
        """Reads `hub:NAME[:CONFIG]:SPLIT` and files: JSON by its ending, everything else is CoNLL.

        In CoNLL files a line is a word and its tag (tabs or spaces between the columns), a blank line ends a sentence;
        of `.conllu` the word's form and universal part of speech are read. Each may end in `.gz`. IOBES (BILOU, BMES)
        and IOB1 become BIO, which is counted and said.

        Raises:
            DataError: a file that can't be read or is empty, words without a tag, tags of another length than their
                words; with the place.
        """
        del training
        found = read_examples(
            names,
            _records,
            _sentence,
            settings,
            limit=limit,
            one="sentence with tags",
            many=self.examples,
        )
        return _in_bio(found)

    def prepare(self, examples: Examples, settings: TagSettings) -> Mapping[str, Any]:
        """The tags of the training data; of entities both of each type, and O."""
        found = {tag for item in examples.items for tag in item.tags or ()}
        names = in_order(found, settings.label_names)
        if _are_entities(found):
            kinds = dict.fromkeys(name[2:] for name in names if name != OUTSIDE)
            names = [OUTSIDE, *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")]
        return label_table(names)

    def rows(self, examples: Examples, session: Session, *, training: bool = False) -> Rows[TextRow]:
        """A row a sentence; words that it doesn't hold are counted."""
        items: Sequence[Sentence] = examples.items
        tagged = all_labelled(items, [item.tags for item in items], self.text, training=training)
        limit = session.task_settings.max_length
        found = text_rows(
            [item.text for item in items], session.reader, max_length=limit - register_positions(session.model)
        )
        names, made = names_of(session), []
        lost = [0] * len(items)
        for index, (item, row) in enumerate(zip(items, found.rows, strict=True)):
            pieces = first_pieces(item.words, row.offsets)
            lost[index] = int((pieces < 0).sum())
            made.append(replace(row, labels=_numbers(item, pieces, len(row.input_ids), names)) if tagged else row)
        count = sum(map(bool, lost))
        effect = "; nothing is learnt of them" if training else ", and count as wrong" if tagged else ""
        note = (
            f"{sum(lost)} of {sum(len(item.words) for item in items)} words, in {count} of {len(items)} sentences, are "
            f"not read ({session.setting('max_length')}={limit}, or the tokenizer makes nothing of them){effect}."
        )
        return replace(
            found,
            rows=made,
            collate=partial(collate_labels, int(session.reader.pad_token_id or 0)),
            notes=(note,) if count else (),
            facts={**found.facts, "lost_words": sum(lost)},
        )

    def decode(
        self,
        rows: Rows[TextRow],
        outputs: Iterable[tuple[Sequence[int], Any]],
        examples: Examples,
        session: Session,
    ) -> list[TagPrediction]:
        """The likeliest tag at each word's first piece."""
        names = names_of(session)
        found: list[Any] = [None] * len(examples)
        for indices, output in outputs:
            for index, best in zip(indices, output.logits.argmax(-1).tolist(), strict=True):
                item: Sentence = examples.items[rows.example[index]]
                pieces = first_pieces(item.words, rows.rows[index].offsets).tolist()
                tags = tuple(names[best[piece]] if piece >= 0 else None for piece in pieces)
                marked = tuple(
                    {"tag": kind, "text": item.text[start:end], "start": start, "end": end}
                    for kind, start, end in item.marked(tags)
                )
                found[rows.example[index]] = TagPrediction(id=item.id, tags=tags, spans=marked)
        return found

    def score(self, predictions: Sequence[TagPrediction], examples: Examples) -> Mapping[str, Floats]:
        """Spans that are right (type and both ends), invented and missed; words with the right tag, and all words."""
        counts = []
        for one, item in zip(predictions, examples.items, strict=True):
            gold, said = spans(item.tags), spans(one.tags)
            right = sum(given == tag for given, tag in zip(one.tags, item.tags, strict=True))
            counts.append((len(gold & said), len(said - gold), len(gold - said), right, len(item.tags)))
        columns = np.array(counts, dtype=np.float64).T
        return dict(zip((*SPAN_F1.columns, *WORD_ACCURACY.columns), columns, strict=True))

    def figures(self, predictions: Sequence[TagPrediction], examples: Examples) -> dict[str, float]:
        """The metrics, and precision and recall of spans."""
        scores = self.score(predictions, examples)
        right, false, missed = (scores[name].sum() for name in SPAN_F1.columns)
        more = {"precision": _ratio(right, right + false), "recall": _ratio(right, right + missed)}
        return super().figures(predictions, examples) | {name: float(value) for name, value in more.items()}

    def described(self, example: Sentence) -> tuple[str, tuple[str, ...]]:
        """The text, and what is marked in it."""
        marked = example.marked(example.tags or ())
        return example.text, tuple(f"{example.text[start:end]} {kind}" for kind, start, end in marked)

    def example(self, record: Mapping[str, Any], settings: TagSettings) -> Sentence:
        """From a list of `tokens`, or from a `text`, whose signs before and behind words are words of their own."""
        given, id_ = record.get("text"), str(record.get("id", "0"))
        if isinstance(given, str) and given.strip():
            return Sentence(id=id_, text=given, words=tuple(word.span() for word in _WORD.finditer(given)))
        tokens = cell(record, settings.token_column, TOKENS, "token_column", "the text given")
        return _of_words(id_, _words(tokens, "the text given"), None)

    def listed(self, item: Any, folder: Path | None = None) -> dict[str, Any]:
        """See `Task.listed`; a sentence is a list of its words or, to be predicted, a text."""
        words = isinstance(item, (list, tuple))
        return {"tokens": list(item)} if words else super().listed(item, folder)

    def shown(self, rows: Rows[Any], examples: Examples, session: Session) -> Shown:
        """What it marks; explained are the first few tags that aren't O, each at its word's first piece."""
        item: Sentence = examples.items[0]
        said: TagPrediction = session.predict(examples, rows)[0]
        pieces = first_pieces(item.words, rows.rows[0].offsets).tolist()
        read = [place for place, tag in enumerate(said.tags) if tag is not None]
        marked = [place for place in read if said.tags[place] != OUTSIDE] or read
        names, targets = names_of(session), {}
        for place in marked:
            start, end = item.words[place]
            name = f"{said.tags[place]}@{item.text[start:end]}"
            name = name if name not in targets else f"{said.tags[place]}@{pieces[place]}"
            targets[name] = TokenLogit(position=pieces[place], label=names.index(str(said.tags[place])))
        default, notes = tuple(targets)[:_SHOWN], super().shown(rows, examples, session).notes
        if len(targets) > _SHOWN:
            other = tuple(targets)[-1]
            notes += (f"Explained are {_SHOWN} of {len(targets)} tags; name others by their word, like {other}.",)
        return Shown(text=said.to_json()["text"], targets=targets, default=default, notes=notes)


def first_pieces(words: Sequence[tuple[int, int]], offsets: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The first token of each word, `[words]`, -1 where there is none. A token belongs to its last character's word.

    Args:
        words: half-open ranges of characters, in the text's order.
        offsets: of the tokens, `[seq, 2]`; (0, 0) for special ones. Some begin with the space before their word.
    """
    bounds = np.asarray(words, dtype=np.int64).reshape(-1, 2)
    last = offsets[:, 1] - 1
    word = np.searchsorted(bounds[:, 0], last, side="right") - 1
    inside = (offsets[:, 1] > offsets[:, 0]) & (word >= 0) & (last < bounds[word, 1])
    places = np.flatnonzero(inside)[::-1]
    found = np.full(len(bounds), -1, dtype=np.int64)
    found[word[places]] = places  # of several tokens the first one is written last
    return found


def _numbers(item: Sentence, pieces: npt.NDArray[np.int64], size: int, names: Sequence[str]) -> npt.NDArray[np.int64]:
    """The labels of a row, `[seq]`."""
    assert item.tags is not None
    tags = np.array([known_number(tag, names, f"A word of {item.id}") for tag in item.tags])
    labels = np.full(size, NOT_SCORED, dtype=np.int64)
    labels[pieces[pieces >= 0]] = tags[pieces >= 0]
    return labels


# Reading


def _records(name: str, settings: TagSettings) -> Iterator[tuple[str, Any]]:
    if name.startswith("hub:"):
        return hub_records(name)
    path = Path(name)
    if ending(path) in JSON:
        return records_of(path)
    lines = decoded(read_bytes(path), name, settings.encoding).replace("\r\n", "\n").split("\n")
    return _sentences(lines, name, settings, universal=ending(path) == ".conllu")


def _sentences(lines: Sequence[str], name: str, settings: TagSettings, *, universal: bool) -> Iterator[tuple[str, Any]]:
    """The sentences of a CoNLL file behind the place of their first line; of CoNLL-U, words alone."""
    columns = (settings.token_column or "01"[universal], settings.tag_column or ("3" if universal else "-1"))
    for column, setting in zip(columns, ("token-column", "tag-column"), strict=True):
        if not re.fullmatch(r"-?\d+", column):
            raise ConfigError(
                f"{name} has columns without names, so --settings.{setting} {column} names none. Give a number, from 0."
            )
    words: list[str] = []
    tags: list[str] = []
    first, wrong = 0, None
    for number, line in enumerate([*lines, ""], start=1):
        if not line.strip() or line.startswith("-DOCSTART-"):
            if first:
                record = {settings.token_column or "tokens": words, settings.tag_column or "tags": tags}
                yield f"{name}, line {first}", wrong or record
            words, tags, first, wrong = [], [], 0, None
            continue
        cells = line.split("\t") if "\t" in line else line.split()
        if universal and (line.startswith("#") or not cells[0].isdecimal()):
            continue  # comments, words that stand for two, words that aren't there
        first = first or number
        try:
            if len(cells) < 2:
                raise IndexError
            words.append(cells[int(columns[0])])
            tags.append(cells[int(columns[1])].strip())
        except IndexError:
            wrong = DataError(
                f"{name}, line {number}: {shown(line)} has {len(cells)} column{'s' * (len(cells) != 1)}; a word "
                f"(column {columns[0]}) and its tag (column {columns[1]}) are needed. Name others with "
                "--settings.token-column and --settings.tag-column."
            )


def _sentence(id_: str, record: Mapping[str, Any], place: str, settings: TagSettings) -> Sentence:
    words = _words(cell(record, settings.token_column, TOKENS, "token_column", place), place)
    tags = cell(record, settings.tag_column, TAGS, "tag_column", place)
    if not isinstance(tags, list) or len(tags) != len(words):
        count = len(tags) if isinstance(tags, list) else shown(tags)
        raise DataError(f"{place}: words: {len(words)}, tags: {count}; give a list with one tag a word.")
    return _of_words(id_, words, tuple(label_of(tag, place, settings.label_names, "tag") for tag in tags))


def _words(tokens: Any, place: str) -> list[str]:
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise DataError(f"{place}: the words are {shown(tokens)}; a list of words is needed.")
    return tokens


def _of_words(id_: str, words: Sequence[str], tags: tuple[str, ...] | None) -> Sentence:
    starts = accumulate((len(word) + 1 for word in words[:-1]), initial=0)
    places = tuple((start, start + len(word)) for start, word in zip(starts, words, strict=True))
    return Sentence(id=id_, text=" ".join(words), words=places, tags=tags)


def _are_entities(tags: Iterable[str]) -> bool:
    marks = {tag for tag in tags if tag != OUTSIDE}
    return bool(marks) and all(_ENTITY.fullmatch(tag) for tag in marks)


def _in_bio(examples: Examples) -> Examples:
    """The sentences with their entities in BIO, whatever they were in, and how many tags that changed."""
    found = {tag for item in examples.items for tag in item.tags}
    if not _are_entities(found):
        entities = sorted(tag for tag in found if _ENTITY.fullmatch(tag))
        if not any(tag[0] in "BI" for tag in entities):
            return examples
        others = ", ".join(sorted(found - {OUTSIDE, *entities})[:_SHOWN])
        note = (
            f"Some tags say where an entity begins or goes on ({', '.join(entities[:_SHOWN])}) and some don't "
            f"({others}): those are scored as entities of one word. Write B- or I- before every type."
        )
        return replace(examples, notes=(*examples.notes, note))
    items, other, begun = [], 0, 0
    for item in examples.items:
        tags: list[str] = []
        for tag in item.tags:
            made = tag if tag == OUTSIDE else _PREFIXES[tag[0]] + tag[1:]
            other += made != tag
            if made[0] == "I" and (not tags or tags[-1] not in (made, f"B{made[1:]}")):
                made = f"B{made[1:]}"
                begun += 1
            tags.append(made)
        items.append(replace(item, tags=tuple(tags)))
    said = (
        (other, "tags of another scheme (IOBES, BILOU) were read as BIO."),
        (begun, "tags I- that begin an entity (IOB1) were read as B-."),
    )
    notes = tuple(f"{count} {words}" for count, words in said if count)
    facts = {**examples.facts, "converted_tags": other + begun}
    return replace(examples, items=tuple(items), notes=(*examples.notes, *notes), facts=facts)
