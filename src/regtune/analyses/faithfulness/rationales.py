"""Do the tokens that an explanation stresses agree with those that people marked?

Agreement says whether an explanation looks right to people, not whether it is true to the model: a faithful explanation
of a model that looks at the wrong words agrees with nobody.

Marked words come from gold answers, or from documents in ERASER's format (DeYoung 2020, arXiv 1911.03429): a folder
with `docs.jsonl` (`docid`, `text`: words apart by spaces, sentences by line breaks) and `train.jsonl`, `val.jsonl`,
`test.jsonl` (`annotation_id`, `classification`, `evidences`: lists of lists of `docid`, `start_token`, `end_token`,
`text`; other fields are left alone), each also as `.gz`. Token numbers count words of `text.split()`, ends exclusive.
In the movie reviews (Zaidan 2007; Pang & Lee 2004; for research) the annotators of `train` and `val` stopped when they
had marked enough, so unmarked words there may be evidence too (7 to 9 % of the words are marked); `test` was marked in
full (30 %), and is the set to measure agreement on.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float64

from regtune.errors import ConfigError, DataError
from regtune.tasks.files import decoded, parse_json, read_bytes
from regtune.typed import typed

AGREEMENTS = ("auprc", "f1_own_length")
"""What is measured; higher is better for all."""


def agreement(scores: Float64[np.ndarray, " tokens"], marked: Bool[np.ndarray, " tokens"]) -> dict[str, float]:
    """How far the scores agree with the marked tokens; ratios in [0, 1].

    Args:
        scores: of the text's tokens, higher for what matters more; negative ones count as such.
        marked: the tokens that people marked, at least one.

    Returns:
        `auprc`: average precision; `f1_own_length`: token F1 of as many top-scored tokens as are marked (then
        precision = recall = F1); `prevalence`: share of tokens that are marked, which is what random scores reach.
    """
    precision, size = average_precision(scores, marked), int(marked.sum())
    return {
        "auprc": precision,
        "f1_own_length": _top_share(scores, marked, size),
        "prevalence": size / len(marked),
    }


def average_precision(scores: Float64[np.ndarray, " tokens"], marked: Bool[np.ndarray, " tokens"]) -> float:
    """Area under the precision-recall curve: the sum over thresholds of (recall gained) × precision.

    Tokens with equal scores pass a threshold together, so their order doesn't matter.
    """
    if not marked.any():
        raise ConfigError(f"None of the {len(marked)} tokens is marked, so there is nothing to agree with.")
    if not np.isfinite(scores).all():
        raise ConfigError(f"score {scores[~np.isfinite(scores)][0]} is no number.")
    order = np.argsort(-scores, kind="stable")
    falling, hits = scores[order], np.cumsum(marked[order])
    last = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)  # the last token of each group of ties
    found = hits[last]
    gained = np.diff(found, prepend=0)
    return float((gained * found / (last + 1)).sum() / found[-1])


def _top_share(scores: np.ndarray, marked: np.ndarray, size: int) -> float:
    """Share of marked tokens among the `size` best; tokens that tie for the last places count in equal parts."""
    last = np.sort(scores)[::-1][size - 1]
    above, tied = scores > last, scores == last
    places = size - int(above.sum())
    return (int(marked[above].sum()) + places * float(marked[tied].mean())) / size


def words_to_tokens(offsets: npt.ArrayLike, spans: Sequence[tuple[int, int]]) -> Bool[np.ndarray, " tokens"]:
    """Which tokens share a character with any of the marked spans.

    Args:
        offsets: half-open character ranges of the tokens, `[tokens, 2]`; empty ones (special tokens) are never marked.
        spans: half-open character ranges that are marked.
    """
    ranges = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    marked = np.zeros(len(ranges), dtype=bool)
    for start, end in spans:
        marked |= (ranges[:, 0] < end) & (ranges[:, 1] > start) & (ranges[:, 1] > ranges[:, 0])
    return marked


# ERASER's format

RowT = TypeVar("RowT", "_Document", "_Evidence", "_Annotation")
_WORD = re.compile(r"\S+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rationale:
    """A document, its class, and the half-open character ranges that were marked (sorted, overlaps joined)."""

    id: str
    text: str
    label: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class _Document:
    docid: str
    text: str


@dataclass(frozen=True, kw_only=True)
class _Evidence:
    docid: str
    start_token: int
    end_token: int
    text: str


@dataclass(frozen=True, kw_only=True)
class _Annotation:
    annotation_id: str
    classification: str
    evidences: list[list[dict[str, Any]]]


def read_rationales(folder: Path, split: str = "test") -> list[Rationale]:
    """The documents of a split (`train`, `val` or `test`), in the file's order."""
    documents: dict[str, str] = {}
    for where, document in _rows(folder, "docs", _Document):
        if document.docid in documents:
            raise DataError(f"{where}: the docid {document.docid!r} occurs twice.")
        documents[document.docid] = document.text
    found: dict[str, Rationale] = {}
    for where, row in _rows(folder, split, _Annotation):
        name = row.annotation_id
        if name not in documents:
            raise DataError(f"{where}: there is no document {name!r} (of {len(documents)}).")
        text = documents[name]
        words = [match.span() for match in _WORD.finditer(text)]
        every = (_part(_Evidence, one, where) for group in row.evidences for one in group)
        spans = sorted({_span(one, name, text, words, where) for one in every})
        if name in found:
            raise DataError(f"{where}: the annotation_id {name!r} occurs twice.")
        found[name] = Rationale(id=name, text=text, label=row.classification, spans=_joined(spans))
    return list(found.values())


def _rows(folder: Path, name: str, kind: type[RowT]) -> Iterator[tuple[str, RowT]]:
    """Every record of a file with its place, for messages."""
    files = (folder / f"{name}.jsonl.gz", folder / f"{name}.jsonl")
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        raise DataError(f"{folder} holds neither {name}.jsonl nor {name}.jsonl.gz. Name a folder in ERASER's format.")
    parsed = parse_json(decoded(read_bytes(path), str(path), "auto").encode(), str(path))
    for place, problem in parsed.broken:
        raise DataError(f"{path}, {place}: {problem}")
    for place, record in parsed.values:
        where = f"{path}, {place or 'line 1'}"
        yield where, _part(kind, record, where)


def _part(kind: type[RowT], record: Any, where: str) -> RowT:
    """The fields that are read of a record."""
    if isinstance(record, dict):
        record = {each.name: record[each.name] for each in dataclasses.fields(kind) if each.name in record}
    return typed(kind, record, where, wrong=DataError, remedy="Is this ERASER's format?")


def _span(
    evidence: _Evidence, document: str, text: str, words: Sequence[tuple[int, int]], where: str
) -> tuple[int, int]:
    """Characters of one evidence, checked against what it says stands there."""
    first, last = evidence.start_token, evidence.end_token
    if evidence.docid != document:
        raise DataError(f"{where}: evidence in {evidence.docid!r}, but the annotation is of {document!r}.")
    if not 0 <= first <= last <= len(words):
        raise DataError(f"{where}: evidence of words {first} to {last}; {document!r} has {len(words)} words.")
    start, end = (words[first][0], words[last - 1][1]) if first < last else (0, 0)
    if evidence.text.split() != text[start:end].split():
        raise DataError(
            f"{where}: words {first} to {last} of {document!r} are {text[start:end][:60]!r}, the evidence says "
            f"{evidence.text[:60]!r}. Documents and annotations don't belong together."
        )
    return start, end


def _joined(spans: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if start == end:  # the movies' test file has a few evidences of no word
            continue
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return tuple(joined)
