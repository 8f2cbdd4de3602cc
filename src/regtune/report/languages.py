"""The number of registers that is best for each language, named only where its interval says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from regtune.errors import ConfigError
from regtune.interfaces import Block, Metric
from regtune.noise import split_name
from regtune.report.arms import REGISTERS, Arm
from regtune.report.collect import Group
from regtune.report.scores import Settings, families
from regtune.rows.reading import language_of_set
from regtune.stats.comparison import Comparison, shown, shown_difference, shown_interval
from regtune.tables import Column, Table

TITLE = "Best N by language"
CANNOT_TELL = "can't tell"
NOTE = (
    "Intervals are simultaneous 95 % intervals of the difference to N = 0, corrected over all N and all sets of the "
    "table. An N is called best where its interval lies above 0 (the largest of several such differences); 0 where "
    "every N is worse or equivalent; otherwise these runs can't tell. Numbers beside it are those of the N with the "
    "largest difference, which is flattered by being chosen."
)


def languages_table(group: Group, baseline: Arm, metric: Metric, settings: Settings) -> Block | None:
    """A row for each set of a known language; None where there are fewer than two languages, or no registers."""
    names = [name for name, source in group.sources.items() if group.language(name) and not split_name(source)[0]]
    arms = [arm for arm in group.arms if arm.kind == REGISTERS]
    if len({group.language(name) for name in names}) < 2 or not arms:
        return None
    compared = families(group, baseline, arms, names, metric, settings)
    learnt = _languages_of(group)
    rows: list[tuple[Any, ...]] = []
    for name in names:
        found = compared[name].comparisons
        if not found:
            continue
        best, largest = best_of(found)
        result = found[largest]
        seen = "" if not learnt else "in training" if group.language(name) in learnt else "zero-shot"
        rows.append(
            (
                name,
                group.language(name),
                seen,
                group.mean(baseline, name, metric),
                best,
                largest.num_registers,
                result.difference,
                result.simultaneous_interval,
                f"{result.seeds} × {result.examples:,}",
            )
        )
    notes = dict.fromkeys(note for family in compared.values() for note in family.notes)
    return Block(
        kind="table",
        name=f"languages-{metric.name}",
        title=f"{metric.title}: the best N by language",
        columns=(
            "set",
            Column("language", align="left"),
            Column("its language is", align="left"),
            Column("N = 0", partial(shown, metric)),
            Column("best N", align="left", strong=True),
            "largest at N",
            Column("difference", partial(shown_difference, metric)),
            Column("95 % interval", partial(shown_interval, metric)),
            f"seeds × {group.task.examples}",
        ),
        rows=tuple(rows),
        text="\n".join((NOTE, *notes)),
    )


def side_by_side(tables: Mapping[str, Table]) -> Block | None:
    """What `languages_table` says of several training sets, a column each; None where there are fewer than two.

    Args:
        tables: title of a training set to its table.
    """
    if len(tables) < 2:
        return None
    found = {title: {row[0]: row for row in table.cells} for title, table in tables.items()}
    names = {row[0]: row[1] for table in tables.values() for row in table.cells}
    rows = [(name, names[name], *(_said(rows.get(name)) for rows in found.values())) for name in names]
    return Block(
        kind="table",
        name="languages",
        title="N = 0 and the best N, by language and by what was trained on",
        columns=("set", Column("language", align="left"), *(Column(title, align="left") for title in found)),
        rows=tuple(rows),
        text="Behind the score without registers: the best N; in brackets the N with the largest difference, and that "
        "difference with its simultaneous 95 % interval. Corrected column by column.",
    )


def _said(row: Sequence[str] | None) -> str:
    if row is None:
        return ""
    _, _, seen, plain, best, largest, difference, interval, _ = row
    return f"{plain}; {best} (N = {largest}: {difference}, {interval})" + (f", {seen}" if seen else "")


def best_of(compared: Mapping[Arm, Comparison]) -> tuple[str, Arm]:
    """The best number of registers in words, and the arm with the largest gain.

    Args:
        compared: arms with registers against the one without, corrected together; at least one.
    """
    helping = [arm for arm, one in compared.items() if one.gains[0] > 0]
    largest = max(helping or compared, key=lambda arm: compared[arm].gain)
    if helping:
        return str(largest.num_registers), largest
    none_better = all(one.gains[1] < 0 or one.verdict == "equivalent" for one in compared.values())
    return "0" if none_better else CANNOT_TELL, largest


def _languages_of(group: Group) -> set[str]:
    """Languages of the training sets; none where one is unknown."""
    try:
        found = {language_of_set(group.task, name) for name in group.train}
    except ConfigError:
        return set()
    return set() if "" in found else found
