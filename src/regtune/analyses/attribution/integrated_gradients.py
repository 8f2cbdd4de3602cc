"""Integrated gradients (Sundararajan, Taly, Yan 2017, arXiv 1703.01365) on Captum, until every token is known.

The path is the straight line in the word embeddings from a baseline to the text. Its law is completeness:
F(text) = F(baseline) + sum of scores. Captum integrates with Gauss-Legendre rules of a fixed number of points; one
rule over the whole path needs very different numbers for different texts, and which one is known only afterwards.
Here the path is cut into pieces. On each a rule of two points is compared with the same rule on the piece's halves:

- the sum's error is known exactly, since a piece's scores must add up to the change of F between its ends;
- a token's error is estimated. The error of the rule shrinks with the fourth power of a piece's length, so it is a
  fifteenth of the difference, which is also taken off (Richardson 1911). Completeness alone would not do: errors of
  different tokens cancel in the sum.

The worst piece is split, its halves' scores being the next comparison's first rule, until the sum and every token are
good enough. Pieces of many texts run in one Captum call.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from regtune.analyses.attribution.attribution import Scores
from regtune.analyses.attribution.batch import (
    Batch,
    GivenEmbeddings,
    baseline_embeddings,
    given_embeddings,
    word_embeddings,
)
from regtune.analyses.reversible import freeze, only_reader
from regtune.errors import ConfigError, MissingExtraError, unknown_name
from regtune.rows.targets import Resolved, values_of

TOLERANCE = 0.001
TOKEN_ERROR = 10.0
"""How many times the tolerance a token's error may be, as a share of the largest score."""
_FIRST_CUTS = (0.0, 0.19, 0.54, 1.0)
_POINTS = 2
"""Of the rule on each piece. Both were chosen on curves of F along the path of fine-tuned MiniLM models, where most
of the change happens in the first half: fewest gradients in total."""
_SAFETY = 8.0
"""By how much the estimate of a score's error is raised, to about half the difference between the two rules: on paths
as wild as random weights make them, the errors don't shrink as they should yet."""
_CANCELLATION = 4.0
"""How much larger than the allowed error the pieces' errors may be together, if they cancel each other."""
_SHORTEST = 1e-12
"""Share of the path below which a piece is not cut: there the model's own rounding is all that is left."""
_JUMP = 1e-9
"""Share of the path on which a value changes next to nothing, unless it jumps where the path starts."""
_SMALLEST_CHANGE = 0.01
_TOKENS_AT_ONCE = {"cpu": 2048}
_TOKENS_ON_ACCELERATORS = 65_536

Places = Float64[Tensor, " places"]
"""A score for each token and then for each register."""


def integrated_gradients_scores(
    batch: Batch,
    *,
    baseline: str | Tensor = "pad",
    registers: str = "held",
    special_tokens: str = "held",
    max_steps: int = 512,
    internal_batch_size: int | None = None,
) -> Scores:
    """Explains one batch; `value = tokens + registers + baseline` up to `batch.tolerance` of the change.

    The error of the sum is measured as a share of |F(text) - F(baseline)|. Where that is less than 0.01 of the larger
    of 1, |F(text)| and |F(baseline)|, a share of it means nothing and that bound takes its place. The error of the
    scores is the largest of any token or register, as a share of the largest score; it may be ten times the tolerance.

    Args:
        batch: the texts; targets are found once, on the text itself.
        baseline, special_tokens: see `baseline_embeddings`.
        registers: `held` keeps them at their learned value, also at the baseline, so they get no score; `moved`
            takes them on the path, from the zero vector to their learned value, at every depth at which they join.
        max_steps: a row that needs more points is left with the error it has, which `attribute` then refuses.
        internal_batch_size: points that run together, of all rows; by default as many as make 2,048 tokens on a CPU
            and 65,536 elsewhere.
    """
    if registers not in ("held", "moved"):
        raise unknown_name("mode of registers", registers, ("held", "moved"))
    if max_steps < _POINTS or (internal_batch_size is not None and internal_batch_size < 1):
        raise ConfigError(
            f"max_steps={max_steps}, internal_batch_size={internal_batch_size}: at least {_POINTS} steps and 1 row "
            "are needed."
        )
    with ExitStack() as stack:
        stack.enter_context(only_reader(batch.model))
        freeze(batch.model, stack)
        with torch.no_grad():
            outputs = batch.run()
            targets = batch.resolve(outputs)
            values = values_of(outputs, targets).double()
        given = stack.enter_context(given_embeddings(batch))
        path = _Path(batch, given, targets, internal_batch_size)
        path.lay(baseline_embeddings(batch, baseline, special_tokens=special_tokens), moved=registers == "moved")
        rows = [
            _Row(index=index, tolerance=batch.tolerance, known={1.0: value})
            for index, value in enumerate(values.tolist())
        ]
        _integrate(path, rows, max_steps)
        remedy = _remedy(path, rows)
    scores = torch.stack([row.scores for row in rows])
    starts = values.new_tensor([row.known[0.0] for row in rows])
    seq = path.starts[0].shape[1]
    tokens, of_registers = scores[:, :seq], scores[:, seq:]
    if not of_registers.shape[1]:  # held: they are there, with nothing to their name
        of_registers = scores.new_zeros(len(rows), sum(one.num_registers for one in given.sets))
    return Scores(
        targets=targets,
        values=values,
        tokens=tokens,
        registers=of_registers,
        parts={"baseline": starts},
        residual=values - starts - scores.sum(1),
        scale=values.new_tensor([row.scale for row in rows]),
        remedy=remedy,
        steps=[row.steps for row in rows],
        error=values.new_tensor([row.token_error for row in rows]),
    )


