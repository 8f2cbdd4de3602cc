"""Models and texts to measure explanations on: SST-2 sentences, questions and answers, reviews with rationales."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from regtune.analyses.batches import Batch, question_batches, text_batches
from regtune.analyses.faithfulness.eraser import Rationale, read_rationales
from regtune.analyses.faithfulness.rationales import words_to_tokens
from regtune.errors import ConfigError, DataError
from regtune.session import open as open_session
from regtune.tasks.classify import Classification, ClassifySettings
from regtune.tasks.qa.data.sources import load_questions
from regtune.tasks.qa.examples import QAExample
from regtune.tasks.qa.pairs import require_fast_tokenizer
from regtune.token_classes import is_content, token_classes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = Literal["sentiment", "questions", "rationales"]
KINDS: tuple[Kind, ...] = get_args(Kind)
REVIEW_LABELS = {"NEG": 0, "POS": 1}
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]]*\s+|\n+")


@dataclass(frozen=True, kw_only=True, eq=False)
class MeasuredTexts:
    """Analysis batches, a name for each of their examples, and the tokens that people marked."""

    batches: list[Batch]
    names: tuple[str, ...]
    """Of the examples, the same for every model, so that two models can be compared text by text."""
    marked: Mapping[str, Sequence[Bool[np.ndarray, "_ _"]]] = field(default_factory=dict)
    """Kind of mark to one array a batch; a row without a mark has none to agree with."""
    labels: Mapping[int, int] = field(default_factory=dict)
    """The gold class of each example, where classes are what is explained."""
    facts: Mapping[str, int] = field(default_factory=dict)
    """Counts for the record."""


def open_model(model_dir: str | Path, kind: Kind) -> tuple[Any, Any]:
    """The model, in evaluation mode, and its tokenizer.

    Raises:
        CheckpointError: no model there, or one whose head isn't made for this kind of text.
    """
    session = open_session(model_dir, task="qa" if kind == "questions" else "classify")
    return session.model, session.reader


def drawn(count: int, limit: int | None, seed: int) -> list[int]:
    """`limit` of `count` indices, drawn without replacement and sorted; files are often sorted by class.

    Raises:
        ConfigError: a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit} must be at least 1.")
    if limit is None or limit >= count:
        return list(range(count))
    return sorted(np.random.default_rng(seed).permutation(count)[:limit].tolist())


def sentiment_texts(
    path: Path, tokenizer: PreTrainedTokenizerBase, *, limit: int | None, seed: int, max_length: int, batch_size: int
) -> MeasuredTexts:
    """Sentences of an SST-2 file."""
    sentences = Classification().read([str(path)], ClassifySettings()).items
    rows = drawn(len(sentences), limit, seed)
    batches = text_batches(
        [sentences[row].text for row in rows], tokenizer, max_length=max_length, batch_size=batch_size
    )
    return MeasuredTexts(
        batches=batches,
        names=tuple(f"{path.name}:{row + 1}" for row in rows),
        labels={index: int(sentences[row].label) for index, row in enumerate(rows)},
        facts={"texts": len(rows)},
    )


