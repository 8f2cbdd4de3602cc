"""Questions and contexts as tokens, and the template in which a tokenizer joins the two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int32

from regtune.errors import UnsupportedModelError
from regtune.tasks.qa.offsets import blank_ids, clean_offsets

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
    """The special tokens around a question and a context, and the segment ids of all five pieces."""

    prefix: Ids
    middle: Ids
    suffix: Ids
    type_ids: tuple[Ids, int, Ids, int, Ids] | None
    null_position: int

    @property
    def num_special(self) -> int:
        """Special tokens in a pair."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)

    def context_start(self, question: Ids) -> int:
        """Position of the first context token."""
        return len(self.prefix) + len(question) + len(self.middle)

    def join(self, question: Ids, context: Ids) -> tuple[Ids, Ids | None]:
        """Input ids and token type ids (if the tokenizer makes them) of a pair."""
        ids = np.concatenate([self.prefix, question, self.middle, context, self.suffix])
        if self.type_ids is None:
            return ids, None
        prefix, of_question, middle, of_context, suffix = self.type_ids
        question_types = np.full(len(question), of_question, dtype=np.int32)
        context_types = np.full(len(context), of_context, dtype=np.int32)
        return ids, np.concatenate([prefix, question_types, middle, context_types, suffix])


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
    for first in range(0, len(distinct), _CHUNK):
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
    types = np.array(encoded["token_type_ids"], dtype=np.int32) if "token_type_ids" in encoded else None
    prefix = ids[:start_q]
    heads = [number for number in (tokenizer.cls_token_id, tokenizer.bos_token_id) if number in prefix]
    if not heads:
        raise UnsupportedModelError(
            f"{type(tokenizer).__name__} puts no [CLS] or beginning-of-text token before the question (a pair starts "
            f"with {tokenizer.convert_ids_to_tokens(ids[:3].tolist())}), so nothing can stand for 'no answer here'. "
            "Use an encoder's tokenizer (BERT, RoBERTa, DeBERTa, ModernBERT …)."
        )
    template = PairTemplate(
        prefix=prefix,
        middle=ids[end_q:start_c],
        suffix=ids[end_c:],
        type_ids=None
        if types is None
        else (types[:start_q], int(types[start_q]), types[end_q:start_c], int(types[start_c]), types[end_c:]),
        null_position=int(np.flatnonzero(prefix == heads[0])[0]),
    )
    if end_q > start_c or not np.array_equal(template.join(tokens[0].ids, tokens[1].ids)[0], ids):
        raise UnsupportedModelError(
            f"{type(tokenizer).__name__} does not join question and context as special tokens around the two texts' "
            "own tokens, so its contexts cannot be cut into windows. Use the fast tokenizer that came with the model."
        )
    return template
