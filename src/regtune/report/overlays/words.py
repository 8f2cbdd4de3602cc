"""From tokens with scores to pieces of the text that a person wrote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Token = tuple[int, int, str, float]
"""First character, one past the last, the tokenizer's piece, the score."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some characters of the text, with the score of the token that covers them; None between tokens."""

    text: str
    score: float | None = None
    token: str = ""
    """The tokenizer's name for it; several if they share characters."""
    marked: bool = False
    """Whether it lies in the answer."""


def text_pieces(
    text: str,
    tokens: Sequence[Token],
    *,
    marked: tuple[int, int] | None = None,
    whole: bool = False,
    between: tuple[int, int] | None = None,
) -> tuple[Piece, ...]:
    """The text from its first token to its last (or all of it), cut where tokens begin and end.

    Tokens that share characters (pieces of one emoji, say) are shown as one, with the sum of their scores.

    Args:
        text: what the offsets count characters of.
        tokens: those with characters, in any order.
        marked: half-open range of characters that is the answer.
        whole: begin and end with the text, not with its tokens.
        between: begin and end there, where some tokens have no score to be shown.
    """
    groups = list(_merged(tokens))
    if not groups and between is None:
        return (Piece(text=text),) if whole and text else ()
    start, end = (0, len(text)) if whole else between or (groups[0][0], max(group[1] for group in groups))
    low, high = marked or (0, 0)
    pieces: list[Piece] = []
    place = start
    for first, last, name, score in groups:
        if first > place:
            pieces.append(Piece(text=text[place:first], marked=low < place and first < high))
        inside = first < high and last > low
        pieces.append(Piece(text=text[first:last], score=score, token=name, marked=inside))
        place = last
    if place < end:
        pieces.append(Piece(text=text[place:end], marked=low < end and place < high))
    return tuple(pieces)


def joined_pieces(
    tokens: Sequence[str], scores: Sequence[float | None]
) -> tuple[tuple[Piece, ...], tuple[tuple[str, float], ...]]:
    """Text made of tokens alone, where nobody kept the text, and the special tokens apart.

    WordPiece's `##` and the blanks of byte-level and SentencePiece tokenizers say where a word goes on.
    """
    pieces: list[Piece] = []
    special: list[tuple[str, float]] = []
    glued = not any(token.startswith(("Ġ", "▁")) for token in tokens)
    for token, score in zip(tokens, scores, strict=True):
        if is_special(token):
            if score is not None:
                special.append((token, score))
            continue
        apart = not token.startswith("##") if glued else token.startswith(("Ġ", "▁"))
        if pieces and apart:
            pieces.append(Piece(text=" "))
        pieces.append(Piece(text=token.removeprefix("##").lstrip("Ġ▁"), score=score, token=token))
    return tuple(pieces), tuple(special)


def is_special(token: str) -> bool:
    """Whether a token looks like [CLS] or <s>."""
    return len(token) > 2 and (token[0] + token[-1]) in ("[]", "<>")


def _merged(tokens: Sequence[Token]) -> Iterator[Token]:
    """In the text's order, those that overlap as one."""
    ordered = sorted(tokens, key=lambda token: (token[0], token[1]))
    current: Token | None = None
    for token in ordered:
        if current is not None and token[0] < current[1]:
            name = f"{current[2]} {token[2]}"
            current = (current[0], max(current[1], token[1]), name, current[3] + token[3])
            continue
        if current is not None:
            yield current
        current = token
    if current is not None:
        yield current
