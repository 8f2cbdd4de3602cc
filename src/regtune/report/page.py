"""`write_report`: a folder of records -> one HTML page, and its tables and figures as files beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from regtune.errors import DataError
from regtune.interfaces import Block
from regtune.progress import begin_stage, each, stages
from regtune.records import RUN_FILE, file_name, versions
from regtune.report.collect import Sweep, collect
from regtune.report.inspect import Refused, has_records, section_of, sections_of
from regtune.report.languages import TITLE as LANGUAGES
from regtune.report.languages import side_by_side
from regtune.report.rendering import environment, render, write
from regtune.report.result_tables import runs_table, search_table, settings_table, versions_table
from regtune.report.scores import Settings
from regtune.report.sections import Part, Section, make_section
from regtune.tables import Column, escaped

PAGE = "report.html"


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that the page shows."""

    title: str
    folder: str
    sections: tuple[Section, ...]
    """All at a glance where there are several results, the results, what was seen inside models, how it was done."""

    @property
    def results(self) -> list[Section]:
        """The sections that have a verdict."""
        return [section for section in self.sections if section.headline is not None]

    @property
    def how(self) -> Section:
        """Search, settings, versions, runs, and what was not used."""
        return self.sections[-1]


def write_report(
    folder: Path,
    *,
    output: Path | None = None,
    delta: float | None = None,
    resamples: int = 10_000,
    progress: bool = True,
    tell: Callable[[str], None] | None = None,
) -> Path:
    """Writes the page of a sweep (or of one run), and its tables (Markdown, CSV) and figures (SVG) beside it.

    Args:
        folder: a sweep's folder with run directories in it, one run directory, or a folder that holds `inspect` alone.
            What lies in `inspect` folders, of the sweep and of each arm's first run, gets sections of its own.
        output: folder for `report.html`, `tables.md`, `tables/*.csv` and `figures/*.svg`; `report` in `folder` if None.
        delta: largest difference of the main metric that does not matter (0.01 is one point); its own if None.
        resamples: bootstrap draws.
        progress: say on standard error how far it is.
        tell: is called with what became of each plan, a sentence or two, once the page is there.

    Returns:
        The page's path.

    Raises:
        DataError: no finished run; the message names what was found instead.
        MissingExtraError: the `report` extra isn't installed.
        ConfigError: a setting of the statistics is out of range.
    """
    environment()
    place = output if output is not None else folder / "report"
    with stages(3, shown=progress):
        begin_stage(f"reading the records in {folder}")
        report = _records_alone(folder)
        sweep = None if report is not None else collect(folder)
        unused = "" if sweep is None or not sweep.skipped else _unused(sweep)
        begin_stage(f"comparing{unused}")
        if sweep is not None:
            report = build_report(sweep, settings=Settings(delta=delta, resamples=resamples))
        assert report is not None
        begin_stage("writing tables, figures and the page")
        for name, text in draw(report).items():
            write(place / name, text)
    for section in report.results:
        if tell is not None and section.headline is not None and section.headline.planned:
            tell(f"{section.headline.sentence}\n{section.headline.planned}")
    return place / PAGE


def _unused(sweep: Sweep) -> str:
    """What is left out, of how many, for the terminal; the page lists all of it."""
    (name, why), *_ = sweep.skipped
    count = len(sweep.skipped)
    return f"; {count} of {len(sweep.cells) + count} are not used, the first: {name}: {why}"


def build_report(sweep: Sweep, *, settings: Settings) -> Report:
    """Makes every comparison, table and figure of the page."""
    results = tuple(make_section(group, settings) for group in each(sweep.groups, "training sets"))
    inspected, refused = sections_of(sweep)
    folder = sweep.folder.resolve().name
    several = len(sweep.searches) > 1
    searches = [search_table(found, of=name if several else "") for name, found in sweep.searches.items()]
    blocks = (*searches, settings_table(sweep.cells), versions_table(sweep.cells), runs_table(sweep.groups, folder))
    how = _how(blocks, (*sweep.skipped, *refused), sweep.not_begun)
    return Report(
        title="Do registers help?" if len(sweep.cells) > 1 else "One run",
        folder=folder,
        sections=(*((_overview(results),) if len(results) > 1 else ()), *results, *inspected, how),
    )


