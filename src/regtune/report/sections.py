"""The results of one group of runs: every comparison, table and figure, made from its records."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regtune.interfaces import Metric
from regtune.records import read_curve
from regtune.report.arms import BASELINE, REGISTERS, Arm, checkpoint_rule
from regtune.report.collect import Group
from regtune.report.figures import Curve, Figure, Series, curve_figure, score_figure
from regtune.report.flips import Flips, find_flips, flips_table, shown_table
from regtune.report.headline import Headline, control_sentence, headline, no_comparison
from regtune.report.result_tables import arms_table, caveats, controls_table, cost_table, sets_table, summary_table
from regtune.report.scores import (
    Family,
    Settings,
    against_baseline,
    against_controls,
    find_baseline,
)
from regtune.report.tasks import reported
from regtune.tables import Table


@dataclass(frozen=True, kw_only=True)
class Section:
    """The results of one model and training set."""

    title: str
    headline: Headline
    score_figures: tuple[Figure, ...] = ()
    summary: Table | None = None
    """The main metric on the first set, in six columns."""
    arms: tuple[Table, ...] = ()
    controls: tuple[Table, ...] = ()
    curve_figures: tuple[Figure, ...] = ()
    sets: tuple[Table, ...] = ()
    set_details: tuple[Table, ...] = ()
    cost: Table | None = None
    flip_counts: Table | None = None
    flips: Flips | None = None

    @property
    def figures(self) -> tuple[Figure, ...]:
        """All drawings."""
        return (*self.score_figures, *self.curve_figures)

    @property
    def tables(self) -> list[Table]:
        """All tables, in the page's order."""
        found = [self.summary, *self.arms, *self.controls, *self.sets, *self.set_details, self.cost, self.flip_counts]
        if self.flips is not None and self.flips.flips:
            found.append(shown_table(self.flips))
        return [table for table in found if table is not None]


def make_section(group: Group, settings: Settings) -> Section:
    """Makes everything that the page shows of one group."""
    trained = " + ".join(Path(name).name for name in group.train)
    named_so = f"{group.train_name}: " if group.train_name else ""
    what = "" if group.task == "qa" else f", {reported(group.task).title}"
    title = f"{named_so}{group.model}{what}, trained on {trained}"
    baseline = find_baseline(group)
    first = _first_set(group)
    plain = Section(
        title=title, headline=_why_not(group, baseline), curve_figures=_curves(group), cost=cost_table(group)
    )
    if first is None:
        return plain
    sets = tuple(sets_table(group, None, {}, metric) for metric in group.metrics)
    if isinstance(baseline, str) or len(group.arms) == 1:
        return dataclasses.replace(plain, sets=sets)
    return _compared(plain, group, baseline, first, settings)


def _compared(plain: Section, group: Group, baseline: Arm, first: str, settings: Settings) -> Section:
    main = group.metrics[0]
    results: dict[tuple[str, str], list[Family]] = {
        (name, metric.name): [
            against_baseline(group, name, metric, registers=registers, settings=settings) for registers in (True, False)
        ]
        for name in group.sets
        for metric in group.metrics
    }
    top = _headline(results[first, main.name], first, group)
    against = {metric.name: against_controls(group, first, metric, settings=settings) for metric in group.metrics}
    controls = [controls_table(against[metric.name], first, metric) for metric in group.metrics]
    if top.arm in against[main.name]:
        top = dataclasses.replace(top, controls=control_sentence(against[main.name][top.arm].comparisons))
    return dataclasses.replace(
        plain,
        headline=top,
        score_figures=tuple(
            _score_figure(group, baseline, results[first, metric.name][0], first, metric) for metric in group.metrics
        ),
        summary=summary_table(group, baseline, results[first, main.name], first, main),
        arms=tuple(arms_table(group, baseline, results[first, metric.name], first, metric) for metric in group.metrics),
        controls=tuple(table for table in controls if table is not None),
        sets=tuple(sets_table(group, baseline, results, metric) for metric in group.metrics),
        set_details=tuple(
            arms_table(group, baseline, results[name, main.name], name, main) for name in group.sets if name != first
        ),
        flip_counts=flips_table(group, baseline, first),
        flips=_flips(group, baseline, top.arm, first),
    )


def _first_set(group: Group) -> str | None:
    """The first evaluation set of the first run that has predictions."""
    return next((name for cell in group.cells for name in cell.record.metrics if name in cell.record.predictions), None)