@dataclass(kw_only=True, eq=False)
class _Piece:
    """A part of one row's path."""

    start: float
    end: float
    coarse: Places
    """Its scores by the rule on it, and by the rule on its halves."""
    halves: list[Places] = field(default_factory=list)

    @property
    def cuts(self) -> tuple[tuple[float, float], tuple[float, float]]:
        middle = (self.start + self.end) / 2
        return (self.start, middle), (middle, self.end)

    @property
    def step(self) -> Places:
        """By how much the scores change on the way from halves to no length at all; also the size of their error."""
        return (sum(self.halves) - self.coarse) / 15 if self.halves else torch.full_like(self.coarse, math.inf)

    @property
    def scores(self) -> Places:
        return sum(self.halves) + self.step if self.halves else self.coarse


@dataclass(kw_only=True, eq=False)
class _Row:
    """One text's path as it stands."""

    index: int
    tolerance: float
    known: dict[float, float]
    """F at points of the path, 0 the baseline and 1 the text."""
    pieces: list[_Piece] = field(default_factory=list)
    steps: int = 0

    @property
    def scale(self) -> float:
        start, end = self.known[0.0], self.known[1.0]
        return max(abs(end - start), _SMALLEST_CHANGE * max(1.0, abs(start), abs(end)))

    @property
    def scores(self) -> Places:
        return torch.stack([piece.scores for piece in self.pieces]).sum(0)

    @property
    def token_error(self) -> float:
        """The largest error of a score, as a share of the largest score."""
        errors = torch.stack([piece.step.abs() for piece in self.pieces]).sum(0)
        worst, largest = _SAFETY * float(errors.max()), float(self.scores.abs().max())
        return worst / largest if largest else worst

    def lost(self, piece: _Piece) -> float:
        """The error of a piece's sum."""
        return float(piece.scores.sum()) - (self.known[piece.end] - self.known[piece.start])

    @property
    def unfinished(self) -> bool:
        lost = [self.lost(piece) for piece in self.pieces]
        allowed = 0.99 * self.tolerance * self.scale
        close = abs(sum(lost)) <= allowed and sum(map(abs, lost)) <= _CANCELLATION * allowed
        return math.isfinite(self.scale) and not (close and self.token_error <= TOKEN_ERROR * self.tolerance)

    def split(self, max_steps: int) -> Iterator[_Piece]:
        """Takes out the pieces whose errors are within a tenth of the largest, and gives their halves."""
        largest = TOKEN_ERROR * (float(self.scores.abs().max()) or 1.0)
        sizes = {
            piece: max(abs(self.lost(piece)) / self.scale, float(piece.step.abs().max()) / largest)
            for piece in self.pieces
            if piece.end - piece.start > _SHORTEST
        }
        for piece in sorted(sizes, key=lambda one: -sizes[one]):
            if sizes[piece] < 0.9 * max(sizes.values()) or self.steps + 4 * _POINTS > max_steps:
                break
            self.steps += 4 * _POINTS
            self.pieces.remove(piece)
            for (start, end), scores in zip(piece.cuts, piece.halves, strict=True):
                yield _Piece(start=start, end=end, coarse=scores)


def _integrate(path: _Path, rows: Sequence[_Row], max_steps: int) -> None:
    cuts = _FIRST_CUTS if max_steps >= 3 * _POINTS * (len(_FIRST_CUTS) - 1) else (0.0, 1.0)
    path.look([(row, at) for row in rows for at in cuts])
    wanted = [(row, start, end) for row in rows for start, end in pairwise(cuts)]
    for (row, start, end), scores in zip(wanted, path.integrate(wanted), strict=True):
        row.pieces.append(_Piece(start=start, end=end, coarse=scores))
        row.steps += _POINTS if max_steps < 3 * _POINTS else 3 * _POINTS
    new = [] if max_steps < 3 * _POINTS else [(row, piece) for row in rows for piece in row.pieces]
    while new:
        halves = iter(path.integrate([(row, *cut) for row, piece in new for cut in piece.cuts]))
        for _, piece in new:
            piece.halves = [next(halves), next(halves)]
        new = [(row, piece) for row in rows if row.unfinished for piece in row.split(max_steps)]
        path.look([(row, at) for row, piece in new for at in (piece.start, piece.end)])
        for row, piece in new:
            row.pieces.append(piece)


