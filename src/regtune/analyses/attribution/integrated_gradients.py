"""Integrated gradients (Sundararajan, Taly, Yan 2017, arXiv 1703.01365) on Captum, until every token is known.

The path is the straight line in the word embeddings from a baseline to the text. Its law is completeness:
F(text) = F(baseline) + sum of scores. Captum integrates with Gauss-Legendre rules of a fixed number of points; one
rule over the whole path needs very different numbers for different texts, and which one is known only afterwards.
Here the path is cut into pieces. On each a rule of two points is compared with the same rule on the piece's halves:

- the sum's error is known exactly, since a piece's scores must add up to the change of F between its ends;
- a token's error is estimated. The error of the rule shrinks with the fourth power of a piece's length, so it is a
  fifteenth of the difference, which is also taken off (Richardson 1911). Completeness alone would not do: errors of
  different tokens cancel in the sum.

The worst piece is split, its halves' scores being the next comparison's first rule, until both errors are small
enough. Pieces of many texts run in one Captum call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from regtune.targets import Resolved, values_of

TOLERANCE = 0.001
TOKEN_ERROR = 10.0
"""How many times the tolerance a token's error may be, as a share of the largest score."""
_FIRST_CUTS = (0.0, 0.19, 0.54, 1.0)
_POINTS = 2
"""Of the rule on each piece. Both were chosen on curves of F along the path of fine-tuned MiniLM models, where most
of the change happens in the first half: fewest gradients in total."""
_WHOLE = 3 * _POINTS
"""Points of a piece whose error is known: the rule on it, and on each half."""
_SAFETY = 8.0
"""By how much the estimate of a score's error is raised, to about half the difference between the two rules: on paths
as wild as random weights make them, the errors don't shrink as they should yet."""
_CANCELLATION = 4.0
"""How much larger than the allowed error the pieces' errors may be together, if they cancel each other."""
_STRAIGHT = 0.1
"""A path whose values at the cuts are within this share of the change of a straight line's starts as one piece."""
_SMALLEST_CHANGE = 0.01
_TOKENS_AT_ONCE = {"cpu": 2048}
_TOKENS_ON_ACCELERATORS = 65_536

Ends = tuple[float, float]
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
        max_steps: a row that needs more points is left with the error it has, which `explain` then refuses.
        internal_batch_size: points that run together, of all rows; by default as many as make 2,048 tokens on a CPU
            and 65,536 elsewhere.

    Raises:
        MissingExtraError: Captum is not installed.
        ConfigError: a baseline, mode or size that cannot work; see `baseline_embeddings`.
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
        rows = [_Row(index, batch.tolerance, max_steps) for index in range(len(targets))]
        _integrate(path, rows)
    return _scores(path, rows, values, targets)


@dataclass(kw_only=True, eq=False)
class _Piece:
    """A part of one row's path."""

    ends: Ends
    coarse: Places | None = None
    """Its scores by the rule on it, and by the rule on its halves."""
    halves: tuple[Places, Places] | None = None
    change: float = 0.0
    """F at its end less F at its start."""

    @property
    def cuts(self) -> tuple[Ends, Ends]:
        start, end = self.ends
        middle = (start + end) / 2
        return (start, middle), (middle, end)

    @property
    def step(self) -> Places:
        """By how much the scores change on the way from halves to no length at all; also the size of their error."""
        assert self.coarse is not None
        if self.halves is None:
            return torch.full_like(self.coarse, math.inf)
        return (sum(self.halves) - self.coarse) / 15

    @property
    def scores(self) -> Places:
        assert self.coarse is not None
        return self.coarse if self.halves is None else sum(self.halves) + self.step

    @property
    def error(self) -> float:
        """Of the sum."""
        return float(self.scores.sum()) - self.change


