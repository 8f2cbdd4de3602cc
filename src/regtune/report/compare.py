"""Two runs, question by question: what the terminal shows of a paired comparison."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from regtune.errors import ConfigError, DataError
from regtune.report.arms import task_of
from regtune.report.collect import Cell, open_cell
from regtune.report.flips import Flip, Flips, find_flips
from regtune.report.scores import arm_scores
from regtune.report.tasks import reported
from regtune.stats.comparison import Comparison, compare, shown, shown_difference, shown_interval
from regtune.stats.scores import match_arm
from regtune.tables import Table, one_line, probability

_WIDTH = 100


@dataclass(frozen=True, kw_only=True)
class SetComparison:
    """Both runs on one evaluation set."""

    name: str
    results: dict[str, Comparison]
    flips: Flips


@dataclass(frozen=True, kw_only=True)
class RunComparison:
    """Two runs on all their evaluation sets; differences are second minus first."""

    first: Cell
    second: Cell
    sets: tuple[SetComparison, ...]


def compare_two(first: Path, second: Path, *, delta: float | None = None, resamples: int = 10_000) -> RunComparison:
    """Compares two finished runs by a paired bootstrap over questions; seeds are not covered, and the text says so.

    Args:
        first: a run directory.
        second: another one, evaluated on the same sets.
        delta: largest difference that does not matter (0.01 is one point); each metric's own if None.
        resamples: bootstrap draws.

    Raises:
        CheckpointError: no finished run there, one of another schema, or predictions that were changed.
        ConfigError: the same run twice, or a setting out of range.
        DataError: different evaluation sets or examples, or predictions that are broken or contradict their record.
    """
    if first.resolve() == second.resolve():
        raise ConfigError(f"{first} and {second} are the same run; name two different ones.")
    one, other = _cell(first.resolve()), _cell(second.resolve())
    names = list(one.record.predictions)
    different = sorted(set(names) ^ set(other.record.predictions))
    if different:
        raise DataError(
            f"The runs were evaluated on different sets: {first} on {', '.join(names)}; {second} on "
            f"{', '.join(other.record.predictions)}. Score both on the same ones with `regtune evaluate`."
        )
    return RunComparison(
        first=one,
        second=other,
        sets=tuple(_on_set(one, other, name, delta=delta, resamples=resamples) for name in names),
    )


def comparison_text(found: RunComparison, *, shown: int = 5) -> str:
    """The comparison as text; scores in percent, differences in points.

    Args:
        found: what `compare_two` gave.
        shown: flips listed of each kind and set.
    """
    cells = (("A", found.first), ("B", found.second))
    lines = [f"{letter}  {cell.folder}  ({cell.arm.label}, seed {cell.seed})" for letter, cell in cells]
    for part in found.sets:
        lines += ["", *_set_lines(part, shown)]
    return "\n".join(lines)


def _cell(folder: Path) -> Cell:
    cell = open_cell(folder)
    if not cell.record.predictions:
        raise DataError(f"{folder} holds no predictions to compare.")
    return cell


def _on_set(one: Cell, other: Cell, name: str, *, delta: float | None, resamples: int) -> SetComparison:
    results: dict[str, Comparison] = {}
    for metric in reported(task_of(one.record)).metrics:
        base = arm_scores([one], name, metric)
        arm = match_arm(arm_scores([other], name, metric), base, paired=False, partial=False)[0]
        results[metric.name] = compare(base, {"B": arm}, delta=delta, resamples=resamples)[0]
    return SetComparison(name=name, results=results, flips=find_flips([one], [other], name))


def _set_lines(part: SetComparison, most: int) -> list[str]:
    rows: list[tuple[str, ...]] = []
    for result in part.results.values():
        metric = result.metric
        means = (shown(metric, result.baseline_mean), shown(metric, result.arm_mean))
        difference = (shown_difference(metric, result.difference), shown_interval(metric, result.interval))
        rows.append((metric.title, *means, *difference, probability(result.p_value)))
    table = Table(columns=("", "A", "B", "B - A", "95 % interval", "p"), rows=tuple(rows))
    main = next(iter(part.results.values()))
    gained, lost = part.flips.gained, part.flips.lost
    return [
        f"{part.name}, {part.flips.questions:,} questions",
        table.text,
        f"{main.metric.title}: {main.sentence.replace('the baseline', 'A')}",
        f"Flips: {len(gained)} questions wrong in A and right in B, {len(lost)} right in A and wrong in B.",
        *(line for flip in (*gained[:most], *lost[:most]) for line in _flip_lines(flip)),
    ]


def _flip_lines(flip: Flip) -> list[str]:
    kind = "won " if flip.gained else "lost"
    answers = f"        A: {_quoted(flip.before.text)}   B: {_quoted(flip.after.text)}"
    gold = f"   gold: {_quoted(flip.gold[0])}" if flip.gold else ""
    return [f"  {kind}  {_short(f'{flip.id}  {flip.question}'.rstrip())}", answers + gold]


def _quoted(text: str) -> str:
    return f'"{_short(text)}"' if text else "(no answer)"


def _short(text: str) -> str:
    """One line without control characters: an answer must not be able to steer the terminal."""
    text = one_line(text)
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"
