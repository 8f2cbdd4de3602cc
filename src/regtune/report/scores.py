"""What runs answered -> scores of every example for every seed, and arms against arms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from regtune.interfaces import Metric
from regtune.report.arms import BASELINE, REGISTERS, Arm
from regtune.report.collect import Cell, Group, seed_list
from regtune.stats.comparison import Comparison, compare
from regtune.stats.scores import ArmScores
from regtune.sweeps.answers import columns_of


def arm_scores(cells: Sequence[Cell], name: str, metric: Metric) -> ArmScores:
    """Scores of an arm's runs on one set, shape [seeds, questions], in the first run's order of questions."""
    first, *others = [cell.answers(name) for cell in cells]
    names = columns_of([metric], first.columns)
    rows = [np.stack([found.columns[name] for name in names], -1)[found.like(first)] for found in (first, *others)]
    return ArmScores(
        scores=np.array(rows),
        metric=metric,
        name=cells[0].arm.label,
        seeds=tuple(cell.seed for cell in cells),
        examples=tuple(first),
    )


@dataclass(frozen=True, kw_only=True)
class Family:
    """Comparisons that are corrected together, and what had to be left out."""

    comparisons: dict[Arm, Comparison]
    notes: tuple[str, ...] = ()
    """What the reader has to know: seeds that are missing, arms that could not be compared."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of the statistics: margin (the metric's own if None) and bootstrap draws."""

    delta: float | None = None
    resamples: int = 10_000


def find_baseline(group: Group) -> Arm | str:
    """The arm that all others are compared with, or why there is none."""
    found = [arm for arm in group.arms if arm.kind == BASELINE]
    if len(found) == 1:
        return found[0]
    if not found:
        return "there is no baseline (N = 0, nothing frozen, no warm-up) among the runs"
    return f"there are {len(found)} baselines with different settings ({'; '.join(arm.label for arm in found)})"


def against_baseline(group: Group, name: str, metric: Metric, *, registers: bool, settings: Settings) -> Family:
    """Arms against the baseline on one evaluation set: the registers' family, or the other arms'."""
    baseline = find_baseline(group)
    if isinstance(baseline, str):
        return Family(comparisons={}, notes=(f"No comparison: {baseline}.",))
    arms = [arm for arm in group.arms if arm != baseline and (arm.kind == REGISTERS) == registers]
    return _family(group, baseline, arms, name, metric, settings)


def against_controls(group: Group, name: str, metric: Metric, *, settings: Settings) -> dict[Arm, Family]:
    """For each register arm: it minus each control of the same number of tokens (the control is the baseline here)."""
    found = {}
    for arm in (arm for arm in group.arms if arm.kind == REGISTERS):
        rivals = [
            other
            for other in group.arms
            if other.kind not in (BASELINE, REGISTERS) and other.num_registers == arm.num_registers
        ]
        if rivals:
            found[arm] = _family(group, arm, rivals, name, metric, settings)
    return found


def _family(group: Group, baseline: Arm, arms: Sequence[Arm], name: str, metric: Metric, settings: Settings) -> Family:
    if not arms:
        return Family(comparisons={})
    notes: list[str] = []
    cells = {arm: _with_set(group.of(arm), name, notes) for arm in (baseline, *arms)}
    usable = {arm: found for arm, found in cells.items() if len(found) > 1}
    notes += [
        f"{arm.label} is not compared on {name}: it has {len(found)} finished run{'' if len(found) == 1 else 's'} "
        "there and at least 2 seeds are needed."
        for arm, found in cells.items()
        if len(found) < 2
    ]
    if baseline not in usable or len(usable) < 2:
        return Family(comparisons={}, notes=tuple(notes))
    scores = {arm: arm_scores(found, name, metric) for arm, found in usable.items()}
    base = scores.pop(baseline)
    scores = _same_questions(base, scores, name, notes)
    if not scores:
        return Family(comparisons={}, notes=tuple(notes))
    scores, paired = _shared_seeds(base, scores, notes)
    found = compare(
        base,
        {arm.label: values for arm, values in scores.items()},
        delta=settings.delta if metric == group.metrics[0] else None,
        resamples=settings.resamples,
        paired=paired,
        partial=True,
    )
    return Family(comparisons=dict(zip(scores, found, strict=True)), notes=tuple(notes))


def _with_set(cells: list[Cell], name: str, notes: list[str]) -> list[Cell]:
    found = [cell for cell in cells if name in cell.record.predictions]
    without = [str(cell.seed) for cell in cells if cell not in found]
    if without:
        seeds = f"seed{'' if len(without) == 1 else 's'} {', '.join(without)}"
        notes.append(f"{cells[0].arm.label} was not evaluated on {name} with {seeds}; left out there.")
    return found


def _same_questions(base: ArmScores, scores: dict[Arm, ArmScores], name: str, notes: list[str]) -> dict[Arm, ArmScores]:
    """The arms with the baseline's questions; the others are named."""
    kept = {}
    for arm, values in scores.items():
        different = set(values.examples or ()) ^ set(base.examples or ())
        if different:
            notes.append(
                f"{arm.label} is not compared on {name}: it was evaluated on other questions than {base.name} "
                f"({len(different):,} are in one of them only)."
            )
        else:
            kept[arm] = values
    return kept


def _shared_seeds(base: ArmScores, scores: dict[Arm, ArmScores], notes: list[str]) -> tuple[dict[Arm, ArmScores], bool]:
    """The arms that can be paired with the baseline, each on the seeds that both have; all, unpaired, if none can."""
    own = set(base.seeds or ())
    shared = {arm: own & set(values.seeds or ()) for arm, values in scores.items()}
    if not any(len(seeds) > 1 for seeds in shared.values()):
        every = own.union(*(values.seeds or () for values in scores.values()))
        most = max(map(len, shared.values()))
        notes.append(f"Not paired by seed: the arms share {most} of {len(every)} seeds with {base.name}.")
        return scores, False
    for arm, seeds in shared.items():
        here = set(scores[arm].seeds or ())
        if len(seeds) < 2:
            notes.append(f"{arm.label} is not compared: it shares {seed_list(seeds)} with {base.name}; 2 are needed.")
        elif here != own:
            lacks = [
                f"{who} lacks {seed_list(gap)}" for who, gap in (("it", own - here), (base.name, here - own)) if gap
            ]
            notes.append(
                f"{arm.label} is compared with {base.name} on {seed_list(seeds)} alone: {' and '.join(lacks)}."
            )
    return {arm: values for arm, values in scores.items() if len(shared[arm]) > 1}, True