@dataclass(eq=False)
class _Row:
    """One text's path as it stands."""

    index: int
    tolerance: float
    max_steps: int
    pieces: list[_Piece] = field(default_factory=list)
    known: dict[float, float] = field(default_factory=dict)
    """F at points of the path, 0 the baseline and 1 the text."""
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

    def first_pieces(self) -> list[_Piece]:
        """The whole path if F runs along it nearly straight, else what the first cuts make."""
        start, end = self.known[0.0], self.known[1.0]
        bends = [abs(self.known[cut] - start - cut * (end - start)) for cut in _FIRST_CUTS]
        pieces = len(_FIRST_CUTS) - 1
        if max(bends) <= _STRAIGHT * self.scale or self.max_steps < pieces * _WHOLE:
            return [_Piece(ends=(0.0, 1.0))]
        return [_Piece(ends=ends) for ends in pairwise(_FIRST_CUTS)]

    def is_complete(self) -> bool:
        errors = [piece.error for piece in self.pieces]
        allowed = 0.99 * self.tolerance * self.scale
        sums = abs(sum(errors)) <= allowed and sum(map(abs, errors)) <= _CANCELLATION * allowed
        return sums and self.token_error <= TOKEN_ERROR * self.tolerance

    def split(self) -> list[_Piece]:
        """Takes out the pieces whose errors are within a tenth of the largest, and gives their halves."""
        largest = float(self.scores.abs().max()) or 1.0
        sizes = [
            max(abs(piece.error) / self.scale, float(piece.step.abs().max()) / largest / TOKEN_ERROR)
            for piece in self.pieces
        ]
        halves: list[_Piece] = []
        for piece, size in sorted(zip(self.pieces, sizes, strict=True), key=lambda one: -one[1]):
            room = self.steps + (len(halves) + 2) * 2 * _POINTS <= self.max_steps
            if piece.halves is None or not room or size < 0.9 * max(sizes):
                continue
            self.pieces.remove(piece)
            halves += [_Piece(ends=e, coarse=c) for e, c in zip(piece.cuts, piece.halves, strict=True)]
        return halves


def _integrate(path: _Path, rows: Sequence[_Row]) -> None:
    path.fill_in([(row, ends) for row in rows for ends in pairwise(_FIRST_CUTS)])
    new = [(row, piece) for row in rows for piece in row.first_pieces()]
    while new:
        path.fill_in([(row, piece.ends) for row, piece in new])
        wanted = [(row, piece, ends) for row, piece in new for ends in _still_to_do(row, piece)]
        for (row, piece, ends), scores in zip(wanted, path.integrate([(r, e) for r, _, e in wanted]), strict=True):
            row.steps += _POINTS
            if ends == piece.ends:
                piece.coarse = scores
            else:
                piece.halves = (scores, scores) if piece.halves is None else (piece.halves[0], scores)
        for row, piece in new:
            piece.change = row.known[piece.ends[1]] - row.known[piece.ends[0]]
            row.pieces.append(piece)
        new = [
            (row, half) for row in rows if math.isfinite(row.scale) and not row.is_complete() for half in row.split()
        ]


