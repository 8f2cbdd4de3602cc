"""Whether the comparison on top is the one that was planned before the first run, or was found afterwards.

The planned comparison is corrected for the comparisons that were planned with it and for nothing else; that holds
because they were named before there was anything to choose by. Everything else keeps the correction for all that was
tried, the planned ones among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from regtune.interfaces import Metric
from regtune.report.arms import Arm, weights_rule
from regtune.report.collect import Group
from regtune.report.scores import Family, Settings, family
from regtune.stats.comparison import Comparison, shown_margin
from regtune.sweeps.plan import Plan, PlanVersion, changes, planned

NOT_PLANNED = "Not planned: the comparison above was found afterwards."


@dataclass(frozen=True, kw_only=True)
class Carried:
    """What became of a plan: the planned comparisons, or why there are none, and what stands beside the verdict."""

    family: Family | None
    """None: what is on top was not planned."""
    on: str
    """The evaluation set."""
    sentence: str


def plan_of(group: Group) -> Plan | None:
    """The plan from before the first run that is about these runs; None if there is none."""
    found = planned(group.plans, _starts(group))
    return found.plan if found and found.plan and found.plan.training_set in ("", group.train_name) else None


def with_planned_margin(group: Group, settings: Settings) -> Settings:
    """The settings with the plan's margin of equivalence, where nobody asked for another one."""
    plan = plan_of(group)
    return replace(settings, delta=plan.delta, of=plan.metric) if plan and settings.delta is None else settings


def carried_out(group: Group, baseline: Arm, settings: Settings) -> Carried | None:
    """What became of the group's plan; None where a sweep never had one.

    Args:
        group: the runs.
        baseline: its arm without registers.
        settings: of the statistics; see `with_planned_margin`.
    """
    if not group.plans:
        return None
    found, plan = planned(group.plans, _starts(group)), plan_of(group)
    if found is None or found.plan is None:
        return Carried(family=None, on="", sentence=f"{NOT_PLANNED} {_late(group)}")
    if plan is None:
        about = f"The plan is about runs that were trained on {found.plan.training_set}."
        return Carried(family=None, on="", sentence=f"{NOT_PLANNED} {about}")
    words = f"{plan.words(group.metrics)}; written {found.written}, before the first run"
    later = _later(group.plans[group.plans.index(found) :])
    metric = next(each for each in group.metrics if each.name == plan.metric)
    arms = [arm for arm in group.arms if arm != baseline and _is_planned(group, arm, plan)]
    reason, made = _hindrance(group, baseline, arms, plan), None
    if not reason:
        made = family(group, baseline, arms, plan.on, metric, settings)
        left = [arm.label for arm in arms if arm not in made.comparisons]
        reason = f"{', '.join(left)} could not be compared ({' '.join(made.notes)})" if left else ""
    if made is None or reason:
        parts = [NOT_PLANNED, f"The plan ({words}) is not carried out: {reason}.", later]
        return Carried(family=None, on="", sentence=" ".join(filter(None, parts)))
    parts = [f"Planned: {words}.", *_departures(made, plan, metric), later]
    return Carried(family=made, on=plan.on, sentence=" ".join(filter(None, parts)))


def still_open(group: Group) -> str:
    """The plan beside runs that can't be compared with each other at all."""
    found, plan = planned(group.plans, _starts(group)), plan_of(group)
    return (
        f"Planned: {plan.words(group.metrics)}; written {found.written}, before the first run."
        if found and plan
        else ""
    )


def found_beside(families: Sequence[Family], chosen: Family) -> str:
    """The verdicts on arms that were not planned, as they stand after the correction for all that was tried."""
    rest = {
        arm: result for each in families for arm, result in each.comparisons.items() if arm not in chosen.comparisons
    }
    said: dict[str, list[str]] = {}
    for arm, result in rest.items():
        said.setdefault(result.verdict, []).append(arm.label)
    if not said:
        return ""
    parts = "; ".join(f"{verdict}: {', '.join(arms)}" for verdict, arms in said.items())
    return f"Not planned, found afterwards and corrected for all that was tried: {parts}."


def _starts(group: Group) -> list[str]:
    return [cell.record.started for cell in group.cells]


def _is_planned(group: Group, arm: Arm, plan: Plan) -> bool:
    places = [cell.place for cell in group.of(arm) if cell.place is not None]
    return any(
        place.arm == plan.arm and (not plan.compared or place.num_registers in plan.compared) for place in places
    )


def _hindrance(group: Group, baseline: Arm, arms: Sequence[Arm], plan: Plan) -> str:
    """Why the planned comparisons can't be made of these runs, as half a sentence; empty if they can."""
    missing = sorted(set(plan.compared) - {arm.num_registers for arm in arms})
    if missing or not arms:
        where = f" at N = {', '.join(map(str, missing))}" if missing else ""
        return f"there is no finished run of {plan.arm}{where}"
    if plan.on not in group.sets:
        return f"the runs have no scores on {plan.on}"
    rules = {weights_rule(cell.record) for arm in (baseline, *arms) for one in group.of(arm) for cell in one.runs}
    if rules != {plan.weights}:
        return f"runs were scored with other weights than planned ({', '.join(sorted(rules - {plan.weights}))})"
    return ""


def _departures(made: Family, plan: Plan, metric: Metric) -> list[str]:
    """What is not as planned in comparisons that were."""
    results: list[Comparison] = list(made.comparisons.values())
    seeds = [min(result.seeds, result.baseline_seeds) for result in results]
    found = []
    if min(seeds) < plan.seeds:
        found.append(
            f"An interim look: {min(seeds)} of {plan.seeds} planned seeds. Its p and intervals hold for one look at so "
            "many seeds; whoever looks again and again, and stops when it suits, finds too much."
        )
    if max(seeds) > plan.seeds:
        found.append(f"It has {max(seeds)} seeds, {max(seeds) - plan.seeds} more than planned.")
    if results[0].delta != plan.delta:
        found.append(f"Equivalence is tested at {shown_margin(metric, results[0].delta)}, which was not planned.")
    return found


def _late(group: Group) -> str:
    """When the plan was written, where it came too late or was withdrawn."""
    last = group.plans[-1]
    if last.plan is None:
        return f"The sweep's plan was withdrawn {last.written}."
    first = next(one for one in group.plans if one.plan is not None)
    begun = max(first.begun, sum(start < first.written for start in _starts(group)))
    when = f"when {begun} cell{' had' if begun == 1 else 's had'} begun"
    changed = _later(group.plans[group.plans.index(first) :])
    return " ".join(
        filter(None, (f"The plan ({last.plan.words(group.metrics)}) was written {first.written}, {when}.", changed))
    )


def _later(versions: Sequence[PlanVersion]) -> str:
    """What changed in a plan after its first version here."""
    told = []
    for before, after in pairwise(versions):
        what = "withdrawn" if after.plan is None else f"changed ({changes(before.plan, after.plan)})"
        told.append(f"{what} {after.written}, when {after.begun} cell{' had' if after.begun == 1 else 's had'} begun")
    return f"The plan was {'; then '.join(told)}." if told else ""
