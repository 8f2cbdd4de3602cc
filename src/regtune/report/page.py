"""`write_report`: a folder of records -> one HTML page, and its tables and figures as files beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regtune.errors import DataError
from regtune.progress import begin_stage, each, stages
from regtune.records import RUN_FILE, versions
from regtune.report.collect import Sweep, collect
from regtune.report.inspect import InspectSection, has_records, section_of, sections_of
from regtune.report.rendering import environment, write
from regtune.report.result_tables import runs_table, search_table, settings_table, versions_table
from regtune.report.scores import Settings
from regtune.report.sections import Section, make_section, named
from regtune.tables import Column, Table, escaped

PAGE = "report.html"


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that the page shows."""

    title: str
    sections: tuple[Section, ...]
    overview: Table | None = None
    """Tasks, models and training sets in columns, where there are several."""
    search: Table | None = None
    settings: Table | None = None
    versions: Table | None = None
    runs: Table | None = None
    """None, as all that tells of runs, where only an `inspect` folder was found."""
    inspected: tuple[InspectSection, ...] = ()
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
        parts: list[Section | InspectSection] = [*self.sections, *self.inspected]
        first = [] if self.overview is None else [self.overview]
        return first + [t for part in parts for t in part.tables] + [t for t in rest if t is not None]


def write_report(
    folder: Path,
    *,
    output: Path | None = None,
    delta: float | None = None,
    resamples: int = 10_000,
    progress: bool = True,
) -> Path:
    """Writes the page of a sweep (or of one run), and its tables (Markdown, CSV) and figures (SVG) beside it.

    Args:
        folder: a sweep's folder with run directories in it, one run directory, or a folder that holds `inspect` alone.
            What lies in `inspect` folders, of the sweep and of each arm's first run, gets sections of its own.
        output: folder for `report.html`, `tables.md`, `tables/*.csv` and `figures/*.svg`; `report` in `folder` if None.
        delta: largest difference of the main metric that does not matter (0.01 is one point); its own if None.
        resamples: bootstrap draws.
        progress: say on standard error how far it is.

    Returns:
        The page's path.

    Raises:
        DataError: no finished run, or predictions that leave out questions; the message names them.
        MissingExtraError: the `report` extra isn't installed.
        ConfigError: a setting of the statistics is out of range.
    """
    environment()
    with stages(3, shown=progress):
        begin_stage(f"reading the records in {folder}")
        report = _records_alone(folder)
        sweep = None if report is not None else collect(folder)
        begin_stage(f"comparing{_unused(sweep)}")
        if sweep is not None:
            report = build_report(sweep, settings=Settings(delta=delta, resamples=resamples))
        assert report is not None
        begin_stage(f"writing {len(report.tables)} tables, figures and the page")
        return _write(report, output if output is not None else folder / "report")


def _unused(sweep: Sweep | None) -> str:
    """What is left out, of how many, for the terminal; the page lists all of it."""
    if sweep is None or not sweep.skipped:
        return ""
    first, found = sweep.skipped[0], len(sweep.skipped)
    return f"; {found} of {len(sweep.cells) + found} are not used, the first: {first.folder.name}: {first.reason}"


def _write(report: Report, place: Path) -> Path:
    for table in report.tables:
        write(place / "tables" / f"{table.name}.csv", table.csv)
    parts: list[Section | InspectSection] = [*report.sections, *report.inspected]
    for part in parts:
        for figure in part.figures:
            write(place / "figures" / f"{figure.name}.svg", figure.standalone)
    write(place / "tables.md", _markdown(report))
    return write(place / PAGE, page(report))


def build_report(sweep: Sweep, *, settings: Settings) -> Report:
    """Makes every comparison, table and figure of the page."""
    several = len(sweep.groups) > 1
    sections = tuple(
        named(make_section(group, settings), f"-{number}" if several else "")
        for number, group in enumerate(each(sweep.groups, "training sets"), start=1)
    )
    inspected, refused = sections_of(sweep)
    return Report(
        title="Do registers help?" if len(sweep.cells) > 1 else "One run",
        folder=sweep.folder.resolve().name,
        not_begun=sweep.not_begun,
        sections=sections,
        overview=_overview(sections) if several else None,
        search=search_table(sweep.search) if sweep.search else None,
        settings=settings_table(sweep.cells),
        versions=versions_table(sweep.cells),
        runs=runs_table(sweep.groups, sweep.folder.resolve().name),
        skipped=(*((cell.folder.name, cell.reason) for cell in sweep.skipped), *refused),
        inspected=inspected,
        made_with=f"regtune {versions()['regtune']}",
    )


def _overview(sections: Sequence[Section]) -> Table:
    """Arms in rows, sections in columns: the mean, and the difference to the baseline with its verdict."""
    found = [{row[0]: row for row in section.summary.cells} if section.summary else {} for section in sections]
    arms = list(dict.fromkeys(arm for column in found for arm in column))
    rows = [
        (arm, *(". ".join(filter(None, (c[arm][1], c[arm][2], c[arm][4]))) if arm in c else "" for c in found))
        for arm in arms
    ]
    titles = [f"{s.title} ({s.summary.caption})" if s.summary else s.title for s in sections]
    columns = [Column(title, align="left") for title in titles]
    note = "Mean ± SD over seeds; difference to the baseline with its interval; verdict. Corrected column by column."
    return Table(name="overview", caption="All at a glance", columns=("arm", *columns), rows=tuple(rows), notes=(note,))


def _records_alone(folder: Path) -> Report | None:
    """The page of a folder that has measurements of a model and no run; None for any other folder."""
    if not has_records(folder) or any(folder.rglob(RUN_FILE)):
        return None
    section, refused = section_of(folder, folder.resolve().name, "inspect-1")
    if not section.parts:
        raise DataError(f"Nothing in {folder} can be used: " + "; ".join(f"{name}: {why}" for name, why in refused))
    return Report(
        title="Inside one model",
        folder=folder.resolve().name,
        sections=(),
        inspected=(section,),
        skipped=tuple(refused),
        not_begun=(),
        made_with=f"regtune {versions()['regtune']}",
    )


def page(report: Report) -> str:
    """The report as one HTML document that needs nothing else."""
    text: str = environment().get_template("report.html.j2").render(report=report)
    return text


def _markdown(report: Report) -> str:
    parts = [f"# {escaped(report.title)} {escaped(report.folder)}\n"]
    for section in report.sections:
        top = section.headline
        parts += [f"**{escaped(section.title)}**\n", f"{escaped(top.sentence)}\n"]
        parts += [f"{escaped(text)}\n" for text in (top.proven, top.controls, top.basis) if text]
    parts += [table.markdown() for table in report.tables]
    if report.skipped:
        listed = "\n".join(f"- {escaped(name)}: {escaped(reason)}" for name, reason in report.skipped)
        parts.append(f"## Not used\n\n{listed}\n")
    if report.not_begun:
        parts.append(
            "## Planned and not begun\n\n" + "\n".join(f"- {escaped(line)}" for line in report.not_begun) + "\n"
        )
    return "\n".join(parts)
