"""What kind of token each position holds: the classes that attention, norms and audits are counted by."""

from __future__ import annotations

import unicodedata
from enum import IntEnum
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int8, Int64
from torch import Tensor

from regtune.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TokenClass(IntEnum):
    """Padding is in no statistic; registers are no text and never stand in `input_ids`."""

    PADDING = -1
    CLS = 0
    """The first special token of a text: [CLS], <s> or the like."""
    SEP = 1
    """Every other special token."""
    PUNCTUATION = 2
    """A token of punctuation and symbols alone, in the question or the context."""
    QUESTION = 3
    CONTEXT = 4
    """All other tokens; every word of a text that has no question."""
    REGISTER = 5


CONTENT = (TokenClass.PUNCTUATION, TokenClass.QUESTION, TokenClass.CONTEXT)
"""Text that somebody wrote: no padding, special tokens or registers."""


def token_classes(
    input_ids: Int64[Tensor, "rows seq"],
    attention_mask: Int64[Tensor, "_ _"],
    tokenizer: PreTrainedTokenizerBase,
    *,
    context_start: Int64[Tensor, " _"] | None = None,
) -> Int8[Tensor, "rows seq"]:
    """The class of every position.

    Args:
        input_ids: the tokens.
        attention_mask: 1 for text, 0 for padding.
        tokenizer: says which ids are special and what the others spell.
        context_start: first token of each row's context; the words before it are the question.

    Raises:
        ConfigError: the shapes differ.
    """
    if attention_mask.shape != input_ids.shape:
        raise ConfigError(
            f"attention_mask is {list(attention_mask.shape)}, input_ids {list(input_ids.shape)}; they must be equal."
        )
    if context_start is not None and context_start.shape != input_ids.shape[:1]:
        raise ConfigError(f"context_start is {list(context_start.shape)}; one number for each row is needed.")
    classes = torch.full(input_ids.shape, TokenClass.CONTEXT, dtype=torch.int8)
    if context_start is not None:
        places = torch.arange(input_ids.shape[1])[None, :]
        classes[places < context_start[:, None]] = TokenClass.QUESTION
    distinct = torch.unique(input_ids)
    pieces = tokenizer.convert_ids_to_tokens(distinct.tolist())
    spelled = [tokenizer.convert_tokens_to_string([piece]) for piece in pieces]  # byte-level pieces are no text
    signs = distinct[torch.tensor([is_punctuation(text) for text in spelled], dtype=torch.bool)]
    classes[torch.isin(input_ids, signs)] = TokenClass.PUNCTUATION
    text = attention_mask.bool()
    special = torch.isin(input_ids, torch.tensor(sorted(set(tokenizer.all_special_ids)), dtype=input_ids.dtype)) & text
    unknown = tokenizer.unk_token_id
    if unknown is not None:  # a word that the tokenizer can't spell is still a word
        special &= input_ids != unknown
    classes[special] = TokenClass.SEP
    first = text.int().argmax(dim=1)
    rows = torch.arange(len(input_ids))
    classes[rows[special[rows, first]], first[special[rows, first]]] = TokenClass.CLS
    classes[~text] = TokenClass.PADDING
    return classes


def patch_classes(leading: int, patches: int) -> Int8[Tensor, " seq"]:
    """The classes of an image's tokens: those in front ([CLS], and DeiT's second one), then the patches, as content."""
    kinds = [TokenClass.CLS, *[TokenClass.SEP] * (leading - 1)][:leading] + [TokenClass.CONTEXT] * patches
    return torch.tensor([int(kind) for kind in kinds], dtype=torch.int8)


def patch_names(classes: Int8[Tensor, " seq"], grid: tuple[int, int]) -> tuple[str, ...]:
    """What a person calls an image's tokens: `[CLS]`, and patches by row and column: `2,0`.

    Args:
        classes: as `patch_classes` makes them.
        grid: rows and columns of patches.
    """
    front = {TokenClass.CLS: "[CLS]", TokenClass.SEP: "[DIST]"}
    leading = [front[TokenClass(kind)] for kind in classes.tolist() if kind != TokenClass.CONTEXT]
    return (*leading, *(f"{row},{column}" for row in range(grid[0]) for column in range(grid[1])))


def is_content(classes: Int8[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """Where the classes are those of `CONTENT`."""
    return (classes >= TokenClass.PUNCTUATION) & (classes <= TokenClass.CONTEXT)


def is_punctuation(piece: str) -> bool:
    """Whether a piece of text is punctuation and symbols alone (Unicode P and S), WordPiece's mark aside."""
    spelled = piece.removeprefix("##").strip()
    return bool(spelled) and all(unicodedata.category(sign)[0] in "PS" for sign in spelled)