def _why_not(group: Group, baseline: Arm | str) -> Headline:
    if len(group.cells) == 1:
        return no_comparison(
            "there is one run only",
            "Its scores, curves and settings follow; a comparison takes several seeds of two arms.",
        )
    if isinstance(baseline, str):
        return no_comparison(baseline)
    if len(group.arms) == 1:
        return no_comparison("all runs are of one arm", "Only seeds differ between them.")
    return no_comparison("the runs hold no predictions", "They were scored, but not question by question.")


def _headline(families: Sequence[Family], first: str, group: Group) -> Headline:
    task = reported(group.task)
    for family, what in zip(families, ("Registers", "The controls"), strict=True):
        if family.comparisons:
            top = headline(
                family.comparisons,
                set_name=first,
                metric=group.metrics[0],
                what=what,
                examples=task.examples,
                claim=task.claim,
                caveats=caveats(group),
            )
            return _refused(top, first, group)
    notes = " ".join(note for family in families for note in family.notes)
    return no_comparison("no arm has enough runs beside the baseline's", notes)


def _refused(top: Headline, first: str, group: Group) -> Headline:
    """No verdict where weights were chosen on the examples that are reported."""
    if not any(checkpoint_rule(cell.record).endswith("reported here") for cell in group.cells):
        return top
    return dataclasses.replace(
        top,
        verdict="no verdict",
        sentence=(
            f"No verdict: the weights of these runs were chosen on {first}, the set that is reported, which favours "
            f"some arms over others. Taken as they are: {top.sentence}"
        ),
    )


def _score_figure(group: Group, baseline: Arm, family: Family, first: str, metric: Metric) -> Figure:
    series = []
    for arm in [baseline, *(arm for arm in group.arms if arm.kind == REGISTERS)]:
        cells = [cell for cell in group.of(arm) if metric.name in cell.record.metrics.get(first, {})]
        scores = tuple(metric.scale * cell.record.metrics[first][metric.name] for cell in cells)
        if scores:
            series.append(
                Series(num_registers=arm.num_registers, scores=scores, comparison=family.comparisons.get(arm))
            )
    series.sort(key=lambda one: one.num_registers)
    return score_figure(series, metric, first, task=group.task)


def _curves(group: Group) -> tuple[Figure, ...]:
    arms = [arm for arm in group.arms if arm.kind in (BASELINE, REGISTERS)] or group.arms
    main = group.metrics[0]
    wanted = (
        ("loss", "Training loss", "loss", 1.0),
        (main.name, f"{main.title} while training", f"{main.title}{' (%)' if main.scale == 100 else ''}", main.scale),
    )
    found = []
    for key, title, label, factor in wanted:
        curves = [curve for arm in arms if (curve := _curve(group, arm, key, factor)) is not None]
        if curves:
            found.append(curve_figure(curves, f"curve-{key}", title, label))
    return tuple(found)


def _curve(group: Group, arm: Arm, key: str, factor: float) -> Curve | None:
    seeds = []
    for cell in group.of(arm):
        rows = read_curve(cell.folder)
        pairs = [(row["step"], factor * row[key]) for row in rows if key in row and "step" in row]
        if pairs:
            steps, values = zip(*sorted(pairs), strict=True)
            seeds.append((steps, values))
    label = f"N = {arm.num_registers}" if arm.kind in (BASELINE, REGISTERS) and not arm.extra else arm.label
    return Curve(label=label, seeds=tuple(seeds)) if seeds else None


def _flips(group: Group, baseline: Arm, arm: Arm | None, first: str) -> Flips | None:
    if arm is None:
        return None
    before, after = ([cell for cell in group.of(one) if first in cell.record.predictions] for one in (baseline, arm))
    return find_flips(before, after, first)


def named(section: Section, suffix: str) -> Section:
    """The section with names of files and ids that are its own."""
    if not suffix:
        return section
    changes: dict[str, Any] = {}
    for item in dataclasses.fields(section):
        value = getattr(section, item.name)
        if isinstance(value, tuple):
            changes[item.name] = tuple(_renamed(one, suffix) for one in value)
        elif isinstance(value, Table):
            changes[item.name] = _renamed(value, suffix)
    return dataclasses.replace(section, **changes)


def _renamed(one: Any, suffix: str) -> Any:
    if isinstance(one, Figure):
        svg = one.svg.replace(one.name, f"{one.name}{suffix}")
        return dataclasses.replace(one, name=f"{one.name}{suffix}", svg=svg)
    return dataclasses.replace(one, name=f"{one.name}{suffix}")