def _remedy(path: _Path, rows: Sequence[_Row]) -> str:
    """What to do about rows whose error is too large."""
    late = [row for row in rows if row.unfinished]
    path.look([(row, _JUMP) for row in late])
    if any(abs(row.known[_JUMP] - row.known[0.0]) > TOKEN_ERROR * row.tolerance * row.scale for row in late):
        return (
            "The value jumps at the start of the path, so no number of steps is enough: an RMS norm blows up what is "
            "close to the zero vector, and the model adds no positions (as T5). Start from another vector: "
            "baseline='pad' or 'mask' (--baseline pad)."
        )
    return "Raise max_steps or tolerance, or run the model in float32 or float64."


class _Path:
    """The straight lines of a batch, and what runs along them."""

    def __init__(self, batch: Batch, given: GivenEmbeddings, targets: Sequence[Resolved], at_once: int | None) -> None:
        try:
            from captum.attr import IntegratedGradients
        except ImportError as error:
            raise MissingExtraError("captum", "analysis", "integrated-gradients") from error
        self.batch = batch
        self.given = given
        self.targets = targets
        self.lengths = batch.text.sum(1).tolist()
        self.starts: list[Tensor] = []
        self.ends: list[Tensor] = []
        self.at_once = at_once
        self.captum: Any = IntegratedGradients(self._values)

    def lay(self, absent: Tensor, *, moved: bool) -> None:
        """Fixes both ends: word embeddings, then registers of each depth, `[batch, places, width]` each."""
        self.starts, self.ends = [absent], [word_embeddings(self.batch)]
        if moved:
            for learned in self.given.learned_registers():
                whole = learned.expand(len(self.targets), -1, -1)
                self.starts.append(torch.zeros_like(whole))
                self.ends.append(whole)

    def look(self, wanted: Sequence[tuple[_Row, float]]) -> None:
        """Finds F at points of rows' paths where it isn't known yet."""
        missing = list(dict.fromkeys((row, at) for row, at in wanted if at not in row.known))
        with torch.no_grad():
            for part in self._groups([row.index for row, _ in missing], points=1):
                rows, places = zip(*(missing[number] for number in part), strict=True)
                index = torch.tensor([row.index for row in rows], device=self.starts[0].device)
                for row, at, value in zip(rows, places, self._values(*self._at(index, places), index), strict=True):
                    row.known[at] = float(value)

    def integrate(self, wanted: Sequence[tuple[_Row, float, float]]) -> list[Places]:
        """The scores of pieces, by Captum."""
        found: dict[int, Places] = {}
        for part in self._groups([row.index for row, _, _ in wanted], points=_POINTS):
            rows, starts, ends = zip(*(wanted[place] for place in part), strict=True)
            index = torch.tensor([row.index for row in rows], device=self.starts[0].device)
            scores = self.captum.attribute(
                inputs=self._at(index, ends),
                baselines=self._at(index, starts),
                additional_forward_args=(index,),
                n_steps=_POINTS,
                method="gausslegendre",
                internal_batch_size=max(len(part), self._size(max(self.lengths[row.index] for row in rows))),
            )
            tokens, *registers = [one.sum(-1, dtype=torch.float64) for one in scores]
            whole = torch.nn.functional.pad(tokens, (0, self.starts[0].shape[1] - tokens.shape[1]))
            together = torch.cat([whole, self.given.by_register(registers)], 1) if registers else whole
            found |= dict(zip(part, together, strict=True))
        return [found[place] for place in range(len(wanted))]

    def _groups(self, rows: Sequence[int], *, points: int) -> Iterator[list[int]]:
        """Numbers of the given rows, sorted by length and in groups that may run at once."""
        order = sorted(range(len(rows)), key=lambda place: -self.lengths[rows[place]])
        while order:
            size = max(1, self._size(self.lengths[rows[order[0]]]) // points)
            yield order[:size]
            order = order[size:]

    def _size(self, length: int) -> int:
        """Points of so many tokens that run together."""
        tokens = _TOKENS_AT_ONCE.get(self.starts[0].device.type, _TOKENS_ON_ACCELERATORS)
        return max(1, tokens // length) if self.at_once is None else self.at_once

    def _at(self, index: Tensor, where: Sequence[float]) -> tuple[Tensor, ...]:
        """Points of the path, a share of the way for each row; text cut to the longest of them."""
        length = max(self.lengths[row] for row in index.tolist())
        share = torch.tensor(where, dtype=torch.float64, device=index.device).view(-1, 1, 1)
        ends = [(start[index], end[index]) for start, end in zip(self.starts, self.ends, strict=True)]
        ends[0] = (ends[0][0][:, :length], ends[0][1][:, :length])
        return tuple(first + share.to(first.dtype) * (last - first) for first, last in ends)

    def _values(self, words: Tensor, *rest: Tensor) -> Tensor:
        """F of rows at points of their paths: word embeddings, registers of each depth, and the rows' numbers."""
        *registers, index = rest
        self.given.words, self.given.registers = words, registers
        outputs = self.batch.run_rows(index, words.shape[1])
        return values_of(outputs, [self.targets[row] for row in index.tolist()])
