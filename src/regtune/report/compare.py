"""Two runs, example by example: what the terminal shows of a paired comparison."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from regtune.errors import ConfigError, DataError
from regtune.interfaces import Block, ShownByBlocks
from regtune.registry import TASKS
from regtune.report.collect import Cell, open_cell
from regtune.report.flips import Flip, Flips, Texts, example_texts, find_flips, listed
from regtune.stats.comparison import Comparison, compare, shown, shown_difference, shown_interval
from regtune.sweeps.scored import arm_scores
from regtune.tables import one_line, probability

_WIDTH = 100


@dataclass(frozen=True, kw_only=True)
class SetComparison:
    """Both runs on one evaluation set."""

    name: str
    results: dict[str, Comparison]
    """By metric."""
    flips: Flips | None
    """None where the task has no right and wrong."""


@dataclass(frozen=True, kw_only=True)
class RunComparison(ShownByBlocks):
    """Two runs on all their evaluation sets; differences are second minus first."""

    first: Cell
    second: Cell
    sets: tuple[SetComparison, ...]

    def blocks(self) -> list[Block]:
        """What the runs are, and for each set the scores, what they say, and the examples that flip."""
        found = [Block(kind="text", title="Two runs", text="\n".join(_names(self)))]
        for part in self.sets:
            found.append(_scores_block(part, self.first))
            if part.flips is not None:
                texts = example_texts(self.first, part.name)
                found += [listed(part.flips, gained, texts) for gained in (True, False)]
        return found

    def __repr__(self) -> str:
        return (
            f"<RunComparison of {self.first.folder} and {self.second.folder} on {', '.join(s.name for s in self.sets)}>"
        )

    def __str__(self) -> str:
        return comparison_text(self)


def compare_two(first: Path, second: Path, *, delta: float | None = None, resamples: int = 10_000) -> RunComparison:
    """Compares two finished runs by a paired bootstrap over examples; seeds are not covered, and the text says so.

    Args:
        first: a run directory.
        second: another one, evaluated on the same sets.
        delta: largest difference that does not matter (0.01 is one point); each metric's own if None.
        resamples: bootstrap draws.

    Raises:
        CheckpointError: no finished run there, or one of another schema.
        ConfigError: the same run twice, or a setting out of range.
        DataError: runs of different tasks, other evaluation sets or examples, or predictions that can't be used.
    """
    if first.resolve() == second.resolve():
        raise ConfigError(f"{first} and {second} are the same run; name two different ones.")
    one, other = open_cell(first.resolve()), open_cell(second.resolve())
    if one.record.task != other.record.task:
        raise DataError(f"{first} is a run of the task {one.record.task}, {second} of {other.record.task}.")
    if not one.scored or one.scored.keys() != other.scored.keys():
        sets = [", ".join(cell.scored) or "none" for cell in (one, other)]
        raise DataError(
            f"The runs were evaluated on different sets: {first} on {sets[0]}; {second} on {sets[1]}. Train one "
            "of them again with the other's evaluation sets."
        )
    return RunComparison(
        first=one,
        second=other,
        sets=tuple(_on_set(one, other, name, delta=delta, resamples=resamples) for name in one.scored),
    )


def _on_set(one: Cell, other: Cell, name: str, *, delta: float | None, resamples: int) -> SetComparison:
    runs = {"A": one.scored[name], "B": other.scored[name]}
    results = {}
    for metric in TASKS.get(one.record.task).metrics:
        base, arm = (arm_scores({0: run}, metric, letter) for letter, run in runs.items())
        results[metric.name] = compare(base, {"B": arm}, delta=delta, resamples=resamples)[0]
    return SetComparison(name=name, results=results, flips=find_flips([one], [other], name))


def comparison_text(found: RunComparison, *, flips: int = 5) -> str:
    """The comparison as text; scores and differences as a person reads them."""
    lines = _names(found)
    for part in found.sets:
        lines += ["", *_set_lines(part, found.first, flips)]
    return "\n".join(lines)


def _names(found: RunComparison) -> list[str]:
    cells = (("A", found.first), ("B", found.second))
    return [f"{letter}  {cell.folder}  ({cell.arm.label}, seed {cell.seed})" for letter, cell in cells]


def _scores_block(part: SetComparison, cell: Cell) -> Block:
    examples, main = TASKS.get(cell.record.task).examples, next(iter(part.results.values()))
    rows = []
    for result in part.results.values():
        value, difference = partial(shown, result.metric), partial(shown_difference, result.metric)
        interval, p_value = shown_interval(result.metric, result.interval), probability(result.p_value)
        means = (value(result.baseline_mean), value(result.arm_mean))
        rows.append((result.metric.title, *means, difference(result.difference), interval, p_value))
    return Block(
        kind="table",
        title=f"{part.name}, {main.examples:,} {examples}",
        columns=("", "A", "B", "B - A", "95 % interval", "p"),
        rows=tuple(rows),
        text=f"{main.metric.title}: {main.sentence.replace('the baseline', 'A')}",
    )


def _set_lines(part: SetComparison, cell: Cell, most: int) -> Iterator[str]:
    examples = TASKS.get(cell.record.task).examples
    yield str(_scores_block(part, cell))
    if part.flips is not None:
        gained, lost = part.flips.gained, part.flips.lost
        yield f"Flips: {len(gained)} {examples} wrong in A and right in B, {len(lost)} right in A and wrong in B."
        texts = example_texts(cell, part.name)
        for flip in (*gained[:most], *lost[:most]):
            yield from _flip_lines(flip, texts)


def _flip_lines(flip: Flip, texts: Texts) -> Iterator[str]:
    text, gold = texts.get(flip.id, ("", ()))
    yield f"  {'won ' if flip.gained else 'lost'}  {_short(f'{flip.id}  {text}')}".rstrip()
    right = f"   gold: {_quoted(gold[0])}" if gold else ""
    yield f"        A: {_quoted(flip.before.text)}   B: {_quoted(flip.after.text)}{right}"


def _quoted(text: str) -> str:
    return f'"{_short(text)}"' if text else "(nothing)"


def _short(text: str) -> str:
    """One line without control characters: an answer must not be able to steer the terminal."""
    text = one_line(text)
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"
