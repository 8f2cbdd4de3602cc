"""What a measurement of explanations found: per text, as rows with intervals, as JSON, and against another model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64

from regtune.analyses.faithfulness.faithfulness import HIGHER_IS_BETTER, Curves
from regtune.analyses.faithfulness.limits import best_known, normalised
from regtune.errors import DataError
from regtune.stats.bootstrap import single_run_difference

SCHEMA_VERSION = 1
KIND = "faithfulness"
RESAMPLES = 10_000
_DIGITS = 6

Values = Float64[np.ndarray, " _"]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over texts with its 95 % bootstrap interval; no interval (None) for a single text."""

    value: float
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, float | None]:
        """Plain numbers."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method under one metric."""

    method: str
    metric: str
    higher_is_better: bool
    raw: Interval
    n: int
    """Texts (or, for agreement with evidence, reviews) behind `raw`."""
    normalised: Interval | None
    """0 is a random order, 1 the best order known; None where there are no limits, or they coincide."""
    normalised_n: int
    """Texts behind `normalised`."""

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "method": self.method,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "raw": self.raw.to_json(),
            "n": self.n,
            "normalised": None if self.normalised is None else self.normalised.to_json(),
            "normalised_n": self.normalised_n,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Faithfulness:
    """What `measure_faithfulness` found, text by text."""

    model: str
    kind: str
    data: str
    num_registers: int
    seed: int
    settings: Mapping[str, Any]
    texts: tuple[str, ...]
    """Names of the texts that `values` are of."""
    values: Mapping[str, Mapping[str, Values]]
    """Method to metric to a value for each text."""
    limit_texts: tuple[str, ...] = ()
    """Names of the texts that limits were found for."""
    random: Mapping[str, Values] = field(default_factory=dict)
    """Metric to the mean over random orders, for each text with limits."""
    beam: Mapping[str, Values] = field(default_factory=dict)
    """Metric to what the beam search reached."""
    agreement_texts: tuple[str, ...] = ()
    agreement: Mapping[str, Mapping[str, Values]] = field(default_factory=dict)
    """Method to measure ("answer auprc", "evidence f1_own_length" ...) to a value for each of `agreement_texts`."""
    curves: Mapping[str, Curves] = field(default_factory=dict)
    facts: Mapping[str, float | int] = field(default_factory=dict)
    """Counts, seconds, and the share of right predictions."""
    notes: tuple[str, ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        """The attribution methods that were measured."""
        return tuple(dict.fromkeys([*self.values, *self.agreement]))

    def limits(self, metric: str) -> tuple[Values, Values]:
        """What random orders reach and the best value known, for each text with limits."""
        at = [self.texts.index(name) for name in self.limit_texts]
        reached = [found[metric][at] for found in self.values.values()]
        return self.random[metric], best_known(metric, self.beam[metric], reached)

    def normalised(self, method: str, metric: str) -> Values | None:
        """One number for each text with limits, whose mean is the normalised value; None where there is none."""
        if metric not in self.random or method not in self.values or len(self.limit_texts) < 2:
            return None
        at = [self.texts.index(name) for name in self.limit_texts]
        return normalised(self.values[method][metric][at], *self.limits(metric))

    def rows(self, *, resamples: int = RESAMPLES) -> list[Row]:
        """Every method under every metric, with intervals from a bootstrap over texts."""
        rows = []
        for method in self.methods:
            for metric, values in self.values.get(method, {}).items():
                shares = self.normalised(method, metric)
                rows.append(
                    Row(
                        method=method,
                        metric=metric,
                        higher_is_better=HIGHER_IS_BETTER[metric],
                        raw=mean_interval(values, resamples=resamples),
                        n=len(values),
                        normalised=None if shares is None else mean_interval(shares, resamples=resamples),
                        normalised_n=0 if shares is None else len(shares),
                    )
                )
            for metric, values in self.agreement.get(method, {}).items():
                raw = mean_interval(values, resamples=resamples)
                rows.append(
                    Row(
                        method=method,
                        metric=metric,
                        higher_is_better=True,
                        raw=raw,
                        n=len(values),
                        normalised=None,
                        normalised_n=0,
                    )
                )
        return rows

    def to_json(self, *, resamples: int = RESAMPLES) -> dict[str, Any]:
        """The content of `inside/faithfulness.json`; `from_json` reads it back."""
        limits = {
            metric: {
                "random": mean_interval(self.limits(metric)[0], resamples=resamples).to_json(),
                "beam": mean_interval(self.beam[metric], resamples=resamples).to_json(),
                "limit": mean_interval(self.limits(metric)[1], resamples=resamples).to_json(),
            }
            for metric in self.random
        }
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            "model": self.model,
            "texts_kind": self.kind,
            "data": self.data,
            "num_registers": self.num_registers,
            "seed": self.seed,
            "settings": dict(self.settings),
            "rows": [row.to_json() for row in self.rows(resamples=resamples)],
            "limits": limits,
            "curves": {method: _curves_json(curves) for method, curves in self.curves.items()},
            "facts": dict(self.facts),
            "notes": list(self.notes),
            "per_text": {
                "texts": list(self.texts),
                "values": _nested_lists(self.values),
                "limit_texts": list(self.limit_texts),
                "random": _lists(self.random),
                "beam": _lists(self.beam),
                "agreement_texts": list(self.agreement_texts),
                "agreement": _nested_lists(self.agreement),
            },
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Faithfulness:
        """What `to_json` wrote.

        Raises:
            DataError: another kind of content, or another schema.
        """
        if content.get("kind") != KIND or content.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                f"This is kind={content.get('kind')!r}, schema_version={content.get('schema_version')!r}; "
                f"{KIND!r} of schema {SCHEMA_VERSION} is needed. Measure again."
            )
        one = content["per_text"]
        return cls(
            model=content["model"],
            kind=content["texts_kind"],
            data=content["data"],
            num_registers=content["num_registers"],
            seed=content["seed"],
            settings=content["settings"],
            texts=tuple(one["texts"]),
            values=_nested_arrays(one["values"]),
            limit_texts=tuple(one["limit_texts"]),
            random=_arrays(one["random"]),
            beam=_arrays(one["beam"]),
            agreement_texts=tuple(one["agreement_texts"]),
            agreement=_nested_arrays(one["agreement"]),
            curves={
                method: Curves(
                    deletion_morf=np.array(curve["deletion_morf"]), deletion_lerf=np.array(curve["deletion_lerf"])
                )
                for method, curve in content["curves"].items()
            },
            facts=content["facts"],
            notes=tuple(content["notes"]),
        )


def mean_interval(values: Values, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The mean over texts and its 95 % bootstrap interval."""
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(value=mean, low=None, high=None)
    difference = single_run_difference(values, np.zeros_like(values), resamples=resamples, seed=seed)
    low, high = difference.interval(0.95)
    return Interval(value=mean, low=low, high=high)


def _curves_json(curves: Curves) -> dict[str, list[float]]:
    names = ("deletion_morf", "deletion_lerf", "insertion_morf", "insertion_lerf")
    return {name: np.round(getattr(curves, name), _DIGITS).tolist() for name in names}


def _lists(values: Mapping[str, Values]) -> dict[str, list[float]]:
    return {name: np.round(array, _DIGITS).tolist() for name, array in values.items()}


def _nested_lists(values: Mapping[str, Mapping[str, Values]]) -> dict[str, dict[str, list[float]]]:
    return {name: _lists(inner) for name, inner in values.items()}


def _arrays(values: Mapping[str, Sequence[float]]) -> dict[str, Values]:
    return {name: np.array(row, dtype=np.float64) for name, row in values.items()}


def _nested_arrays(values: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, dict[str, Values]]:
    return {name: _arrays(inner) for name, inner in values.items()}
