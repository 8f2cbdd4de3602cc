"""Integrated gradients (Sundararajan, Taly, Yan 2017, arXiv 1703.01365) on Captum, until they are complete.

The path is the straight line in the word embeddings from a baseline to the text. Its law is completeness:
F(text) = F(baseline) + sum of scores. Captum integrates with Gauss-Legendre rules of a fixed number of points; one
rule over the whole path needs very different numbers for different texts, and which one is known only afterwards.
Here the path is cut into pieces, each with a rule of two points. On a piece the error is known exactly, since its
scores must add up to the change of F from one of its ends to the other; so the worst piece is halved until the error
of the whole path is small enough. Pieces of many texts run in one Captum call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from regtune.analyses.attribution.baselines import baseline_embeddings, word_embeddings
from regtune.analyses.attribution.batch import Batch
from regtune.analyses.attribution.given_embeddings import GivenEmbeddings, given_embeddings
from regtune.analyses.attribution.scores import Scores
from regtune.analyses.reversible import freeze, only_reader
from regtune.errors import ConfigError, MissingExtraError, unknown_name
from regtune.targets import Resolved, values_of

_FIRST_CUTS = (0.0, 0.19, 0.54, 1.0)
_POINTS = 2
"""Of the rule on each piece. Both were chosen on curves of F along the path of fine-tuned MiniLM models, where most
of the change happens in the first half: fewest gradients in total, discarded ones included."""
_CANCELLATION = 4.0
"""How much larger than the allowed error the pieces' errors may be together, if they cancel each other."""
_STRAIGHT = 0.1
"""A path whose values at the cuts are within this share of the change of a straight line's starts as one piece."""
_SMALLEST_CHANGE = 0.01
_TOKENS_AT_ONCE = {"cpu": 2048}
_TOKENS_ON_ACCELERATORS = 65_536


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

    The error is measured as a share of |F(text) - F(baseline)|. Where that is less than 0.01 of the larger of 1,
    |F(text)| and |F(baseline)|, a share of it means nothing and that bound takes its place.

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
        given = stack.enter_context(given_embeddings(batch.model, batch.family))
        path = _Path(batch, given, targets, internal_batch_size)
        path.lay(baseline_embeddings(batch, baseline, special_tokens=special_tokens), moved=registers == "moved")
        rows = [_Row(index, batch.tolerance) for index in range(len(targets))]
        _integrate(path, rows, max_steps)
    return _scores(path, rows, values, targets)


@dataclass(kw_only=True, eq=False)
class _Piece:
    """A part of one row's path, with the scores that it adds."""

    row: int
    ends: tuple[float, float]
    change: float
    """F at its end less F at its start."""
    tokens: Tensor
    registers: Tensor

    @property
    def error(self) -> float:
        return float(self.tokens.sum() + self.registers.sum()) - self.change


@dataclass(eq=False)
class _Row:
    """One text's path as it stands."""

    index: int
    tolerance: float
    pieces: list[_Piece] = field(default_factory=list)
    known: dict[float, float] = field(default_factory=dict)
    """F at points of the path, 0 the baseline and 1 the text."""

    @property
    def steps(self) -> int:
        return _POINTS * len(self.pieces)

    @property
    def scale(self) -> float:
        start, end = self.known[0.0], self.known[1.0]
        return max(abs(end - start), _SMALLEST_CHANGE * max(1.0, abs(start), abs(end)))

    def first_pieces(self) -> list[tuple[float, float]]:
        """The whole path if F runs along it nearly straight, else what the first cuts make."""
        start, end = self.known[0.0], self.known[1.0]
        bends = [abs(self.known[cut] - start - cut * (end - start)) for cut in _FIRST_CUTS]
        return [(0.0, 1.0)] if max(bends) <= _STRAIGHT * self.scale else list(pairwise(_FIRST_CUTS))

    def is_complete(self) -> bool:
        errors = [piece.error for piece in self.pieces]
        allowed = 0.99 * self.tolerance * self.scale
        return abs(sum(errors)) <= allowed and sum(map(abs, errors)) <= _CANCELLATION * allowed

    def take_worst(self) -> list[_Piece]:
        """Takes out the pieces whose errors are within a tenth of the largest."""
        worst = max(abs(piece.error) for piece in self.pieces)
        taken = [piece for piece in self.pieces if not abs(piece.error) < 0.9 * worst]
        self.pieces = [piece for piece in self.pieces if piece not in taken]
        return taken


def _integrate(path: _Path, rows: Sequence[_Row], max_steps: int) -> None:
    path.fill_in([(row, ends) for row in rows for ends in pairwise(_FIRST_CUTS)])
    wanted = [(row, ends) for row in rows for ends in row.first_pieces()]
    while wanted:
        path.fill_in(wanted)
        for piece, (row, _) in zip(path.integrate(wanted), wanted, strict=True):
            row.pieces.append(piece)
        wanted = []
        for row in rows:
            if row.is_complete() or row.steps + _POINTS > max_steps or not math.isfinite(row.scale):
                continue
            for piece in row.take_worst():
                start, end = piece.ends
                middle = (start + end) / 2
                wanted += [(row, (start, middle)), (row, (middle, end))]


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

    def fill_in(self, wanted: Sequence[tuple[_Row, tuple[float, float]]]) -> None:
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

    def integrate(self, wanted: Sequence[tuple[_Row, tuple[float, float]]]) -> list[_Piece]:
        """The scores of pieces, by Captum."""
        found: dict[int, _Piece] = {}
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
            tokens = self._widened(scores[0].sum(-1, dtype=torch.float64))
            depths = [part.sum(-1, dtype=torch.float64) for part in scores[1:]]
            registers = torch.stack(depths).sum(0) if depths else tokens[:, :0]
            for number, (place, (row, ends)) in enumerate(zip(places, part, strict=True)):
                found[place] = _Piece(
                    row=row.index,
                    ends=ends,
                    change=row.known[ends[1]] - row.known[ends[0]],
                    tokens=tokens[number],
                    registers=registers[number],
                )
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

    def _widened(self, tokens: Tensor) -> Tensor:
        whole = tokens.new_zeros(len(tokens), self.starts[0].shape[1])
        whole[:, : tokens.shape[1]] = tokens
        return whole


def _scores(path: _Path, rows: Sequence[_Row], values: Tensor, targets: Sequence[Resolved]) -> Scores:
    none = torch.zeros_like(values)
    tokens = torch.stack([torch.stack([piece.tokens for piece in row.pieces]).sum(0) for row in rows])
    registers = torch.stack([torch.stack([piece.registers for piece in row.pieces]).sum(0) for row in rows])
    if not registers.shape[1] and path.given.active is not None:  # held: they are there, with nothing to their name
        registers = none.unsqueeze(1).expand(-1, path.given.active.num_registers).clone()
    starts = torch.tensor([row.known[0.0] for row in rows], dtype=torch.float64).to(values.device)
    return Scores(
        targets=targets,
        values=values,
        tokens=tokens,
        registers=registers,
        positions=none,
        types=none,
        biases=none,
        softmax=none,
        residual=values - starts - tokens.sum(1) - registers.sum(1),
        scale=torch.tensor([row.scale for row in rows], dtype=torch.float64).to(values.device),
        baselines=starts,
        steps=[row.steps for row in rows],
    )
