"""`write_report`: a folder of records -> one HTML page, and its tables and figures as files beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regtune.errors import DataError, MissingExtraError
from regtune.records import versions
from regtune.report.collect import Sweep, collect
from regtune.report.fact_tables import search_table, settings_table, versions_table
from regtune.report.families import Settings
from regtune.report.result_tables import runs_table
from regtune.report.sections import Section, make_section, named
from regtune.report.table import Table, escaped

PAGE = "report.html"


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that the page shows."""

    title: str
    sections: tuple[Section, ...]
    search: Table | None
    settings: Table
    versions: Table
    runs: Table
    skipped: tuple[tuple[str, str], ...]
    """Folder and reason of every cell that is not used."""
    not_begun: tuple[str, ...]
    """Planned cells without a run yet."""
    folder: str
    made_with: str

    @property
    def tables(self) -> list[Table]:
        """All tables, in the page's order."""
        rest = [self.search, self.settings, self.versions, self.runs]
        return [t for section in self.sections for t in section.tables] + [t for t in rest if t is not None]


def write_report(folder: Path, *, output: Path | None = None, delta: float = 0.01, resamples: int = 10_000) -> Path:
    """Writes the page of a sweep (or of one run), and its tables (Markdown, CSV) and figures (SVG) beside it.

    Args:
        folder: a sweep's folder with run directories in it, or one run directory.
        output: folder for `report.html`, `tables.md`, `tables/*.csv` and `figures/*.svg`; `report` in `folder` if None.
        delta: largest difference that does not matter, as a ratio (0.01 is one point).
        resamples: bootstrap draws.

    Returns:
        The page's path.

    Raises:
        DataError: no finished run, or predictions that leave out questions; the message names them.
        MissingExtraError: the `report` extra isn't installed.
        ConfigError: a setting of the statistics is out of range.
    """
    _need_jinja()
    report = build_report(collect(folder), settings=Settings(delta=delta, resamples=resamples))
    place = output if output is not None else folder / "report"
    for table in report.tables:
        _write(place / "tables" / f"{table.name}.csv", table.csv)
    for section in report.sections:
        for figure in section.figures:
            _write(place / "figures" / f"{figure.name}.svg", figure.standalone)
    _write(place / "tables.md", _markdown(report))
    return _write(place / PAGE, page(report))


def build_report(sweep: Sweep, *, settings: Settings) -> Report:
    """Makes every comparison, table and figure of the page."""
    several = len(sweep.groups) > 1
    sections = tuple(
        named(make_section(group, settings), f"-{number}" if several else "")
        for number, group in enumerate(sweep.groups, start=1)
    )
    return Report(
        title="Do registers help?" if len(sweep.cells) > 1 else "One run",
        folder=sweep.folder.resolve().name,
        not_begun=sweep.not_begun,
        sections=sections,
        search=search_table(sweep.search) if sweep.search else None,
        settings=settings_table(sweep.cells),
        versions=versions_table(sweep.cells),
        runs=runs_table(sweep.groups, sweep.folder.resolve().name),
        skipped=tuple((cell.folder.name, cell.reason) for cell in sweep.skipped),
        made_with=f"regtune {versions()['regtune']}",
    )


def page(report: Report) -> str:
    """The report as one HTML document that needs nothing else."""
    environment = _need_jinja()
    text: str = environment.get_template("report.html.j2").render(report=report)
    return text


def _markdown(report: Report) -> str:
    parts = [f"# {escaped(report.title)} {escaped(report.folder)}\n"]
    for section in report.sections:
        top = section.headline
        parts += [f"**{escaped(section.title)}**\n", f"{escaped(top.sentence)}\n"]
        parts += [f"{escaped(text)}\n" for text in (top.controls, top.basis) if text]
    parts += [table.markdown for table in report.tables]
    if report.skipped:
        listed = "\n".join(f"- {escaped(name)}: {escaped(reason)}" for name, reason in report.skipped)
        parts.append(f"## Not used\n\n{listed}\n")
    if report.not_begun:
        parts.append(
            "## Planned and not begun\n\n" + "\n".join(f"- {escaped(line)}" for line in report.not_begun) + "\n"
        )
    return "\n".join(parts)


def _write(path: Path, text: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise DataError(f"{path} can't be written: {error.strerror}. Name another output folder.") from error
    return path


def _need_jinja() -> Any:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("jinja2", "report", "The report") from error
    return Environment(
        loader=PackageLoader("regtune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
