"""Writes every measured table and figure of README and docs from the committed records; `--check` only compares.

A page holds blocks between `<!-- results:NAME -->` and `<!-- /results -->`; NAME is a function in `BLOCKS` below.
Nobody types a number between them. The ablation's report is made, too (`ablation_results.py`).

    python docs/build_results.py [--check]
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ablation_results as ablation
import inside_results as looks
import numpy as np
import speed_results as speed

from regtune.records import RunRecord, load_record, read_json, read_predictions
from regtune.report.arms import BASELINE, REGISTERS, arm_of
from regtune.stats.comparison import compare
from regtune.stats.scores import ArmScores
from regtune.tables import Column, Table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
CELLS = RESULTS / "minilm-tydiqa-en" / "cells"
BENCHMARKS = ROOT / "benchmarks" / "results"
FIGURE = RESULTS / "minilm-tydiqa-en.svg"
PAGES = (
    ROOT / "README.md",
    RESULTS / "ablation.md",
    RESULTS / "minilm-tydiqa-en.md",
    RESULTS / "speed.md",
    RESULTS / "inside.md",
)
BLOCK = re.compile(r"(<!-- results:(?P<name>[a-z-]+) -->\n).*?(<!-- /results -->)", re.DOTALL)
COUNTS, SEEDS = (0, 8), (0, 1)
DELTA = 0.01
EM, F1 = Column("EM", ".1f"), Column("F1", ".1f")


def runs() -> list[tuple[Path, RunRecord]]:
    """The committed runs of the MiniLM recipe, by number of registers and seed."""
    found = [(path.parent, load_record(path.parent)) for path in CELLS.glob("*/run.json")]
    mine = [
        (folder, record)
        for folder, record in found
        if arm_of(record).kind in (BASELINE, REGISTERS) and registers_of(record) in COUNTS and seed_of(record) in SEEDS
    ]
    return sorted(mine, key=lambda item: (registers_of(item[1]), seed_of(item[1])))


def registers_of(record: RunRecord) -> int:
    """N."""
    return int(record.config["registers"]["num_registers"])


def seed_of(record: RunRecord) -> int:
    """The seed of the new weights and dropout."""
    return int(record.config["training"]["seed"])


def first_set(record: RunRecord) -> str:
    """The evaluation set that chose the best checkpoint: TyDi QA's dev set."""
    return next(iter(record.metrics))


def scores(folder: Path, record: RunRecord, metric: str) -> tuple[list[str], np.ndarray]:
    """Question ids and their scores on the run's first evaluation set."""
    rows = read_predictions(folder, record, first_set(record))
    return [row["id"] for row in rows], np.array([row[metric] for row in rows], dtype=float)


def markdown(columns: tuple[str | Column, ...], rows: list[tuple[Any, ...]]) -> str:
    """A table for a page."""
    return Table(columns=columns, rows=tuple(rows)).markdown().strip()


def table_runs() -> str:
    """Each run of the MiniLM recipe: exact match and F1 with all gold answers, and what it cost."""
    rows = []
    for _, record in runs():
        metrics = record.metrics[first_set(record)]
        training = record.training
        rows.append(
            (
                registers_of(record),
                seed_of(record),
                100 * metrics["exact_match"],
                100 * metrics["f1"],
                record.config["training"]["learning_rate"],
                record.config["training"]["register_learning_rate"] if registers_of(record) else None,
                training["seconds"] / 60,
                training["tokens_per_second"],
                training["peak_memory_bytes"] / 2**30,
            )
        )
    rates = (Column("learning rate", "g"), Column("registers' rate", "g"))
    cost = (Column("minutes", ".1f"), Column("text tokens/s", ",.0f"), Column("peak GiB", ".1f"))
    return markdown(("N", "seed", EM, F1, *rates, *cost), rows)


