"""Plain texts, and pairs of texts, as rows that a model reads: for tasks on texts, and for models without a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int32
from torch import Tensor

from regtune.errors import DataError, UnsupportedModelError
from regtune.interfaces import Batch, Examples, Rows
from regtune.rows.token_classes import token_classes

NOT_SCORED = -100
"""The label of a token that is in no loss (PyTorch's)."""
RECORDS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
"""Ends of names of files that hold records; any other is text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlainText:
    """A paragraph, or a pair of texts, that nobody labelled."""

    id: str
    text: str
    pair: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TextRow:
    """A tokenised text or pair of texts."""

    input_ids: Int32[np.ndarray, " seq"]
    token_type_ids: Int32[np.ndarray, " seq"] | None
    offsets: Int32[np.ndarray, "seq 2"]
    """Characters of the text that each token spells; (0, 0) for special tokens."""
    second: int | None
    """First token of the second text; None where there is one alone."""
    labels: Any = None


def is_text_file(name: str) -> bool:
    """Whether a name means plain text: it ends in .txt or .text, or is a file that holds no records."""
    path = Path(name)
    return path.suffix in (".txt", ".text") or (path.is_file() and path.suffix not in (*RECORDS, ".gz"))


def read_paragraphs(names: Sequence[str]) -> Examples:
    """UTF-8 text files, a paragraph a line.

    Raises:
        DataError: a file that can't be read, or holds nothing.
    """
    items = []
    for name in names:
        try:
            lines = Path(name).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{name} can't be read as UTF-8 text: {error}") from error
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise DataError(f"{name} holds no text. Give one paragraph a line.")
        items += found
    texts = tuple(PlainText(id=str(index), text=text) for index, text in enumerate(items))
    return Examples(items=texts, names=tuple(names))


def text_rows(
    texts: Sequence[str],
    reader: Any,
    *,
    max_length: int,
    pairs: Sequence[str] | None = None,
    labels: Sequence[Any] | None = None,
    windows: bool = False,
) -> Rows[TextRow]:
    """One row a text, cut to `max_length` tokens; how many were cut is in `facts`.

    Args:
        texts: at least one.
        reader: a fast tokenizer.
        max_length: longest row in tokens, special ones included.
        pairs: a second text for each; the longer one of the two is cut.
        labels: what `labels` in a batch holds, one number (or list of numbers) a text.
        windows: cut nothing off; what is left of a text makes further rows, which don't overlap.

    Raises:
        DataError: no text.
        UnsupportedModelError: a slow tokenizer.
    """
    if not len(texts):
        raise DataError("There is no text to read. Give at least one.")
    require_fast(reader)
    given = (list(texts),) if pairs is None else (list(texts), list(pairs))
    coded = reader(
        *given, truncation=True, max_length=max_length, return_offsets_mapping=True, return_overflowing_tokens=windows
    )
    types, texts_of = coded.get("token_type_ids"), coded.get("overflow_to_sample_mapping")
    example = list(range(len(coded["input_ids"]))) if texts_of is None else list(texts_of)
    rows = [
        TextRow(
            input_ids=np.asarray(ids, dtype=np.int32),
            token_type_ids=None if types is None else np.asarray(types[index], dtype=np.int32),
            offsets=np.asarray(coded["offset_mapping"][index], dtype=np.int32).reshape(-1, 2),
            second=None if pairs is None else _second(coded.sequence_ids(index)),
            labels=None if labels is None else labels[example[index]],
        )
        for index, ids in enumerate(coded["input_ids"])
    ]
    lengths = [len(row.input_ids) for row in rows]
    cut = 0 if windows else sum(bool(one.overflowing) for one in coded.encodings)
    return Rows(
        rows=rows,
        lengths=lengths,
        example=example,
        collate=partial(_collate, int(reader.pad_token_id or 0)),
        roles=partial(text_roles, reader),
        facts={"longest_row": max(lengths), "truncated_texts": cut},
    )


def require_fast(reader: Any) -> None:
    """Refuses a slow tokenizer.

    Raises:
        UnsupportedModelError: it is one.
    """
    if not getattr(reader, "is_fast", False):
        raise UnsupportedModelError(
            f"{type(reader).__name__} is a slow tokenizer, which tells no character positions. Use the fast one."
        )


def pad_tokens(rows: Sequence[Any], pad_token_id: int, pad_to: int | None = None) -> Batch:
    """`input_ids`, `attention_mask` and `token_type_ids` (where there are any), `[rows, seq]`, padded on the right.

    Args:
        rows: objects with `input_ids` and `token_type_ids`, each `[seq]`.
        pad_token_id: id of the padding token.
        pad_to: a fixed length in tokens; the longest row's by default.
    """
    length = pad_to or max(len(row.input_ids) for row in rows)
    shape = (len(rows), length)
    columns = {"input_ids": np.full(shape, pad_token_id, dtype=np.int64), "attention_mask": np.zeros(shape, np.int64)}
    if rows[0].token_type_ids is not None:
        columns["token_type_ids"] = np.zeros(shape, np.int64)
    for index, row in enumerate(rows):
        size = len(row.input_ids)
        columns["input_ids"][index, :size] = row.input_ids
        columns["attention_mask"][index, :size] = 1
        if row.token_type_ids is not None:
            columns["token_type_ids"][index, :size] = row.token_type_ids
    return {name: torch.from_numpy(column) for name, column in columns.items()}


def _second(sequence: Sequence[int | None]) -> int:
    return next((place for place, number in enumerate(sequence) if number == 1), len(sequence))


def _collate(pad_token_id: int, rows: Sequence[TextRow], pad_to: int | None) -> Batch:
    batch = pad_tokens(rows, pad_token_id, pad_to)
    if rows[0].labels is not None:
        batch["labels"] = torch.tensor([row.labels for row in rows])
    return batch


def collate_labels(pad_token_id: int, rows: Sequence[TextRow], pad_to: int | None) -> Batch:
    """A padded batch of rows whose labels, where they have any, are one a token; padding is `NOT_SCORED`."""
    batch = pad_tokens(rows, pad_token_id, pad_to)
    if rows[0].labels is not None:
        batch["labels"] = torch.full_like(batch["input_ids"], NOT_SCORED)
        for index, row in enumerate(rows):
            batch["labels"][index, : len(row.labels)] = torch.as_tensor(row.labels)
    return batch


def text_roles(reader: Any, rows: Sequence[TextRow]) -> Batch:
    """`Rows.roles` of texts: `token_classes`, `offset_mapping` and, of pairs, `context_start`."""
    batch = pad_tokens(rows, int(reader.pad_token_id or 0))
    seconds: Tensor | None = None
    if rows[0].second is not None:
        seconds = torch.tensor([row.second for row in rows])
    offsets = np.zeros((*batch["input_ids"].shape, 2), dtype=np.int64)
    for index, row in enumerate(rows):
        offsets[index, : len(row.offsets)] = row.offsets
    classes = token_classes(batch["input_ids"], batch["attention_mask"], reader, context_start=seconds)
    found: Mapping[str, Tensor] = {"token_classes": classes, "offset_mapping": torch.from_numpy(offsets)}
    return dict(found) if seconds is None else {**found, "context_start": seconds}
