"""Every task's planned comparison, for README and docs, from the sweeps in `docs/results/tasks`: one folder a recipe.

A folder holds `sweep.json`, `search.json` and `cells`; a task without a finished cell isn't shown yet.
"""

from __future__ import annotations

from pathlib import Path

import ablation_results as ablation

from regtune.tables import Table, escaped

FOLDER = ablation.ROOT / "docs" / "results" / "tasks"
PAGE = "docs/results/tasks.md"
NOT_YET = "No cell is finished yet."


def there() -> bool:
    """Whether there is a finished cell."""
    return any(FOLDER.glob("*/cells/*/run.json"))


def report_files() -> dict[Path, bytes]:
    """The report over all tasks, in columns, and where it belongs."""
    return ablation.report_of(FOLDER) if there() else {}


def verdicts() -> str:
    """For the README: a sentence a task, and every arm of all tasks in one table."""
    if not there():
        return NOT_YET
    sweep, report = ablation.built(FOLDER)
    header: tuple[str, ...] = ()
    rows, sentences = [], []
    for group, section in zip(sweep.groups, report.results, strict=True):
        name, top = group.train_name or group.task.title, section.headline
        for block in section.blocks(""):
            header = header or ("training set", *block.table.header)
            measured = f"{name}, {block.table.caption}" if block.table.caption else name
            rows += [(measured, *row) for row in block.table.cells]
        sentences += [f"- **{escaped(name)}**: {escaped(top.sentence)}"] if top is not None else []
    table = Table(columns=header, rows=tuple(rows)).markdown().strip() if rows else ""
    return "\n".join([*sentences, "", table]).strip()


def details() -> str:
    """For the page: what was planned, every arm with all that is behind its verdict, and the small print."""
    if not there():
        return NOT_YET
    _, report = ablation.built(FOLDER)
    parts = []
    for section in report.results:
        top = section.headline
        said = [] if top is None else [f"**{escaped(top.sentence)}**", escaped(top.planned), escaped(top.basis)]
        parts += [f"### {escaped(section.title)}", *said, ablation.tables(section, "Arms", "Controls", "Data sets")]
    return "\n\n".join(part for part in parts if part)


def how() -> str:
    """For the page: the searches, settings, versions, and the cells that are missing."""
    return ablation.tables(ablation.built(FOLDER)[1].how) if there() else NOT_YET
