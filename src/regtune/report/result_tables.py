"""Tables of what was found: arms against the baseline, controls, data sets in columns."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from regtune.errors import ConfigError
from regtune.interfaces import Metric
from regtune.records import file_name
from regtune.registry import TASKS
from regtune.report.arms import Arm, checkpoint_rule, default_config, differences, filled, set_name
from regtune.report.collect import Cell, Group, mixed_versions, unrecorded_code
from regtune.report.scores import Family
from regtune.report.tasks import reported
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
from regtune.tables import Column, Table, probability

Results = dict[tuple[str, str], list[Family]]
"""Evaluation set and metric to the families that were compared there."""
_COLUMNS = (
    "arm",
    Column("verdict", strong=True),
    "mean",
    "difference",
    "95 % interval",
    "p, Holm",
    "alone: 95 %",
    "alone: p",
    "p, equiv.",
    "p, perm.",
    "seed SD (95 % interval)",
    "seeds",
)


def summary_table(group: Group, baseline: Arm, families: Sequence[Family], name: str, metric: Metric) -> Table:
    """Every arm against the baseline in six columns: what a glance needs."""
    base = _means(group.of(baseline), name, metric)
    found = [(arm, result) for family in families for arm, result in family.comparisons.items()]
    rows = [(baseline.label, _mean_and_spread(metric, base), "", "", "", str(len(base)))] if base else []
    rows += [
        (
            arm.label,
            _mean_and_spread(metric, _means(group.of(arm), name, metric)),
            f"{shown_difference(metric, r.difference)} ({shown_interval(metric, r.simultaneous_interval)})",
            probability(r.p_adjusted),
            r.verdict,
            str(r.seeds),
        )
        for arm, r in found
    ]
    several = any(result.comparisons > 1 for _, result in found)
    header = ("arm", f"{metric.title}, mean ± SD", "difference (95 %)", "p", Column("verdict", strong=True), "seeds")
    note = "Intervals are simultaneous (Bonferroni) and p corrected (Holm) for all arms of a kind." if several else ""
    return Table(
        name="summary",
        caption=f"{metric.title} on {name}",
        columns=header,
        rows=tuple(rows),
        notes=(note,) if note else (),
    )


def _mean_and_spread(metric: Metric, values: Sequence[float]) -> str:
    if not values:
        return "none"
    spread = f" ± {metric.scale * seed_spread(values).sd:.{digits(metric)}f}" if len(values) > 1 else ""
    return f"{shown(metric, sum(values) / len(values))}{spread}"


def arms_table(group: Group, baseline: Arm, families: Sequence[Family], name: str, metric: Metric) -> Table:
    """Every arm against the baseline on one set, with everything that the verdict rests on."""
    found = {arm: result for family in families for arm, result in family.comparisons.items()}
    base = _means(group.of(baseline), name, metric)
    rows = [_baseline_row(baseline, base, metric)] if base else []
    rows += [_row(arm.label, result) for arm, result in found.items()]
    return Table(
        name=file_name(f"arms-{metric.name}-{name}"),
        caption=f"{metric.title} on {name}: every arm against the baseline",
        columns=_COLUMNS,
        rows=tuple(rows),
        notes=(
            *_notes(found.values(), reported(group.task).examples),
            *(note for family in families for note in family.notes),
            *caveats(group),
        ),
    )


def caveats(group: Group) -> list[str]:
    """What has to be known besides the numbers: missing cells, an N that was chosen, runs of different code."""
    code = (*mixed_versions(group.cells), unrecorded_code(group.cells))
    rules = sorted({checkpoint_rule(cell.record) for cell in group.cells})
    scored = f"Weights that are scored: {'; or '.join(rules)}."
    return [text for text in (scored, group.gaps.sentence, group.gaps.chosen, *code) if text]


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
        name=file_name(f"controls-{metric.name}-{name}"),
        caption=f"{metric.title} on {name}: controls against registers of the same number",
        columns=("control minus registers", *_COLUMNS[1:]),
        rows=tuple(rows),
        notes=(
            "A gain that a control shows as well does not come from learned registers. Corrected (Holm) over the "
            "controls of one N. Where controls ran at the best N only (`at_best` in the recipe), that N was chosen on "
            "these very questions, which flatters the registers a little.",
            *notes,
        ),
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
            compared = [f.comparisons[arm] for f in results.get((name, metric.name), []) if arm in f.comparisons]
            cells.append(_mean_and_difference(means, compared[0] if compared else None, metric))
        rows.append((arm.label, *cells))
    notes = [
        "Mean over seeds in percent; in brackets the difference to the baseline in points, with * where p is at most "
        "0.05 after Holm's correction on that set, = where it is equivalent. Only the first set decides the verdict."
    ]
    sources = [f"{name}: {'/'.join(Path(source).parts[-2:])}" for name, source in _sources(group).items()]
    where = (f"The sets: {'; '.join(sources)}.",) if sources else ()
    return Table(
        name=f"sets-{metric.name}",
        caption=f"{metric.title} on every evaluation set",
        columns=header,
        rows=tuple(rows),
        notes=(*(notes if baseline else ()), *where),
    )


def runs_table(groups: Iterable[Group], folder: str) -> Table:
    """Every run that was used, with its scores on its first set."""
    rows = []
    for group in groups:
        for cell in group.cells:
            first, scores = next(iter(cell.record.metrics.items()), ("", {}))
            values = [f"{m.title} {shown(m, scores[m.name])}" for m in group.metrics if m.name in scores]
            rows.append(
                (cell.arm.label, cell.folder.name, first, cell.record.started, str(cell.seed), ", ".join(values))
            )
    return Table(
        name="runs",
        caption=f"Every run in {folder}",
        columns=("arm", Column("run", align="left"), "set", Column("started", align="left"), "seed", "scores"),
        rows=tuple(rows),
    )


def _row(label: str, result: Comparison) -> tuple[str, ...]:
    return (label, result.verdict, *_numbers(result))


def _numbers(result: Comparison) -> tuple[str, ...]:
    metric = result.metric
    permutation = probability(result.permutation.p_value) if result.permutation else ""
    return (
        shown(metric, result.arm_mean),
        shown_difference(metric, result.difference),
        shown_interval(metric, result.simultaneous_interval),
        probability(result.p_adjusted),
        shown_interval(metric, result.interval),
        probability(result.p_value),
        probability(result.equivalence_p_adjusted),
        permutation,
        _spread(metric, result.arm_spread),
        str(result.seeds),
    )


def _baseline_row(arm: Arm, means: Sequence[float], metric: Metric) -> tuple[str, ...]:
    spread = seed_spread(means) if len(means) > 1 else None
    return (arm.label, "", shown(metric, sum(means) / len(means)), *[""] * 7, _spread(metric, spread), str(len(means)))


def _notes(results: Iterable[Comparison], examples: str) -> list[str]:
    found = list(results)
    if not found:
        return []
    first = found[0]
    counts = sorted({result.comparisons for result in found})
    together = f"corrected for {' and '.join(map(str, counts))} comparisons" if counts != [1] else "of one comparison"
    paired = "paired by seed" if all(result.paired for result in found) else "not all paired by seed"
    least = max(result.permutation.smallest_p for result in found if result.permutation)
    unit = f"in {first.metric.unit}, " if first.metric.unit else ""
    return [
        f"Differences {unit}{paired}, from the multi-bootstrap over seeds and {examples} ({first.examples:,} "
        f"{examples}), corrected for few seeds. The interval (simultaneous, Bonferroni) and p (Holm) are {together}; "
        "`alone` is each without that correction. Equivalence: two one-sided tests at "
        f"{shown_margin(first.metric, first.delta)}, Holm-corrected. The permutation test is a cross-check over "
        f"seeds alone; with these seeds it cannot go below {probability(least)}.",
    ]


def _spread(metric: Metric, spread: SeedSpread | None) -> str:
    if spread is None:
        return ""
    sd, low, high = (f"{metric.scale * value:.{digits(metric)}f}" for value in (spread.sd, spread.low, spread.high))
    return f"{sd} ({low} to {high})"


def _means(cells: Sequence[Cell], name: str, metric: Metric) -> list[float]:
    found = [cell.record.metrics.get(name, {}) for cell in cells]
    return [one[metric.name] for one in found if metric.name in one]


def _mean_and_difference(means: Sequence[float], result: Comparison | None, metric: Metric) -> str:
    if not means:
        return "none"
    mean = shown(metric, sum(means) / len(means))
    if result is None:
        return mean
    sign = "=" if result.verdict == "equivalent" else "*" if result.p_adjusted <= result.alpha else ""
    return f"{mean} ({shown_difference(metric, result.difference)}{sign})"


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


_OWN = ("output_dir", "training.seed", "training.data_seed")
_RATES = ("learning_rate", "register_learning_rate")


def cost_table(group: Group) -> Table:
    """What each arm costs: parameters, time, speed and memory, as means over its runs."""
    rows = []
    for arm in group.arms:
        cells = group.of(arm)
        parameters = cells[0].record.parameters
        rows.append(
            (
                arm.label,
                f"{parameters.get('total', 0):,}",
                f"{parameters.get('trainable', 0):,}",
                f"{parameters.get('registers', 0):,}",
                _mean(cells, "steps", "{:,.0f}"),
                _mean(cells, "seconds", "{:.1f}", 1 / 60),
                _mean(cells, "tokens_per_second", "{:,.0f}"),
                _mean(cells, "peak_memory_bytes", "{:.2f}", 2**-30),
                f"{sum(cell.record.seconds for cell in cells) / len(cells) / 60:.1f}",
            )
        )
    header = (
        "arm",
        "parameters",
        "trained",
        "in registers",
        "steps",
        "training, minutes",
        "text tokens/s",
        "peak memory, GiB",
        "whole run, minutes",
    )
    note = (
        "Means over the runs of an arm, as measured while the sweep ran: times hold for a machine that did other work."
    )
    return Table(name="cost", caption="What each arm costs", columns=header, rows=tuple(rows), notes=(note,))


def settings_table(cells: Sequence[Cell]) -> Table:
    """Every setting that is not the default's; one that is not the same in all runs is told arm by arm."""
    default = default_config()
    changed = [(cell, differences(filled(cell.record.config), default)) for cell in cells]
    names = sorted({name for _, found in changed for name in found} - set(_OWN))
    rows = []
    for name in names:
        values: dict[str, list[str]] = {}
        for cell, found in changed:
            usual, value = found.get(name, (_at(default, name),) * 2)
            arms = values.setdefault(_text(value), [])
            if cell.arm.label not in arms:
                arms.append(cell.arm.label)
        usual = _text(_at(default, name))
        for value, arms in values.items():
            rows.append((name, "all" if len(values) == 1 else ", ".join(arms), value, usual))
    seeds = ", ".join(str(seed) for seed in sorted({cell.seed for cell in cells}))
    return Table(
        name="settings",
        caption="Settings that differ from the defaults",
        columns=("setting", "arms", Column("here", align="left"), Column("default", align="left")),
        rows=tuple(rows),
        notes=(
            f"Seeds: {seeds}. Everything else is as in regtune's defaults of the version below. A search for learning "
            "rates is shown above where one was recorded; without one the recipe's rates were taken as they are.",
        ),
    )


