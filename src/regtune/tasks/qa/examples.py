"""What a question-answering example and a tokenised window are: the types that data, training and evaluation share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A gold answer: its text, which metrics compare with, and where it starts in the context.

    `start` counts characters (code points); it is None where the place is not known: nothing can be trained on it.
    """

    text: str
    start: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class QAExample:
    """One question about one context. `answers` is empty exactly when `is_impossible` (SQuAD v2.0)."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]
    title: str = ""
    is_impossible: bool = False
    passage: str = ""
    """The context before noise, where there is some: what belongs to one text belongs to one group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A piece of one example's context, tokenised together with the question.

    The context's tokens are the contiguous range `context_start:context_end` of the window; `offsets` gives for each
    of *its* tokens the half-open character range in the example's context. Positions count text tokens only
    (registers are none of a window's business) and are inclusive at both ends.
    """

    example: int
    """Index of the example that the window was cut from."""
    input_ids: Int32[np.ndarray, " seq"]
    token_type_ids: Int32[np.ndarray, " seq"] | None
    context_start: int
    context_end: int
    offsets: Int32[np.ndarray, "context 2"]
    start_position: int
    """Token of the first gold answer's start, or the [CLS] position (`null_position`) if it is not in this window."""
    end_position: int
    null_position: int
    """Token whose logits stand for "no answer here": the [CLS] token."""
    question_cut: bool = False
    """Whether the question was longer than there is room for, and only its start is here."""
