"""Tables of what was found: arms against the baseline, controls, data sets in columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from regtune.errors import ConfigError
from regtune.records import file_name
from regtune.report.arms import Arm, filled, set_name
from regtune.report.collect import Cell, Group
from regtune.report.families import Family
from regtune.report.gaps import mixed_versions, unrecorded_code
from regtune.report.scores import METRICS, Metric
from regtune.report.table import Table, percent, points, probability, span
from regtune.stats.comparison import Comparison, SeedSpread, seed_spread

Results = dict[tuple[str, Metric], list[Family]]
"""Evaluation set and metric to the families that were compared there."""
_COLUMNS = (
    "arm",
    "verdict",
    "mean",
    "difference",
    "95 % interval",
    "p",
    "p, Holm",
    "p, equiv.",
    "p, perm.",
    "seed SD (95 % interval)",
    "seeds",
)


def arms_table(group: Group, baseline: Arm, families: Sequence[Family], name: str, metric: Metric) -> Table:
    """Every arm against the baseline on one set, with everything that the verdict rests on."""
    found = {arm: result for family in families for arm, result in family.comparisons.items()}
    base = _means(group.of(baseline), name, metric)
    rows = [_baseline_row(baseline, base)] if base else []
    rows += [_row(arm.label, result) for arm, result in found.items()]
    return Table(
        name=file_name(f"arms-{metric}-{name}"),
        title=f"{METRICS[metric]} on {name}: every arm against the baseline",
        header=_COLUMNS,
        rows=tuple(rows),
        notes=(
            *_notes(found.values()),
            *(note for family in families for note in family.notes),
            *caveats(group),
        ),
        left=2,
    )


def caveats(group: Group) -> list[str]:
    """What has to be known besides the numbers: missing cells, an N that was chosen, runs of different code."""
    code = (*mixed_versions(group.cells), unrecorded_code(group.cells))
    return [text for text in (group.gaps.sentence, group.gaps.chosen, *code) if text]


def controls_table(families: dict[Arm, Family], name: str, metric: Metric) -> Table | None:
    """Each control minus the registers of the same number; None without controls."""
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    for family in families.values():
        notes += family.notes
        for rival, result in family.comparisons.items():
            words = {"helps": "better than registers", "hurts": "worse than registers"}
            verdict = words.get(result.verdict, result.verdict)
            rows.append((f"{rival.label} minus registers", verdict, *_numbers(result)))
    if not rows:
        return None
    return Table(
        name=file_name(f"controls-{metric}-{name}"),
        title=f"{METRICS[metric]} on {name}: controls against registers of the same number",
        header=("control minus registers", *_COLUMNS[1:]),
        rows=tuple(rows),
        notes=(
            "A gain that a control shows as well does not come from learned registers. Corrected (Holm) over the "
            "controls of one N. Where controls ran at the best N only (`at_best` in the recipe), that N was chosen on "
            "these very questions, which flatters the registers a little.",
            *notes,
        ),
        left=2,
    )


def sets_table(group: Group, baseline: Arm | None, results: Results, metric: Metric) -> Table:
    """Arms in rows, evaluation sets in columns: the mean over seeds, and the difference to the baseline."""
    names = group.sets
    languages = _languages(group)
    header = ("arm", *(f"{name} ({languages[name]})" if languages[name] else name for name in names))
    rows = []
    for arm in group.arms:
        cells = []
        for name in names:
            means = _means(group.of(arm), name, metric)
            compared = [f.comparisons[arm] for f in results.get((name, metric), []) if arm in f.comparisons]
            cells.append(_mean_and_difference(means, compared[0] if compared else None))
        rows.append((arm.label, *cells))
    notes = [
        "Mean over seeds in percent; in brackets the difference to the baseline in points, with * where p is at most "
        "0.05 after Holm's correction on that set, = where it is equivalent. Only the first set decides the verdict."
    ]
    sources = [f"{name}: {'/'.join(Path(source).parts[-2:])}" for name, source in _sources(group).items()]
    where = (f"The sets: {'; '.join(sources)}.",) if sources else ()
    return Table(
        name=f"sets-{metric}",
        title=f"{METRICS[metric]} on every evaluation set",
        header=header,
        rows=tuple(rows),
        notes=(*(notes if baseline else ()), *where),
    )


def runs_table(groups: Iterable[Group], folder: str) -> Table:
    """Every run that was used, with its scores on its first set."""
    rows = []
    for group in groups:
        for cell in group.cells:
            first, scores = next(iter(cell.record.metrics.items()), ("", {}))
            shown = [percent(scores[metric]) if metric in scores else "" for metric in ("exact_match", "f1")]
            rows.append((cell.arm.label, cell.folder.name, first, cell.record.started, str(cell.seed), *shown))
    return Table(
        name="runs",
        title=f"Every run in {folder}",
        header=("arm", "run", "set", "started", "seed", "EM", "F1"),
        rows=tuple(rows),
        left=4,
    )


def _row(label: str, result: Comparison) -> tuple[str, ...]:
    return (label, result.verdict, *_numbers(result))


def _numbers(result: Comparison) -> tuple[str, ...]:
    permutation = probability(result.permutation.p_value) if result.permutation else ""
    return (
        percent(result.arm_mean),
        points(result.difference),
        span(result.interval),
        probability(result.p_value),
        probability(result.p_adjusted),
        probability(result.equivalence_p_adjusted),
        permutation,
        _spread(result.arm_spread),
        str(result.seeds),
    )


def _baseline_row(arm: Arm, means: Sequence[float]) -> tuple[str, ...]:
    spread = seed_spread(means) if len(means) > 1 else None
    return (arm.label, "", percent(sum(means) / len(means)), *[""] * 6, _spread(spread), str(len(means)))


def _notes(results: Iterable[Comparison]) -> list[str]:
    found = list(results)
    if not found:
        return []
    first = found[0]
    counts = sorted({result.comparisons for result in found})
    corrected = f"corrected (Holm) for {' and '.join(map(str, counts))} comparisons" if counts != [1] else "of one"
    paired = "paired by seed" if all(result.paired for result in found) else "not all paired by seed"
    least = max(result.permutation.smallest_p for result in found if result.permutation)
    return [
        f"Differences in points, {paired}, from the multi-bootstrap over seeds and questions ({first.examples:,} "
        f"questions), corrected for few seeds. The interval is that of one comparison; p, Holm, is {corrected}"
        f"{' comparison' if counts == [1] else ''}. Equivalence: two one-sided tests at ±{100 * first.delta:g} "
        f"F1 or EM points, Holm-corrected. The permutation test is a cross-check over "
        f"seeds alone; with these seeds it cannot go below {probability(least)}.",
    ]


def _spread(spread: SeedSpread | None) -> str:
    if spread is None:
        return ""
    return f"{100 * spread.sd:.2f} ({100 * spread.low:.2f} to {100 * spread.high:.2f})"


def _means(cells: Sequence[Cell], name: str, metric: Metric) -> list[float]:
    return [cell.record.metrics[name][metric] for cell in cells if metric in cell.record.metrics.get(name, {})]


def _mean_and_difference(means: Sequence[float], result: Comparison | None) -> str:
    if not means:
        return "none"
    mean = percent(sum(means) / len(means))
    if result is None:
        return mean
    sign = "=" if result.verdict == "equivalent" else "*" if result.p_adjusted <= result.alpha else ""
    return f"{mean} ({points(result.difference)}{sign})"


def _languages(group: Group) -> dict[str, str]:
    """Language of each evaluation set where its name in the config tells it."""
    sources = _sources(group)
    return {name: _language(sources[name]) if name in sources else "" for name in group.sets}


def _sources(group: Group) -> dict[str, str]:
    """The file or name behind each evaluation set."""
    found: dict[str, str] = {}
    for cell in group.cells:
        for source in filled(cell.record.config)["data"]["eval"]:
            found.setdefault(set_name(source), source)
    return {name: found[name] for name in group.sets if name in found}


@lru_cache(maxsize=256)
def _language(source: str) -> str:
    from regtune.tasks.qa.data.sources import language_of

    try:
        return language_of(source)
    except ConfigError:
        return ""
