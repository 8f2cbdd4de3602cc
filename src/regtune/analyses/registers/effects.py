"""What knock-outs of registers changed: differences with intervals, corrected over the registers of a set."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from regtune.analyses.outcomes import Floats, Outcomes
from regtune.analyses.parts import estimate, figure, mean_interval, with_interval
from regtune.analyses.pictures import Estimate, dots
from regtune.analyses.registers.knock_out import How, KnockOut
from regtune.analyses.registers.roles import ALPHA, Change, Effect, judge_roles
from regtune.interfaces import Block, Metric
from regtune.progress import each
from regtune.stats.comparison import compare
from regtune.stats.scores import ArmScores

HOW_WORDS = {"mask": "hidden", "mean": "its mean state", "swap": "its neighbour's copy", "zero": "zeros"}
"""What a person calls the ways of knocking out."""
_CHANGE = Metric(name="change", title="change", columns=("change",), bounds=(-math.inf, math.inf))


def judged(
    untouched: Outcomes,
    score: Callable[[KnockOut], Outcomes],
    count: int,
    hows: Sequence[How],
    *,
    resamples: int,
    seed: int,
    shown: str = "knock-outs",
) -> tuple[dict[str, Any], dict[str, Floats]]:
    """Every register of a set knocked out alone, and all of them, each way; whether they play the same role.

    Returns:
        What a record says; and by register (and `all`) the change on each example, in the way that roles are judged by.
    """
    which: list[tuple[int, ...] | None] = [*((index,) for index in range(count)), None]
    scored = {one: score(one) for one in each([KnockOut(how=how, registers=c) for how in hows for c in which], shown)}
    found = effects(untouched, scored, resamples=resamples, seed=seed)
    main = "mask" if "mask" in hows else hows[0]
    alone = {
        "all" if chosen is None else str(chosen[0]): scored[KnockOut(how=main, registers=chosen)].change
        - untouched.change
        for chosen in which
    }
    changes = np.stack(list(alone.values())[:-1], axis=1)
    roles = judge_roles(
        changes[np.isfinite(changes).all(1)],
        [one for one in found if one.knock_out.how == main],
        resamples=min(resamples, 2_000),
        seed=seed,
    )
    return {
        "num_registers": count,
        "hows": hows,
        "knock_outs": [{"register": one.register, "how": one.knock_out.how, **one.changes} for one in found],
        "roles": {**vars(roles), "alpha": ALPHA},
        "verdict": roles.verdict,
    }, alone


def judged_figure(title: str, knock_outs: Sequence[Mapping[str, Any]], unit: str) -> Block:
    """What `judged` says of single registers, with intervals."""
    single: dict[str, dict[str, Estimate]] = {}
    for entry in knock_outs:
        one = estimate(entry["loss"])
        if entry["register"] is not None and one is not None:
            single.setdefault(HOW_WORDS[entry["how"]], {})[str(entry["register"])] = one
    return figure(
        title,
        dots(single, xlabel=f"change, {unit} (right of 0: it is missed)"),
        "; ".join(f"{how}, register {r}: {e.value:+.3g}" for how, found in single.items() for r, e in found.items()),
    )


def judged_rows(facts: Mapping[str, Any], metric: Mapping[str, Any] | None) -> tuple[tuple[str, ...], list[tuple]]:
    """Titles and cells of a table of what `judged` says: a row a register, and one for all."""
    main = facts["roles"]["how"]
    others = [how for how in facts["hows"] if how != main]
    by_place = {(entry["how"], entry["register"]): entry for entry in facts["knock_outs"]}
    rows = []
    for index in (*range(int(facts["num_registers"])), None):
        mine = by_place[main, index]
        rows.append(
            (
                "all" if index is None else index,
                with_interval(estimate(mine["loss"]), "+.4f"),
                f"{mine['loss']['p_adjusted']:.3g}",
                mine["score"] and f"{100 * mine['score']['difference']:+.1f}",
                mine["said"] and f"{mine['said']['difference']:.1%}",
                *(f"{by_place[how, index]['loss']['difference']:+.4f}" for how in others),
            )
        )
    titles = ("register", f"{HOW_WORDS[main]} (95 %)", "p", metric["title"] if metric else "metric", "changed")
    return (*titles, *(HOW_WORDS[how] for how in others)), rows


def effects(
    untouched: Outcomes, knocked: Mapping[KnockOut, Outcomes], *, resamples: int = 10_000, seed: int = 0
) -> list[Effect]:
    """What every knock-out changed; the p-values of single registers are corrected together, each way by itself."""
    found: dict[KnockOut, dict[str, Change]] = {one: {} for one in knocked}
    groups: dict[tuple[str, bool], list[KnockOut]] = {}
    for one in knocked:
        groups.setdefault((one.how, one.registers is None), []).append(one)
    for group in groups.values():
        draws = max(100, resamples, math.ceil(4 * len(group) / ALPHA))
        scores = {"loss": (untouched.change, {one: knocked[one].change for one in group})}
        if untouched.score is not None:
            scores["score"] = (untouched.score, {one: np.asarray(knocked[one].score) for one in group})
        for name, (base, arms) in scores.items():
            first, *others = (ArmScores(scores=v[None], metric=_CHANGE, gaps=True) for v in (base, *arms.values()))
            named = {str(place): other for place, other in enumerate(others)}
            for one, compared in zip(arms, compare(first, named, resamples=draws, seed=seed), strict=True):
                low, high = compared.interval
                found[one][name] = Change(
                    difference=compared.difference,
                    low=low,
                    high=high,
                    p_value=compared.p_value,
                    p_adjusted=compared.p_adjusted,
                )
    for one, scored in knocked.items():
        if untouched.said is not None and scored.said is not None:
            differs = [a != b for a, b in zip(scored.said, untouched.said, strict=True)]
            other = mean_interval(np.array(differs, dtype=np.float64))
            found[one]["said"] = Change(difference=other.value, low=other.low, high=other.high)
    return [Effect(knock_out=one, **changes) for one, changes in found.items()]
