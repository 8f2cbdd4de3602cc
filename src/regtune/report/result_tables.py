"""Tables of what was found: arms against the baseline, controls, data sets in columns, and how it was done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from regtune.interfaces import Block, Metric
from regtune.records import file_name
from regtune.registry import TASKS
from regtune.report.arms import Arm, checkpoint_rule, default_settings, short
from regtune.report.collect import Cell, Group, mixed_versions
from regtune.report.joined import SETTING
from regtune.report.scores import Family
from regtune.rows.reading import files_of
from regtune.stats.comparison import (
    Comparison,
    SeedSpread,
    digits,
    seed_spread,
    shown,
    shown_difference,
    shown_interval,
    shown_margin,
)
from regtune.sweeps.search import SearchFile
from regtune.tables import Column, probability

CROSSED = (
    "each of the {0} is scored by runs that were trained on the other folds and never saw its text or anything of its "
    "group. Folds share training data, so the part of an interval that comes from {0} is at least that of Nadeau and "
    "Bengio (2003), with one degree of freedom less than folds."
)
_OWN = ("output_dir", "training.seed", "training.data_seed")
_RATES = ("learning_rate", "register_learning_rate")
_VERDICT = Column("verdict", strong=True)


def _table(
    name: str,
    title: str,
    columns: Sequence[str | Column],
    rows: Iterable[tuple[Any, ...]],
    *notes: str,
    folded: bool = False,
) -> Block:
    return Block(
        kind="table",
        name=file_name(name),
        title=title,
        columns=tuple(columns),
        rows=tuple(rows),
        text="\n".join(filter(None, notes)),
        folded=folded,
    )


def summary_table(group: Group, baseline: Arm, families: Sequence[Family], name: str, metric: Metric) -> Block:
    """Every arm against the baseline in six columns: what a glance needs."""
    found = {arm: result for family in families for arm, result in family.comparisons.items()}
    rows = [
        (
            arm.label,
            _mean_and_spread(metric, _means(group.of(arm), name, metric)),
            r and f"{shown_difference(metric, r.difference)} ({shown_interval(metric, r.simultaneous_interval)})",
            r and r.p_adjusted,
            r and r.verdict,
            r.seeds if r else len(_means(group.of(arm), name, metric)),
        )
        for arm, r in ((baseline, None), *found.items())
    ]
    several = any(result.comparisons > 1 for result in found.values())
    return _table(
        "summary",
        f"{metric.title} on {name}",
        ("arm", f"{metric.title}, mean ± SD", "difference (95 %)", Column("p", probability), _VERDICT, "seeds"),
        rows,
        "Intervals are simultaneous (Bonferroni) and p corrected (Holm) for all arms of a kind." if several else "",
    )


def arms_table(group: Group, baseline: Arm, families: Sequence[Family], name: str, metric: Metric) -> Block:
    """Every arm against the baseline on one set, with everything behind the verdict."""
    found = {arm: result for family in families for arm, result in family.comparisons.items()}
    base = _means(group.of(baseline), name, metric)
    spread = seed_spread(base) if len(base) > 1 else None
    first = (baseline.label, None, _mean(base), *[None] * 7, spread, len(base))
    return _table(
        f"arms-{metric.name}-{name}",
        f"{metric.title} on {name}: every arm against the baseline",
        ("arm", *_columns(metric)),
        [*([first] if base else []), *((arm.label, r.verdict, *_numbers(r)) for arm, r in found.items())],
        _how_compared(list(found.values()), group.task.examples),
        *(note for family in families for note in family.notes),
        *caveats(group),
    )


def caveats(group: Group) -> list[str]:
    """What has to be known besides the numbers: missing cells, an N that was chosen, runs of different code."""
    rules = sorted({checkpoint_rule(run.record) for cell in group.cells for run in cell.runs})
    folds = sorted({str(cell.settings[SETTING]) for cell in group.cells if SETTING in cell.settings})
    crossed = f"Cross-validated in {' or '.join(folds)} folds: {CROSSED.format(group.task.examples)}" if folds else ""
    return [
        *filter(None, (crossed,)),
        f"Weights that are scored: {'; or '.join(rules)}.",
        *group.gaps,
        *mixed_versions(group.cells),
    ]


def controls_table(families: Mapping[Arm, Family], name: str, metric: Metric) -> Block | None:
    """Each control minus the registers of the same number; None without controls."""
    words = {"helps": "better than registers", "hurts": "worse than registers"}
    rows = [
        (f"{rival.label} minus registers", words.get(result.verdict, result.verdict), *_numbers(result))
        for family in families.values()
        for rival, result in family.comparisons.items()
    ]
    if not rows:
        return None
    return _table(
        f"controls-{metric.name}-{name}",
        f"{metric.title} on {name}: controls against registers of the same number",
        ("control minus registers", *_columns(metric)),
        rows,
        "A gain that a control shows as well does not come from learned registers. Corrected (Holm) over the controls "
        "of one N. Where controls ran at the best N only (`at_best` in the recipe), that N was chosen on these very "
        "examples, which flatters the registers a little.",
        *(note for family in families.values() for note in family.notes),
    )


def sets_table(
    group: Group, baseline: Arm | None, results: Mapping[tuple[str, str], Sequence[Family]], metric: Metric
) -> Block:
    """Arms in rows, evaluation sets in columns: the mean over seeds, and the difference to the baseline."""
    sources = group.sources
    rows = []
    for arm in group.arms:
        cells: list[str | None] = []
        for name in group.sets:
            mean = group.mean(arm, name, metric)
            compared = [f.comparisons[arm] for f in results.get((name, metric.name), []) if arm in f.comparisons]
            cells.append("none" if mean is None else shown(metric, mean) + (_change(compared[0]) if compared else ""))
        rows.append((arm.label, *cells))
    languages = {name: group.language(name) for name in group.sets}
    files = {name: [*map(Path, files_of(source))] for name, source in sources.items()}
    where = "; ".join(f"{name}: {', '.join('/'.join(p.parts[-2:]) for p in paths)}" for name, paths in files.items())
    note = (
        "Mean over seeds in percent; in brackets the difference to the baseline in points, with * where p is at most "
        "0.05 after Holm's correction on that set, = where it is equivalent. Only the first set decides the verdict."
    )
    return _table(
        f"sets-{metric.name}",
        f"{metric.title} on every evaluation set",
        ("arm", *(f"{name} ({language})" if language else name for name, language in languages.items())),
        rows,
        note if baseline else "",
        f"The sets: {where}." if where else "",
    )


def runs_table(groups: Iterable[Group], folder: str) -> Block:
    """Every run that was used, with its scores on its first set."""
    rows = []
    for group in groups:
        for cell in group.cells:
            first, scores = next(iter(cell.record.metrics.items()), ("", {}))
            values = [f"{m.title} {shown(m, scores[m.name])}" for m in group.metrics if m.name in scores]
            more = f" and {len(cell.parts) - 1} more folds" if cell.parts else ""
            rows.append(
                (cell.arm.label, f"{cell.folder.name}{more}", first, cell.record.started, cell.seed, ", ".join(values))
            )
    columns = ("arm", Column("run", align="left"), "set", Column("started", align="left"), "seed", "scores")
    return _table("runs", f"Every run in {folder} ({len(rows)})", columns, rows, folded=True)


def _columns(metric: Metric) -> list[str | Column]:
    interval = partial(shown_interval, metric)
    return [
        _VERDICT,
        Column("mean", partial(shown, metric)),
        Column("difference", partial(shown_difference, metric)),
        Column("95 % interval", interval),
        Column("p, Holm", probability),
        Column("alone: 95 %", interval),
        Column("alone: p", probability),
        Column("p, equiv.", probability),
        Column("p, perm.", probability),
        Column("seed SD (95 % interval)", partial(_spread, metric)),
        "seeds",
    ]


def _numbers(result: Comparison) -> tuple[Any, ...]:
    """The cells of `_columns` behind the verdict."""
    return (
        result.arm_mean,
        result.difference,
        result.simultaneous_interval,
        result.p_adjusted,
        result.interval,
        result.p_value,
        result.equivalence_p_adjusted,
        result.permutation.p_value if result.permutation else None,
        result.arm_spread,
        result.seeds,
    )


def _how_compared(found: Sequence[Comparison], examples: str) -> str:
    if not found:
        return ""
    first = found[0]
    counts = sorted({result.comparisons for result in found})
    together = f"corrected for {' and '.join(map(str, counts))} comparisons" if counts != [1] else "of one comparison"
    paired = "paired by seed" if all(result.paired for result in found) else "not all paired by seed"
    least = max(result.permutation.smallest_p for result in found if result.permutation)
    unit = f"in {first.metric.unit}, " if first.metric.unit else ""
    return (
        f"Differences {unit}{paired}, from the multi-bootstrap over seeds and {examples} ({first.examples:,} "
        f"{examples}), corrected for few seeds. The interval (simultaneous, Bonferroni) and p (Holm) are {together}; "
        "`alone` is each without that correction. Equivalence: two one-sided tests at "
        f"{shown_margin(first.metric, first.delta)}, Holm-corrected. The permutation test is a cross-check over "
        f"seeds alone; with these seeds it cannot go below {probability(least)}."
    )


def _spread(metric: Metric, spread: SeedSpread) -> str:
    sd, low, high = (f"{metric.scale * value:.{digits(metric)}f}" for value in (spread.sd, spread.low, spread.high))
    return f"{sd} ({low} to {high})"


def _mean_and_spread(metric: Metric, values: Sequence[float]) -> str:
    mean = _mean(values)
    if mean is None:
        return "none"
    spread = f" ± {metric.scale * seed_spread(values).sd:.{digits(metric)}f}" if len(values) > 1 else ""
    return f"{shown(metric, mean)}{spread}"


def _means(cells: Sequence[Cell], name: str, metric: Metric) -> list[float]:
    found = [cell.record.metrics.get(name, {}) for cell in cells]
    return [one[metric.name] for one in found if metric.name in one]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _change(result: Comparison) -> str:
    sign = "=" if result.verdict == "equivalent" else "*" if result.p_adjusted <= result.alpha else ""
    return f" ({shown_difference(result.metric, result.difference)}{sign})"


def cost_table(group: Group) -> Block:
    """What each arm costs: parameters, time, speed and memory, as means over its runs."""
    facts = ("steps", "seconds", "tokens_per_second", "peak_memory_bytes")
    rows = []
    for arm in group.arms:
        records = [run.record for cell in group.of(arm) for run in cell.runs]
        sizes = [records[0].parameters.get(name, 0) for name in ("total", "trainable", "registers")]
        known = [[r.training[name] for r in records if name in r.training] for name in facts]
        steps, seconds, speed, memory = (_mean([float(n) for n in v if isinstance(n, (int, float))]) for v in known)
        minutes, gib = seconds and seconds / 60, memory and memory / 2**30
        rows.append((arm.label, *sizes, steps, minutes, speed, gib, _mean([r.seconds / 60 for r in records])))
    columns = (
        "arm",
        Column("parameters", ","),
        Column("trained", ","),
        Column("in registers", ","),
        Column("steps", ",.0f"),
        Column("training, minutes", ".1f"),
        Column("text tokens/s", ",.0f"),
        Column("peak memory, GiB", ".2f"),
        Column("whole run, minutes", ".1f"),
    )
    note = (
        "Means over the runs of an arm, as measured while the sweep ran: times hold for a machine that did other work."
    )
    return _table("cost", "What each arm costs", columns, rows, note)


def settings_table(cells: Sequence[Cell]) -> Block:
    """Every setting that is not the default's; one that is not the same in all runs is told arm by arm."""
    default = default_settings(cells[0].record.task)
    names = {n for cell in cells for n, value in cell.settings.items() if n not in default or value != default[n]}
    rows = []
    for name in sorted(names - set(_OWN)):
        values: dict[str, dict[str, None]] = {}
        for cell in cells:
            values.setdefault(short(cell.settings.get(name)), {})[cell.arm.label] = None
        for value, arms in values.items():
            rows.append((name, "all" if len(values) == 1 else ", ".join(arms), value, short(default.get(name))))
    seeds = ", ".join(str(seed) for seed in sorted({cell.seed for cell in cells}))
    return _table(
        "settings",
        "Settings that differ from the defaults",
        ("setting", "arms", Column("here", align="left"), Column("default", align="left")),
        rows,
        f"Seeds: {seeds}. Everything else is as in regtune's defaults of the version below. A search for learning "
        "rates is shown above where one was recorded; without one the recipe's rates were taken as they are.",
    )


