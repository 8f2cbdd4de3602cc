"""Robustness: scores against the strength of noise, from evaluation sets that are one set at several strengths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from regtune.analyses.pictures import COLOURS, INK
from regtune.interfaces import Block, Metric
from regtune.noise import noise_of
from regtune.records import file_name, set_name
from regtune.report.arms import REGISTERS, Arm
from regtune.report.collect import Group
from regtune.report.scores import Family, Settings, families
from regtune.stats.comparison import shown, shown_difference, shown_interval
from regtune.tables import Column, probability

NOTE = (
    "The text is the same for all arms and seeds. Bars are simultaneous 95 % intervals of the difference to the "
    "baseline, drawn around the baseline's mean and corrected over all arms and strengths of the curve: where one "
    "doesn't reach the baseline's line, that arm differs there."
)

Means = Mapping[Arm, Mapping[str, float | None]]
"""Arm to its score on each set, None where it has none; the baseline comes first."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Evaluation sets that are one set under one kind of noise."""

    title: str
    strengths: Mapping[str, float]
    """Set to its strength, in rising order; 0 is the set itself, where it is scored too."""
    beside: tuple[str, ...]
    """Other sets of the same examples in the same language, whoever perturbed them."""


def curves_of(group: Group) -> list[Curve]:
    """Every kind of noise that a set is scored under at two strengths at least, no noise being one of them."""
    plain: dict[str, str] = {}
    found: dict[tuple[Any, ...], dict[str, float]] = {}
    for name, source in group.sources.items():
        noise, own = noise_of(source)
        if noise is None:
            plain[own] = name
        elif len({strength for _, strength in noise.strengths}) == 1:
            kinds = tuple(kind for kind, _ in noise.strengths)
            found.setdefault((own, kinds, noise.fields, noise.seed), {})[name] = noise.strengths[0][1]
    curves = []
    for (own, kinds, fields, seed), strengths in found.items():
        points = {plain[own]: 0.0} | strengths if own in plain else strengths
        if len(set(points.values())) < 2:
            continue
        where = f" in {' and '.join(fields)}" if fields else ""
        again = f", seed {seed}" if seed else ""
        curves.append(
            Curve(
                title=f"{' and '.join(kinds)}{where} on {set_name(own)}{again}",
                strengths=dict(sorted(points.items(), key=lambda point: point[1])),
                beside=_beside(group, points),
            )
        )
    return curves


def _beside(group: Group, points: Mapping[str, float]) -> tuple[str, ...]:
    first = next(iter(points))
    ids = {name: scored.place.keys() for cell in group.cells for name, scored in cell.scored.items()}
    language = group.language(first)
    return tuple(
        name
        for name, source in group.sources.items()
        if name not in points
        and noise_of(source)[0] is None
        and ids.get(name) == ids.get(first)
        and group.language(name) in ("", language)
    )


def robustness_blocks(group: Group, baseline: Arm, metric: Metric, settings: Settings) -> list[Block]:
    """A figure and a table for each curve: the baseline, and registers or, without any, the other arms."""
    others = [arm for arm in group.arms if arm != baseline]
    arms = [arm for arm in others if arm.kind == REGISTERS] or others
    found = []
    for curve in curves_of(group):
        names = [*curve.strengths, *curve.beside]
        compared = families(group, baseline, arms, names, metric, settings)
        means = {arm: {name: group.mean(arm, name, metric) for name in names} for arm in (baseline, *arms)}
        table = _table(curve, means, compared, metric, group.task.under_noise)
        found += [_figure(curve, means, compared, metric), table]
    return found


def _figure(curve: Curve, means: Means, compared: Mapping[str, Family], metric: Metric) -> Block:
    last = max(curve.strengths.values())
    step = (last - min(curve.strengths.values())) / 4
    places = {**curve.strengths, **{name: last + step * number for number, name in enumerate(curve.beside, start=1)}}
    read = {
        arm: {name: metric.scale * mean for name, mean in own.items() if mean is not None} for arm, own in means.items()
    }

    def draw(axes: Any) -> None:
        for number, (arm, values) in enumerate(read.items()):
            colour = INK if number == 0 else COLOURS[(number - 1) % len(COLOURS)]
            shift = step / 25 * number
            line = [name for name in curve.strengths if name in values]
            apart = [name for name in curve.beside if name in values]
            label = arm.label.replace("$", r"\$")
            axes.plot(
                [places[n] for n in line], [values[n] for n in line], "-o", color=colour, markersize=4, label=label
            )
            axes.plot([places[n] + shift for n in apart], [values[n] for n in apart], "o", color=colour, markersize=4)
            for name, family in compared.items():
                if arm in family.comparisons:
                    result = family.comparisons[arm]
                    ends = [metric.scale * (result.baseline_mean + end) for end in result.simultaneous_interval]
                    axes.plot([places[name] + shift] * 2, ends, "-_", color=colour, linewidth=1.2, markersize=7)
        strengths = [f"{value:g}" for value in curve.strengths.values()]
        axes.set_xticks(list(places.values()), [*strengths, *curve.beside], rotation=30)
        axes.set_xlabel("strength of the noise" + (", and sets that others perturbed" if curve.beside else ""))
        unit = " (%)" if metric.scale == 100 else "" if metric.higher_is_better else " (lower is better)"
        axes.set_ylabel(f"{metric.title}{unit}")

    told = [
        f"{arm.label}: {', '.join(f'{values[n]:.1f} at {places[n]:g}' for n in curve.strengths if n in values)}"
        for arm, values in read.items()
    ]
    return Block(
        kind="figure",
        name=file_name(f"robustness-{curve.title}"),
        title=f"{metric.title} against the strength of {curve.title}",
        text="; ".join(told),
        draw=draw,
    )


def _table(curve: Curve, means: Means, compared: Mapping[str, Family], metric: Metric, note: str) -> Block:
    clean = next((name for name, strength in curve.strengths.items() if strength == 0), "")
    rows: list[tuple[Any, ...]] = []
    for name, family in compared.items():
        for arm, values in means.items():
            mean, whole, result = values[name], values.get(clean), family.comparisons.get(arm)
            if mean is None:
                continue
            change = None if whole is None or name == clean else mean - whole
            numbers: tuple[Any, ...] = (None,) * 4
            if result is not None:
                numbers = (result.difference, result.simultaneous_interval, result.p_adjusted, result.verdict)
            rows.append((name, curve.strengths.get(name), arm.label, mean, change, *numbers))
    return Block(
        kind="table",
        name=file_name(f"robustness-{metric.name}-{curve.title}"),
        title=f"{metric.title} under {curve.title}",
        columns=(
            "set",
            Column("strength", "g"),
            Column("arm", align="left"),
            Column("mean", partial(shown, metric)),
            Column("change by noise", partial(shown_difference, metric)),
            Column("to the baseline", partial(shown_difference, metric)),
            Column("95 % interval", partial(shown_interval, metric)),
            Column("p, Holm", probability),
            Column("verdict", strong=True),
        ),
        rows=tuple(rows),
        text="\n".join(dict.fromkeys(filter(None, (note, *(n for one in compared.values() for n in one.notes))))),
    )