def question_texts(
    data: str, tokenizer: PreTrainedTokenizerBase, *, limit: int | None, seed: int, max_length: int, batch_size: int
) -> MeasuredTexts:
    """Questions, one window each (the first that holds the answer), with the gold answer and its sentence marked."""
    examples = load_questions([data], for_training=False).examples
    chosen = [examples[row] for row in drawn(len(examples), limit, seed)]
    stride = min(128, max_length // 3)
    batches = question_batches(chosen, tokenizer, max_length=max_length, stride=stride, batch_size=batch_size)
    marked: dict[str, list[np.ndarray]] = {"answer": [], "sentence": []}
    for batch in batches:
        answers = np.zeros(batch["input_ids"].shape, dtype=bool)
        sentences = np.zeros_like(answers)
        for row in range(len(answers)):
            start, end = int(batch["start_positions"][row]), int(batch["end_positions"][row])
            first, last = int(batch["context_start"][row]), int(batch["context_end"][row])
            if start >= first:
                answers[row, start : end + 1] = True
                offsets = batch["offset_mapping"][row, first:last].tolist()
                span = sentence_of(
                    chosen[int(batch["example"][row])], offsets[start - first][0], offsets[end - first][1]
                )
                sentences[row, first:last] = words_to_tokens([tuple(pair) for pair in offsets], [span])
        marked["answer"].append(answers)
        marked["sentence"].append(sentences)
    return MeasuredTexts(
        batches=batches, names=tuple(example.id for example in chosen), marked=marked, facts={"texts": len(chosen)}
    )


def sentence_of(example: QAExample, start: int, end: int) -> tuple[int, int]:
    """Characters of the sentence, or sentences, that a range of the context lies in; ends are . ! ? and line breaks."""
    breaks = [match.end() for match in _SENTENCE_END.finditer(example.context)]
    first = max((place for place in breaks if place <= start), default=0)
    return first, min((place for place in breaks if place >= end), default=len(example.context))


def review_windows(
    folder: Path, tokenizer: PreTrainedTokenizerBase, *, limit: int | None, seed: int, max_length: int, batch_size: int
) -> MeasuredTexts:
    """Reviews of the test split, cut from their first word on into windows that don't overlap.

    Where a cut falls depends on the text alone, never on the evidence. Windows without evidence have nothing to agree
    with and are left out; how many is in `facts`.
    """
    reviews = read_rationales(folder, "test")
    chosen = [reviews[row] for row in drawn(len(reviews), limit, seed)]
    windows, dropped = _windows(chosen, tokenizer, max_length)
    if not windows:
        raise DataError(f"None of the {len(chosen)} reviews of {folder} has a marked word.")
    batches, marked = [], []
    order = sorted(windows, key=lambda window: -len(window["input_ids"]))
    for first in range(0, len(order), batch_size):
        batch, marks = _window_batch(order[first : first + batch_size], tokenizer)
        batches.append(batch)
        marked.append(marks)
    return MeasuredTexts(
        batches=batches,
        names=tuple(review.id for review in chosen),
        marked={"evidence": marked},
        labels={index: _label_of(review) for index, review in enumerate(chosen)},
        facts={"reviews": len(chosen), "windows": len(windows), "windows_without_evidence": dropped},
    )


def _windows(
    reviews: Sequence[Rationale], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[dict[str, Any]], int]:
    require_fast_tokenizer(tokenizer)
    found, dropped = [], 0
    for index, review in enumerate(reviews):
        coded = tokenizer(
            [review.text],
            truncation=True,
            max_length=max_length,
            stride=0,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        for row in range(len(coded["input_ids"])):
            marks = words_to_tokens(coded["offset_mapping"][row], review.spans)
            if marks.any():
                found.append({"input_ids": coded["input_ids"][row], "marks": marks, "example": index})
            else:
                dropped += 1
    return found, dropped


def _window_batch(
    windows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> tuple[Batch, Bool[np.ndarray, "rows seq"]]:
    shape = (len(windows), max(len(window["input_ids"]) for window in windows))
    ids, mask = torch.full(shape, int(tokenizer.pad_token_id or 0)), torch.zeros(shape, dtype=torch.int64)
    marks = np.zeros(shape, dtype=bool)
    for row, window in enumerate(windows):
        size = len(window["input_ids"])
        ids[row, :size], mask[row, :size] = torch.tensor(window["input_ids"]), 1
        marks[row, :size] = window["marks"]
    batch: Batch = {"input_ids": ids, "attention_mask": mask, "token_classes": token_classes(ids, mask, tokenizer)}
    if "token_type_ids" in tokenizer.model_input_names:
        batch["token_type_ids"] = torch.zeros_like(ids)
    batch["example"] = torch.tensor([window["example"] for window in windows])
    return batch, marks


def _label_of(review: Rationale) -> int:
    if review.label not in REVIEW_LABELS:
        raise DataError(f"review {review.id!r} has the class {review.label!r}; {', '.join(REVIEW_LABELS)} are known.")
    return REVIEW_LABELS[review.label]


def rows_of(batch: Mapping[str, Tensor], rows: Sequence[int]) -> Batch:
    """Some rows of a batch."""
    return {name: value[list(rows)] for name, value in batch.items()}


def content_of(batch: Mapping[str, Tensor], row: int) -> Bool[np.ndarray, " tokens"]:
    """Which of a row's attended tokens are content."""
    size = int(batch["attention_mask"][row].sum())
    return np.asarray(is_content(batch["token_classes"][row, :size]).numpy())
