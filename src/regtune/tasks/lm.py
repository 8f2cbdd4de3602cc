"""Causal language modelling on plain text: perplexity by token and by word, each token scored once and with context."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64
from torch.nn.functional import cross_entropy

from regtune.config import Count, DataConfig, Tokens
from regtune.errors import ConfigError, DataError, shown
from regtune.interfaces import Batch, Examples, Floats, Metric, Rows, Shown, Task
from regtune.noise import Change, Span, words_of
from regtune.rows.targets import LabelLogit
from regtune.rows.texts import NOT_SCORED, RECORDS, TextRow, collate_labels, require_fast, text_roles
from regtune.tasks.files import cell, decoded, hub_records, read_bytes, read_examples, records_of, text_of
from regtune.tasks.qa.data.sources import load_questions
from regtune.tasks.text_settings import TextSettings
from regtune.typed import Range

if TYPE_CHECKING:
    from regtune.session import Session

Ints = Int64[np.ndarray, " _"]
TEXTS = ("text", "content", "page", "document")
"""Columns that are looked for, in this order, where the settings name none."""
_HEADING = re.compile(r"^ *= (?!= )[^\n]+(?<! =) = *$", re.MULTILINE)
"""WikiText's ` = Title = ` of an article, not ` = = Section = = `."""


def _perplexity(means: Floats) -> Floats:
    """exp(nats / count), at most e⁷⁰⁰, which float64 can still hold."""
    nats, count = means[..., 0], means[..., 1]
    found: Floats = np.asarray(np.exp(np.minimum(nats / np.maximum(count, 1e-30), 700.0)))
    return found


SCORED_UNDER_NOISE = (
    "Scored are words that noise left as they were: at one strength the same ones for all arms, at a higher one fewer. "
    "So compare arms at a strength; a line's slope is partly that other words are scored."
)
_MORE: Mapping[str, Any] = {"higher_is_better": False, "scale": 1.0, "unit": "", "bounds": (1.0, np.inf), "delta": 0.1}
PERPLEXITY = Metric(name="perplexity", title="perplexity", columns=("nats", "tokens"), value=_perplexity, **_MORE)
WORD_PERPLEXITY = Metric(
    name="word_perplexity", title="word perplexity", columns=("nats", "words"), value=_perplexity, **_MORE
)


@dataclass(frozen=True, kw_only=True)
class LmSettings(TextSettings):
    """What a document is, and how it is cut into blocks."""

    documents: Literal["headings", "paragraphs", "lines"] = "headings"
    """What a document in a text file is: what follows a heading `= Title =` (WikiText; a file without any is one), a
    paragraph between blank lines, or a line."""
    text_column: str | None = None
    """Column of the text, in files and sets of records; the first of the usual names by default."""
    stride: Annotated[int, Range(1, 2**20)] = 128
    """Tokens that a block of a document shares with the one before it in evaluation: they are its context, and are
    scored there. In training blocks share one token."""
    max_new_tokens: Annotated[int, Range(0, 2**20)] = 32
    """Tokens that `regtune predict` lets the model write behind a text (greedily, to the end token at most)."""
    max_length: Tokens = DataConfig.max_length
    """Longest block in tokens, registers not counted."""
    batch_size: Count = 8
    """Blocks in a batch at inference; each has logits over the whole vocabulary for every token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A text to be modelled."""

    id: str
    text: str
    given: bool = False
    """Whether a person gave it to be predicted, so that the model writes on."""
    own: tuple[Span, ...] | None = None
    """Where the words are that noise has left as they were, which alone are learnt and scored; None: all of it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LmPrediction:
    """How a model predicted the tokens of a text, and what it wrote behind it."""

    id: str
    nats: float
    """Sum of −log p over the scored tokens."""
    tokens: int
    """How many were scored."""
    text: str | None = None
    """What the model wrote; None where it wasn't asked to."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        found = {"id": self.id, "nats": self.nats, "tokens": self.tokens}
        return found if self.text is None else found | {"text": self.text}


