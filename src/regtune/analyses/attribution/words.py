"""Words instead of a tokenizer's pieces: scores of the tokens of a word, added up."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence

from regtune.analyses.attribution.attribution import Attribution

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+|[^\w\s]")
"""Letters and digits in a row, a sign, or one character where words are written without blanks (Chinese, Japanese)."""


def by_words(found: Attribution, texts: tuple[str | None, str], second: int) -> tuple[Attribution, int]:
    """The scores by word.

    Args:
        found: by token, with offsets; without them it comes back as it is.
        texts: what the offsets of tokens before `second` count characters of, and what those behind it do.
        second: the first token of the second text.
    """
    if found.offsets is None:
        return found, second
    groups = [*_groups(found.offsets[:second], texts[0] or "", 0), *_groups(found.offsets[second:], texts[1], second)]
    merged = found.merged(groups)
    names = list(merged.tokens)
    for number, group in enumerate(groups):
        start, end = merged.offsets[number] if merged.offsets is not None else (0, 0)
        if end > start:
            names[number] = (texts[group[0] >= second] or "")[start:end].strip()
    return dataclasses.replace(merged, tokens=tuple(names)), sum(group[0] < second for group in groups)


def _groups(offsets: Sequence[tuple[int, int]], text: str, first: int) -> Iterator[list[int]]:
    """Numbers of neighbouring tokens that spell one word; special tokens by themselves."""
    words = [match.span() for match in _WORD.finditer(text)]
    group: list[int] = []
    last: int | None = None
    for place, (start, end) in enumerate(offsets):
        word = next((n for n, span in enumerate(words) if end > start and span[0] < end and start < span[1]), None)
        if group and (word is None or word != last):
            yield group
            group = []
        group.append(first + place)
        last = word
    if group:
        yield group
