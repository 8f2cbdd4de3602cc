"""The ablation's report and its tables for README and docs, all made from the cells in `docs/results/ablation`.

Arms, numbers of registers, seeds and evaluation sets are those of the records that are found there.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from regtune.report.collect import Group, Sweep, collect
from regtune.report.page import Report, build_report, write_report
from regtune.report.scores import Settings
from regtune.report.sections import Section
from regtune.tables import Table, escaped

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "results" / "ablation"
SEARCH = ROOT / "benchmarks" / "results" / "learning_rate_search.json"
PAGE = "docs/results/ablation.md"
MADE = ("tables", "figures")
"""Folders that hold nothing but what is made here."""
LIMIT_BYTES = 20_000_000


def folders() -> dict[str, Path]:
    """What the weights were chosen by, and the cells trained so; those that are there, the fair ones first."""
    both = {"Last epoch": FOLDER.with_name(f"{FOLDER.name}-last"), "Weights chosen on the reported set": FOLDER}
    return {rule: folder for rule, folder in both.items() if (folder / "cells").is_dir()}


def copy_search() -> dict[Path, bytes]:
    """The search for learning rates that the recipe's rates come from; a report shows it when it lies beside it."""
    return {folder / SEARCH.name: SEARCH.read_bytes() for folder in folders().values()}


def report_files() -> dict[Path, bytes]:
    """Everything that `regtune report` makes of the cells, and where it belongs."""
    made: dict[Path, bytes] = {}
    for folder in folders().values():
        with tempfile.TemporaryDirectory() as name, _nowhere():
            place = Path(name) / "report"
            write_report(folder, output=place)
            made |= {folder / f.relative_to(place): f.read_bytes() for f in place.rglob("*") if f.is_file()}
    return made


def stale_files(made: dict[Path, bytes]) -> list[Path]:
    """Files that an earlier report left and that this one doesn't make."""
    return [
        path
        for folder in folders().values()
        for kind in MADE
        for path in sorted((folder / kind).glob("*"))
        if path not in made
    ]


def size() -> int:
    """Bytes of all cells and reports."""
    files = (path for folder in folders().values() for path in folder.rglob("*"))
    return sum(path.stat().st_size for path in files if path.is_file())


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
def _built(folder: Path) -> tuple[Sweep, Report]:
    with _nowhere():
        sweep = collect(folder)
        return sweep, build_report(sweep, settings=Settings())


def _both(block: Callable[[Path], str]) -> str:
    """A block of the fair cells and, below, of those whose weights were chosen on the reported set."""
    found = folders()
    if len(found) == 1:
        return block(FOLDER)
    return "\n\n".join(f"### {rule}\n\n{block(folder)}" for rule, folder in found.items())


def verdict() -> str:
    """For the README: the verdict, a table of six columns and a figure; the small print folded."""
    return _both(_verdict)


def sentence() -> str:
    """The verdict alone, of the fair cells where there are any."""
    _, report = _built(next(iter(folders().values())))
    return " ".join(escaped(section.headline.sentence) for section in report.sections)


def arms() -> str:
    """For the page: every arm and control with all that its verdict rests on, on the first set."""
    return _both(lambda folder: _of_sections(folder, lambda section: (*section.arms, *section.controls)))


def sets() -> str:
    """For the page: all evaluation sets in columns, and the tests behind them."""
    return _both(lambda folder: _of_sections(folder, lambda section: (*section.sets, *section.set_details)))


def how() -> str:
    """For the page: search, settings, versions, cost, and the cells that are missing."""
    return _both(_how)


def _verdict(folder: Path) -> str:
    sweep, report = _built(folder)
    parts = []
    for group, section in zip(sweep.groups, report.sections, strict=True):
        top = section.headline
        several = f"#### {escaped(section.title)}\n\n" if len(report.sections) > 1 else ""
        small = " ".join(filter(None, (_runs(group), top.basis, _sources(section))))
        parts += [
            f"{several}**{escaped(top.sentence)}**",
            escaped(f"{top.proven} {top.controls}".strip()),
            section.summary.markdown(0).strip() if section.summary else "",
            _figures(section, folder),
            f"<details><summary>What this rests on</summary>\n\n{escaped(small)}\n\n</details>",
        ]
    return "\n\n".join(part for part in parts if part)


def _of_sections(folder: Path, of: Callable[[Section], tuple[Table, ...]]) -> str:
    return _pages([table for section in _built(folder)[1].sections for table in of(section)])


def _how(folder: Path) -> str:
    _, report = _built(folder)
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


def _figures(section: Section, folder: Path) -> str:
    place = folder.relative_to(ROOT).as_posix()
    return " ".join(f"![{escaped(one.title)}]({place}/figures/{one.name}.svg)" for one in section.score_figures)


def _pages(tables: list[Table]) -> str:
    return "\n".join(table.markdown(3) for table in tables).strip()