def _still_to_do(row: _Row, piece: _Piece) -> list[Ends]:
    """On what the rule has still to be used."""
    whole = [piece.ends] if piece.coarse is None else []
    return whole if row.max_steps < _WHOLE else [*whole, *piece.cuts]


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
        self.at_once = at_once
        self.lengths = batch.text.sum(1).tolist()
        self.starts: list[Tensor] = []
        self.ends: list[Tensor] = []
        self.captum: Any = IntegratedGradients(self._values)

    def lay(self, absent: Tensor, *, moved: bool) -> None:
        """Fixes both ends: word embeddings, then registers of each depth, `[batch, places, width]` each."""
        self.starts, self.ends = [absent], [word_embeddings(self.batch)]
        if moved:
            for learned in self.given.learned_registers():
                whole = learned.expand(len(self.targets), -1, -1)
                self.starts.append(torch.zeros_like(whole))
                self.ends.append(whole)

    def fill_in(self, wanted: Sequence[tuple[_Row, Ends]]) -> None:
        """Finds F at the ends of the pieces where it isn't known yet."""
        missing = sorted({(row.index, end) for row, ends in wanted for end in ends if end not in row.known})
        rows = {row.index: row for row, _ in wanted}
        with torch.no_grad():
            for places in self._groups([index for index, _ in missing], points=1):
                part = [missing[place] for place in places]
                index = torch.tensor([row for row, _ in part], device=self.starts[0].device)
                at = self._at(index, [where for _, where in part])
                for (row, where), value in zip(part, self._values(*at, index).tolist(), strict=True):
                    rows[row].known[where] = value

    def integrate(self, wanted: Sequence[tuple[_Row, Ends]]) -> list[Places]:
        """The scores of pieces, by Captum."""
        found: dict[int, Places] = {}
        for places in self._groups([row.index for row, _ in wanted], points=_POINTS):
            part = [wanted[place] for place in places]
            index = torch.tensor([row.index for row, _ in part], device=self.starts[0].device)
            scores = self.captum.attribute(
                inputs=self._at(index, [end for _, (_, end) in part]),
                baselines=self._at(index, [start for _, (start, _) in part]),
                additional_forward_args=(index,),
                n_steps=_POINTS,
                method="gausslegendre",
                internal_batch_size=max(len(part), self._rows_at_once(max(self.lengths[i] for i in index.tolist()))),
            )
            tokens, *registers = [part.sum(-1, dtype=torch.float64) for part in scores]
            whole = tokens.new_zeros(len(tokens), self.starts[0].shape[1])
            whole[:, : tokens.shape[1]] = tokens
            together = torch.cat([whole, torch.stack(registers).sum(0)], 1) if registers else whole
            found |= dict(zip(places, together, strict=True))
        return [found[place] for place in range(len(wanted))]

    def _groups(self, rows: Sequence[int], *, points: int) -> list[list[int]]:
        """Numbers of the given rows, sorted by length and in groups that may run at once."""
        order = sorted(range(len(rows)), key=lambda place: -self.lengths[rows[place]])
        groups: list[list[int]] = []
        while order:
            size = max(1, self._rows_at_once(self.lengths[rows[order[0]]]) // points)
            groups.append(order[:size])
            order = order[size:]
        return groups

    def _rows_at_once(self, length: int) -> int:
        tokens = _TOKENS_AT_ONCE.get(self.starts[0].device.type, _TOKENS_ON_ACCELERATORS)
        return max(1, tokens // length) if self.at_once is None else self.at_once

    def _at(self, index: Tensor, where: Sequence[float]) -> tuple[Tensor, ...]:
        """Points of the path, a share of the way for each row; text cut to the longest of them."""
        length = max(self.lengths[row] for row in index.tolist())
        share = torch.tensor(where, dtype=torch.float64, device=index.device).view(-1, 1, 1)
        found = []
        for start, end in zip(self.starts, self.ends, strict=True):
            first, last = start[index], end[index]
            if start is self.starts[0]:
                first, last = first[:, :length], last[:, :length]
            found.append(first + share.to(first.dtype) * (last - first))
        return tuple(found)

    def _values(self, words: Tensor, *rest: Tensor) -> Tensor:
        """F of rows at points of their paths: word embeddings, registers of each depth, and the rows' numbers."""
        *registers, index = rest
        self.given.words, self.given.registers = words, registers
        outputs = self.batch.run_rows(index, words.shape[1])
        return values_of(outputs, [self.targets[row] for row in index.tolist()])


def _scores(path: _Path, rows: Sequence[_Row], values: Tensor, targets: Sequence[Resolved]) -> Scores:
    scores = torch.stack([row.scores for row in rows])
    seq = path.starts[0].shape[1]
    tokens, registers = scores[:, :seq], scores[:, seq:]
    if not registers.shape[1] and path.given.active is not None:  # held: they are there, with nothing to their name
        registers = scores.new_zeros(len(rows), path.given.active.num_registers)
    starts, scales, errors = values.new_tensor([(row.known[0.0], row.scale, row.token_error) for row in rows]).unbind(1)
    return Scores(
        targets=targets,
        values=values,
        tokens=tokens,
        registers=registers,
        parts={"baseline": starts},
        residual=values - starts - scores.sum(1),
        scale=scales,
        steps=[row.steps for row in rows],
        error=errors,
    )
