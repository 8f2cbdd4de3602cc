"""The verdict of a whole sweep in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from regtune.interfaces import Metric
from regtune.report.arms import Arm
from regtune.report.tasks import Claim
from regtune.stats.comparison import (
    GUESS_BELOW,
    Comparison,
    Verdict,
    shown_difference,
    shown_interval,
    shown_margin,
)


@dataclass(frozen=True, kw_only=True)
class Headline:
    """What stands on top of the page."""

    verdict: str
    """One of `helps`, `hurts`, `equivalent`, `cannot tell`, `no comparison`, `no verdict`."""
    sentence: str
    proven: str = ""
    """What holds beside it: the claim that these runs exclude."""
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
    metric: Metric,
    what: str = "Registers",
    examples: str = "examples",
    claim: Claim | None = None,
    caveats: Sequence[str] = (),
) -> Headline:
    """Sums up the comparisons of one family: what holds for any N after correction for all N.

    Args:
        results: each arm against the baseline, corrected together; at least one.
        set_name: where they were measured.
        metric: what was compared.
        what: what the arms are.
        examples: what the task calls its examples.
        claim: a published gain, to say whether it is excluded.
        caveats: what a reader has to know besides, for example which planned cells are missing.
    """
    both: tuple[Verdict, ...] = ("helps", "hurts")
    for verdict in both:
        found = _of(results, verdict)
        if found:
            best = max(found, key=lambda arm: abs(found[arm].difference))
            return Headline(
                verdict=verdict,
                sentence=_effect(what, verdict, results, best),
                proven=_excluded(results, claim, metric),
                basis=" ".join((_basis(results, best, set_name, examples), *caveats)),
                arm=best,
            )
    largest = max(results, key=lambda arm: abs(results[arm].difference))
    same = all(result.verdict == "equivalent" for result in results.values())
    return Headline(
        verdict="equivalent" if same else "cannot tell",
        sentence=(_equivalent if same else _open)(what, results, largest, examples),
        proven=_excluded(results, claim, metric),
        basis=" ".join((_basis(results, largest, set_name, examples), *caveats)),
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


def _effect(what: str, verdict: Verdict, results: Mapping[Arm, Comparison], best: Arm) -> str:
    found = _of(results, verdict)
    numbers = _numbers(results[best])
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


def _equivalent(what: str, results: Mapping[Arm, Comparison], largest: Arm, examples: str) -> str:
    del examples
    margin = shown_margin(results[largest].metric, results[largest].delta)
    where = _where(results)
    return (
        f"{what} make no difference that matters: equivalent to the baseline within {margin} at {where}. "
        f"The largest difference, at {_count(largest)}, is {_numbers(results[largest])}."
    )


def _open(what: str, results: Mapping[Arm, Comparison], largest: Arm, examples: str) -> str:
    undecided = {arm: result for arm, result in results.items() if result.verdict == "cannot tell"}
    same = [_count(arm) for arm in results if arm not in undecided]
    settled = f" At {_list(same)} {'they are' if same else ''} equivalent to the baseline." if same else ""
    return (
        f"These runs cannot tell whether {what.lower()} help. The largest difference, at {_count(largest)}, is "
        f"{_numbers(results[largest])}.{settled} {_needed(undecided, examples)}"
    )


def _needed(undecided: Mapping[Arm, Comparison], examples: str) -> str:
    needs = [result.seeds_needed for result in undecided.values()]
    first = next(iter(undecided.values()))
    margin = f"at {shown_margin(first.metric, first.delta)}"
    known = [need for need in needs if need is not None]
    if len(known) < len(needs):
        return f"More seeds alone would not settle every N {margin}: it takes more {examples}."
    most = max(known)
    about = "(a guess from few seeds) " if any(result.is_guess for result in undecided.values()) else ""
    return (
        f"It would take about {about}{most} more seed{'' if most == 1 else 's'} in each arm to settle every N {margin}."
    )


def _numbers(result: Comparison) -> str:
    metric = result.metric
    level = f"{100 * (1 - result.alpha):g} % interval {shown_interval(metric, result.simultaneous_interval)}"
    together = ", both corrected" if result.comparisons > 1 else ""
    difference = f"{shown_difference(metric, result.difference)} {metric.title} {metric.unit}".strip()
    return f"{difference} ({level}, p {_p(result.p_adjusted)}{together})"


def _excluded(results: Mapping[Arm, Comparison], claim: Claim | None, metric: Metric) -> str:
    """Whether the claimed gain lies above the simultaneous intervals."""
    if claim is None or claim.metric != metric.name:
        return ""
    ruled_out = {arm: result for arm, result in results.items() if result.excludes(claim.gain)}
    if not ruled_out:
        return f"{claim.words} is not excluded."
    limits = _list([shown_difference(metric, result.gains[1]) for result in ruled_out.values()])
    several = "limits are" if len(ruled_out) > 1 else "limit is"
    rest = {arm: result for arm, result in results.items() if arm not in ruled_out}
    open_ = f" It is not excluded at {_where(rest)}." if rest else ""
    return f"{claim.words} is excluded at {_where(ruled_out)}: the corrected upper {several} {limits}.{open_}"


def _basis(results: Mapping[Arm, Comparison], shown: Arm, set_name: str, examples: str) -> str:
    result = results[shown]
    metric, compared = result.metric, result.comparisons
    corrected = "one comparison, no correction"
    flattered = ""
    if compared > 1:
        corrected = f"p (Holm) and intervals (simultaneous, Bonferroni) corrected for {compared} comparisons"
        flattered = (
            f" {_count(shown)} is named because its difference is the largest of {compared} on these very {examples}, "
            "which flatters it."
        )
    counts = sorted({0, *(arm.num_registers for arm in results)})
    tried = f"{len(counts)} values of N tried ({', '.join(map(str, counts))})"
    largest = max(one.minimal_detectable for one in results.values())
    guess = f" (a guess: fewer than {GUESS_BELOW} seeds)" if any(one.is_guess for one in results.values()) else ""
    everywhere = "at every N " if compared > 1 else ""
    return (
        f"{metric.title} on {set_name}, {result.examples:,} {examples}, {_seeds(results, shown)}, "
        f"{'paired by seed' if result.paired else 'not paired'}; {tried}; {corrected}; "
        f"equivalence at {shown_margin(metric, result.delta)}; a true difference of "
        f"{shown_difference(metric, largest, unit=True).lstrip('+')} would be found {everywhere}with probability "
        f"{result.power:g}{guess}.{flattered}{_two_valued(results)}"
    )


def _two_valued(results: Mapping[Arm, Comparison]) -> str:
    odd = {arm: result for arm, result in results.items() if result.two_valued}
    if not odd:
        return ""
    return (
        f" At {_where(odd)} the seeds' differences fall into two sharp groups, as chosen checkpoints or failed starts "
        "make them: intervals and p-values made for normal seeds say too much there."
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
