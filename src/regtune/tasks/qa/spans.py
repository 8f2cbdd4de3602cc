"""The best answer spans of many windows at once: array code on logits and token positions, and what feeds it.

NumPy rather than torch: on one core the two are equally fast here, and this one does not slow down when other processes
have the other cores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from jaxtyping import Bool, Float, Float64, Int32, Int64

from regtune.errors import EvaluationError
from regtune.tasks.qa.examples import QAExample, Window

Scores = Float64[np.ndarray, "windows seq"]
Counts = Int32[np.ndarray, "windows seq"]
MINUS_INFINITY = float("-inf")
BEYOND = 2**31 - 1
"""Stands for a number of characters that no context has."""
_SAFE_RANGE = (
    600.0  # exp(-600) is still a normal float64; logits further apart are summed in log space, which is slower
)


@dataclass(frozen=True, kw_only=True)
class SpanLogits:
    """Windows padded to one length; a span is a pair of tokens `start <= end < start + width` that covers some text.

    Which spans do is in `covered`; it is None where all of them do, as with most tokenizers. Otherwise it holds two
    counts for each token, of the context's characters that are not white space: those before the token, and those
    before its end (`BEYOND` for padding). A span covers text when its end's second is larger than its start's first.
    """

    starts: Scores
    """Start logits of the context's tokens; -inf where a window is shorter than the longest."""
    ends: Scores
    covered: tuple[Counts, Counts] | None
    width: int
    """Longest span, in tokens."""


@dataclass(frozen=True, kw_only=True)
class BestSpans:
    """Some of the best spans of each window, in no order, and how far down the list is complete."""

    scores: Float64[np.ndarray, "windows found"]
    """Start logit + end logit; -inf in places that hold no span."""
    starts: Int64[np.ndarray, "windows found"]
    ends: Int64[np.ndarray, "windows found"]
    bound: Float64[np.ndarray, " windows"]
    """Every span of the window that scores strictly more than this is in the list; -inf says that all are."""


def _pieces(values: np.ndarray, add: np.ufunc) -> Iterator[np.ndarray]:
    """Combines 1, 2, 4, 8 ... neighbours: a block's piece has at i the values of `i : i + block`, cut at the end."""
    block = 1
    while True:
        yield values
        if block < values.shape[-1]:
            wider = values.copy()
            add(values[..., :-block], values[..., block:], out=wider[..., :-block])
            values = wider
        block *= 2


def _sliding_max(values: np.ndarray, width: int) -> np.ndarray:
    """The maximum of `values[..., i : i + width]` for every i, in log2(width) steps."""
    width = min(width, values.shape[-1])
    power = width.bit_length() - 1
    piece = next(islice(_pieces(values, np.maximum), power, None))
    rest = width - (1 << power)
    if rest == 0:
        return piece
    result: np.ndarray = piece.copy()
    np.maximum(piece[..., :-rest], piece[..., rest:], out=result[..., :-rest])
    return result


def _sliding_sum(values: np.ndarray, width: int, add: np.ufunc, zero: float) -> np.ndarray:
    """The sum of `values[..., i : i + width]` for every i, in 2 log2(width) steps that never subtract."""
    length, done = values.shape[-1], 0
    width = min(width, length)
    result = np.full_like(values, zero)
    for power, piece in zip(range(width.bit_length()), _pieces(values, add), strict=False):
        if width & (1 << power):
            head = result[..., : length - done]
            add(head, piece[..., done:], out=head)
            done += 1 << power
    return result


def _sliding_log_sum(values: Scores, width: int) -> Scores:
    """The log-sum-exp of `values[..., i : i + width]` for every i; -inf is allowed for padding."""
    highest = values.max(axis=-1, keepdims=True)
    lowest = values.min(axis=-1, keepdims=True, initial=np.inf, where=values > MINUS_INFINITY)
    highest[np.isneginf(highest)] = 0.0
    if (highest - lowest).max() > _SAFE_RANGE:
        return _sliding_sum(values, width, np.logaddexp, MINUS_INFINITY)
    with np.errstate(divide="ignore"):  # log(0) is the -inf that padding has to give
        total: np.ndarray = np.log(_sliding_sum(np.exp(values - highest), width, np.add, 0.0)) + highest
    return total


def _log_sum(values: np.ndarray) -> np.ndarray:
    """The log-sum-exp of each row; -inf for a row of nothing but -inf."""
    highest = values.max(axis=-1, keepdims=True)
    highest[np.isneginf(highest)] = 0.0
    with np.errstate(divide="ignore"):
        total: np.ndarray = np.log(np.exp(values - highest).sum(axis=-1)) + highest[..., 0]
    return total


