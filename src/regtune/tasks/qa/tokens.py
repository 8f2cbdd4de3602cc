"""Questions and contexts as tokens: offsets put right, the template that joins a pair, and a check against the text."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int32

from regtune.errors import DataError, UnsupportedModelError
from regtune.progress import each

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 1000
"""Texts tokenised at once; bounds the memory that the tokenizer's Python lists take."""

Ids = Int32[np.ndarray, " _tokens"]
"""Token ids of one piece; pieces of any length go together."""


@dataclass(frozen=True, slots=True)
class TokenisedText:
    """One text without special tokens: ids `[tokens]` and clean offsets `[tokens, 2]`."""

    ids: Int32[np.ndarray, " tokens"]
    offsets: Int32[np.ndarray, "tokens 2"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PairTemplate:
    """The special tokens around a question and a context."""

    around: tuple[Int32[np.ndarray, "2 _tokens"], ...]
    """Ids and segment ids of what stands before the question, between the two, and behind the context."""
    segments: tuple[int, int] | None
    """Of the question and of the context; None where the tokenizer makes none."""
    null_position: int

    @property
    def num_special(self) -> int:
        """Special tokens in a pair."""
        return sum(int(piece.shape[1]) for piece in self.around)

    def context_start(self, question: Ids) -> int:
        """Position of the first context token."""
        return int(self.around[0].shape[1] + len(question) + self.around[1].shape[1])

    def join(self, question: Ids, context: Ids) -> tuple[Ids, Ids | None]:
        """Input ids and token type ids (if the tokenizer makes them) of a pair."""
        first, second = (
            np.stack([ids, np.full_like(ids, segment)])
            for ids, segment in zip((question, context), self.segments or (0, 0), strict=True)
        )
        ids, types = np.concatenate([self.around[0], first, self.around[1], second, self.around[2]], axis=1)
        return ids, None if self.segments is None else types


def require_fast_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a tokenizer that cannot give offsets.

    Raises:
        UnsupportedModelError: the tokenizer is not a fast one.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UnsupportedModelError(
            f"{type(tokenizer).__name__} is a slow tokenizer and cannot say which characters a token stands for. "
            "Load a fast one: AutoTokenizer.from_pretrained(…), from a folder that holds a tokenizer.json."
        )


def tokenise(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[TokenisedText]:
    """Every text as tokens without special tokens, of any length, never truncated or padded; equal texts share one."""
    distinct = list(dict.fromkeys(texts))
    tokenised: dict[str, TokenisedText] = {}
    for first in each(range(0, len(distinct), _CHUNK), "thousand texts"):
        chunk = distinct[first : first + _CHUNK]
        encoded = tokenizer(
            chunk,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            truncation=False,
            padding=False,
            verbose=False,
        )
        blanks = np.fromiter(blank_ids(list(chain.from_iterable(encoded["input_ids"])), tokenizer), dtype=np.int32)
        for text, ids, offsets in zip(chunk, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            array = np.array(ids, dtype=np.int32)
            ranges = np.array(offsets, dtype=np.int32).reshape(-1, 2)
            tokenised[text] = TokenisedText(array, clean_offsets(ranges, text, np.isin(array, blanks)))
    return [tokenised[text] for text in texts]


def pair_template(
    tokenizer: PreTrainedTokenizerBase, question: str, context: str, tokens: tuple[TokenisedText, TokenisedText]
) -> PairTemplate:
    """Learns from one real pair where the tokenizer puts its special tokens.

    Args:
        tokenizer: a fast tokenizer.
        question: a question with at least one token.
        context: a context with at least one token.
        tokens: both, tokenised alone.

    Raises:
        UnsupportedModelError: the pair is not question, then context, behind a [CLS] or beginning-of-text token, or its
            tokens depend on each other.
    """
    encoded = tokenizer(question, context, truncation=False, padding=False, verbose=False)
    ids = np.array(encoded["input_ids"], dtype=np.int32)
    sides = [-1 if side is None else side for side in encoded.sequence_ids(0)]
    start_q, start_c = sides.index(0), sides.index(1)
    end_q, end_c = start_q + len(tokens[0].ids), start_c + len(tokens[1].ids)
    types = np.array(encoded.get("token_type_ids", np.zeros_like(ids)), dtype=np.int32)
    heads = [number for number in (tokenizer.cls_token_id, tokenizer.bos_token_id) if number in ids[:start_q]]
    if not heads:
        raise UnsupportedModelError(
            f"{type(tokenizer).__name__} puts no [CLS] or beginning-of-text token before the question (a pair starts "
            f"with {tokenizer.convert_ids_to_tokens(ids[:3].tolist())}), so nothing can stand for 'no answer here'. "
            "Use an encoder's tokenizer (BERT, RoBERTa, DeBERTa, ModernBERT …)."
        )
    both = np.stack([ids, types])
    template = PairTemplate(
        around=(both[:, :start_q], both[:, end_q:start_c], both[:, end_c:]),
        segments=(int(types[start_q]), int(types[start_c])) if "token_type_ids" in encoded else None,
        null_position=ids.tolist().index(heads[0]),
    )
    if end_q > start_c or not np.array_equal(template.join(tokens[0].ids, tokens[1].ids)[0], ids):
        raise UnsupportedModelError(
            f"{type(tokenizer).__name__} does not join question and context as special tokens around the two texts' "
            "own tokens, so its contexts cannot be cut into windows. Use the fast tokenizer that came with the model."
        )
    return template


# Character offsets of tokens

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