def comparison(metric: str) -> Any:
    """N = 8 against N = 0, paired by seed, with the corrected multi-bootstrap."""
    arms: dict[int, ArmScores] = {}
    for n in COUNTS:
        mine = [(folder, record) for folder, record in runs() if registers_of(record) == n]
        found = [scores(folder, record, metric) for folder, record in mine]
        arms[n] = ArmScores(
            scores=np.stack([values for _, values in found]),
            name=f"N={n}",
            seeds=tuple(seed_of(record) for _, record in mine),
            examples=tuple(found[0][0]),
        )
    (baseline, *others) = arms.values()
    return compare(baseline, {arm.name: arm for arm in others}, delta=DELTA)[0]


def table_comparison() -> str:
    """The differences with their intervals, and the verdict in words."""
    found = {name: comparison(metric) for name, metric in (("EM", "exact_match"), ("F1", "f1"))}
    rows = [
        (
            name,
            100 * c.baseline_mean,
            100 * c.arm_mean,
            100 * c.difference,
            f"{100 * c.interval[0]:+.1f} to {100 * c.interval[1]:+.1f}",
            c.p_value,
        )
        for name, c in found.items()
    ]
    means = (Column("N = 0", ".1f"), Column("N = 8", ".1f"), Column("difference", "+.1f"))
    table = markdown(("", *means, "95 % interval", Column("p", ".2f")), rows)
    return f"{table}\n\n**F1:** {found['F1'].sentence}"


def table_search() -> str:
    """The learning-rate search: held-out training questions, one epoch a cell."""
    found = read_json(BENCHMARKS / "learning_rate_search.json")
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
    """F1 and EM of every seed, without and with registers, as SVG text."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "regtune", "svg.fonttype": "none", "font.size": 10})
    drawing, axes = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
    for axis, (title, metric) in zip(axes, (("Exact match", "exact_match"), ("F1", "f1")), strict=True):
        points = [(registers_of(record), 100 * record.metrics[first_set(record)][metric]) for _, record in runs()]
        counts = sorted({n for n, _ in points})
        for place, n in enumerate(counts):
            values = [value for found, value in points if found == n]
            axis.plot([place] * len(values), values, "o", color="black" if n == 0 else "#0072b2", markersize=7)
            axis.hlines(np.mean(values), place - 0.2, place + 0.2, color="black", linewidth=1.5)
        axis.set(title=f"{title}, TyDi QA English dev (%)", xlim=(-0.6, len(counts) - 0.4))
        axis.set_xticks(range(len(counts)), [f"N = {n}" for n in counts])
        axis.spines[["top", "right"]].set_visible(False)
    stream = io.StringIO()
    drawing.savefig(stream, format="svg", metadata={"Date": None})
    plt.close(drawing)
    return stream.getvalue()


def table_speed() -> str:
    """What the speed benchmarks found, against what was aimed at."""
    rows = [row for make in speed.SPEED for row in make()]
    return markdown(("question", "found", "aimed at"), rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "runs": table_runs,
    "comparison": table_comparison,
    "search": table_search,
    "speed": table_speed,
    "ablation": ablation.verdict,
    "ablation-arms": ablation.arms,
    "ablation-sets": ablation.sets,
    "ablation-how": ablation.how,
    "inside-claims": looks.claims,
    "inside-tydiqa": lambda: looks.table("tydiqa-en"),
    "inside-squad": lambda: looks.table("squad"),
    "inside-faithfulness": looks.table_faithfulness,
    "inside-registers": looks.table_registers,
    "inside-sentiment": looks.table_sentiment,
}


def build() -> dict[Path, bytes]:
    """Every generated file and its content."""
    made = {FIGURE: figure().encode()} | ablation.report_files()
    for page in PAGES:
        text = BLOCK.sub(lambda m: f"{m[1]}{BLOCKS[m['name']]()}\n{m[3]}", page.read_text(encoding="utf-8"))
        made[page] = text.encode()
    return made


def main() -> int:
    """Writes or compares; 1 if a file differs from the records, or if the ablation has grown too large."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    differing = refresh(ablation.copy_search(), check=check)  # first: the report reads it
    made = build()
    differing += refresh(made, check=check)
    for path in ablation.stale_files(made):
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
