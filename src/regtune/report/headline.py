"""The verdict of a whole sweep in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from regtune.interfaces import Published
from regtune.report.arms import Arm
from regtune.stats.comparison import (
    GUESS_BELOW,
    Comparison,
    Verdict,
    shown_difference,
    shown_interval,
    shown_margin,
)

Results = Mapping[Arm, Comparison]


@dataclass(frozen=True, kw_only=True)
class Headline:
    """What stands on top of the page."""

    verdict: str
    """One of `helps`, `hurts`, `equivalent`, `cannot tell`, `no comparison`, `no verdict`."""
    sentence: str
    proven: str = ""
    """What holds beside it: the claim that these runs exclude."""
    basis: str = ""
    """Seeds, examples, pairing and what was corrected for."""
    controls: str = ""
    """How the controls of the same N compare with that arm."""
    planned: str = ""
    """Whether this was planned before the first run, and what was; empty where the sweep had no plan."""
    arm: Arm | None = None
    """The arm that the sentence is about; its flips are shown."""


def no_comparison(reason: str, basis: str = "") -> Headline:
    """The headline of a page that has nothing to compare."""
    return Headline(verdict="no comparison", sentence=f"No comparison is possible: {reason}.", basis=basis)


def headline(
    results: Results,
    *,
    set_name: str,
    what: str = "Registers",
    examples: str = "examples",
    published: Sequence[Published] = (),
    caveats: Sequence[str] = (),
) -> Headline:
    """Sums up the comparisons of one family: what holds for any N after correction for all N."""
    for verdict in ("helps", "hurts"):
        found = _of(results, verdict)
        if found:
            named = max(found, key=lambda arm: abs(found[arm].difference))
            sentence = _effect(what, verdict, results, named)
            break
    else:
        named = max(results, key=lambda arm: abs(results[arm].difference))
        same = all(result.verdict == "equivalent" for result in results.values())
        verdict = "equivalent" if same else "cannot tell"
        sentence = _equivalent(what, results, named) if same else _open(what, results, named, examples)
    metric = results[named].metric
    return Headline(
        verdict=verdict,
        sentence=sentence,
        proven=" ".join(_excluded(results, each) for each in published if each.gain and each.metric == metric.name),
        basis=" ".join((_basis(results, named, set_name, examples), *caveats)),
        arm=named,
    )


def control_sentence(results: Results) -> str:
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


def _of(results: Results, verdict: str) -> Results:
    return {arm: result for arm, result in results.items() if result.verdict == verdict}


def _effect(what: str, verdict: Verdict, results: Results, best: Arm) -> str:
    found, hurt, same, open_ = (_of(results, each) for each in (verdict, "hurts", "equivalent", "cannot tell"))
    where = _where(found) if len(found) == 1 else f"{_where(found)}, most at {best.count}"
    said = f"{what} {'help' if verdict == 'helps' else 'hurt'} at {where}: {_numbers(results[best])}."
    if verdict == "helps" and hurt:
        said += f" At {_where(hurt)} they hurt."
    if same:
        said += f" At {_where(same)} they are equivalent to the baseline."
    if open_:
        said += f" At {_where(open_)} these runs cannot tell."
    return said


def _equivalent(what: str, results: Results, largest: Arm) -> str:
    margin = shown_margin(results[largest].metric, results[largest].delta)
    return (
        f"{what} make no difference that matters: equivalent to the baseline within {margin} at {_where(results)}. "
        f"The largest difference, at {largest.count}, is {_numbers(results[largest])}."
    )


def _open(what: str, results: Results, largest: Arm, examples: str) -> str:
    same = _of(results, "equivalent")
    settled = f" At {_where(same)} they are equivalent to the baseline." if same else ""
    return (
        f"These runs cannot tell whether {what.lower()} help. The largest difference, at {largest.count}, is "
        f"{_numbers(results[largest])}.{settled} {_needed(_of(results, 'cannot tell'), examples)}"
    )


def _needed(undecided: Results, examples: str) -> str:
    first, *_ = undecided.values()
    margin = f"at {shown_margin(first.metric, first.delta)}"
    needs = [result.seeds_needed for result in undecided.values()]
    if None in needs:
        return f"More seeds alone would not settle every N {margin}: it takes more {examples}."
    most = max(need for need in needs if need is not None)
    guess = "(a guess from few seeds) " if any(result.is_guess for result in undecided.values()) else ""
    seeds = f"{most} more seed{'' if most == 1 else 's'}"
    return f"It would take about {guess}{seeds} in each arm to settle every N {margin}."


def _numbers(result: Comparison) -> str:
    metric = result.metric
    level = f"{100 * (1 - result.alpha):g} % interval {shown_interval(metric, result.simultaneous_interval)}"
    p_value = "< 0.001" if result.p_adjusted < 0.001 else f"= {result.p_adjusted:.2g}"
    together = ", both corrected" if result.comparisons > 1 else ""
    difference = f"{shown_difference(metric, result.difference)} {metric.title} {metric.unit}".strip()
    return f"{difference} ({level}, p {p_value}{together})"


def _excluded(results: Results, published: Published) -> str:
    """Whether the claimed gain lies above the simultaneous intervals."""
    gain = published.gain or 0.0
    ruled_out = {arm: result for arm, result in results.items() if result.excludes(gain)}
    if not ruled_out:
        return f"{published.claim} is not excluded."
    limits = [shown_difference(result.metric, result.gains[1]) for result in ruled_out.values()]
    several = "limits are" if len(limits) > 1 else "limit is"
    rest = {arm: result for arm, result in results.items() if arm not in ruled_out}
    open_ = f" It is not excluded at {_where(rest)}." if rest else ""
    return (
        f"{published.claim} is excluded at {_where(ruled_out)}: the corrected upper {several} {_list(limits)}.{open_}"
    )


def _basis(results: Results, named: Arm, set_name: str, examples: str) -> str:
    result = results[named]
    metric, compared = result.metric, result.comparisons
    corrected, flattered = "one comparison, no correction", ""
    if compared > 1:
        corrected = f"p (Holm) and intervals (simultaneous, Bonferroni) corrected for {compared} comparisons"
        flattered = (
            f" {named.count} is named because its difference is the largest of {compared} on these very {examples}, "
            "which flatters it."
        )
    counts = sorted({0, *(arm.num_registers for arm in results)})
    largest = max(one.minimal_detectable for one in results.values())
    guess = f" (a guess: fewer than {GUESS_BELOW} seeds)" if any(one.is_guess for one in results.values()) else ""
    odd = {arm: one for arm, one in results.items() if one.two_valued}
    two_valued = (
        f" At {_where(odd)} the seeds' differences fall into two sharp groups, as chosen checkpoints or failed starts "
        "make them: intervals and p-values made for normal seeds say too much there."
    )
    return (
        f"{metric.title} on {set_name}, {result.examples:,} {examples}, {_seeds(results, named)}, "
        f"{'paired by seed' if result.paired else 'not paired'}; {len(counts)} values of N tried "
        f"({', '.join(map(str, counts))}); {corrected}; equivalence at {shown_margin(metric, result.delta)}; "
        f"a true difference of {shown_difference(metric, largest, unit=True).lstrip('+')} would be found "
        f"{'at every N ' if compared > 1 else ''}with probability {result.power:g}{guess}."
        f"{flattered}{two_valued if odd else ''}"
    )


def _seeds(results: Results, named: Arm) -> str:
    """Seeds of the comparison that is shown, and of the others where they have more or fewer."""
    counts = {
        arm: str(one.seeds) if one.seeds == one.baseline_seeds else f"{one.seeds} against {one.baseline_seeds}"
        for arm, one in results.items()
    }
    others = [f"{arm.count}: {count}" for arm, count in counts.items() if count != counts[named]]
    return f"{counts[named]} seeds in each arm" + (f" ({', '.join(others)})" if others else "")


def _where(results: Results) -> str:
    return _list([arm.count for arm in results])


def _list(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
