"""Per-question scores of one arm (all its seeds), checked, and brought into the order of the baseline's."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from regtune.errors import DataError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class ArmScores:
    """What one arm scored on every question with every seed.

    Raises:
        DataError: when the matrix is empty, not two-dimensional, holds NaN or scores outside [0, 1], when ids are
            repeated, or when there are not as many ids as rows or columns.
    """

    scores: npt.NDArray[Any]
    """Shape [seeds, questions], a ratio in [0, 1] (EM, F1, accuracy); kept as float64."""
    name: str = "arm"
    """What error messages call this arm."""
    seeds: tuple[int, ...] | None = None
    """The seed of each row; without them row i is paired with row i."""
    questions: tuple[str, ...] | None = None
    """The id of each column; without them column i is the same question in every arm."""

    def __post_init__(self) -> None:
        scores = np.asarray(self.scores, dtype=np.float64)
        object.__setattr__(self, "scores", scores)
        if scores.ndim != 2:
            raise DataError(
                f"{self.name}: scores have shape {scores.shape}, expected [seeds, questions]. "
                "Stack the per-question scores of the runs, one row for each seed."
            )
        if scores.size == 0:
            raise DataError(
                f"{self.name}: scores of shape {scores.shape} are empty. "
                "Give at least one run with at least two questions; check that the records hold predictions."
            )
        self._check_values()
        self._check_ids("seeds", self.seeds, scores.shape[0])
        self._check_ids("questions", self.questions, scores.shape[1])

    def _check_values(self) -> None:
        wrong = ~((self.scores >= 0) & (self.scores <= 1))  # true for NaN as well
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise DataError(
                f"{self.name}: {int(wrong.sum())} scores are not in [0, 1]; the first is {self.scores[row, column]} "
                f"(row {row}, question {column}). Divide percentages by 100, score a missing answer as 0."
            )

    def _check_ids(self, kind: str, ids: tuple[Any, ...] | None, expected: int) -> None:
        if ids is None:
            return
        if len(ids) != expected:
            raise DataError(
                f"{self.name}: {len(ids)} ids in {kind} for scores with {expected} {kind}. Give one id for each."
            )
        if len(set(ids)) != len(ids):
            repeated = sorted({str(i) for i in ids if ids.count(i) > 1})
            raise DataError(f"{self.name}: {kind} are repeated: {_some(repeated)}. Remove the double records.")

    @property
    def num_seeds(self) -> int:
        """Number of rows."""
        return int(self.scores.shape[0])

    @property
    def num_questions(self) -> int:
        """Number of columns."""
        return int(self.scores.shape[1])

    def with_seeds(self, seeds: Collection[int]) -> ArmScores:
        """The rows of these seeds alone, in the order they have here."""
        rows = [row for row, seed in enumerate(self.seeds or ()) if seed in seeds]
        kept = tuple((self.seeds or ())[row] for row in rows)
        return ArmScores(scores=self.scores[rows], name=self.name, seeds=kept, questions=self.questions)

    @property
    def seed_means(self) -> Floats:
        """Mean score of each seed, shape [seeds]."""
        means: Floats = self.scores.mean(axis=1)
        return means


def as_arm_scores(scores: ArmScores | npt.ArrayLike, name: str) -> ArmScores:
    """A matrix [seeds, questions] as `ArmScores`; `ArmScores` are passed on unchanged."""
    return scores if isinstance(scores, ArmScores) else ArmScores(scores=np.asarray(scores), name=name)


def match_arm(arm: ArmScores, baseline: ArmScores, *, paired: bool, partial: bool) -> tuple[ArmScores, ArmScores]:
    """The arm in the baseline's order (`align_arm`), and the baseline's part that it is compared with.

    Args:
        arm: the arm.
        baseline: the baseline.
        paired: require the same seeds in both.
        partial: where only some seeds are shared, take those of both.

    Raises:
        DataError: as `align_arm`; and when fewer than two seeds are shared.
    """
    if paired and partial and arm.seeds is not None and baseline.seeds is not None:
        shared = set(arm.seeds) & set(baseline.seeds)
        if len(shared) < 2:
            raise DataError(
                f"{arm.name} and {baseline.name} share {len(shared)} seed{'' if len(shared) == 1 else 's'} and at "
                "least 2 are needed to pair them. Run the missing seeds, or compare with paired=False."
            )
        arm, baseline = arm.with_seeds(shared), baseline.with_seeds(shared)
    return align_arm(arm, baseline, paired=paired), baseline


def align_arm(arm: ArmScores, baseline: ArmScores, *, paired: bool) -> ArmScores:
    """The arm with its questions, and where `paired` its seeds, in the baseline's order.

    Args:
        arm: the arm to bring into order.
        baseline: the arm whose order counts.
        paired: require the same seeds in both.

    Raises:
        DataError: when the question sets differ, or the seeds differ and `paired` is asked for.
    """
    scores = arm.scores[:, _question_order(arm, baseline)]
    if paired:
        scores = scores[_seed_order(arm, baseline)]
    return ArmScores(
        scores=scores, name=arm.name, seeds=baseline.seeds if paired else arm.seeds, questions=baseline.questions
    )


def _question_order(arm: ArmScores, baseline: ArmScores) -> npt.NDArray[np.intp]:
    if arm.num_questions != baseline.num_questions:
        raise DataError(
            f"{arm.name} has {arm.num_questions} questions and {baseline.name} has {baseline.num_questions}. "
            "Arms are compared on one evaluation set: evaluate both on the same questions."
        )
    if arm.questions is None or baseline.questions is None:
        return np.arange(arm.num_questions)
    return _order(arm.questions, baseline.questions, f"{arm.name} lacks questions that {baseline.name} has")


def _seed_order(arm: ArmScores, baseline: ArmScores) -> npt.NDArray[np.intp]:
    if arm.seeds is not None and baseline.seeds is not None:
        missing = set(baseline.seeds) ^ set(arm.seeds)
        if missing:
            raise DataError(
                f"{arm.name} and {baseline.name} don't have the same seeds; only one of them has "
                f"{_some(sorted(missing))}. Run the missing seeds, drop them from both, or compare with paired=False."
            )
        return _order(arm.seeds, baseline.seeds, f"{arm.name} lacks seeds that {baseline.name} has")
    if arm.num_seeds != baseline.num_seeds:
        raise DataError(
            f"{arm.name} has {arm.num_seeds} seeds and {baseline.name} has {baseline.num_seeds}, so they can't be "
            "paired. Run the missing seeds, give the seed ids to see which are missing, or compare with paired=False."
        )
    return np.arange(arm.num_seeds)


def _order(ids: tuple[Any, ...], wanted: tuple[Any, ...], problem: str) -> npt.NDArray[np.intp]:
    place = {name: index for index, name in enumerate(ids)}
    missing = [name for name in wanted if name not in place]
    if missing:
        raise DataError(
            f"{problem}: {_some(missing)}. Arms are compared on the same questions: evaluate both on one set."
        )
    return np.array([place[name] for name in wanted], dtype=np.intp)


def _some(names: Iterable[Any], limit: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(str(name) for name in names[:limit]) + more
