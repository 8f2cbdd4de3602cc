"""The ablation's report and its tables for README and docs, all made from the cells in `docs/results/ablation`.

Arms, numbers of registers, seeds and evaluation sets are those of the records that are found there.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

from regtune.report.collect import Group, Sweep, collect
from regtune.report.page import Report, build_report, write_report
from regtune.report.scores import Settings
from regtune.report.sections import Section
from regtune.tables import escaped

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "results" / "ablation"
PAGE = "docs/results/ablation.md"
MADE = ("tables", "figures")
"""Folders that hold nothing but what is made here."""
LIMIT_BYTES = 20_000_000


def folders() -> dict[str, Path]:
    """What the weights were chosen by, and the cells trained so; those that are there, the fair ones first."""
    both = {"Last epoch": FOLDER.with_name(f"{FOLDER.name}-last"), "Weights chosen on the reported set": FOLDER}
    return {rule: folder for rule, folder in both.items() if (folder / "cells").is_dir()}


def report_files() -> dict[Path, bytes]:
    """Everything that `regtune report` makes of the cells, and where it belongs."""
    made: dict[Path, bytes] = {}
    for folder in folders().values():
        made |= report_of(folder)
    return made


def report_of(folder: Path) -> dict[Path, bytes]:
    """The report of one folder's cells, to lie beside them."""
    with tempfile.TemporaryDirectory() as name, _nowhere():
        place = Path(name) / "report"
        write_report(folder, output=place)
        return {folder / f.relative_to(place): f.read_bytes() for f in place.rglob("*") if f.is_file()}


def stale_files(made: dict[Path, bytes], reported: Iterable[Path]) -> list[Path]:
    """Files that an earlier report left in these folders and that this one doesn't make."""
    return [
        path for folder in reported for kind in MADE for path in sorted((folder / kind).glob("*")) if path not in made
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
        below = Path(name) / "below"  # what lies beside the folder for all temporary files isn't beside it
        below.mkdir()
        os.chdir(below)
        try:
            yield
        finally:
            os.chdir(before)


@cache
def built(folder: Path) -> tuple[Sweep, Report]:
    """The cells below a folder, and their report."""
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
    _, report = built(next(iter(folders().values())))
    return " ".join(escaped(section.headline.sentence) for section in report.results if section.headline)


def arms() -> str:
    """For the page: every arm and control with all that is behind its verdict, on the first set."""
    return _both(lambda folder: _results(folder, "Arms", "Controls"))


def sets() -> str:
    """For the page: all evaluation sets in columns, and the tests behind them."""
    return _both(lambda folder: _results(folder, "Data sets"))


def how() -> str:
    """For the page: cost, search, settings, versions, and the cells that are missing."""
    return _both(lambda folder: f"{_results(folder, 'Cost')}\n\n{tables(built(folder)[1].how)}")


def _verdict(folder: Path) -> str:
    sweep, report = built(folder)
    parts = []
    for group, section in zip(sweep.groups, report.results, strict=True):
        top = section.headline
        assert top is not None
        several = f"#### {escaped(section.title)}\n\n" if len(report.results) > 1 else ""
        parts += [
            f"{several}**{escaped(top.sentence)}**",
            escaped(f"{top.proven} {top.controls}".strip()),
            *(block.table.markdown(0).strip() for block in section.blocks("")),
            _figures(section, folder),
            f"<details><summary>How measured</summary>\n\n{escaped(f'{_runs(group)} {top.basis}')}\n\n</details>",
        ]
    return "\n\n".join(part for part in parts if part)


def _results(folder: Path, *parts: str) -> str:
    return "\n\n".join(tables(section, *parts) for section in built(folder)[1].results)


def tables(section: Section, *parts: str) -> str:
    """The tables of a section, or of some of its parts; the runs are in the report alone."""
    blocks = [block for part in section.parts if not parts or part.title in parts for block in part.blocks]
    made = [block.table.markdown(3) for block in blocks if block.kind == "table" and block.name != "runs"]
    return "\n".join(made).strip()


def _runs(group: Group) -> str:
    """What was run, as found: each arm and how many seeds."""
    found = [f"{arm.label}: {len(group.of(arm))}" for arm in group.arms]
    return f"{len(group.cells)} runs; seeds of each arm: {'; '.join(found)}."


def _figures(section: Section, folder: Path) -> str:
    place, blocks = folder.relative_to(ROOT).as_posix(), section.blocks("Score against the number of registers")
    return " ".join(f"![{escaped(one.title)}]({place}/figures/{one.name}.svg)" for one in blocks)