def versions_table(cells: Sequence[Cell]) -> Table:
    """Versions of everything that a result depends on, and the machines; how many runs had each."""
    rows = [
        *_counted("version of", [cell.record.versions for cell in cells], str),
        *_counted("machine:", [cell.record.machine for cell in cells], _text),
        *_counted("training:", [_device(cell) for cell in cells], str),
    ]
    header = ("what", "value", "runs")
    notes = tuple(filter(None, (*mixed_versions(cells), unrecorded_code(cells))))
    return Table(name="versions", caption="Versions and machines", columns=header, rows=tuple(rows), notes=notes)


def search_table(search: Mapping[str, Any]) -> Table:
    """The search for learning rates as it was recorded: one row for each cell that was tried."""
    rows = [row for row in search["rows"] if isinstance(row, dict)]
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if key != "key"]
    facts = [
        f"{key.replace('_', ' ')}: {value}" for key, value in search.items() if isinstance(value, (str, int, float))
    ]
    best = dict(search.get("best") or _best_rows(rows))
    chosen = [f"{arm}: {_rates(rates)}" for arm, rates in best.items()]
    notes = (
        " · ".join(facts),
        _how_searched(rows, search),
        f"Chosen: {'; '.join(chosen)}." if chosen else "",
        _edges(rows, best),
    )
    return Table(
        name="search",
        caption="The search for learning rates",
        columns=tuple(column.replace("_", " ") for column in columns),
        rows=tuple(tuple(_searched(column, row.get(column)) for column in columns) for row in rows),
        notes=tuple(note for note in notes if note),
    )


