"""Tables of what the runs were: cost, settings, versions, machines, and the search for learning rates."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from regtune.report.arms import default_config, differences, filled
from regtune.report.collect import Cell, Group
from regtune.report.gaps import mixed_versions, unrecorded_code
from regtune.report.table import Table, percent

_OWN = ("output_dir", "training.seed", "training.data_seed")
_SCORES = ("exact_match", "f1")
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
    return Table(name="cost", title="What each arm costs", header=header, rows=tuple(rows), notes=(note,))


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
        title="Settings that differ from the defaults",
        header=("setting", "arms", "here", "default"),
        rows=tuple(rows),
        notes=(
            f"Seeds: {seeds}. Everything else is as in regtune's defaults of the version below. A search for learning "
            "rates is shown above where one was recorded; without one the recipe's rates were taken as they are.",
        ),
        left=4,
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
    return Table(name="versions", title="Versions and machines", header=header, rows=tuple(rows), notes=notes, left=2)


def search_table(search: Mapping[str, Any]) -> Table:
    """The search for learning rates as it was recorded: one row for each cell that was tried."""
    rows = [row for row in search["rows"] if isinstance(row, dict)]
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if key != "key"]
    facts = [
        f"{key.replace('_', ' ')}: {value}" for key, value in search.items() if isinstance(value, (str, int, float))
    ]
    best = dict(search.get("best") or _best_rows(rows))
    chosen = [f"{arm}: {_rates(rates)}" for arm, rates in best.items()]
    notes = (" · ".join(facts), f"Chosen: {'; '.join(chosen)}." if chosen else "", _edges(rows, best))
    return Table(
        name="search",
        title="The search for learning rates",
        header=tuple(column.replace("_", " ") for column in columns),
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


def _rates(rates: Any) -> str:
    values = rates.values() if isinstance(rates, Mapping) else [rates]
    return ", ".join(_searched("", value) for value in values if value is not None)


def _searched(column: str, value: Any) -> str:
    if column in _SCORES and isinstance(value, (int, float)):
        return percent(float(value))
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
