"""Writes every measured table and figure of README and docs from the committed records; `--check` only compares.

A page holds blocks between `<!-- results:NAME -->` and `<!-- /results -->`; NAME is a function in `BLOCKS` below.
Nobody types a number between them. The reports of the ablation and of all tasks are made, too.

    python docs/build_results.py [--check]
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import ablation_results as ablation
import inside_results as looks
import questions_results as questions
import registers_picture
import speed_results as speed
import tasks_results as tasks

from regtune.families.listing import list_families
from regtune.methods.listing import list_methods
from regtune.records import read_json
from regtune.report.collect import Group, collect
from regtune.report.rendering import render
from regtune.report.scores import Settings, against_baseline, find_baseline
from regtune.report.sections import score_figure_of
from regtune.tables import Column, Table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
FIGURE = RESULTS / "minilm-tydiqa-en.svg"
PICTURE = ROOT / "docs" / "pictures" / "registers.svg"
PAGES = (
    ROOT / "README.md",
    RESULTS / "ablation.md",
    RESULTS / "minilm-questions.md",
    RESULTS / "minilm-tydiqa-en.md",
    RESULTS / "speed.md",
    RESULTS / "inside.md",
    RESULTS / "tasks.md",
    ROOT / "docs" / "concepts.md",
    ROOT / "docs" / "methods.md",
)
BLOCK = re.compile(r"(<!-- results:(?P<name>[a-z-]+) -->\n).*?(<!-- /results -->)", re.DOTALL)
SET = "en.dev"
"""TyDi QA's dev set, as the runs' records call it."""
EM, F1 = Column("EM", ".1f"), Column("F1", ".1f")


@cache
def runs() -> Group:
    """The committed runs of the MiniLM recipe: N = 0 and N = 8."""
    (group,) = collect(RESULTS / "minilm-tydiqa-en").groups
    return group


def markdown(columns: tuple[str | Column, ...], rows: list[tuple[Any, ...]]) -> str:
    """A table for a page."""
    return Table(columns=columns, rows=tuple(rows)).markdown().strip()


def table_runs() -> str:
    """Each run of the MiniLM recipe: exact match and F1 with all gold answers, and what it cost."""
    rows = []
    for cell in runs().cells:
        metrics, training = cell.record.metrics[SET], cell.record.training
        rows.append(
            (
                cell.arm.num_registers,
                cell.seed,
                100 * metrics["exact_match"],
                100 * metrics["f1"],
                cell.settings["training.learning_rate"],
                cell.settings["training.register_learning_rate"] if cell.arm.num_registers else None,
                training["seconds"] / 60,
                training["tokens_per_second"],
                training["peak_memory_bytes"] / 2**30,
            )
        )
    rates = (Column("learning rate", "g"), Column("registers' rate", "g"))
    cost = (Column("minutes", ".1f"), Column("text tokens/s", ",.0f"), Column("peak GiB", ".1f"))
    return markdown(("N", "seed", EM, F1, *rates, *cost), rows)


@cache
def comparisons() -> dict[str, Any]:
    """N = 8 against N = 0 by each metric, paired by seed, with the corrected multi-bootstrap."""
    group = runs()
    baseline = find_baseline(group)
    assert not isinstance(baseline, str), baseline
    return {metric.name: against_baseline(group, baseline, SET, metric, Settings())[0] for metric in group.metrics}


def table_comparison() -> str:
    """The differences with their intervals, and the verdict in words."""
    found = {name: next(iter(family.comparisons.values())) for name, family in comparisons().items()}
    rows = [
        (
            name,
            100 * c.baseline_mean,
            100 * c.arm_mean,
            100 * c.difference,
            f"{100 * c.interval[0]:+.1f} to {100 * c.interval[1]:+.1f}",
            c.p_value,
        )
        for name, c in (("EM", found["exact_match"]), ("F1", found["f1"]))
    ]
    means = (Column("N = 0", ".1f"), Column("N = 8", ".1f"), Column("difference", "+.1f"))
    table = markdown(("", *means, "95 % interval", Column("p", ".2f")), rows)
    return f"{table}\n\n**F1:** {found['f1'].sentence}"


def table_search() -> str:
    """The learning-rate search: held-out training questions, one epoch a cell."""
    found = read_json(RESULTS / "search.json")
    rows = [
        (
            row["num_registers"],
            row["learning_rate"],
            row["register_learning_rate"],
            100 * row["exact_match"],
            100 * row["f1"],
        )
        for row in found["rows"]
    ]
    return markdown(("N", Column("learning rate", "g"), Column("registers' rate", "g"), EM, F1), rows)


def figure() -> str:
    """F1 of every seed, without and with registers, as SVG text."""
    block = score_figure_of(runs(), comparisons()["f1"], SET, runs().metrics[0])
    files: dict[str, str] = {}
    render([block], "runs", files)
    (text,) = files.values()
    return text


def table_speed() -> str:
    """What the speed benchmarks found, against what was aimed at."""
    rows = [row for make in speed.SPEED for row in make()]
    return markdown(("question", "found", "aimed at"), rows)


def table_unlisted() -> str:
    """What the doctor found on architectures that no family describes (`tests/families/unlisted.py`)."""
    rows = []
    for kind, said in read_json(RESULTS / "unlisted.json")["models"].items():
        why = said.get("reason") or "; ".join(said["broken"])
        reads = {True: "earlier tokens", False: "the whole text"}.get(said.get("causal"))
        joined, left = (said.get(part) for part in ("embeddings", "stack"))
        rows.append((kind, said["result"], said.get("positions"), reads, joined, left, why))
    columns = (
        "`model_type`",
        "registers",
        "positions",
        "a token sees",
        "join behind",
        "leave behind",
        "what doesn't hold",
    )
    return markdown(columns, rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "runs": table_runs,
    "comparison": table_comparison,
    "search": table_search,
    "speed": table_speed,
    "ablation": ablation.verdict,
    "ablation-arms": ablation.arms,
    "ablation-sets": ablation.sets,
    "ablation-how": ablation.how,
    "tasks": tasks.verdicts,
    "tasks-details": tasks.details,
    "tasks-how": tasks.how,
    "inside-claims": looks.claims,
    "inside-tydiqa": lambda: looks.table("tydiqa-en"),
    "inside-squad": lambda: looks.table("squad"),
    "inside-faithfulness": looks.table_faithfulness,
    "inside-registers": looks.table_registers,
    "inside-sentiment": looks.table_sentiment,
    "questions-scores": questions.table_scores,
    "questions-training": questions.table_training,
    "families": lambda: list_families().markdown().strip(),
    "unlisted": table_unlisted,
    "methods": lambda: "\n".join(table.markdown() for table in list_methods()).strip(),
}


def build() -> dict[Path, bytes]:
    """Every generated file and its content."""
    made = {FIGURE: figure().encode(), PICTURE: registers_picture.picture().encode()}
    made |= ablation.report_files() | tasks.report_files()
    for page in PAGES:
        text = BLOCK.sub(lambda m: f"{m[1]}{BLOCKS[m['name']]()}\n{m[3]}", page.read_text(encoding="utf-8"))
        made[page] = text.encode()
    return made


def main() -> int:
    """Writes or compares; 1 if a file differs from the records, or if the ablation has grown too large."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    made = build()
    differing = refresh(made, check=check)
    for path in ablation.stale_files(made, (*ablation.folders().values(), tasks.FOLDER)):
        differing.append(path)
        print(f"{'is not made any more' if check else 'removed'}: {path.relative_to(ROOT)}")
        if not check:
            path.unlink()
    size = ablation.size()
    if size > ablation.LIMIT_BYTES:
        print(f"The ablation's cells and reports hold {size:,} bytes; {ablation.LIMIT_BYTES:,} are allowed.")
        return 1
    return 1 if check and differing else 0


def refresh(made: dict[Path, bytes], *, check: bool) -> list[Path]:
    """Writes the files that differ from what was made, or only names them."""
    differing = [path for path, content in made.items() if not path.is_file() or path.read_bytes() != content]
    for path in differing:
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(made[path])
        print(f"{'differs from the records' if check else 'written'}: {path.relative_to(ROOT)}")
    return differing


if __name__ == "__main__":
    sys.exit(main())
