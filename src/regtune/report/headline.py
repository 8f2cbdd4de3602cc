"""The verdict of a whole sweep in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from regtune.report.arms import Arm
from regtune.stats.comparison import Comparison, Verdict


@dataclass(frozen=True, kw_only=True)
class Headline:
    """What stands on top of the page."""

    verdict: str
    """One of `helps`, `hurts`, `equivalent`, `cannot tell`, `no comparison`."""
    sentence: str
    basis: str = ""
    """Seeds, questions, pairing and what was corrected for."""
    controls: str = ""
    """How the controls of the same N compare with that arm."""
    arm: Arm | None = None
    """The arm that the sentence is about; its flips are shown."""


def no_comparison(reason: str, basis: str = "") -> Headline:
    """The headline of a page that has nothing to compare."""
    return Headline(verdict="no comparison", sentence=f"No comparison is possible: {reason}.", basis=basis)


def headline(
    results: Mapping[Arm, Comparison],
    *,
    set_name: str,
    metric: str,
    what: str = "Registers",
    caveats: Sequence[str] = (),
) -> Headline:
    """Sums up the comparisons of one family: what holds for any N after correction for all N.

    Args:
        results: each arm against the baseline, corrected together; at least one.
        set_name: where they were measured.
        metric: the metric's name for readers.
        what: what the arms are.
        caveats: what a reader has to know besides, for example which planned cells are missing.
    """
    both: tuple[Verdict, ...] = ("helps", "hurts")
    for verdict in both:
        found = _of(results, verdict)
        if found:
            best = max(found, key=lambda arm: abs(found[arm].difference))
            return Headline(
                verdict=verdict,
                sentence=_effect(what, verdict, results, best, metric=metric),
                basis=" ".join((_basis(results, best, set_name, metric), *caveats)),
                arm=best,
            )
    largest = max(results, key=lambda arm: abs(results[arm].difference))
    same = all(result.verdict == "equivalent" for result in results.values())
    return Headline(
        verdict="equivalent" if same else "cannot tell",
        sentence=(_equivalent if same else _open)(what, results, largest, metric),
        basis=" ".join((_basis(results, largest, set_name, metric), *caveats)),
        arm=largest,
    )


def control_sentence(results: Mapping[Arm, Comparison]) -> str:
    """How controls compare with the registers of the same number, from comparisons of control minus registers."""
    said = {
        "helps": "Better than these registers",
        "hurts": "Worse than these registers",
        "equivalent": "Equivalent to these registers",
        "cannot tell": "Not told apart from these registers",
    }
    parts = []
    for verdict, words in said.items():
        names = [arm.kind for arm, result in results.items() if result.verdict == verdict]
        if names:
            parts.append(f"{words}: {_list(names)}.")
    return " ".join(parts)


def _effect(what: str, verdict: Verdict, results: Mapping[Arm, Comparison], best: Arm, *, metric: str) -> str:
    found = _of(results, verdict)
    numbers = _numbers(results[best], metric)
    verb = "help" if verdict == "helps" else "hurt"
    where = _where(found) if len(found) == 1 else f"{_where(found)}, most at {_count(best)}"
    rest = [f" At {_where(_of(results, 'hurts'))} they hurt."] if verdict == "helps" and _of(results, "hurts") else []
    if _of(results, "equivalent"):
        rest.append(f" At {_where(_of(results, 'equivalent'))} they are equivalent to the baseline.")
    if _of(results, "cannot tell"):
        rest.append(f" At {_where(_of(results, 'cannot tell'))} these runs cannot tell.")
    return f"{what} {verb} at {where}: {numbers}.{''.join(rest)}"


def _of(results: Mapping[Arm, Comparison], verdict: Verdict) -> dict[Arm, Comparison]:
    return {arm: result for arm, result in results.items() if result.verdict == verdict}


def _equivalent(what: str, results: Mapping[Arm, Comparison], largest: Arm, metric: str) -> str:
    margin = f"±{100 * results[largest].delta:g} {metric} point"
    where = _where(results)
    return (
        f"{what} make no difference that matters: equivalent to the baseline within {margin} at {where}. "
        f"The largest difference, at {_count(largest)}, is {_numbers(results[largest], metric)}."
    )


def _open(what: str, results: Mapping[Arm, Comparison], largest: Arm, metric: str) -> str:
    undecided = {arm: result for arm, result in results.items() if result.verdict == "cannot tell"}
    same = [_count(arm) for arm in results if arm not in undecided]
    settled = f" At {_list(same)} {'they are' if same else ''} equivalent to the baseline." if same else ""
    return (
        f"These runs cannot tell whether {what.lower()} help. The largest difference, at {_count(largest)}, is "
        f"{_numbers(results[largest], metric)}.{settled} {_needed(undecided, metric)}"
    )


def _needed(undecided: Mapping[Arm, Comparison], metric: str) -> str:
    needs = [result.seeds_needed for result in undecided.values()]
    delta = 100 * next(iter(undecided.values())).delta
    margin = f"at ±{delta:g} {metric} point"
    known = [need for need in needs if need is not None]
    if len(known) < len(needs):
        return f"More seeds alone would not settle every N {margin}: it takes more questions."
    most = max(known)
    return f"It would take about {most} more seed{'' if most == 1 else 's'} in each arm to settle every N {margin}."


def _numbers(result: Comparison, metric: str) -> str:
    low, high = (100 * end for end in result.interval)
    level = 100 * (1 - result.alpha)
    interval = f"{level:g} % interval {low:+.2f} to {high:+.2f}"
    return f"{100 * result.difference:+.2f} {metric} points ({interval}, p {_p(result.p_adjusted)})"


def _basis(results: Mapping[Arm, Comparison], shown: Arm, set_name: str, metric: str) -> str:
    result = results[shown]
    tried = result.comparisons
    corrected = f"p corrected (Holm) for the {tried} values of N tried" if tried > 1 else "one N tried, no correction"
    flattered = (
        f" {_count(shown)} is named because its difference is the largest of {tried} on these very questions, which "
        "flatters it."
        if tried > 1
        else ""
    )
    return (
        f"{metric} on {set_name}, {result.examples:,} questions, {_seeds(results, shown)}, "
        f"{'paired by seed' if result.paired else 'not paired'}; {corrected}; "
        f"equivalence at ±{100 * result.delta:g} point; a true difference of "
        f"{100 * result.minimal_detectable:.1f} points would be found with probability {result.power:g}.{flattered}"
    )


def _seeds(results: Mapping[Arm, Comparison], shown: Arm) -> str:
    """Seeds of the comparison that is shown, and of the others where they have more or fewer."""
    counts = {arm: _pair(result) for arm, result in results.items()}
    others = [f"{_count(arm)}: {count}" for arm, count in counts.items() if count != counts[shown]]
    return f"{counts[shown]} seeds in each arm" + (f" ({', '.join(others)})" if others else "")


def _pair(result: Comparison) -> str:
    return (
        str(result.seeds)
        if result.seeds == result.baseline_seeds
        else f"{result.seeds} against {result.baseline_seeds}"
    )


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.2g}"


def _where(results: Mapping[Arm, Comparison]) -> str:
    return _list([_count(arm) for arm in results])


def _count(arm: Arm) -> str:
    return f"N = {arm.num_registers}" + (f" ({arm.extra})" if arm.extra else "")


def _list(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