def versions_table(cells: Sequence[Cell]) -> Block:
    """Versions of everything that a result depends on, and the machines; how many runs had each."""
    devices: list[Mapping[str, Any]] = [
        {key: run.record.training[key] for key in ("device", "precision") if key in run.record.training}
        for cell in cells
        for run in cell.runs
    ]
    rows = [
        *_counted("version of", [run.record.versions for cell in cells for run in cell.runs]),
        *_counted("machine:", [run.record.machine for cell in cells for run in cell.runs]),
        *_counted("training:", devices),
    ]
    columns = ("what", Column("value", align="left"), "runs")
    return _table("versions", "Versions and machines", columns, rows, *mixed_versions(cells))


def _counted(kind: str, found: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, int]]:
    rows: list[tuple[str, str, int]] = []
    for key in dict.fromkeys(key for one in found for key in one):
        counts: dict[str, int] = {}
        for one in found:
            size = key.endswith("_bytes") and key in one
            value = f"{one[key] / 2**30:.1f} GiB" if size else short(one.get(key, "not recorded"))
            counts[value] = counts.get(value, 0) + 1
        rows += [(f"{kind} {key.removesuffix('_bytes')}", value, count) for value, count in counts.items()]
    return rows


def search_table(search: SearchFile, *, of: str = "") -> Block:
    """The search for learning rates: one row for each rate that was tried in an arm, with means over the seeds.

    `of` names the sweep where there are several.
    """
    left_out = ("key", "seed")
    names = [key for key in dict.fromkeys(key for row in search.rows for key in row) if key not in left_out]
    metrics = {each.name: each for task in TASKS for each in TASKS.get(task).metrics}
    best = {arm: {key: getattr(rates, key) for key in _RATES} for arm, rates in search.best.items()}
    chosen = [f"{arm}: {', '.join(short(v) for v in rates.values() if v is not None)}" for arm, rates in best.items()]
    arms = dict.fromkeys(str(row["arm"]) for row in search.rows)
    epochs = f"{search.epochs:g} epoch{'' if search.epochs == 1 else 's'} a run"
    return _table(
        f"search-{of}" if of else "search",
        f"The search for learning rates{of and f': {of}'}",
        [name.replace("_", " ") for name in names],
        [tuple(_searched(row.get(name), metrics.get(name)) for name in names) for row in _over_seeds(search.rows)],
        f"Held out: {search.held_out}. Searched at N = {search.num_registers} for {', '.join(arms)} by "
        f"{search.metric}: {_seeds(search.seeds)}, {epochs}, {search.held_out_examples:,} held-out examples.",
        f"Chosen: {'; '.join(chosen)}." if chosen else "",
        _edges(search.rows, best),
        "" if search.finished else "The search is not finished: nothing has been chosen yet.",
    )


