"""From start and end logits to answers: the best spans of each question, their probabilities, and "no answer".

transformers no longer has this step. Here it is exact (the n best are the n best of *all* valid spans, not of the pairs
of the n best starts and ends), probabilities are shares of everything the model could have answered, and the loop over
start x end pairs is tensor code (`regtune.tasks.qa.spans`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int32

from regtune.errors import EvaluationError
from regtune.interfaces import Rows
from regtune.tasks.qa.examples import QAExample, Window
from regtune.tasks.qa.settings import QASettings
from regtune.tasks.qa.spans import Found, Logits, SpanSearch, not_finite

_ROWS_AT_ONCE = 4_000_000  # candidates held at once, however many questions need a long list


class AnswerSpan(NamedTuple):
    """One possible answer."""

    text: str
    """`context[start:end]`, unchanged."""
    start: int
    """First character in the context (code points)."""
    end: int
    """One past the last character."""
    score: float
    """Start logit + end logit, of the best window that holds the span."""
    probability: float
    """exp(score) as a share of the sum over all valid spans in all windows, and the null answer if there is one."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prediction:
    """What a model answers to one question. The spans are kept as columns: an evaluation has hundreds of thousands."""

    id: str
    text: str
    """The best answer; empty when "no answer" wins."""
    texts: tuple[str, ...]
    """The best spans' texts, best first, no two the same; "no answer" is not among them."""
    starts: Int32[np.ndarray, " spans"]
    """Their first characters in the context."""
    ends: Int32[np.ndarray, " spans"]
    scores: Float64[np.ndarray, " spans"]
    probabilities: Float64[np.ndarray, " spans"]
    null_score: float | None = None
    """Logit of "no answer": the smallest start + end logit of the null position over all windows; None if not asked."""
    null_probability: float | None = None
    """Share of "no answer" among all answers."""
    question_cut: bool = False
    """Whether the model saw only the start of the question."""

    @property
    def n_best(self) -> tuple[AnswerSpan, ...]:
        """The best spans, best first; built anew at each call."""
        columns = (self.starts.tolist(), self.ends.tolist(), self.scores.tolist(), self.probabilities.tolist())
        return tuple(map(AnswerSpan, self.texts, *columns))

    @property
    def best_text(self) -> str:
        """The best span's text, even when "no answer" wins (what a search for the best null threshold needs)."""
        return self.texts[0] if self.texts else ""

    @property
    def null_difference(self) -> float | None:
        """Null score - best span's score: what SQuAD v2.0's threshold is compared with; None without null answers."""
        if self.null_score is None:
            return None
        return self.null_score - float(self.scores[0]) if self.texts else math.inf

    def to_json(self) -> dict[str, Any]:
        """The prediction in plain JSON types; the null fields only where "no answer" was possible."""
        plain: dict[str, Any] = {
            "id": self.id,
            "text": self.text,
            "n_best": [span._asdict() for span in self.n_best],
        }
        if self.null_score is not None:
            plain |= {"null_score": self.null_score, "null_probability": self.null_probability}
        if self.question_cut:
            plain["question_cut"] = True
        return plain


def span_logits(rows: Rows[Window], outputs: Iterable[tuple[Sequence[int], Any]]) -> tuple[list[Any], list[Any]]:
    """Start and end logits of each row, `[seq]` float32 arrays without padding, from `Session.outputs`."""
    starts: list[Any] = [None] * len(rows)
    ends: list[Any] = [None] * len(rows)
    for indices, output in outputs:
        start, end = output.start_logits.float().cpu().numpy(), output.end_logits.float().cpu().numpy()
        for place, index in enumerate(indices):
            length = rows.lengths[index]
            starts[index], ends[index] = start[place, :length].copy(), end[place, :length].copy()
    return starts, ends


