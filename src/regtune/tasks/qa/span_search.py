"""Windows and their logits as batches of similar length, ready for the array code in `regtune.tasks.qa.spans`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int32, Int64

from regtune.errors import EvaluationError
from regtune.tasks.qa.examples import QAExample, Window
from regtune.tasks.qa.spans import BEYOND, MINUS_INFINITY, SpanLogits, best_spans, log_sum_of_spans

Logits = Sequence[Float[np.ndarray, "..."]]

_CELLS_AT_ONCE = 400_000  # a batch's candidate pairs; few enough to stay in a processor's cache
_LAST_SPACE = 0x3000  # no white space has a higher code point
_IS_TEXT = np.array([not chr(code).isspace() for code in range(_LAST_SPACE + 2)])


@dataclass(frozen=True, kw_only=True)
class Found:
    """The best spans of some windows, one row a window."""

    scores: Float64[np.ndarray, "windows found"]
    """In no order; -inf in places that hold no span."""
    first: Int32[np.ndarray, "windows found"]
    """First character in the example's context."""
    last: Int32[np.ndarray, "windows found"]
    """One past the last character."""
    bound: Float64[np.ndarray, " windows"]
    """All spans that score strictly more than this are in the row (-inf: all there are)."""
    log_totals: Float64[np.ndarray, " windows"]
    """Logarithm of the summed exp(score) of *all* valid spans of the window, found or not."""


