"""Questions that one arm answers rightly and the other wrongly, by the majority of the seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import numpy as np

from regtune.errors import RegtuneError
from regtune.report.arms import Arm, filled
from regtune.report.arms import set_name as short_name
from regtune.report.collect import Cell, Group
from regtune.stats.scores import some
from regtune.sweeps.answers import Answer
from regtune.tables import Table

SHOWN = 40
NOT_KEPT = "(text not kept)"
"""Exported records leave out the answers to large sets."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """What one arm said to a question: its most frequent answer, and on how many seeds it was right."""

    text: str
    f1: float
    right: int
    seeds: int


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A question on which the majority of the seeds changes between right and wrong."""

    id: str
    before: Side
    after: Side
    question: str = ""
    gold: tuple[str, ...] = ()

    @property
    def gained(self) -> bool:
        """Wrong before, right after."""
        return self.after.right > self.before.right


@dataclass(frozen=True, kw_only=True)
class Flips:
    """All flips between two arms on one evaluation set, the clearest first."""

    before: str
    after: str
    set_name: str
    flips: tuple[Flip, ...]
    questions: int

    @property
    def gained(self) -> list[Flip]:
        """Wrong in the first arm, right in the second."""
        return [flip for flip in self.flips if flip.gained]

    @property
    def lost(self) -> list[Flip]:
        """Right in the first arm, wrong in the second."""
        return [flip for flip in self.flips if not flip.gained]

    @property
    def shown_gained(self) -> list[Flip]:
        """Of those won, as many as a page can hold beside those lost."""
        return self.gained[: max(SHOWN // 2, SHOWN - len(self.lost))]

    @property
    def shown_lost(self) -> list[Flip]:
        """Of those lost, what room is left."""
        return self.lost[: SHOWN - len(self.shown_gained)]

    @property
    def shown(self) -> list[Flip]:
        """Both."""
        return [*self.shown_gained, *self.shown_lost]


def find_flips(before: Sequence[Cell], after: Sequence[Cell], set_name: str) -> Flips:
    """Compares the majorities of two arms; a tie between the seeds is neither right nor wrong and never a flip.

    Args:
        before: the runs of one arm.
        after: the runs of the other.
        set_name: the evaluation set; questions that both answered count.
    """
    first, second = ([cell.answers(set_name) for cell in cells] for cells in (before, after))
    texts = question_texts(before[0], set_name)
    shared = [name for name in first[0] if all(name in found for found in (*first, *second))]
    kept = all(any(answer.text for answer in found.values()) for found in (*first, *second))
    flips = []
    for name in shared:
        old, new = _side([found[name] for found in first], kept), _side([found[name] for found in second], kept)
        if _majority(old) and _majority(new) and _majority(old) != _majority(new):
            question, gold = texts.get(name, ("", ()))
            flips.append(Flip(id=name, before=old, after=new, question=question, gold=gold))
    flips.sort(key=lambda flip: -abs(flip.after.right / flip.after.seeds - flip.before.right / flip.before.seeds))
    return Flips(
        before=before[0].arm.label,
        after=after[0].arm.label,
        set_name=set_name,
        flips=tuple(flips),
        questions=len(shared),
    )


def flips_table(group: Group, baseline: Arm, set_name: str) -> Table | None:
    """For each arm: questions won and lost against the baseline, beside what a change of the seed alone does."""
    cells = {arm: [cell for cell in group.of(arm) if set_name in cell.record.predictions] for arm in group.arms}
    base = cells.pop(baseline, [])
    known = base[0].answers(set_name).keys() if base else set()
    compared = [(arm, found) for arm, found in cells.items() if found and found[0].answers(set_name).keys() == known]
    if not base or not compared:
        return None
    rows = []
    for arm, found in compared:
        flips = find_flips(base, found, set_name)
        pairs = [(old, new) for old in base for new in found if old.seed == new.seed]
        own = disagreement(combinations(found, 2), set_name)
        rows.append(
            (
                arm.label,
                str(len(flips.gained)),
                str(len(flips.lost)),
                _share(disagreement(pairs, set_name)),
                _share(own),
            )
        )
    seeds = disagreement(combinations(base, 2), set_name)
    alone = (
        f" Two baseline runs that differ in the seed alone differ on {_share(seeds)} %." if seeds is not None else ""
    )
    return Table(
        name="flips",
        caption=f"Questions that change between right and wrong on {set_name}",
        columns=("arm", "won", "lost", "% of questions, same seed", "% between seeds of the arm"),
        rows=tuple(rows),
        notes=(
            "Right means exact match. Won and lost: by the majority of the seeds, against the baseline. The last two "
            f"columns count single runs that are right in one and wrong in the other.{alone} An arm has an effect on "
            "single questions only where it changes more than a seed does.",
        ),
    )


def disagreement(pairs: Iterable[tuple[Cell, Cell]], set_name: str) -> float | None:
    """Mean share of questions that one run of a pair has right and the other wrong; None without pairs.

    Both runs of a pair answered the same questions.
    """
    shares = []
    for one, other in pairs:
        old, new = one.answers(set_name), other.answers(set_name)
        shares.append(np.mean(old.right != new.right[new.like(old)]))
    return float(np.mean(shares)) if shares else None


def shown_table(flips: Flips) -> Table:
    """The clearest flips with both answers."""
    rows = tuple(
        (
            "won" if flip.gained else "lost",
            flip.question or flip.id,
            some(flip.gold, 3),
            _answer(flip.before),
            _answer(flip.after),
        )
        for flip in flips.shown
    )
    more = len(flips.flips) - len(rows)
    return Table(
        name="flipped-questions",
        caption=f"Flips on {flips.set_name}: {flips.before} → {flips.after}",
        columns=("", "question", "gold", flips.before, flips.after),
        rows=rows,
        notes=(
            f"{len(flips.gained)} won, {len(flips.lost)} lost of {flips.questions:,} questions"
            f"{f'; the {len(rows)} clearest are shown' if more > 0 else ''}. Each arm's most frequent answer, with the "
            "seeds that were right and the mean F1 in percent.",
        ),
    )


def question_texts(cell: Cell, set_name: str) -> Mapping[str, tuple[str, tuple[str, ...]]]:
    """Question id to its text and gold answers, where the set's file can still be read; else empty."""
    for source in filled(cell.record.config)["data"]["eval"]:
        if short_name(source) == set_name:
            return _texts(source)
    return {}


@lru_cache(maxsize=32)
def _texts(source: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Files and embedded sets only: a report never uses the network."""
    from regtune.tasks.qa.data.sources import load_questions

    if not Path(source).is_file() and not source.startswith("embedded:"):
        return {}
    try:
        examples = load_questions([source], on_bad_record="skip", for_training=False).items
    except RegtuneError:
        return {}
    return {e.id: (e.question, tuple(dict.fromkeys(answer.text for answer in e.answers))) for e in examples}


def _side(found: Sequence[Answer], kept: bool) -> Side:
    (text, _), *_ = Counter(answer.text for answer in found).most_common(1)
    return Side(
        text=text if kept else NOT_KEPT,
        f1=float(np.mean([answer.score for answer in found])),
        right=sum(answer.right for answer in found),
        seeds=len(found),
    )


def _majority(side: Side) -> str:
    wrong = side.seeds - side.right
    return "" if wrong == side.right else "right" if side.right > wrong else "wrong"


def _answer(side: Side) -> str:
    right = f"{side.right}/{side.seeds} right, F1 {100 * side.f1:.1f}"
    return f"{side.text or '(no answer)'} ({right})"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