def _how(blocks: Sequence[Block], skipped: Refused, not_begun: Sequence[str] = ()) -> Section:
    found = [Part(title="", blocks=tuple(blocks))]
    for title, name, columns, rows in (
        ("Not used", "skipped", ("what", Column("why", align="left")), skipped),
        ("Planned and not begun", "not-begun", ("cells",), tuple((line,) for line in not_begun)),
    ):
        block = Block(kind="table", name=name, title=title, columns=columns, rows=rows)
        found.append(Part(title="", blocks=(block,) if rows else ()))
    return Section(title="How it was done", parts=tuple(part for part in found if part.blocks))


def _overview(sections: Sequence[Section]) -> Section:
    """Arms in rows, sections in columns: the mean, and the difference to the baseline with its verdict."""
    tables = [next((block.table for block in section.blocks("")), None) for section in sections]
    found = [{row[0]: row for row in table.cells} if table else {} for table in tables]
    rows = [
        (arm, *(". ".join(filter(None, (c[arm][1], c[arm][2], c[arm][4]))) if arm in c else "" for c in found))
        for arm in dict.fromkeys(arm for column in found for arm in column)
    ]
    titles = [f"{s.title} ({table.caption})" if table else s.title for s, table in zip(sections, tables, strict=True)]
    block = Block(
        kind="table",
        name="overview",
        title="Mean ± SD over seeds; difference to the baseline with its interval; verdict",
        columns=("arm", *(Column(title, align="left") for title in titles)),
        rows=tuple(rows),
        text="Corrected column by column.",
    )
    languages = side_by_side({s.title: found.table for s in sections for found in s.blocks(LANGUAGES)})
    return Section(title="All at a glance", parts=(Part(title="", blocks=tuple(filter(None, (block, languages)))),))


def _records_alone(folder: Path) -> Report | None:
    """The page of a folder that has measurements of a model and no run; None for any other folder."""
    if not has_records(folder) or any(folder.rglob(RUN_FILE)):
        return None
    section, refused = section_of(folder, folder.resolve().name)
    if not section.parts:
        raise DataError(f"Nothing in {folder} can be used: " + "; ".join(f"{name}: {why}" for name, why in refused))
    return Report(title="Inside one model", folder=folder.resolve().name, sections=(section, _how((), refused)))


def draw(report: Report) -> dict[str, str]:
    """The report as one HTML document that needs nothing else, and every table and figure: file name to content."""
    files: dict[str, str] = {}
    sections = []
    for number, section in enumerate(report.sections, start=1):
        suffix = f"-{number}" if section.headline is not None and len(report.results) > 1 else ""
        parts = []
        for part in section.parts:
            blocks = [replace(block, name=f"{block.name}{suffix}") if block.name else block for block in part.blocks]
            html = render(blocks, file_name(f"section-{number}-{part.title.lower()}"), files)
            parts.append((part, html))
        sections.append((section, parts))
    template = environment().get_template("report.html.j2")
    page = template.render(report=report, sections=sections, made_with=f"regtune {versions()['regtune']}")
    return {PAGE: page, "tables.md": _markdown(report), **files}


def _markdown(report: Report) -> str:
    parts = [f"# {escaped(report.title)} {escaped(report.folder)}\n"]
    for section in report.sections:
        top = section.headline
        if top is not None:
            parts += [f"**{escaped(section.title)}**\n"]
            parts += [
                f"{escaped(text)}\n"
                for text in (top.sentence, top.planned, top.proven, top.controls, top.basis)
                if text
            ]
        blocks = (block for part in section.parts for block in part.blocks)
        parts += [block.table.markdown() for block in blocks if block.kind == "table"]
    return "\n".join(parts)
