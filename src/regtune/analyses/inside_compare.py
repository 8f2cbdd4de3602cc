"""What registers change inside: several models' `measures.json`, compared question by question and seed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from regtune.errors import DataError
from regtune.stats.bootstrap import Difference, paired_difference, resampled_means
from regtune.stats.holm import holm

ALPHA = 0.05


@dataclass(frozen=True, kw_only=True)
class MeasureRow:
    """One measure at one N against the models without registers; both means are over the same seeds and questions."""

    name: str
    num_registers: int
    baseline: float
    arm: float
    difference: float
    interval: tuple[float, float]
    """95 %, over seeds and questions, not corrected."""
    p_value: float
    """Two-sided, corrected by Holm over all rows of the comparison."""
    seeds: int
    questions: int

    @property
    def verdict(self) -> str:
        """`higher`, `lower` or `not shown`, after the correction."""
        if self.p_value > ALPHA:
            return "not shown"
        return "higher" if self.difference > 0 else "lower"


def compare_inside(records: Sequence[Mapping[str, Any]], *, resamples: int = 10_000, seed: int = 0) -> list[MeasureRow]:
    """Every measure that all models have, at every N that shares two seeds or more with N = 0.

    The interval is the paired, corrected multi-bootstrap of `regtune.stats.bootstrap`. Questions for which one of
    the models has no number are left out of that measure.

    Args:
        records: contents of `measures.json` files of trained models, on the same questions.
        resamples: bootstrap draws.
        seed: of the draws.

    Raises:
        DataError: other questions in one of them, a seed twice, or nothing to compare.
    """
    by_place = _by_place(records)
    counts = sorted({n for n, _ in by_place} - {0})
    found: list[tuple[str, int, Float64[np.ndarray, "seeds questions"], Float64[np.ndarray, "seeds questions"]]] = []
    for n in counts:
        seeds = sorted({s for m, s in by_place if m == n} & {s for m, s in by_place if m == 0})
        if len(seeds) < 2:
            continue
        names = set.intersection(*(set(by_place[m, s]["measures"]) for m in (0, n) for s in seeds))
        for name in sorted(names):
            base, arm = (_matrix([by_place[m, s]["measures"][name] for s in seeds]) for m in (0, n))
            whole = np.isfinite(base).all(axis=0) & np.isfinite(arm).all(axis=0)
            if whole.sum() >= 2:
                found.append((name, n, base[:, whole], arm[:, whole]))
    if not found:
        raise DataError(
            f"There is nothing to compare: the {len(records)} models need N = 0 and another N with two seeds in common."
        )
    differences = [_difference(base, arm, resamples=resamples, seed=seed) for _, _, base, arm in found]
    corrected = holm([difference.p_value() for difference in differences])
    return [
        MeasureRow(
            name=name,
            num_registers=n,
            baseline=float(base.mean()),
            arm=float(arm.mean()),
            difference=difference.estimate,
            interval=difference.interval(),
            p_value=float(p),
            seeds=len(base),
            questions=base.shape[1],
        )
        for (name, n, base, arm), difference, p in zip(found, differences, corrected, strict=True)
    ]


def _by_place(records: Sequence[Mapping[str, Any]]) -> dict[tuple[int, int], Mapping[str, Any]]:
    found: dict[tuple[int, int], Mapping[str, Any]] = {}
    for record in records:
        place = (int(record["num_registers"]), int(record["seed"]))
        if place in found:
            raise DataError(f"Two models have N={place[0]} and seed {place[1]}; give one of them.")
        if record["questions"] != records[0]["questions"]:
            raise DataError(
                f"The model with N={place[0]} and seed {place[1]} was measured on other questions than the first one. "
                "Look inside all of them with the same --data and --limit."
            )
        found[place] = record
    return found


def _matrix(rows: Sequence[Sequence[float | None]]) -> Float64[np.ndarray, "seeds questions"]:
    return np.array([[np.nan if value is None else value for value in row] for row in rows], dtype=np.float64)


def _difference(
    base: Float64[np.ndarray, "seeds questions"],
    arm: Float64[np.ndarray, "seeds questions"],
    *,
    resamples: int,
    seed: int,
) -> Difference:
    means = resampled_means(np.concatenate([base, arm]), resamples=resamples, seed=seed)
    return paired_difference(arm, base, (means[len(base) :], means[: len(base)]), seed=seed + 1)
