"""The plan of a sweep: what is compared first, how, and by which rules, written down before the first run starts.

A comparison that was named before there was anything to see is corrected for the comparisons that were named with it;
whatever was found among all of them afterwards is corrected for all (Nosek et al. 2018, "The preregistration
revolution"). So a plan says everything that could be chosen afterwards: arm, numbers of registers, training set,
evaluation set, metric, number of seeds, which weights are scored, and the margin of equivalence.

`sweep.json` keeps every version of the plan with its time and how many cells had begun by then. A plan that changes
later is recorded and not refused: refused, it would be changed all the same, by removing a file or taking another
folder, and nobody would see it. What was planned stays the last version from before the first run; the report shows
what became of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from regtune.config import Registers
from regtune.errors import ConfigError
from regtune.typed import Checked, Range

if TYPE_CHECKING:
    from regtune.interfaces import Metric

Weights = Literal["last", "held_out"]


@dataclass(frozen=True, kw_only=True)
class Plan(Checked, section="plan"):
    """One arm at some N against the arm `baseline`, trained on one training set: the first thing to look at."""

    num_registers: tuple[Registers, ...]
    """The N that are compared with the baseline; p and intervals are corrected for so many. 0 is the baseline itself,
    and may be named or not."""
    on: str
    """The evaluation set, by its short name: `en.dev`."""
    metric: str
    """By its name in records: `f1`."""
    seeds: Annotated[int, Range(2, 10**6)]
    """In each arm. With fewer, a look at them is an interim one."""
    weights: Weights
    """Which weights are scored: the last epoch's, or those that score best on held-out training examples."""
    delta: Annotated[float, Range(0, 10**9, above=True)]
    """Largest difference that does not matter, in the metric's own unit (of a ratio, 0.01 is one point)."""
    arm: str = "registers"
    training_set: str = ""
    """Its short name; empty where the sweep has only one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(bool(self.compared) or self.num_registers == (), "num_registers", "names no N but 0. Add one.")
        self.require(len(set(self.num_registers)) == len(self.num_registers), "num_registers", "names an N twice.")

    @property
    def compared(self) -> tuple[int, ...]:
        """The N that are compared with the baseline."""
        return tuple(n for n in self.num_registers if n)

    def words(self, metrics: Sequence[Metric]) -> str:
        """The plan in one line; `metrics` are the task's."""
        from regtune.stats.comparison import shown_margin  # the command line starts without what it imports

        metric = metric_named(self.metric, metrics)
        counts = ", ".join(map(str, self.compared))
        weights = "the last epoch's weights" if self.weights == "last" else "weights chosen on held-out examples"
        where = f", trained on {self.training_set}" if self.training_set else ""
        return (
            f"{self.arm}{f' at N = {counts}' if counts else ''} against baseline{where}, by {metric.title} on {self.on}"
            f"; {self.seeds} seeds in each arm; {weights}; equivalence at {shown_margin(metric, self.delta)}"
        )


@dataclass(frozen=True, kw_only=True)
class PlanVersion:
    """A plan as `sweep.json` keeps it."""

    plan: Plan | None
    """None: the recipe has none any more."""
    written: str
    """When, as ISO 8601 in UTC."""
    begun: int
    """Cells that had begun by then, finished ones among them."""


def planned(versions: Sequence[PlanVersion], starts: Sequence[str] = ()) -> PlanVersion | None:
    """The version that was planned: the last one from before the first run; None if there is none.

    Args:
        versions: in the order in which they were written.
        starts: when the runs that are reported started, a second witness besides `begun`.
    """
    first = min(filter(None, starts), default="")
    early = [one for one in versions if one.begun == 0 and (not first or one.written <= first)]
    return early[-1] if early and early[-1].plan is not None else None


def changes(before: Plan | None, after: Plan | None) -> str:
    """What differs, `num_registers from 8 to 4`; a plan that came or went as a whole is `written` or `withdrawn`."""
    if before is None or after is None:
        return "withdrawn" if after is None else "written"
    pairs = [(one.name, getattr(before, one.name), getattr(after, one.name)) for one in dataclasses.fields(Plan)]
    return ", ".join(f"{name} from {_short(old)} to {_short(new)}" for name, old, new in pairs if old != new)


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value) or "none"


def history(versions: Sequence[PlanVersion], metrics: Sequence[Metric]) -> list[str]:
    """Every version in a line, for the terminal."""
    lines: list[str] = []
    before: Plan | None = None
    for one in versions:
        if before is None and one.plan is not None:
            what = f"Plan: {one.plan.words(metrics)}. Written"
        else:
            what = f"Plan {'withdrawn' if one.plan is None else f'changed ({changes(before, one.plan)})'}"
        cells = "before the first cell" if one.begun == 0 else f"after {_cells(one.begun)} had begun"
        lines.append(f"{what} {one.written}, {cells}.")
        before = one.plan
    return lines


def _cells(count: int) -> str:
    return f"{count} cell{'' if count == 1 else 's'}"


def metric_named(name: str, metrics: Sequence[Metric]) -> Metric:
    """The task's metric of that name."""
    found = next((metric for metric in metrics if metric.name == name), None)
    if found is None:
        known = ", ".join(metric.name for metric in metrics)
        raise ConfigError(f"plan.metric={name!r} is no metric of the task; it has {known}.")
    return found
