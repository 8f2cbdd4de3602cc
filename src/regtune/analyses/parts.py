"""What the parts of `inspect` share: verdicts, intervals, blocks, and how numbers are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from regtune.analyses.pictures import Estimate, data_uri, over_picture, pixels_of
from regtune.interfaces import Batch, Block, Examples, Rows
from regtune.session import Session, spread_over
from regtune.stats.bootstrap import single_run_difference
from regtune.tables import Column

Word = Literal["present", "weak", "absent", "unclear", "not measured"]
ByExample = Mapping[int, float]
"""Index of an example to its number."""
CLASS_WORDS = {
    "content": "content",
    "cls": "[CLS]",
    "sep": "[SEP]",
    "punctuation": "punctuation",
    "question": "question",
    "context": "context",
    "register": "registers",
}
"""What a person calls the classes of tokens."""
SITE_WORDS = {"norm_input": "norm input", "feed_forward": "feed-forward", "block": "block output"}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One known artefact in one model."""

    artefact: str
    verdict: Word
    strength: str
    """How strong, in words and numbers."""
    definition: str
    """What the verdict means, and whose threshold it is."""
    value: float | None = None
    """The number that the threshold is about, at its largest."""
    layer: int | None = None
    """Where that is, from 0; None where it isn't in one layer."""
    site: str | None = None


def graded(value: float, weak: float, present: float) -> Word:
    """The word for a number with two thresholds."""
    return "present" if value >= present else "weak" if value >= weak else "absent"


def mean_interval(values: Float64[np.ndarray, " _"]) -> Estimate:
    """The mean over examples and its 95 % bootstrap interval; none for a single one."""
    mean = float(values.mean())
    if len(values) < 2:
        return Estimate(mean)
    low, high = single_run_difference(values, np.zeros_like(values), resamples=2_000, seed=0).interval(0.95)
    return Estimate(mean, low, high)


def estimate(entry: Any) -> Estimate | None:
    """What a record keeps of an `Estimate`: `value` (or `difference`), `low`, `high`."""
    value = None if entry is None else entry.get("value", entry.get("difference"))
    return None if value is None else Estimate(value, entry["low"], entry["high"])


def with_interval(one: Estimate | None, form: str = ".3f") -> str:
    """A number and its interval."""
    if one is None:
        return ""
    ends = "" if one.low is None or one.high is None else f" ({one.low:{form}} to {one.high:{form}})"
    return f"{one.value:{form}}{ends}"


# Images

_PICTURES = 3
"""Images that are shown of all that are measured."""


def patch_maps(
    session: Session,
    rows: Rows[Any],
    examples: Examples,
    look: Callable[[Session, Batch], Float64[np.ndarray, "_ _ _"]],
) -> list[dict[str, Any]]:
    """A few images with a number for each patch and layer, as a record keeps them; empty for texts.

    Args:
        session: the model.
        rows: of the examples, one each or more.
        examples: all of them.
        look: gives the numbers of a batch, `[layers, rows, patches]`.
    """
    if rows.pictures is None:
        return []
    alone = rows.one_each()
    chosen = spread_over(len(alone), _PICTURES)
    picked = [alone.rows[index] for index in chosen]
    batch = alone.batch(chosen) | alone.roles(picked)
    values, pictures = look(session, batch), rows.pictures(picked)
    return [
        {
            "id": examples.ids[alone.example[index]],
            "picture": data_uri(pictures[place]),
            "grid": batch["patch_grid"][place].tolist(),
            "values": values[:, place],
        }
        for place, index in enumerate(chosen)
    ]


def picture_blocks(content: Mapping[str, Any], title: str, words: str) -> Iterator[Block]:
    """A figure for each of a record's `pictures` (`patch_maps`): its numbers as heat over it, layer by layer."""
    for one in content.get("pictures", ()):
        values = np.asarray(one["values"], dtype=np.float64).reshape(-1, *one["grid"])
        names = [f"layer {n}" for n in range(len(values))]
        top = np.unravel_index(values.argmax(), values.shape)
        said = f"Largest: {values.max():.3g}, layer {top[0]}, row {top[1]}, column {top[2]}. {words}"
        yield figure(f"{title}: {one['id']}", over_picture(pixels_of(one["picture"]), values, names), said)


# Blocks


def text(title: str, words: str) -> Block:
    """A title and what is said beneath it."""
    return Block(kind="text", title=title, text=words)


def table(title: str, columns: Sequence[str | Column], rows: Iterable[Sequence[Any]], words: str = "") -> Block:
    """A table, and how it is read."""
    return Block(kind="table", title=title, columns=tuple(columns), rows=tuple(map(tuple, rows)), text=words)


def figure(title: str, draw: Callable[[Any], None], words: str) -> Block:
    """A drawing on matplotlib axes, and what it shows."""
    return Block(kind="figure", title=title, draw=draw, text=words)


def verdict_blocks(found: Sequence[Mapping[str, Any]]) -> Iterator[Block]:
    """A table of verdicts, and what they mean."""
    if found:
        yield table(
            "Known artefacts",
            ("artefact", "verdict", "strongest in", "how strong"),
            [(v["artefact"], v["verdict"], _where(v), v["strength"]) for v in found],
            "\n".join(f"{v['artefact']}: {v['definition']}" for v in found),
        )


def _where(verdict: Mapping[str, Any]) -> str:
    if verdict["layer"] is None:
        return ""
    return f"layer {verdict['layer']}" + (f", {SITE_WORDS[verdict['site']]}" if verdict["site"] else "")
