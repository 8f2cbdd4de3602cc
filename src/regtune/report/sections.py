"""The results of one group of runs: every comparison, table and figure, made from its records."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regtune.records import CURVE_FILE, read_json
from regtune.report.arms import BASELINE, REGISTERS, Arm
from regtune.report.collect import Group
from regtune.report.fact_tables import cost_table
from regtune.report.families import Family, Settings, against_baseline, against_controls, find_baseline
from regtune.report.figures import Curve, Figure, Series, curve_figure, score_figure
from regtune.report.flips import Flips, find_flips, flips_table, shown_table
from regtune.report.headline import Headline, control_sentence, headline, no_comparison
from regtune.report.result_tables import arms_table, caveats, controls_table, sets_table
from regtune.report.scores import METRICS, Metric, check_coverage
from regtune.report.table import Table


@dataclass(frozen=True, kw_only=True)
class Section:
    """The results of one model and training set."""

    title: str
    headline: Headline
    score_figures: tuple[Figure, ...] = ()
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
        found = [*self.arms, *self.controls, *self.sets, *self.set_details, self.cost, self.flip_counts]
        if self.flips is not None and self.flips.flips:
            found.append(shown_table(self.flips))
        return [table for table in found if table is not None]


def make_section(group: Group, settings: Settings) -> Section:
    """Makes everything that the page shows of one group.

    Raises:
        DataError: predictions that leave out questions; the run and the ids are named.
    """
    trained = " + ".join(Path(name).name for name in group.train)
    named_so = f"{group.train_name}: " if group.train_name else ""
    title = f"{named_so}{group.model}, trained on {trained}"
    for name in group.sets:
        check_coverage([cell for cell in group.cells if name in cell.record.predictions], name)
    baseline = find_baseline(group)
    first = _first_set(group)
    plain = Section(
        title=title, headline=_why_not(group, baseline), curve_figures=_curves(group), cost=cost_table(group)
    )
    if first is None:
        return plain
    sets = tuple(sets_table(group, None, {}, metric) for metric in METRICS)
    if isinstance(baseline, str) or len(group.arms) == 1:
        return dataclasses.replace(plain, sets=sets)
    return _compared(plain, group, baseline, first, settings)


def _compared(plain: Section, group: Group, baseline: Arm, first: str, settings: Settings) -> Section:
    results: dict[tuple[str, Metric], list[Family]] = {
        (name, metric): [
            against_baseline(group, name, metric, registers=registers, settings=settings) for registers in (True, False)
        ]
        for name in group.sets
        for metric in METRICS
    }
    top = _headline(results[first, "f1"], first, caveats(group))
    against = {metric: against_controls(group, first, metric, settings=settings) for metric in METRICS}
    controls = [controls_table(against[metric], first, metric) for metric in METRICS]
    if top.arm in against["f1"]:
        top = dataclasses.replace(top, controls=control_sentence(against["f1"][top.arm].comparisons))
    return dataclasses.replace(
        plain,
        headline=top,
        score_figures=tuple(
            _score_figure(group, baseline, results[first, metric][0], first, metric) for metric in METRICS
        ),
        arms=tuple(arms_table(group, baseline, results[first, metric], first, metric) for metric in METRICS),
        controls=tuple(table for table in controls if table is not None),
        sets=tuple(sets_table(group, baseline, results, metric) for metric in METRICS),
        set_details=tuple(
            arms_table(group, baseline, results[name, "f1"], name, "f1") for name in group.sets if name != first
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


def _headline(families: Sequence[Family], first: str, known: Sequence[str]) -> Headline:
    for family, what in zip(families, ("Registers", "The controls"), strict=True):
        if family.comparisons:
            return headline(family.comparisons, set_name=first, metric="F1", what=what, caveats=known)
    notes = " ".join(note for family in families for note in family.notes)
    return no_comparison("no arm has enough runs beside the baseline's", notes)


def _score_figure(group: Group, baseline: Arm, family: Family, first: str, metric: Metric) -> Figure:
    series = []
    for arm in [baseline, *(arm for arm in group.arms if arm.kind == REGISTERS)]:
        cells = [cell for cell in group.of(arm) if metric in cell.record.metrics.get(first, {})]
        scores = tuple(100 * cell.record.metrics[first][metric] for cell in cells)
        if scores:
            series.append(
                Series(num_registers=arm.num_registers, scores=scores, comparison=family.comparisons.get(arm))
            )
    series.sort(key=lambda one: one.num_registers)
    return score_figure(series, metric, first)


def _curves(group: Group) -> tuple[Figure, ...]:
    arms = [arm for arm in group.arms if arm.kind in (BASELINE, REGISTERS)] or group.arms
    wanted = (
        ("loss", "Training loss", "loss", 1.0),
        ("f1", "F1 while training, on the first evaluation set", "F1 (%)", 100.0),
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
        path = cell.folder / CURVE_FILE
        rows: list[dict[str, Any]] = read_json(path) if path.is_file() else []
        pairs = [(float(row["step"]), factor * float(row[key])) for row in rows if key in row and "step" in row]
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
