"""Arms of a group against a baseline or against each other, corrected together, with what had to be left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from regtune.interfaces import Metric
from regtune.report.arms import BASELINE, REGISTERS, Arm
from regtune.report.collect import Cell, Group, seed_list
from regtune.stats.comparison import Comparison, compare_many, least_resamples
from regtune.stats.scores import ArmScores
from regtune.sweeps.scored import arm_scores


@dataclass(frozen=True, kw_only=True)
class Family:
    """Comparisons that are corrected together, and what had to be left out."""

    comparisons: dict[Arm, Comparison]
    notes: tuple[str, ...] = ()
    """What the reader has to know: seeds that are missing, arms that could not be compared."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of the statistics: margin of the main metric (its own if None) and bootstrap draws."""

    delta: float | None = None
    resamples: int = 10_000
    of: str = ""
    """The metric that `delta` is about, where it isn't the main one."""


def find_baseline(group: Group) -> Arm | str:
    """The arm that all others are compared with, or why there is none."""
    found = [arm for arm in group.arms if arm.kind == BASELINE]
    if len(found) == 1:
        return found[0]
    if not found:
        return "there is no baseline (N = 0, nothing frozen, no warm-up) among the runs"
    return f"there are {len(found)} baselines with different settings ({'; '.join(arm.label for arm in found)})"


def against_baseline(
    group: Group, baseline: Arm, name: str, metric: Metric, settings: Settings
) -> tuple[Family, Family]:
    """The registers' family against the baseline on one evaluation set, and the other arms'."""
    registers, others = (
        [arm for arm in group.arms if arm != baseline and (arm.kind == REGISTERS) == wanted] for wanted in (True, False)
    )
    return (
        family(group, baseline, registers, name, metric, settings),
        family(group, baseline, others, name, metric, settings),
    )


def against_controls(group: Group, name: str, metric: Metric, settings: Settings) -> dict[Arm, Family]:
    """For each register arm the controls of the same number of tokens; the registers are the baseline here."""
    found = {}
    for arm in (arm for arm in group.arms if arm.kind == REGISTERS):
        rivals = [
            other
            for other in group.arms
            if other.kind not in (BASELINE, REGISTERS) and other.num_registers == arm.num_registers
        ]
        if rivals:
            found[arm] = family(group, arm, rivals, name, metric, settings)
    return found


def family(group: Group, baseline: Arm, arms: Sequence[Arm], name: str, metric: Metric, settings: Settings) -> Family:
    """Arms against one of them on one evaluation set."""
    return families(group, baseline, arms, [name], metric, settings)[name]


def families(
    group: Group, baseline: Arm, arms: Sequence[Arm], names: Sequence[str], metric: Metric, settings: Settings
) -> dict[str, Family]:
    """Arms against one of them on each of several evaluation sets, all corrected together."""
    sides = {name: _sides(group, baseline, arms, name, metric) for name in names}
    known = {name: side for name, side in sides.items() if side.arms}
    found = {name: Family(comparisons={}, notes=side.notes) for name, side in sides.items()}
    if not known:
        return found
    least = least_resamples(sum(len(side.arms) for side in known.values()))
    compared = compare_many(
        {
            name: (side.base, {arm.label: values for arm, values in side.arms.items()})
            for name, side in known.items()
            if side.base is not None
        },
        delta=settings.delta if metric.name == (settings.of or group.metrics[0].name) else None,
        resamples=max(settings.resamples, least if len(names) > 1 else 0),
        paired=all(side.paired for side in known.values()),
        partial=True,
    )
    for name, side in known.items():
        found[name] = replace(found[name], comparisons=dict(zip(side.arms, compared[name], strict=True)))
    return found


@dataclass(frozen=True, kw_only=True)
class _Sides:
    """Scores that are compared on one set; no arms where nothing can be."""

    base: ArmScores | None
    arms: dict[Arm, ArmScores]
    notes: tuple[str, ...]
    paired: bool = True


def _sides(group: Group, baseline: Arm, arms: Sequence[Arm], name: str, metric: Metric) -> _Sides:
    if not arms:
        return _Sides(base=None, arms={}, notes=())
    notes: list[str] = []
    scores: dict[Arm, ArmScores] = {}
    like = next(iter(group.of(baseline, name)), None)
    for arm in (baseline, *arms):
        found = _usable(group, arm, name, like, notes)
        if len(found) > 1:
            runs = {cell.seed: cell.scored[name] for cell in found}
            scores[arm] = arm_scores(runs, metric, arm.label)
        else:
            runs_there = f"{len(found)} finished run{'' if len(found) == 1 else 's'} there"
            notes.append(f"{arm.label} is not compared on {name}: it has {runs_there} and at least 2 seeds are needed.")
    base = scores.pop(baseline, None)
    if base is None or not scores:
        return _Sides(base=None, arms={}, notes=tuple(notes))
    scores, paired = _shared_seeds(base, scores, notes)
    return _Sides(base=base, arms=scores, notes=tuple(notes), paired=paired)


def _usable(group: Group, arm: Arm, name: str, like: Cell | None, notes: list[str]) -> list[Cell]:
    """The arm's runs on the examples of another run; the others are named."""
    every, found = group.of(arm), group.of(arm, name)
    same = [cell for cell in found if like and cell.scored[name].place.keys() == like.scored[name].place.keys()]
    for gone, what in (
        ([cell.seed for cell in every if cell not in found], f"not evaluated on {name}"),
        ([c.seed for c in found if c not in same], f"evaluated on other {group.task.examples} of {name} than the rest"),
    ):
        if gone:
            notes.append(f"{arm.label} was {what} with {seed_list(gone)}; left out there.")
    return same


def _shared_seeds(base: ArmScores, scores: dict[Arm, ArmScores], notes: list[str]) -> tuple[dict[Arm, ArmScores], bool]:
    """The arms that can be paired with the baseline, each on the seeds that both have; all, unpaired, if none can."""
    own = set(base.seeds or ())
    seeds = {arm: set(values.seeds or ()) for arm, values in scores.items()}
    if not any(len(own & here) > 1 for here in seeds.values()):
        most = max(len(own & here) for here in seeds.values())
        every = len(own.union(*seeds.values()))
        notes.append(f"Not paired by seed: the arms share {most} of {every} seeds with {base.name}.")
        return scores, False
    for arm, here in seeds.items():
        both = seed_list(own & here)
        if len(own & here) < 2:
            notes.append(f"{arm.label} is not compared: it shares {both} with {base.name}; 2 are needed.")
        elif here != own:
            gaps = (("it", own - here), (base.name, here - own))
            lacks = " and ".join(f"{who} lacks {seed_list(gap)}" for who, gap in gaps if gap)
            notes.append(f"{arm.label} is compared with {base.name} on {both} alone: {lacks}.")
    return {arm: values for arm, values in scores.items() if len(own & seeds[arm]) > 1}, True