def _arm(row: Mapping[str, Any]) -> str:
    return str(row.get("arm") or f"N = {row.get('num_registers', '?')}")


def _best_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each arm's rates with the highest F1, for searches that don't say what they chose."""
    best: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if "f1" in row and row["f1"] > best.get(_arm(row), {"f1": -1.0})["f1"]:
            best[_arm(row)] = row
    return {arm: {key: row.get(key) for key in _RATES} for arm, row in best.items()}


def _how_searched(rows: Sequence[Mapping[str, Any]], search: Mapping[str, Any]) -> str:
    """What each point of the search rests on, as far as it was recorded."""
    arms = list(dict.fromkeys(_arm(row) for row in rows))
    seeds = {row["seed"] for row in rows if "seed" in row} or ({search["seed"]} if "seed" in search else set())
    parts = [f"one seed ({next(iter(seeds))})" if len(seeds) == 1 else f"{len(seeds)} seeds" if seeds else ""]
    epochs = {row["epochs"] for row in rows if "epochs" in row}
    parts.append(f"{next(iter(epochs)):g} epoch{'' if epochs == {1.0} else 's'} a run" if len(epochs) == 1 else "")
    parts.append(f"{search['questions']:,} held-out questions" if isinstance(search.get("questions"), int) else "")
    known = ", ".join(part for part in parts if part)
    return f"Searched for {' and '.join(arms)} alone{f': {known}' if known else ''}. Other arms took these rates."


def _edges(rows: Sequence[Mapping[str, Any]], best: Mapping[str, Any]) -> str:
    """Which of the chosen rates lie at the edge of what was tried, where a better one may lie beyond."""
    found, inside = [], 0
    for arm, rates in best.items():
        for key in _RATES:
            tried = sorted({row[key] for row in rows if _arm(row) == arm and row.get(key) is not None})
            value = rates.get(key) if isinstance(rates, Mapping) else None
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


@lru_cache(maxsize=1)
def _in_percent() -> frozenset[str]:
    """Names of metrics that a person reads in percent, of all tasks: a search does not say which it was."""
    return frozenset(each.name for task in TASKS for each in TASKS.get(task).metrics if each.scale == 100)


def _rates(rates: Any) -> str:
    values = rates.values() if isinstance(rates, Mapping) else [rates]
    return ", ".join(_searched("", value) for value in values if value is not None)


def _searched(column: str, value: Any) -> str:
    if column in _in_percent() and isinstance(value, (int, float)):
        return f"{100 * value:.1f}"
    return "" if value is None else f"{value:g}" if isinstance(value, (int, float)) else _text(value)


def _mean(cells: Iterable[Cell], key: str, form: str, factor: float = 1.0) -> str:
    values = [cell.record.training[key] for cell in cells if cell.record.training.get(key) is not None]
    return form.format(factor * sum(values) / len(values)) if values else ""


def _device(cell: Cell) -> dict[str, Any]:
    return {key: cell.record.training[key] for key in ("device", "precision") if key in cell.record.training}


def _counted(kind: str, found: Sequence[Mapping[str, Any]], text: Callable[[Any], str]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for key in dict.fromkeys(key for one in found for key in one):
        counts: dict[str, int] = {}
        for one in found:
            value = _bytes(one.get(key, 0)) if key.endswith("_bytes") else text(one.get(key, "not recorded"))
            counts[value] = counts.get(value, 0) + 1
        name = key.removesuffix("_bytes")
        rows += [(f"{kind} {name}", value, str(count)) for value, count in counts.items()]
    return rows


def _bytes(value: int) -> str:
    return f"{value / 2**30:.1f} GiB"


def _at(config: Mapping[str, Any], name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