class LanguageModelling(Task):
    """The next token, everywhere."""

    name: ClassVar[str] = "lm"
    title: ClassVar[str] = "causal language modelling"
    head: ClassVar[str] = "AutoModelForCausalLM"
    settings: ClassVar[type] = LmSettings
    reads_text: ClassVar[bool] = True
    metrics: ClassVar[tuple[Metric, ...]] = (PERPLEXITY, WORD_PERPLEXITY)
    examples: ClassVar[str] = "documents"
    said: ClassVar[str] = "text"
    perturbs: ClassVar[tuple[str, ...]] = ("text",)
    under_noise: ClassVar[str] = SCORED_UNDER_NOISE

    def perturb(self, example: Any, change: Change) -> Any:
        """Noise in the text. Words that it changes are read, and are in no loss and no score; some always stay."""
        return noisy_document(example, change)

    def read(
        self, names: Sequence[str], settings: LmSettings, *, limit: int | None = None, training: bool = False
    ) -> Examples:
        """Reads text files, files of records with a text, `hub:NAME[:CONFIG]:SPLIT`, `embedded:train`, `embedded:dev`.

        Records are in `.jsonl`, `.json`, `.csv` and `.tsv` files; each file may end in `.gz`. The embedded sets are the
        passages of the embedded questions.

        Raises:
            DataError: a file that can't be read or holds no text, or a record without one; with its place.
        """
        del training
        return read_documents(names, settings, limit)

    def rows(self, examples: Examples, session: Session, *, training: bool = False) -> Rows[TextRow]:
        """The blocks of every document, each behind the tokenizer's start token where it has one (it isn't scored)."""
        settings: LmSettings = session.task_settings
        overlap = 1 if training else settings.stride
        if overlap >= settings.max_length:
            raise ConfigError(
                f"{session.setting('stride')}={settings.stride} leaves no room for new tokens in a block of "
                f"{session.setting('max_length')}={settings.max_length}. Set a smaller stride."
            )
        first = start_token(session.reader)
        rows: list[TextRow] = []
        example: list[int] = []
        for number, document in enumerate(examples.items):
            coded = encoded(document.text, session.reader)
            ids, offsets = np.array([*first, *coded[0]], dtype=np.int32), np.pad(coded[1], ((len(first), 0), (0, 0)))
            own = own_tokens(document, offsets)
            for start, end, scored in blocks(len(ids), settings.max_length, overlap):
                labels = np.full(end - start, NOT_SCORED, dtype=np.int64)
                labels[scored - start :] = np.where(own[scored:end], ids[scored:end], NOT_SCORED)
                if training and document.own is not None and (labels == NOT_SCORED).all():
                    continue  # a loss over nothing is no number
                rows.append(token_row(ids[start:end], offsets[start:end], labels))
                example.append(number)
        return labelled_rows(rows, example, session.reader)

    def decode(
        self,
        rows: Rows[TextRow],
        outputs: Iterable[tuple[Sequence[int], Any]],
        examples: Examples,
        session: Session,
    ) -> list[Any]:
        """What the scored tokens cost, in nats, and what the model writes behind texts that a person gave."""
        costs = [costs for costs, _ in scored_tokens(rows, outputs)]
        nats = np.bincount(rows.example, [one.sum() for one in costs], minlength=len(examples))
        tokens = np.bincount(rows.example, [len(one) for one in costs], minlength=len(examples))
        last = {example: index for index, example in enumerate(rows.example)}
        asked = [number for number, item in enumerate(examples.items) if item.given]
        prompts = [rows.rows[last[number]].input_ids for number in asked]
        wrote = dict(zip(asked, written(session, prompts, session.task_settings), strict=True))
        return [
            LmPrediction(id=item.id, nats=float(nats[number]), tokens=int(tokens[number]), text=wrote.get(number))
            for number, item in enumerate(examples.items)
        ]

    def score(self, predictions: Sequence[LmPrediction], examples: Examples) -> Mapping[str, Floats]:
        """Nats and scored tokens, and how many words (between white space) and bytes (UTF-8) they spell."""
        texts = [self.scored_text(item) for item in examples.items]
        return {
            "nats": np.array([one.nats for one in predictions]),
            "tokens": np.array([one.tokens for one in predictions], dtype=np.float64),
            "words": np.array([len(text.split()) for text in texts], dtype=np.float64),
            "bytes": np.array([len(text.encode()) for text in texts], dtype=np.float64),
        }

    def figures(self, predictions: Sequence[LmPrediction], examples: Examples) -> dict[str, float]:
        """The metrics, and bits per byte, which models with different tokenizers share."""
        scores = self.score(predictions, examples)
        bits = float(scores["nats"].sum() / np.log(2) / max(float(scores["bytes"].sum()), 1.0))
        return {metric.name: metric.of(scores) for metric in self.metrics} | {"bits_per_byte": bits}

    def scored_text(self, example: Any) -> str:
        """The part of an example that is scored."""
        own = getattr(example, "own", None)
        return str(example.text) if own is None else " ".join(example.text[start:end] for start, end in own)

    def shortened(self, settings: Any, limit: int) -> Any:
        """Blocks of at most `limit` tokens, at most half of them context."""
        found = super().shortened(settings, limit)
        return found if found is settings else replace(found, stride=min(found.stride, limit // 2))

    def example(self, record: Mapping[str, Any], settings: LmSettings) -> Any:
        """From `text`, which the model writes on."""
        return given_document(record, settings)

    def shown(self, rows: Rows[TextRow], examples: Examples, session: Session) -> Shown:
        """Nothing but what the model writes next, which is explained token by token."""
        del examples, session
        cut = f"Only the first {rows.lengths[0]} tokens of the text were read."
        return Shown(notes=(cut,) if len(rows) > 1 else ())


# Reading


def read_documents(names: Sequence[str], settings: Any, limit: int | None) -> Examples:
    """The documents of sets; see `LanguageModelling.read`.

    Args:
        names: the sets.
        settings: `documents`, `text_column`, `encoding` and `on_bad_record`.
        limit: at most so many.
    """
    return read_examples(
        names,
        _documents,
        _document,
        settings,
        limit=limit,
        one="text",
        many=LanguageModelling.examples,
    )


def given_document(record: Mapping[str, Any], settings: Any) -> Document:
    """A document from what a person gives to be predicted.

    Raises:
        DataError: there is no text, or a blank one.
    """
    place = "the text given"
    text = text_of(cell(record, settings.text_column, TEXTS, "text_column", place), place)
    return Document(id=str(record.get("id", "0")), text=text, given=True)


def _documents(name: str, settings: Any) -> Iterator[tuple[str, Any]]:
    """Every document of a set behind its place: a text, or a record that should hold one."""
    if name.startswith("embedded:"):
        texts: Iterable[Any] = dict.fromkeys(item.context for item in load_questions(name).items)
    elif name.startswith("hub:"):
        lines = (cell(record, settings.text_column, TEXTS, "text_column", place) for place, record in hub_records(name))
        texts = _split("".join(f"{line}\n" for line in lines), settings)
    elif name.removesuffix(".gz").endswith(RECORDS):
        yield from records_of(Path(name), encoding=settings.encoding)
        return
    else:
        texts = _split(decoded(read_bytes(Path(name)), name, settings.encoding), settings)
    yield from ((f"{name}, document {number}", text) for number, text in enumerate(texts, start=1))


def _document(id_: str, found: Any, place: str, settings: Any) -> Document:
    text = found if isinstance(found, str) else cell(found, settings.text_column, TEXTS, "text_column", place)
    return Document(id=id_, text=text_of(text, place))


def _split(text: str, settings: Any) -> Iterator[str]:
    """The documents of a text as they stand there, the blank ones left out."""
    if settings.documents == "headings":
        starts = [0, *(found.start() for found in _HEADING.finditer(text)), len(text)]
        parts: Iterable[str] = (text[start:end] for start, end in pairwise(starts))
    else:
        parts = re.split(r"\n\s*\n" if settings.documents == "paragraphs" else r"\n", text)
    yield from (part for part in parts if part.strip())


# Noise

_STAYS = 10
"""One in so many words always stays."""


def noisy_document(document: Document, change: Change, keep: Sequence[Span] = ()) -> Document:
    """A document with noise in its words, which knows those that stayed.

    So that something is left to be scored at every strength, and partly the same, one word in ten stays whatever the
    strength is: one at least, and not the first one where there are others, since nothing stands before it.

    Args:
        document: as it was read.
        change: the noise.
        keep: more parts that stay.
    """
    words = words_of(document.text)
    random = Random(f"stays:{change.noise.seed}:{document.id}")
    behind = words[1:] or words
    stay = random.sample(behind, max(1, len(behind) // _STAYS)) if behind else []
    text, _ = change("text", document.text, [*stay, *keep])
    return replace(document, text=text, own=None if text == document.text else tuple(change.own))


def own_tokens(document: Document, offsets: Int[np.ndarray, "tokens 2"]) -> Bool[np.ndarray, " tokens"]:
    """Which tokens spell nothing that noise has put into a document; each spells the characters `offsets` names."""
    if document.own is None:
        return np.ones(len(offsets), dtype=bool)
    noise = np.array([not letter.isspace() for letter in document.text], dtype=np.int64)
    for start, end in document.own:
        noise[start:end] = 0
    before = np.pad(noise.cumsum(), (1, 0))
    found: Bool[np.ndarray, " tokens"] = before[offsets[:, 1]] == before[offsets[:, 0]]
    return found


# Rows


def start_token(reader: Any) -> list[int]:
    """The id of the token that texts start with, so that their first word is predicted from something; or none."""
    known = (reader.bos_token_id, reader.eos_token_id, reader.cls_token_id)
    return next(([one] for one in known if one is not None), [])


def encoded(text: str, reader: Any) -> tuple[list[int], Int[np.ndarray, "tokens 2"]]:
    """A text's token ids without special tokens, and the characters that each spells.

    Raises:
        UnsupportedModelError: a slow tokenizer.
        DataError: nothing of it is a token.
    """
    require_fast(reader)
    coded = reader(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    if not coded["input_ids"]:
        raise DataError(f"The text {shown(text)} has no token for this tokenizer. Leave it out.")
    return list(coded["input_ids"]), np.asarray(coded["offset_mapping"], dtype=np.int32).reshape(-1, 2)


def blocks(count: int, length: int, overlap: int) -> Iterator[tuple[int, int, int]]:
    """Cuts `count` tokens into blocks, so that all but the first are scored once.

    Args:
        count: tokens.
        length: longest block.
        overlap: tokens that a block shares with the one before, below `length`.

    Yields:
        Start and end of a block, and the first token that is scored in it; each is predicted from at least `overlap`
        tokens before it, but for those at the start of the first block.
    """
    start, scored = 0, min(1, count)
    while True:
        end = min(start + length, count)
        yield start, end, scored
        if end == count:
            return
        start, scored = end - overlap, end


def token_row(ids: Any, offsets: Any, labels: Any) -> TextRow:
    """A row with a label for each token."""
    return TextRow(input_ids=ids, token_type_ids=None, offsets=offsets, second=None, labels=labels)


def labelled_rows(
    rows: Sequence[TextRow],
    example: Sequence[int],
    reader: Any,
    *,
    explains: Callable[[TextRow], LabelLogit] | None = None,
    facts: Mapping[str, Any] | None = None,
    notes: tuple[str, ...] = (),
) -> Rows[TextRow]:
    """Rows with a label for each token, as training reads them.

    Args:
        rows: `labels` of each is `[seq]`.
        example: index of each row's example.
        reader: the tokenizer.
        explains: what analyses explain of a row; without it, what the model predicts behind it.
        facts: for the record.
        notes: for a person.
    """
    lengths = [len(row.input_ids) for row in rows]
    mains = {number: index for index, number in reversed(list(enumerate(example)))}
    return Rows(
        rows=rows,
        lengths=lengths,
        example=example,
        collate=partial(collate_labels, int(reader.pad_token_id or 0)),
        roles=partial(_roles, reader, explains),
        main=[mains[number] for number in sorted(mains)],
        facts={"longest_row": max(lengths), **(facts or {})},
        notes=notes,
    )


def _roles(reader: Any, explains: Callable[[TextRow], LabelLogit] | None, rows: Sequence[TextRow]) -> Batch:
    batch = text_roles(reader, rows)
    if explains is not None:
        targets = [explains(row) for row in rows]
        batch |= {name: torch.tensor([getattr(one, name) for one in targets]) for name in ("position", "label")}
    return batch


def first_label(row: TextRow, *, ahead: int = 1) -> LabelLogit:
    """The logit of a row's first label, which is read `ahead` positions before it."""
    place = int((row.labels != NOT_SCORED).argmax())
    return LabelLogit(position=max(place - ahead, 0), label=max(int(row.labels[place]), 0))


# What a model says


def scored_tokens(
    rows: Rows[TextRow], outputs: Iterable[tuple[Sequence[int], Any]], *, ahead: int = 1
) -> list[tuple[Floats, Ints]]:
    """What a model makes of the labelled tokens of each row.

    Args:
        rows: with labels.
        outputs: row indices and the model's outputs, with `logits` `[rows, seq, vocabulary]`.
        ahead: how far ahead of a position the token is that its logits are about: 1, or 0 in masked models.

    Returns:
        For each row −log p of its labelled tokens in nats, and the likeliest token in the place of each.
    """
    found: list[Any] = [None] * len(rows)
    for indices, output in outputs:
        for index, logits in zip(indices, output.logits, strict=True):
            labels = torch.as_tensor(rows.rows[index].labels)[ahead:]
            scored = labels != NOT_SCORED
            said = logits[: len(labels)][scored.to(logits.device)].float()
            costs = cross_entropy(said, labels[scored].to(logits.device), reduction="none")
            found[index] = (costs.double().cpu().numpy(), said.argmax(-1).cpu().numpy())
    return found


@torch.inference_mode()
def written(session: Session, prompts: Sequence[Any], settings: Any) -> list[str]:
    """What a model writes behind prompts, greedily, without special tokens.

    Args:
        session: the model.
        prompts: token ids, at least one each; of one that leaves no room for new tokens the last ones are read.
        settings: `max_new_tokens` and `batch_size`.

    Raises:
        ConfigError: the model has no positions for so many new tokens.
    """
    if not prompts or not settings.max_new_tokens:
        return [""] * len(prompts)
    model, reader = session.model, session.reader
    if session.text_limit is not None:
        room = session.text_limit - settings.max_new_tokens
        if room < 1:
            raise ConfigError(
                f"{session.setting('max_new_tokens')}={settings.max_new_tokens} leaves no room for a text: "
                f"{session.name} has positions for {session.text_limit} tokens. Set a smaller one."
            )
        prompts = [prompt[-room:] for prompt in prompts]
    pad = next((one for one in (reader.pad_token_id, reader.eos_token_id) if one is not None), 0)
    soft = getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)
    known = model.generation_config.eos_token_id
    ends = {reader.eos_token_id, *(known if isinstance(known, list) else [known])} - {None}
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    found = [""] * len(prompts)
    for first in range(0, len(order), settings.batch_size):
        chosen = order[first : first + settings.batch_size]
        longest = max(len(prompts[number]) for number in chosen)
        ids = torch.full((len(chosen), longest), pad)
        mask = torch.zeros_like(ids)
        for row, number in enumerate(chosen):
            ids[row, longest - len(prompts[number]) :] = torch.as_tensor(np.asarray(prompts[number], dtype=np.int64))
            mask[row, longest - len(prompts[number]) :] = 1
        made = model.generate(
            input_ids=ids.to(session.device),
            attention_mask=mask.to(session.device),
            max_new_tokens=settings.max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=pad,
            eos_token_id=sorted(ends) or None,
            use_cache=not soft,  # soft prompts join anew at every call
        )
        texts = reader.batch_decode(made[:, longest:], skip_special_tokens=True)
        for number, text in zip(chosen, texts, strict=True):
            found[number] = text
    return found
