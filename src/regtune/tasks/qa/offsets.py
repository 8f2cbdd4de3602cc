"""Character offsets of tokens: put right where tokenizers blur them, mapped to answers, checked against the text."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int32

from regtune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Offsets = Int32[np.ndarray, "tokens 2"]

_SPACES = np.array([code for code in range(0x3001) if chr(code).isspace()], dtype=np.uint32)
_BLANK_MARKS = "▁Ġ"
_ALLOWED_DISAGREEMENT = 0.05
_CUT_CHARACTER = "\ufffd"
"""What byte-level tokens that hold only a part of a character decode to."""


def clean_offsets(offsets: Offsets, context: str, blank: Bool[np.ndarray, " tokens"]) -> Offsets:
    """Offsets that start and end where the token's own text does.

    Byte-level and SentencePiece tokenizers count the space before a word as part of its first token, and give a token
    that stands for an added space the character that follows it. Normalisers that drop combining marks leave them
    outside every token. So: spaces at both ends of a token go (unless it is all space), an added space becomes empty,
    and marks that no token covers go to the token before them.

    Args:
        offsets: half-open character ranges as the tokenizer gives them.
        context: the text.
        blank: which tokens' pieces hold nothing but a mark for space.

    Raises:
        DataError: a range that lies outside the text.
    """
    size = len(context)
    starts, ends = offsets[:, 0], offsets[:, 1]
    if len(offsets) and (starts.min() < 0 or ends.max() > size or (starts > ends).any()):
        raise DataError(f"The tokenizer gives offsets outside a context of {size} characters ({context[:40]!r}…).")
    codes = np.frombuffer(context.encode("utf-32-le"), dtype=np.uint32)
    is_space = np.isin(codes, _SPACES)
    places = np.arange(size, dtype=np.int32)
    next_text = np.append(np.minimum.accumulate(np.where(is_space, size, places)[::-1])[::-1], size)
    text_end = np.append(0, np.maximum.accumulate(np.where(is_space, 0, places + 1)))
    new_starts, new_ends = next_text[starts], text_end[ends]
    all_space = new_ends <= new_starts
    new_starts, new_ends = np.where(all_space, starts, new_starts), np.where(all_space, ends, new_ends)
    added = blank & ~all_space & np.append(starts[1:] < ends[:-1], False)
    new_ends = _with_marks(np.where(added, new_starts, new_ends), new_starts, context, is_space)
    return np.stack([new_starts, new_ends], axis=1).astype(np.int32)


def token_range(offsets: Offsets, start: int, end: int) -> tuple[int, int] | None:
    """The first and the last token (inclusive) that share a character with `start:end`; none if no token does."""
    hits = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > start))
    return (int(hits[0]), int(hits[-1])) if len(hits) else None


def blank_ids(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Which of these token ids stand for nothing but spaces."""
    unique = sorted(set(ids))
    pieces = tokenizer.convert_ids_to_tokens(unique)
    return {number for number, piece in zip(unique, pieces, strict=True) if not piece.strip(_BLANK_MARKS)}


def check_spans(tokenizer: PreTrainedTokenizerBase, ids: Sequence[Sequence[int]], texts: Sequence[str]) -> None:
    """Compares what tokens decode to with the text that their offsets give, letters and digits only.

    Spans with unknown tokens or with pieces of a character cannot be compared and are left out.

    A few spans may differ where a normaliser rewrites characters; when more than one and one in twenty do, the offsets
    are wrong and so would be every label and every answer.

    Args:
        tokenizer: decodes the tokens.
        ids: for each span its tokens.
        texts: for each span its text in the context.

    Raises:
        DataError: the offsets do not give the text back; one span is quoted.
    """
    known = [index for index, span in enumerate(ids) if tokenizer.unk_token_id not in span]
    if not known:
        return
    decoded = tokenizer.batch_decode([list(ids[index]) for index in known], clean_up_tokenization_spaces=False)
    wrong = [
        (text, texts[index])
        for index, text in zip(known, decoded, strict=True)
        if text != texts[index] and _CUT_CHARACTER not in text and _letters(text) != _letters(texts[index])
    ]
    if len(wrong) > 1 + _ALLOWED_DISAGREEMENT * len(known):
        raise DataError(
            f"The offsets of this tokenizer ({tokenizer.name_or_path or type(tokenizer).__name__}) do not give the "
            f"text back in {len(wrong)} of {len(known)} spans: tokens that mean {wrong[0][0]!r} are said to be "
            f"{wrong[0][1]!r}. Labels and answers would be wrong; use the tokenizer that came with the model."
        )


def _with_marks(ends: np.ndarray, starts: np.ndarray, context: str, is_space: np.ndarray) -> np.ndarray:
    """Ends moved behind the combining marks that follow a token and that no token covers."""
    if context.isascii():
        return ends
    depth = np.zeros(len(context) + 1, dtype=np.int32)
    np.add.at(depth, starts, 1)
    np.add.at(depth, ends, -1)
    moved = np.arange(len(context) + 1)
    for place in np.flatnonzero((np.cumsum(depth)[:-1] == 0) & ~is_space)[::-1]:
        if unicodedata.category(context[place]).startswith("M"):
            moved[place] = moved[place + 1]
    return np.where(ends > starts, moved[ends], ends)


def _letters(text: str) -> str:
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(char for char in folded if char.isalnum() and not unicodedata.category(char).startswith("M"))
