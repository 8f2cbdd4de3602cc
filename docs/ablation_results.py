"""The ablation's report and its tables for README and docs, all made from the cells in `docs/results/ablation`.

Arms, numbers of registers, seeds and evaluation sets are those of the records that are found there.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from regtune.report.arms import BASELINE, REGISTERS
from regtune.report.collect import Group, Sweep, collect
from regtune.report.families import Settings
from regtune.report.page import Report, build_report, write_report
from regtune.report.sections import Section
from regtune.report.table import Table, escaped

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "results" / "ablation"
SEARCH = ROOT / "benchmarks" / "results" / "learning_rate_search.json"
PAGE = "docs/results/ablation.md"
MADE = ("tables", "figures")
"""Folders that hold nothing but what is made here."""
LIMIT_BYTES = 20_000_000


def copy_search() -> tuple[Path, bytes]:
    """The search for learning rates that the recipe's rates come from; the report shows it when it lies beside it."""
    return FOLDER / SEARCH.name, SEARCH.read_bytes()


def report_files() -> dict[Path, bytes]:
    """Everything that `regtune report` makes of the cells, and where it belongs."""
    with tempfile.TemporaryDirectory() as name, _nowhere():
        place = Path(name) / "report"
        write_report(FOLDER, output=place)
        return {FOLDER / path.relative_to(place): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def stale_files(made: dict[Path, bytes]) -> list[Path]:
    """Files that an earlier report left and that this one doesn't make."""
    return [path for folder in MADE for path in sorted((FOLDER / folder).glob("*")) if path not in made]


@contextlib.contextmanager
def _nowhere() -> Iterator[None]:
    """An empty current directory: recipes name data by relative paths, and questions are not ours to publish."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        try:
            yield
        finally:
            os.chdir(before)


@cache
def _built() -> tuple[Sweep, Report]:
    with _nowhere():
        sweep = collect(FOLDER)
        return sweep, build_report(sweep, settings=Settings())


def verdict() -> str:
    """For the README: the verdict, each N with its interval, and the same on every other set."""
    sweep, report = _built()
    parts = []
    for group, section in zip(sweep.groups, report.sections, strict=True):
        top = section.headline
        several = f"### {escaped(section.title)}\n\n" if len(report.sections) > 1 else ""
        parts += [f"{several}**{escaped(top.sentence)}**", escaped(f"{_runs(group)} {top.controls}".strip())]
        parts += [
            _figures(section),
            _by_number(section),
            _by_set(section),
            f"<sub>{escaped(f'{top.basis} {_sources(section)}')}</sub>",
        ]
    return "\n\n".join(part for part in parts if part)


def sentence() -> str:
    """The verdict alone."""
    return " ".join(escaped(section.headline.sentence) for section in _built()[1].sections)


def arms() -> str:
    """For the page: every arm and control with all that its verdict rests on, on the first set."""
    tables = [table for section in _built()[1].sections for table in (*section.arms, *section.controls)]
    return _pages(tables)


def sets() -> str:
    """For the page: all evaluation sets in columns, and the tests behind them."""
    tables = [table for section in _built()[1].sections for table in (*section.sets, *section.set_details)]
    return _pages(tables)


def how() -> str:
    """For the page: search, settings, versions, cost, and the cells that are missing."""
    _, report = _built()
    costs = [section.cost for section in report.sections]
    made = _pages([table for table in (*costs, report.search, report.settings, report.versions) if table is not None])
    missing = [f"- {escaped(f'{name}: {reason}')}" for name, reason in report.skipped]
    missing += [f"- planned, not begun: {escaped(line)}" for line in report.not_begun]
    return made + ("\n\n### Not in these tables\n\n" + "\n".join(missing) if missing else "")


def _runs(group: Group) -> str:
    """What was run, as found: each arm and how many seeds."""
    found = [f"{arm.label}: {len(group.of(arm))}" for arm in group.arms]
    return f"{len(group.cells)} runs; seeds of each arm: {'; '.join(found)}."


def _sources(section: Section) -> str:
    """The file behind each evaluation set."""
    return next((note for table in section.sets for note in table.notes if note.startswith("The sets: ")), "")


def _figures(section: Section) -> str:
    place = FOLDER.relative_to(ROOT).as_posix()
    return " ".join(f"![{escaped(one.title)}]({place}/figures/{one.name}.svg)" for one in section.score_figures)


def _by_number(section: Section) -> str:
    """Each N: mean and standard deviation over seeds, difference to N = 0 with its interval, corrected p, verdict."""
    rows = [_registers(table) for table in section.arms]
    if not rows or not rows[0]:
        return ""
    columns = ["mean ± SD", "difference to N = 0 (95 %)", "p, Holm", "verdict"]
    header = ["N", "seeds", *(f"{metric}: {column}" for metric in ("F1", "EM") for column in columns)]
    lines = []
    for label in rows[0]:
        cells = [_number(label), rows[0][label]["seeds"]]
        for found in rows:
            row = found[label]
            spread = f"{row['mean']} ± {row['seed SD (95 % interval)'].partition(' ')[0]}"
            cells += [spread, _difference(row), row["p, Holm"], row["verdict"]]
        lines.append(cells)
    return _markdown(header, lines)


def _by_set(section: Section) -> str:
    """F1's difference to N = 0 on every evaluation set."""
    tables = [section.arms[0], *section.set_details] if section.arms else []
    found = {table.title.removeprefix("F1 on ").partition(":")[0]: _registers(table) for table in tables}
    labels = [
        label for label in dict.fromkeys(label for rows in found.values() for label in rows) if _number(label) != "0"
    ]
    if len(found) < 2 or not labels:
        return ""
    lines = [
        [
            _number(label),
            *(
                f"{_difference(rows[label])} {rows[label]['verdict']}" if label in rows else ""
                for rows in found.values()
            ),
        ]
        for label in labels
    ]
    return _markdown(["N", *(f"{name}: F1 difference" for name in found)], lines)


def _registers(table: Table) -> dict[str, dict[str, str]]:
    """Rows of the baseline and the registers, by their label."""
    rows = (dict(zip(table.header, row, strict=True)) for row in table.rows)
    return {row["arm"]: row for row in rows if row["arm"].partition(",")[0].partition(" (")[0] in (BASELINE, REGISTERS)}


def _number(label: str) -> str:
    return label.partition("N = ")[2] or "0"


def _difference(row: dict[str, str]) -> str:
    return f"{row['difference']} ({row['95 % interval']})" if row["difference"] else ""


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|--:" * len(header) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(escaped, row)) + " |" for row in rows])


def _pages(tables: list[Table]) -> str:
    return "\n".join(table.markdown.replace("## ", "### ", 1) for table in tables).strip()