def _seeds(seeds: Sequence[int]) -> str:
    numbers = ", ".join(map(str, seeds))
    return f"one seed ({numbers})" if len(seeds) == 1 else f"means over the seeds {numbers}"


def _over_seeds(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows that differ in the seed alone joined to one, with the means of their figures."""
    same = ("arm", "num_registers", *_RATES)
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in same), []).append(row)
    joined = []
    for group in groups.values():
        mean = {
            name: fmean(row[name] for row in group)
            for name, value in group[0].items()
            if name not in (*same, "key", "seed") and value is not None
        }
        joined.append({**group[0], **mean})
    return joined


def _searched(value: Any, metric: Metric | None) -> str | None:
    if value is None or metric is None:
        return None if value is None else short(value)
    return shown(metric, value)


def _edges(rows: Sequence[Mapping[str, Any]], best: Mapping[str, Mapping[str, float | None]]) -> str:
    """Which of the chosen rates lie at the edge of what was tried, where a better one may lie beyond."""
    found, inside = [], 0
    for arm, rates in best.items():
        for key, value in rates.items():
            tried = sorted({row[key] for row in rows if row.get("arm") == arm and row.get(key) is not None})
            if value is None or len(tried) < 2:
                continue
            if tried[0] < value < tried[-1]:
                inside += 1
            else:
                which = "largest" if value == tried[-1] else "smallest"
                found.append(f"{arm}, {key.replace('_', ' ')} {value:g} ({which} of {len(tried)})")
    if found:
        return f"At the edge of what was tried, so a better one may lie beyond it: {'; '.join(found)}."
    return "No chosen rate lies at the edge of what was tried." if inside else ""