def extract_answers(
    windows: Sequence[Window],
    examples: Sequence[QAExample],
    start_logits: Logits,
    end_logits: Logits,
    *,
    config: QASettings,
) -> list[Prediction]:
    """Turns the logits of windows into one prediction for each example, in the examples' order.

    A valid span starts and ends on the context's tokens of one window, is at most `config.max_answer_tokens` long and
    covers at least one character that is not white space. Its score is start logit + end logit (in float64). A span
    that is seen in two overlapping windows counts once, with its better score. Of spans with the same text the best
    stays. Exactly `config.top_k` are given wherever so many different texts exist. Equal scores are ordered by place:
    the span that starts (then ends) earlier comes first.

    Probabilities are shares of exp(score) summed over all pairs of a window and a valid span in it, n-best or not, and
    over one null entry with `null_answers`. As in the practice of SQuAD v2.0 (Devlin et al. 2019, section 4.3) the null
    score is start + end logit of the null position, the smallest of all windows, and "no answer" is predicted when
    null score - best score > `config.null_threshold`.

    Args:
        windows: the examples' windows, in any order.
        examples: the questions.
        start_logits: for each window one logit a token of the text (no registers, no padding), in logits' own units.
        end_logits: the same for ends.
        config: how many answers, how long, and whether "no answer" is one.

    Raises:
        EvaluationError: if counts or lengths do not match, an example has no window or no valid span, or a logit that
            is needed is not finite. The message names the example.
    """
    by_example = _windows_of(windows, examples)
    search = SpanSearch(windows, examples, start_logits, end_logits, max_answer_tokens=config.max_answer_tokens)
    nulls = _null_scores(windows, examples, start_logits, end_logits) if config.null_answers else None
    predictions: dict[int, Prediction] = {}
    pending, count = list(range(len(examples))), config.top_k + config.top_k // 4 + 1
    while pending:
        step = max(1, _ROWS_AT_ONCE // count)
        for first in range(0, len(pending), step):
            chosen = pending[first : first + step]
            windows_of = [by_example[number] for number in chosen]
            found = search.best(np.concatenate(windows_of), count)
            stops = np.cumsum([len(mine) for mine in windows_of]).tolist()
            for number, mine, stop in zip(chosen, windows_of, stops, strict=True):
                null = None if nulls is None else float(nulls[mine].min())
                prediction = _predict(found, slice(stop - len(mine), stop), null, examples[number], config)
                if prediction is not None:
                    predictions[number] = prediction
        pending, count = [number for number in pending if number not in predictions], 4 * count
    return [predictions[number] for number in range(len(examples))]


def _windows_of(windows: Sequence[Window], examples: Sequence[QAExample]) -> list[list[int]]:
    """For each example the indices of its windows."""
    by_example: list[list[int]] = [[] for _ in examples]
    for number, window in enumerate(windows):
        if not 0 <= window.example < len(examples):
            raise EvaluationError(
                f"Window {number} belongs to example {window.example}, but there are {len(examples)} examples."
            )
        by_example[window.example].append(number)
    missing = [example.id for example, mine in zip(examples, by_example, strict=True) if not mine]
    if missing:
        raise EvaluationError(
            f"{len(missing)} of {len(examples)} examples have no window, so no answer can be found for them: "
            f"{', '.join(map(repr, missing[:5]))}{' and more' if len(missing) > 5 else ''}. "
            "Give the windows of all examples."
        )
    return by_example


def _null_scores(
    windows: Sequence[Window], examples: Sequence[QAExample], start_logits: Logits, end_logits: Logits
) -> Float64[np.ndarray, " windows"]:
    """Start + end logit of each window's null position."""
    scores = np.empty(len(windows))
    for number, (window, starts, ends) in enumerate(zip(windows, start_logits, end_logits, strict=True)):
        scores[number] = float(starts[window.null_position]) + float(ends[window.null_position])
        if not math.isfinite(scores[number]):
            raise not_finite("null position's", scores[number], number, examples[window.example].id)
    return scores


def _predict(
    found: Found, rows: slice, null: float | None, example: QAExample, config: QASettings
) -> Prediction | None:
    """The prediction for the question whose windows are these rows; None if it takes more candidates to be sure."""
    scores, starts, ends = found.scores[rows].ravel(), found.first[rows].ravel(), found.last[rows].ravel()
    order = np.lexsort((ends, starts, -scores))
    scores, starts, ends = scores[order], starts[order], ends[order]
    bound = found.bound[rows].max()
    certain = int(np.searchsorted(-scores, -bound))  # so many are certainly the best; behind them one may be missing
    texts, keep = _distinct(example.context, starts[:certain], ends[:certain], config.top_k)
    if len(texts) < config.top_k and not np.isneginf(bound):
        return None
    total = np.logaddexp.reduce(found.log_totals[rows])
    total = total if null is None else np.logaddexp(total, null)
    total = 0.0 if np.isneginf(total) else total  # no span at all: every probability is 0
    if not texts and null is None:
        raise EvaluationError(
            f"Example {example.id!r} has no valid answer span: its windows show nothing of the context but white "
            "space. Check its context, or allow for it with null_answers=True."
        )
    silent = not texts or (null is not None and null - float(scores[0]) > config.null_threshold)
    return Prediction(
        id=example.id,
        text="" if silent else texts[0],
        texts=tuple(texts),
        starts=starts[keep],
        ends=ends[keep],
        scores=scores[keep],
        probabilities=np.exp(scores[keep] - total),
        null_score=null,
        null_probability=None if null is None else float(np.exp(null - total)),
    )


def _distinct(context: str, starts: np.ndarray, ends: np.ndarray, most: int) -> tuple[list[str], list[int]]:
    """The first so many different texts, and their places."""
    places: dict[str, int] = {}
    for place, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        places.setdefault(context[start:end], place)
        if len(places) == most:
            break
    return list(places), list(places.values())
