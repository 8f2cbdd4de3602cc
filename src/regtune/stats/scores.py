"""Per-example scores of one arm (all its seeds), checked, and brought into the order of the baseline's."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from regtune.errors import DataError
from regtune.interfaces import Metric, first_column

Floats = npt.NDArray[np.float64]
SCORE = Metric(name="score", title="score", columns=("score",))
"""A ratio in [0, 1] of which nothing else is known; differences in points."""


def is_mean(metric: Metric) -> bool:
    """Whether the metric is the plain mean of one column, so that an example's column is its own contribution."""
    return metric.value is first_column and len(metric.columns) == 1


@dataclass(frozen=True, kw_only=True, eq=False)
class ArmScores:
    """What one arm scored on every example with every seed.

    Raises:
        DataError: when the scores are empty or of another shape, hold numbers that can't be (NaN, outside the metric's
            bounds), when ids are repeated, or when there are not as many ids as rows or examples.
    """

    scores: npt.NDArray[Any]
    """Shape [seeds, examples, columns], what `metric` is computed from; [seeds, examples] where it is a plain mean."""
    metric: Metric = SCORE
    name: str = "arm"
    """What error messages call this arm."""
    seeds: tuple[int, ...] | None = None
    """The seed of each row; without them row i is paired with row i."""
    examples: tuple[str, ...] | None = None
    """The id of each example; without them example i is the same in every arm."""
    gaps: bool = False
    """NaN is an example that has no number (a measure that isn't defined there): it is left out of comparisons in all
    arms, as are examples that only some arms have. Without it NaN is refused."""
    folds: tuple[int, ...] | None = None
    """Of cross-validated scores the fold that each example was scored in; see `regtune.stats.cross_validation`."""

    def __post_init__(self) -> None:
        scores = np.asarray(self.scores, dtype=np.float64)
        if scores.ndim == 2 and len(self.metric.columns) == 1:
            scores = scores[..., None]
        object.__setattr__(self, "scores", scores)
        open_ended = any(column.endswith("*") for column in self.metric.columns)
        if scores.ndim != 3 or (scores.shape[2] != len(self.metric.columns) and not open_ended):
            wanted = ", ".join(self.metric.columns)
            raise DataError(
                f"{self.name}: scores have shape {np.asarray(self.scores).shape}, expected [seeds, examples, columns] "
                f"with a column for each of {wanted}; [seeds, examples] where there is one."
            )
        if scores.size == 0:
            raise DataError(
                f"{self.name}: scores of shape {scores.shape[:2]} are empty. "
                "Give at least one run with at least two examples; check that the records hold predictions."
            )
        self._check_values()
        self._check_ids("seeds", self.seeds, scores.shape[0])
        self._check_ids("examples", self.examples, scores.shape[1])
        if self.folds is not None and len(self.folds) != scores.shape[1]:
            raise DataError(f"{self.name}: {len(self.folds)} folds for {scores.shape[1]} examples. Give one for each.")

    def _check_values(self) -> None:
        low, high = self.metric.bounds if is_mean(self.metric) else (-np.inf, np.inf)
        wrong = ~(np.isfinite(self.scores) & (self.scores >= low) & (self.scores <= high))
        if self.gaps:
            wrong &= ~np.isnan(self.scores)
        if wrong.any():
            row, example, column = np.argwhere(wrong)[0]
            percent = " Divide percentages by 100, score a missing answer as 0." if (low, high) == (0, 1) else ""
            raise DataError(
                f"{self.name}: {int(wrong.any(axis=2).sum())} scores are not in [{low:g}, {high:g}]; the first is "
                f"{self.scores[row, example, column]} (row {row}, example {example}).{percent}"
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
            raise DataError(f"{self.name}: {kind} are repeated: {some(repeated)}. Remove the double records.")

    @property
    def num_seeds(self) -> int:
        """Number of rows."""
        return int(self.scores.shape[0])

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        return int(self.scores.shape[1])

    def taken(
        self, rows: Sequence[int] | None = None, examples: Sequence[int] | npt.NDArray[Any] | None = None
    ) -> ArmScores:
        """Some of the rows, some of the examples, in that order."""
        scores, seeds, ids, folds = self.scores, self.seeds, self.examples, self.folds
        if examples is not None:
            scores = scores[:, np.asarray(examples, dtype=np.intp)]
            folds = None if folds is None else tuple(folds[place] for place in examples)
            ids = None if ids is None else tuple(ids[place] for place in examples)
        if rows is not None:
            scores = scores[list(rows)]
            seeds = None if seeds is None else tuple(seeds[row] for row in rows)
        return dataclasses.replace(self, scores=scores, seeds=seeds, examples=ids, folds=folds)

    @property
    def seed_values(self) -> Floats:
        """The metric of each seed, shape [seeds].

        Raises:
            DataError: the metric gives no finite number for one.
        """
        values = np.asarray(self.metric.value(self.scores.mean(axis=1)), dtype=np.float64)
        if not np.isfinite(values).all():
            raise DataError(
                f"{self.name}: {self.metric.title} is {values[~np.isfinite(values)][0]} for one of its runs, no number "
                "to compare. It can't be computed of these examples; give more of them, or another metric."
            )
        return values

    @property
    def contributions(self) -> Floats:
        """What each example adds to the metric of its run: numbers whose mean over examples is that metric.

        For a plain mean the scores themselves. For any other the first-order ones (delta method; the infinitesimal
        jackknife of Jaeckel 1972): value + slope as the example's weight grows, the slope taken between half and
        one and a half of its weight, so that every mean on the way is one that data can have. Shape [seeds, examples].
        """
        if is_mean(self.metric):
            return self.scores[..., 0]
        means = self.scores.mean(axis=1, keepdims=True)
        step = 0.5 / self.num_examples
        away = step * (self.scores - means)
        slopes = (self.metric.value(means + away) - self.metric.value(means - away)) / (2 * step)
        found: Floats = self.seed_values[:, None] + slopes - slopes.mean(axis=1, keepdims=True)
        return found


Scores = ArmScores | npt.ArrayLike


def as_scores(scores: Scores, name: str) -> ArmScores:
    """A matrix [seeds, examples] of ratios as `ArmScores`; `ArmScores` are passed on unchanged."""
    return scores if isinstance(scores, ArmScores) else ArmScores(scores=np.asarray(scores), name=name)


def measured(
    runs: Mapping[int, Mapping[str, float | Sequence[float] | None]], metric: Metric, *, name: str = "arm"
) -> ArmScores:
    """An arm from what records hold: for each seed, example id to its number (None where it has none).

    Args:
        runs: seed to example id to the measure's number, or to one number a column of `metric`.
        metric: what the numbers are.
        name: of the arm.
    """
    ids = list(dict.fromkeys(example for run in runs.values() for example in run))
    none = [np.nan] * len(metric.columns)
    rows = [
        [none if run.get(example) is None else np.atleast_1d(np.asarray(run[example], float)) for example in ids]
        for run in runs.values()
    ]
    shape = (len(rows), len(ids), len(metric.columns))
    scores = np.array(rows, dtype=np.float64).reshape(shape) if ids else np.empty(shape)
    return ArmScores(scores=scores, metric=metric, name=name, seeds=tuple(runs), examples=tuple(ids), gaps=True)


def without_gaps(arms: Sequence[ArmScores]) -> tuple[list[ArmScores], int]:
    """The arms on the examples that all have a number for, and how many examples were left out."""
    if not any(arm.gaps for arm in arms):
        return list(arms), 0
    named = all(arm.examples is not None for arm in arms)
    if named:
        others = [set(arm.examples or ()) for arm in arms[1:]]
        shared = [example for example in arms[0].examples or () if all(example in other for other in others)]
        everything = len(set().union(*(arm.examples or () for arm in arms)))
        arms = [arm.taken(examples=_order(arm.examples or (), tuple(shared), "")) for arm in arms]
    else:
        everything = max(arm.num_examples for arm in arms)
    whole = np.logical_and.reduce([np.isfinite(arm.scores).all(axis=(0, 2)) for arm in arms])
    if whole.sum() < 2:
        raise DataError(
            f"{arms[0].name} and {', '.join(arm.name for arm in arms[1:])} have {int(whole.sum())} examples in common "
            "and 2 are needed. Measure them on the same data, with the same limit and seed."
        )
    return [arm.taken(examples=np.flatnonzero(whole)) for arm in arms], everything - int(whole.sum())


def match_arm(arm: ArmScores, baseline: ArmScores, *, paired: bool, partial: bool) -> tuple[ArmScores, ArmScores]:
    """The arm in the baseline's order, and the baseline's part that it is compared with.

    Raises:
        DataError: examples or metrics differ; or, where `paired`, seeds do; or fewer than two seeds are shared.
    """
    if arm.metric != baseline.metric:
        raise DataError(f"{arm.name} is scored by {arm.metric.title}, {baseline.name} by {baseline.metric.title}.")
    if paired and partial and arm.seeds is not None and baseline.seeds is not None:
        shared = set(arm.seeds) & set(baseline.seeds)
        if len(shared) < 2:
            raise DataError(
                f"{arm.name} and {baseline.name} share {len(shared)} seed{'' if len(shared) == 1 else 's'} and at "
                "least 2 are needed to pair them. Run the missing seeds, or compare with paired=False."
            )
        arm, baseline = _with_seeds(arm, shared), _with_seeds(baseline, shared)
    arm = arm.taken(examples=_example_order(arm, baseline))
    return (arm.taken(rows=_seed_order(arm, baseline)) if paired else arm), baseline


def _with_seeds(arm: ArmScores, seeds: Collection[int]) -> ArmScores:
    return arm.taken(rows=[row for row, seed in enumerate(arm.seeds or ()) if seed in seeds])


def _example_order(arm: ArmScores, baseline: ArmScores) -> Sequence[int]:
    if arm.num_examples != baseline.num_examples:
        raise DataError(
            f"{arm.name} has {arm.num_examples} examples and {baseline.name} has {baseline.num_examples}. "
            "Arms are compared on one evaluation set: evaluate both on the same examples."
        )
    if arm.examples is None or baseline.examples is None or arm.examples == baseline.examples:
        return range(arm.num_examples)
    return _order(arm.examples, baseline.examples, f"{arm.name} lacks examples that {baseline.name} has")


def _seed_order(arm: ArmScores, baseline: ArmScores) -> Sequence[int]:
    if arm.seeds is not None and baseline.seeds is not None:
        missing = set(baseline.seeds) ^ set(arm.seeds)
        if missing:
            raise DataError(
                f"{arm.name} and {baseline.name} don't have the same seeds; only one of them has "
                f"{some(sorted(missing))}. Run the missing seeds, drop them from both, or compare with paired=False."
            )
        return _order(arm.seeds, baseline.seeds, f"{arm.name} lacks seeds that {baseline.name} has")
    if arm.num_seeds != baseline.num_seeds:
        raise DataError(
            f"{arm.name} has {arm.num_seeds} seeds and {baseline.name} has {baseline.num_seeds}, so they can't be "
            "paired. Run the missing seeds, give the seed ids to see which are missing, or compare with paired=False."
        )
    return range(arm.num_seeds)


def _order(ids: tuple[Any, ...], wanted: tuple[Any, ...], problem: str) -> list[int]:
    place = {name: index for index, name in enumerate(ids)}
    missing = [name for name in wanted if name not in place]
    if missing:
        raise DataError(
            f"{problem}: {some(missing)}. Arms are compared on the same examples: evaluate both on one set."
        )
    return [place[name] for name in wanted]


def some(names: Iterable[Any], limit: int = 5) -> str:
    """The first few names and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(str(name) for name in names[:limit]) + more
