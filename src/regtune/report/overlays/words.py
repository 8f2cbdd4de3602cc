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
    between: tuple[int, int] | None = None,
) -> tuple[Piece, ...]:
    """The text, or a part of it, cut where tokens begin and end.

    Tokens that share characters (pieces of one emoji, say) are shown as one, with the sum of their scores.

    Args:
        text: what the offsets count characters of.
        tokens: those with characters, in any order.
        marked: half-open range of characters that is the answer.
        between: half-open range of characters that is shown; all of them by default.
    """
    place, end = between or (0, len(text))
    low, high = marked or (0, 0)
    pieces: list[Piece] = []
    for first, last, name, score in _merged(tokens):
        if first > place:
            pieces.append(Piece(text=text[place:first], marked=low < place and first < high))
        inside = first < high and last > low
        pieces.append(Piece(text=text[first:last], score=score, token=name, marked=inside))
        place = last
    if place < end:
        pieces.append(Piece(text=text[place:end], marked=low < end and place < high))
    return tuple(pieces)


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