class SpanSearch:
    """Looks for the best spans in windows whose logits were checked once."""

    def __init__(
        self,
        windows: Sequence[Window],
        examples: Sequence[QAExample],
        start_logits: Logits,
        end_logits: Logits,
        *,
        max_answer_tokens: int,
    ) -> None:
        check_shapes(windows, examples, start_logits, end_logits)
        self._width = max_answer_tokens
        self._lengths = np.array([w.context_end - w.context_start for w in windows], dtype=np.int64)
        self._bases = np.concatenate([[0], np.cumsum(self._lengths)])
        self._starts = self._flat(windows, examples, start_logits, "start")
        self._ends = self._flat(windows, examples, end_logits, "end")
        offsets = np.concatenate([*(w.offsets for w in windows), np.zeros((1, 2), np.int32)])
        self._first, self._last = offsets[:, 0].copy(), offsets[:, 1].copy()
        self._covered = _covered_characters(windows, examples, offsets, self._lengths)

    def _flat(
        self, windows: Sequence[Window], examples: Sequence[QAExample], logits: Logits, name: str
    ) -> Float64[np.ndarray, " tokens"]:
        """The contexts' logits one after the other, and -inf at the end for the padding."""
        parts = [one[w.context_start : w.context_end] for one, w in zip(logits, windows, strict=True)]
        flat = np.concatenate([*parts, [MINUS_INFINITY]]).astype(np.float64, copy=False)
        finite = np.isfinite(flat[:-1])
        if not finite.all():
            first = int(np.argmin(finite))
            window = int(np.searchsorted(self._bases, first, side="right")) - 1
            raise not_finite(name, float(flat[first]), window, examples[windows[window].example].id)
        return flat

    def _batch(self, chosen: Int64[np.ndarray, " batch"]) -> SpanLogits:
        length = max(int(self._lengths[chosen].max()), 1)
        places = self._bases[chosen][:, None] + np.arange(length)
        places[np.arange(length) >= self._lengths[chosen][:, None]] = len(self._starts) - 1
        covered = None if self._covered is None else (self._covered[0][places], self._covered[1][places])
        return SpanLogits(starts=self._starts[places], ends=self._ends[places], covered=covered, width=self._width)

    def best(self, chosen: Int64[np.ndarray, " windows"], count: int) -> Found:
        """Finds the `count` best spans of each of the chosen windows, in their order."""
        longest = max(int(self._lengths[chosen].max()), 1)
        count = min(count, longest * min(self._width, longest))
        found = Found(
            scores=np.full((len(chosen), count), MINUS_INFINITY),
            first=np.zeros((len(chosen), count), dtype=np.int32),
            last=np.zeros((len(chosen), count), dtype=np.int32),
            bound=np.empty(len(chosen)),
            log_totals=np.empty(len(chosen)),
        )
        order = np.argsort(-self._lengths[chosen], kind="stable")
        while len(order):
            length = max(int(self._lengths[chosen[order[0]]]), 1)
            cells = max(min(count, length) * min(count, self._width, length), length)
            rows, order = np.split(order, [max(1, _CELLS_AT_ONCE // cells)])
            logits = self._batch(chosen[rows])
            best = best_spans(logits, count=count)
            columns = slice(best.scores.shape[1])
            bases = self._bases[chosen[rows]][:, None]
            found.scores[rows, columns] = best.scores
            found.first[rows, columns] = self._first.take(bases + best.starts, mode="clip")
            found.last[rows, columns] = self._last.take(bases + best.ends, mode="clip")
            found.bound[rows] = best.bound
            found.log_totals[rows] = log_sum_of_spans(logits)
        return found


def _covered_characters(
    windows: Sequence[Window],
    examples: Sequence[QAExample],
    offsets: Int32[np.ndarray, "tokens 2"],
    lengths: Int64[np.ndarray, " windows"],
) -> tuple[Int32[np.ndarray, " tokens"], Int32[np.ndarray, " tokens"]] | None:
    """For each token: the context's characters before it, and up to its end, that are not white space.

    None if every span covers text, because every token does and they stand in the text's order.
    """
    contexts = {examples[w.example].context: 0 for w in windows}
    position = 0
    for context in contexts:
        contexts[context] = position
        position += len(context)
    codes = np.frombuffer("".join(contexts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    is_text = _IS_TEXT[np.minimum(codes, _LAST_SPACE + 1)]
    covered = np.zeros(len(codes) + 1, dtype=np.int32)
    np.cumsum(is_text, out=covered[1:])
    first = np.repeat(np.array([contexts[examples[w.example].context] for w in windows], dtype=np.int64), lengths)
    before = np.append(covered[first + offsets[:-1, 0]], np.int32(0))
    after = np.append(covered[first + offsets[:-1, 1]], np.int32(BEYOND))
    backwards = np.diff(after) < 0
    backwards[np.cumsum(lengths) - 1] = False
    if (after > before).all() and not backwards.any():
        return None
    return before, after


def check_shapes(
    windows: Sequence[Window], examples: Sequence[QAExample], start_logits: Logits, end_logits: Logits
) -> None:
    """Refuses counts and lengths that do not match; the message holds both numbers.

    Raises:
        EvaluationError: on the first mismatch.
    """
    if not len(windows) == len(start_logits) == len(end_logits):
        raise EvaluationError(
            f"{len(windows)} windows came with {len(start_logits)} start logits and {len(end_logits)} end logits; "
            "give one array of each for every window."
        )
    for number, (w, starts, ends) in enumerate(zip(windows, start_logits, end_logits, strict=True)):
        length = len(w.input_ids)
        if starts.shape != (length,) or ends.shape != (length,):
            raise EvaluationError(
                f"Window {number} (example {examples[w.example].id!r}) has {length} tokens, but start logits of shape "
                f"{starts.shape} and end logits of shape {ends.shape}. Cut padding off, and let no registers through."
            )
        if len(w.offsets) != w.context_end - w.context_start:
            raise EvaluationError(
                f"Window {number} (example {examples[w.example].id!r}) says that its context is tokens "
                f"{w.context_start}:{w.context_end}, but has offsets for {len(w.offsets)} tokens."
            )


def not_finite(name: str, value: float, window: int, example: str) -> EvaluationError:
    """The error for a NaN or infinite logit."""
    return EvaluationError(
        f"The {name} logits of example {example!r} (window {window}) hold {value}. The model's output is not usable: "
        "look for a diverged training run, or evaluate in float32."
    )
