"""Examples on which one arm is right and the other wrong, by the majority of the seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np

from regtune.errors import RegtuneError
from regtune.interfaces import Block
from regtune.recipes import config_from_dict, settings_of
from regtune.records import RUN_FILE, set_name
from regtune.registry import TASKS
from regtune.report.arms import Arm
from regtune.report.collect import Cell, Group
from regtune.rows.reading import files_of, read_sets
from regtune.tables import Column

Texts = Mapping[str, tuple[str, tuple[str, ...]]]
"""Example id to its text and what is right."""
SHOWN = 20
"""Of each kind, on a page."""
NOT_KEPT = "(text not kept)"
"""Exported records leave out the predictions of large sets."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """What one arm said of an example: its most frequent prediction, and on how many seeds it was right."""

    text: str
    right: int
    seeds: int

    def __str__(self) -> str:
        return f"{self.text or '(nothing)'} ({self.right}/{self.seeds} right)"


@dataclass(frozen=True, kw_only=True)
class Flip:
    """An example on which the majority of the seeds changes between right and wrong."""

    id: str
    before: Side
    after: Side

    @property
    def gained(self) -> bool:
        """Wrong before, right after."""
        return self.after.right > self.before.right


@dataclass(frozen=True, kw_only=True)
class Flips:
    """All flips between two arms on one evaluation set, the clearest first."""

    before: str
    after: str
    name: str
    gained: tuple[Flip, ...]
    """Wrong in the first arm, right in the second."""
    lost: tuple[Flip, ...]
    """Right in the first arm, wrong in the second."""
    examples: int


def find_flips(before: Sequence[Cell], after: Sequence[Cell], name: str) -> Flips | None:
    """Compares the majorities of two arms; a tie between the seeds is neither right nor wrong and never a flip.

    Returns:
        None where there are no runs on the same examples, or the task has no right and wrong.
    """
    runs = [[cell.scored[name] for cell in cells if name in cell.scored] for cells in (before, after)]
    first = next(iter(runs[0]), None)
    if first is None or not runs[1]:
        return None
    if any(run.right is None or run.place.keys() != first.place.keys() for side in runs for run in side):
        return None
    orders = [[run.rows(first) for run in side] for side in runs]
    right = [
        np.sum([np.asarray(run.right)[rows] for run, rows in zip(*each, strict=True)], axis=0)
        for each in zip(runs, orders, strict=True)
    ]
    lead = [2 * count - len(side) for count, side in zip(right, runs, strict=True)]
    kept = all(any(run.said) for side in runs for run in side)
    ids, flips = list(first.place), []
    for place in np.flatnonzero(lead[0] * lead[1] < 0):
        sides = []
        for side, rows, count in zip(runs, orders, right, strict=True):
            said = Counter(run.said[row[place]] for run, row in zip(side, rows, strict=True)).most_common(1)[0][0]
            sides.append(Side(text=said if kept else NOT_KEPT, right=int(count[place]), seeds=len(side)))
        flips.append(Flip(id=ids[place], before=sides[0], after=sides[1]))
    flips.sort(key=lambda flip: -abs(flip.after.right / flip.after.seeds - flip.before.right / flip.before.seeds))
    return Flips(
        before=before[0].arm.label,
        after=after[0].arm.label,
        name=name,
        gained=tuple(flip for flip in flips if flip.gained),
        lost=tuple(flip for flip in flips if not flip.gained),
        examples=len(ids),
    )


def flip_blocks(group: Group, baseline: Arm, named: Arm | None, name: str) -> list[Block]:
    """How many flips each arm has against the baseline, beside what a seed alone changes; those of one arm listed."""
    base, what = group.of(baseline, name), group.task.examples
    others = [arm for arm in group.arms if arm != baseline]
    compared = {arm: flips for arm in others if (flips := find_flips(base, group.of(arm, name), name)) is not None}
    if not compared:
        return []
    rows = []
    for arm, flips in compared.items():
        cells = group.of(arm, name)
        pairs = [(old, new) for old, new in product(base, cells) if old.seed == new.seed]
        own = _disagreement(combinations(cells, 2), name)
        rows.append((arm.label, len(flips.gained), len(flips.lost), _disagreement(pairs, name), own))
    seeds = _disagreement(combinations(base, 2), name)
    alone = "" if seeds is None else f" Two baseline runs that differ in the seed alone differ on {seeds:.1f} %."
    shares = (Column(f"% of {what}, same seed", ".1f"), Column("% between seeds of the arm", ".1f"))
    counts = Block(
        kind="table",
        name="flips",
        title=f"{what.capitalize()} that change between right and wrong on {name}",
        columns=("arm", "won", "lost", *shares),
        rows=tuple(rows),
        text=f"Won and lost: by the majority of the seeds, against the baseline. The last two columns count single "
        f"runs of which one is right and the other wrong.{alone} An arm has an effect on single {what} only where it "
        "changes more than a seed does.",
    )
    if named not in compared:
        return [counts]
    texts = example_texts(base[0], name)
    tables = (listed(compared[named], gained, texts) for gained in (True, False))
    return [counts, *(block for block in tables if block.rows)]


def listed(flips: Flips, gained: bool, texts: Texts) -> Block:
    """A table of the examples that one arm has won, or lost, with what both said."""
    found = flips.gained if gained else flips.lost
    rows = []
    for flip in found[:SHOWN]:
        text, gold = texts.get(flip.id, (flip.id, ()))
        rows.append((text, " · ".join(gold[:3]), str(flip.before), str(flip.after)))
    shown = f", the {SHOWN} clearest" if len(found) > SHOWN else ""
    return Block(
        kind="table",
        name=f"flips-{'won' if gained else 'lost'}",
        title=f"{'Won' if gained else 'Lost'} on {flips.name}: {len(found)}{shown}",
        columns=(
            "example",
            Column("gold", align="left"),
            *(Column(arm, align="left") for arm in (flips.before, flips.after)),
        ),
        rows=tuple(rows),
        text="Each arm's most frequent prediction, with the seeds that were right.",
        folded=True,
    )


def _disagreement(pairs: Iterable[tuple[Cell, Cell]], name: str) -> float | None:
    """Mean percentage of examples that one run of a pair has right and the other wrong; None without pairs."""
    shares = []
    for one, other in pairs:
        old, new = one.scored[name], other.scored[name]
        if old.right is not None and new.right is not None:
            shares.append(100 * np.mean(old.right != new.right[new.rows(old)]))
    return float(np.mean(shares)) if shares else None


def examples_of(cell: Cell, name: str) -> tuple[Any, ...]:
    """The examples of an evaluation set, where its file can still be read; else none.

    Files and embedded sets only: a report never uses the network.
    """
    task, sources = TASKS.get(cell.record.task), cell.settings["data.eval"]
    source = next((source for source in sources if set_name(source) == name), "")
    if not all(Path(plain).is_file() or plain.startswith("embedded:") for plain in files_of(source)):
        return ()
    try:
        settings = settings_of(config_from_dict(cell.record.config, RUN_FILE), task)
        if hasattr(settings, "on_bad_record"):
            settings = replace(settings, on_bad_record="skip")
        return read_sets(task, [source], settings).items
    except RegtuneError:
        return ()


def example_texts(cell: Cell, name: str) -> Texts:
    """Example id to its text and what is right, as far as `examples_of` gives examples."""
    task = TASKS.get(cell.record.task)
    return {str(example.id): task.described(example) for example in examples_of(cell, name)}
