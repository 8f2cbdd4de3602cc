"""What a model answers to one question, for an explanation: its best answer, in the window whose logits gave it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from regtune.errors import DataError
from regtune.interfaces import Rows, Shown
from regtune.rows.targets import Answer, EndLogit, StartLogit
from regtune.tasks.qa.answers import Prediction, extract_answers, span_logits
from regtune.tasks.qa.examples import QAExample, Window

if TYPE_CHECKING:
    from regtune.session import Session

NO_ANSWER = "answer-minus-null"


def answer_shown(rows: Rows[Window], example: QAExample, session: Session) -> Shown:
    """The best answer, also where the model would rather give none; then the answer *minus* none is explained.

    Raises:
        DataError: the answer is whole in no window.
    """
    settings: Any = session.task_settings
    starts, ends = span_logits(rows, session.outputs(rows))
    (prediction,) = extract_answers(
        rows.rows, [example], starts, ends, config=dataclasses.replace(settings, top_k=1, null_answers=True)
    )
    answer = prediction.n_best[0]
    places = []
    for number, window in enumerate(rows.rows):
        first, last = _tokens(window, answer.start, answer.end)
        if window.context_start <= first <= last < window.context_end:
            places.append((starts[number][first] + ends[number][last], number, first, last))
    if not places:
        raise DataError(
            f"The answer {answer.text[:60]!r} is whole in no window of {max(rows.lengths)} tokens, so there is none to "
            "explain. Ask a shorter question, or give the part of the text that holds the answer."
        )
    _, row, first, last = max(places)
    window = rows.rows[row]
    none = settings.null_answers and not prediction.text
    span = Answer(
        start=first,
        end=last,
        context=(window.context_start, window.context_end),
        max_tokens=settings.max_answer_tokens,
    )
    contrasts = {f"answer-minus-{one}": dataclasses.replace(span, minus=one) for one in ("null", "runner-up")}
    return Shown(
        text=answer.text,
        probability=answer.probability,
        span=(answer.start, answer.end),
        tokens=(first, last),
        row=row,
        targets={"start": StartLogit(position=first), "end": EndLogit(position=last), "answer": span, **contrasts},
        default=(NO_ANSWER,) if none else ("start", "end"),
        only=none,
        notes=(*_window_notes(rows, window, example.context), *_null_notes(prediction, settings, none=none)),
    )


def _tokens(window: Window, start: int, end: int) -> tuple[int, int]:
    """First and last token (both inclusive) of a range of characters; outside of the context where it isn't whole."""
    offsets = window.offsets
    holds = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > start) & (offsets[:, 1] > offsets[:, 0]))
    if not len(holds) or offsets[holds[0], 0] > start or offsets[holds[-1], 1] < end:
        return -1, -1
    return window.context_start + int(holds[0]), window.context_start + int(holds[-1])


def _window_notes(rows: Rows[Window], window: Window, context: str) -> Iterator[str]:
    if len(rows) > 1:
        yield (
            f"The text is longer than the model's window and was read in {len(rows)} overlapping parts. Explained is "
            f"the one that holds the answer, characters {int(window.offsets[0, 0]):,} to "
            f"{int(window.offsets[-1, 1]):,} of {len(context):,}."
        )
    yield from rows.notes


def _null_notes(prediction: Prediction, settings: Any, *, none: bool) -> Iterator[str]:
    difference, best = prediction.null_difference or 0.0, prediction.best_text
    if none:
        yield (
            f"The model says that the text holds no answer: its logits for that are {difference:+.2f} against its best "
            f"answer {best!r}, and {settings.null_threshold:g} is the threshold. Explained is that answer minus no "
            "answer: positive scores speak for the answer, negative ones for there being none."
        )
    elif difference > 0 and not settings.null_answers:
        yield (
            f"This model may not say that there is no answer, but its logits for that are {difference:.2f} higher than "
            f"for {best!r}; don't trust this answer."
        )