def log_sum_of_spans(logits: SpanLogits) -> Float64[np.ndarray, " windows"]:
    """The logarithm of the sum of exp(score) over all spans of each window; -inf for a window without one.

    The sum factorises: for each start it is exp(start logit) times the sum of exp(end logit) over the ends in reach.
    Starts whose nearest ends cover no text are the exception and are summed one by one.
    """
    reach = _sliding_log_sum(logits.ends, logits.width)
    if logits.covered is not None:
        before, after = logits.covered
        nearest = -_sliding_max(-after, logits.width)
        blank = (nearest <= before) & (logits.starts > MINUS_INFINITY)
        if blank.any():
            reach[blank] = _log_sum_one_by_one(blank, logits, before, after)
    return _log_sum(logits.starts + reach)


def _log_sum_one_by_one(
    chosen: Bool[np.ndarray, "windows seq"], logits: SpanLogits, before: Counts, after: Counts
) -> Float64[np.ndarray, " chosen"]:
    """For each chosen start, the log-sum-exp of the end logits in reach, ends that cover no text left out."""
    rows, starts = chosen.nonzero()
    length = logits.ends.shape[1]
    ends = starts[:, None] + np.arange(min(logits.width, length))
    bad, ends = ends >= length, np.minimum(ends, length - 1)
    bad |= after[rows[:, None], ends] <= before[rows, starts][:, None]
    return _log_sum(np.where(bad, MINUS_INFINITY, logits.ends[rows[:, None], ends]))


def _largest(values: Scores, count: int) -> tuple[Int64[np.ndarray, "windows count"], Float64[np.ndarray, " windows"]]:
    """Columns of each row's `count` largest values, and a value that those left out do not exceed."""
    if count >= values.shape[1]:
        everything = np.broadcast_to(np.arange(values.shape[1]), values.shape)
        return everything, np.full(len(values), MINUS_INFINITY)
    columns = np.argpartition(values, -count, axis=1)[:, -count:]
    return columns, np.take_along_axis(values, columns[:, :1], axis=1)[:, 0]


def best_spans(logits: SpanLogits, *, count: int) -> BestSpans:
    """Finds the `count` best spans of each window, exactly, without looking at all of them.

    A span that is among the `count` best has a start whose own best span is among the `count` best of all starts'
    best, and likewise for its end. So the pairs of those starts and ends are enough, and a start's best is a sliding
    maximum. With ties, and with spans that cover no text, the list may be complete only down to `bound`; ask again
    with a larger count.
    """
    length = logits.starts.shape[1]
    width = min(logits.width, length)
    rows, bound = _largest(logits.starts + _sliding_max(logits.ends, width), count)
    if width <= rows.shape[1]:  # all ends in reach are fewer than the best ends
        columns = rows[:, :, None] + np.arange(width)
    else:
        ends, bound_of_ends = _largest(logits.ends + _sliding_max(logits.starts[:, ::-1], width)[:, ::-1], count)
        bound, columns = np.maximum(bound, bound_of_ends), ends[:, None, :]
    grid = _grid(logits, rows, columns).reshape(len(rows), -1)
    cells, bound_of_cells = _largest(grid, count)
    flat = columns.reshape(len(rows), -1)
    return BestSpans(
        scores=np.take_along_axis(grid, cells, axis=1),
        starts=np.take_along_axis(rows, cells // columns.shape[2], axis=1),
        ends=np.minimum(np.take_along_axis(flat, cells % flat.shape[1], axis=1), length - 1),
        bound=np.maximum(bound, bound_of_cells),
    )


def _grid(logits: SpanLogits, rows: np.ndarray, columns: np.ndarray) -> Float64[np.ndarray, "windows rows columns"]:
    """Scores of the candidate pairs; -inf where a pair is no span."""
    length = logits.starts.shape[1]
    distance = columns - rows[:, :, None]
    bad = (distance < 0) | (distance >= logits.width) | (columns >= length)
    inside = np.minimum(columns, length - 1).reshape(len(rows), -1)
    if logits.covered is not None:
        before, after = logits.covered
        reached = np.take_along_axis(after, inside, axis=1).reshape(columns.shape)
        bad |= reached <= np.take_along_axis(before, rows, axis=1)[:, :, None]
    ends = np.take_along_axis(logits.ends, inside, axis=1).reshape(columns.shape)
    scores: np.ndarray = np.take_along_axis(logits.starts, rows, axis=1)[:, :, None] + ends
    scores[bad] = MINUS_INFINITY
    return scores


# Windows and their logits

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
