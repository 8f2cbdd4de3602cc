"""From start and end logits to answers: the best spans of each question, their probabilities, and "no answer".

transformers no longer has this step. Here it is exact (the n best are the n best of *all* valid spans, not of the pairs
of the n best starts and ends), probabilities are shares of everything the model could have answered, and the loop over
start x end pairs is tensor code (`regtune.tasks.qa.spans`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int32, Int64

from regtune.config import AnswerConfig
from regtune.errors import EvaluationError
from regtune.tasks.qa.examples import QAExample, Window
from regtune.tasks.qa.span_search import Found, Logits, SpanSearch, not_finite

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


def extract_answers(
    windows: Sequence[Window],
    examples: Sequence[QAExample],
    start_logits: Logits,
    end_logits: Logits,
    *,
    config: AnswerConfig,
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
        for group in _groups(pending, by_example, at_once=max(1, _ROWS_AT_ONCE // count)):
            found = search.best(group.windows.ravel(), count)
            ranked = _rank(found, group, None if nulls is None else nulls[group.windows])
            for row, number in enumerate(group.examples):
                prediction = ranked.prediction(row, examples[number], config)
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


class _Group(NamedTuple):
    """Questions with equally many windows."""

    examples: list[int]
    windows: Int64[np.ndarray, "questions windows"]


def _groups(pending: Sequence[int], by_example: Sequence[list[int]], *, at_once: int) -> Iterator[_Group]:
    """Sorts questions by their number of windows; a group has at most `at_once` windows, or one question."""
    by_size: dict[int, list[int]] = {}
    for number in pending:
        by_size.setdefault(len(by_example[number]), []).append(number)
    for size, members in by_size.items():
        step = max(1, at_once // size)
        for first in range(0, len(members), step):
            chosen = members[first : first + step]
            yield _Group(chosen, np.array([by_example[number] for number in chosen], dtype=np.int64))


@dataclass(frozen=True, kw_only=True)
class _Ranked:
    """The candidates of a group of questions, best and then earliest first, one row a question."""

    scores: Float64[np.ndarray, "questions found"]
    starts: Int32[np.ndarray, "questions found"]
    ends: Int32[np.ndarray, "questions found"]
    probabilities: Float64[np.ndarray, "questions found"]
    certain: list[int]
    """So many of a row are certainly its best; behind them something may be missing."""
    complete: list[bool]
    """Whether nothing at all is missing."""
    nulls: list[float] | None
    null_probabilities: list[float] | None

    def prediction(self, row: int, example: QAExample, config: AnswerConfig) -> Prediction | None:
        """The prediction for a row's question; None if it takes more candidates to be sure of its n best."""
        keep: slice | list[int] = slice(config.top_k)
        texts = self._texts(row, example, min(self.certain[row], config.top_k))
        if len(set(texts)) < config.top_k:
            positions: dict[str, int] = {}
            for position, text in enumerate(self._texts(row, example, self.certain[row])):
                positions.setdefault(text, position)
            if len(positions) < config.top_k and not self.complete[row]:
                return None
            texts, keep = list(positions)[: config.top_k], list(positions.values())[: config.top_k]
        null = None if self.nulls is None else self.nulls[row]
        return Prediction(
            id=example.id,
            text=_choose(texts, float(self.scores[row, 0]), null, example, config),
            texts=tuple(texts),
            starts=self.starts[row, keep],
            ends=self.ends[row, keep],
            scores=self.scores[row, keep],
            probabilities=self.probabilities[row, keep],
            null_score=null,
            null_probability=None if self.null_probabilities is None else self.null_probabilities[row],
        )

    def _texts(self, row: int, example: QAExample, count: int) -> list[str]:
        places = zip(self.starts[row, :count].tolist(), self.ends[row, :count].tolist(), strict=True)
        return [example.context[start:end] for start, end in places]


def _choose(texts: list[str], score: float, null: float | None, example: QAExample, config: AnswerConfig) -> str:
    """The answer: the best text, or none if "no answer" is better by more than the threshold."""
    if not texts and null is None:
        raise EvaluationError(
            f"Example {example.id!r} has no valid answer span: its windows show nothing of the context but white "
            "space. Check its context, or allow for it with null_answers=True."
        )
    if not texts or (null is not None and null - score > config.null_threshold):
        return ""
    return texts[0]


def _rank(found: Found, group: _Group, nulls: Float64[np.ndarray, "questions windows"] | None) -> _Ranked:
    """Puts the spans of each question's windows together, in order, with probabilities."""
    questions, windows = group.windows.shape
    scores, starts, ends = (x.reshape(questions, -1) for x in (found.scores, found.first, found.last))
    order = np.lexsort((ends, starts, -scores), axis=-1)
    scores, starts, ends = (np.take_along_axis(x, order, axis=1) for x in (scores, starts, ends))
    totals = np.logaddexp.reduce(found.log_totals.reshape(questions, windows), axis=1)
    null = None if nulls is None else nulls.min(axis=1)
    if null is not None:
        totals = np.logaddexp(totals, null)
    totals[np.isneginf(totals)] = 0.0  # no span at all: every probability is 0
    bound = found.bound.reshape(questions, windows).max(axis=1)
    return _Ranked(
        scores=scores,
        starts=starts,
        ends=ends,
        probabilities=np.exp(scores - totals[:, None]),
        certain=(scores > bound[:, None]).sum(axis=1).tolist(),
        complete=np.isneginf(bound).tolist(),
        nulls=None if null is None else null.tolist(),
        null_probabilities=None if null is None else np.exp(null - totals).tolist(),
    )
