"""The results of one group of runs: every comparison, table and figure, made from its records."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regtune.interfaces import Block, Metric
from regtune.noise import split_name
from regtune.report.arms import BASELINE, REGISTERS, Arm, chosen_on_reported
from regtune.report.collect import Group
from regtune.report.figures import curve_figure, score_figure
from regtune.report.flips import flip_blocks
from regtune.report.headline import Headline, control_sentence, headline, no_comparison
from regtune.report.languages import TITLE as LANGUAGES
from regtune.report.languages import languages_table
from regtune.report.planned import carried_out, found_beside, still_open, with_planned_margin
from regtune.report.result_tables import arms_table, caveats, controls_table, cost_table, sets_table, summary_table
from regtune.report.robustness import NOTE as NOISE
from regtune.report.robustness import robustness_blocks
from regtune.report.scores import Family, Settings, against_baseline, against_controls, find_baseline

BAND = (
    "A dot for each seed; the line joins the means. The shaded band and its bars are the simultaneous 95 % interval of "
    "the difference to the baseline, drawn around the baseline's mean (dashed): where they don't touch the dashed "
    "line, that N differs from the baseline."
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """What stands under one heading."""

    title: str
    blocks: tuple[Block, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """The results of one model and training set, what was seen inside one model, or how it was done."""

    title: str
    headline: Headline | None = None
    note: str = ""
    parts: tuple[Part, ...] = ()

    def blocks(self, title: str) -> tuple[Block, ...]:
        """Those of the part with that title; none if there is no such part."""
        return next((part.blocks for part in self.parts if part.title == title), ())


def make_section(group: Group, settings: Settings) -> Section:
    """Makes everything that the page shows of one group."""
    trained = " + ".join(
        f"{Path(plain).name}{noise and f' with {noise}'}" for noise, plain in map(split_name, group.train)
    )
    named = f"{group.train_name}: " if group.train_name else ""
    title = f"{named}{group.model}, {group.task.title}, trained on {trained}"
    baseline, first = find_baseline(group), _first_set(group)
    curves = Part(title="Training curves", blocks=_curves(group), note="Thick: mean over seeds. Thin: every seed.")
    cost = Part(title="Cost", blocks=(cost_table(group),))
    if first is None or isinstance(baseline, str) or len(group.arms) == 1:
        sets = [] if first is None else [sets_table(group, None, {}, metric) for metric in group.metrics]
        plain = (Part(title="Data sets", blocks=tuple(sets)), curves, cost)
        top = dataclasses.replace(_why_not(group, baseline), planned=still_open(group))
        return Section(title=title, headline=top, parts=_filled(plain))
    main, settings = group.metrics[0], with_planned_margin(group, settings)
    results = {
        (name, metric.name): against_baseline(group, baseline, name, metric, settings)
        for name in group.sets
        for metric in group.metrics
    }
    controls = {metric.name: against_controls(group, first, metric, settings) for metric in group.metrics}
    top = _beside_plan(_headline(results[first, main.name], first, group), results[first, main.name], group, settings)
    if top.arm in controls[main.name]:
        top = dataclasses.replace(top, controls=control_sentence(controls[main.name][top.arm].comparisons))
    notes = dict.fromkeys(each.note for each in group.task.published)
    parts = (
        Part(title="", blocks=(summary_table(group, baseline, results[first, main.name], first, main),)),
        Part(
            title="Score against the number of registers",
            blocks=tuple(score_figure_of(group, results[first, m.name][0], first, m) for m in group.metrics),
            note=" ".join((BAND, *notes)),
        ),
        Part(
            title="Arms",
            blocks=tuple(_fold(arms_table(group, baseline, results[first, m.name], first, m)) for m in group.metrics),
        ),
        Part(
            title="Controls",
            blocks=tuple(filter(None, (controls_table(controls[m.name], first, m) for m in group.metrics))),
        ),
        Part(
            title="Data sets",
            blocks=(
                *(sets_table(group, baseline, results, metric) for metric in group.metrics),
                *(
                    _fold(arms_table(group, baseline, results[name, main.name], name, main))
                    for name in group.sets
                    if name != first
                ),
            ),
        ),
        Part(title="Robustness to noise", blocks=tuple(robustness_blocks(group, baseline, main, settings)), note=NOISE),
        Part(title=LANGUAGES, blocks=tuple(filter(None, (languages_table(group, baseline, main, settings),)))),
        curves,
        cost,
        Part(
            title=f"{group.task.examples.capitalize()} that flip",
            blocks=tuple(flip_blocks(group, baseline, top.arm, first)),
        ),
    )
    return Section(title=title, headline=top, parts=_filled(parts))


def _filled(parts: Sequence[Part]) -> tuple[Part, ...]:
    return tuple(part for part in parts if part.blocks)


def _fold(block: Block) -> Block:
    return dataclasses.replace(block, folded=True)


def _first_set(group: Group) -> str | None:
    """The first evaluation set of the first run that has predictions."""
    return next((name for cell in group.cells for name in cell.record.metrics if name in cell.scored), None)


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
    return no_comparison("the runs hold no predictions", "They were scored, but not example by example.")


def _beside_plan(found: Headline, families: Sequence[Family], group: Group, settings: Settings) -> Headline:
    """The planned comparison on top where there is one, and whether it was planned."""
    baseline = find_baseline(group)
    plan = None if isinstance(baseline, str) else carried_out(group, baseline, settings)
    if plan is None:
        return found
    if plan.family is None:
        return dataclasses.replace(found, planned=plan.sentence)
    kinds = {arm.kind for arm in plan.family.comparisons}
    what = "Registers" if kinds == {REGISTERS} else f"The arm {', '.join(kinds)}"
    top = _of_family(plan.family, what, plan.on, group)
    return dataclasses.replace(top, planned=f"{plan.sentence} {found_beside(families, plan.family)}".strip())


def _headline(families: Sequence[Family], first: str, group: Group) -> Headline:
    """Of the registers or, where there are none, of the other arms."""
    for family, what in zip(families, ("Registers", "The controls"), strict=True):
        if family.comparisons:
            return _of_family(family, what, first, group)
    notes = " ".join(note for family in families for note in family.notes)
    return no_comparison("no arm has enough runs beside the baseline's", notes)


def _of_family(family: Family, what: str, name: str, group: Group) -> Headline:
    top = headline(
        family.comparisons,
        set_name=name,
        what=what,
        examples=group.task.examples,
        published=group.task.published,
        caveats=caveats(group),
    )
    if not any(chosen_on_reported(cell.record) for cell in group.cells):
        return top
    sentence = (
        f"No verdict: the weights of these runs were chosen on {name}, the set that is reported, which "
        f"favours some arms over others. Taken as they are: {top.sentence}"
    )
    return dataclasses.replace(top, verdict="no verdict", sentence=sentence)


def score_figure_of(group: Group, family: Family, first: str, metric: Metric) -> Block:
    """Score on a set against N, with what has been published of it."""
    scores: dict[int, list[float]] = {}
    for cell in group.cells:
        value = cell.record.metrics.get(first, {}).get(metric.name)
        if cell.arm.kind in (BASELINE, REGISTERS) and value is not None:
            scores.setdefault(cell.arm.num_registers, []).append(metric.scale * value)
    compared = {arm.num_registers: result for arm, result in family.comparisons.items()}
    published = next((each for each in group.task.published if each.metric == metric.name), None)
    return score_figure(scores, compared, metric, first, published)


def _curves(group: Group) -> tuple[Block, ...]:
    main = group.metrics[0]
    percent = " (%)" if main.scale == 100 else ""
    arms = [arm for arm in group.arms if arm.kind in (BASELINE, REGISTERS)] or group.arms
    found = []
    for key, title, label, factor in (
        ("loss", "Training loss", "loss", 1.0),
        (main.name, f"{main.title} while training", f"{main.title}{percent}", main.scale),
    ):
        curves = {arm.label: seeds for arm in arms if (seeds := _curve(group, arm, key, factor))}
        if curves:
            found.append(curve_figure(curves, f"curve-{key}", title, label))
    return tuple(found)


def _curve(group: Group, arm: Arm, key: str, factor: float) -> list[tuple[list[float], list[float]]]:
    seeds = []
    for cell in (run for whole in group.of(arm) for run in whole.runs):
        points = [(row.get("step"), row.get(key)) for row in cell.curve]
        pairs = sorted((float(x), factor * float(y)) for x, y in points if x is not None and y is not None)
        if pairs:
            seeds.append(([step for step, _ in pairs], [value for _, value in pairs]))
    return seeds
