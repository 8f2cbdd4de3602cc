"""The part `explanations`: how concentrated a method's scores are and how they sit on the gold answer; looks, no truth.

One example is explained in full, the first one, so that nobody chose it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from regtune.analyses.attribution.attribute import METHODS
from regtune.analyses.attribution.attribution import Attribution
from regtune.analyses.attribution.explain import explain
from regtune.analyses.outcomes import attributions, some
from regtune.analyses.parts import ByExample, mean_interval, table, with_interval
from regtune.errors import UnknownNameError, unknown_name
from regtune.interfaces import Analysis, Block, Examples, Rows
from regtune.progress import each
from regtune.rows.texts import PlainText
from regtune.rows.token_classes import is_content
from regtune.session import Session, spread_over
from regtune.typed import Checked, Range


@dataclass(frozen=True, kw_only=True)
class ExplanationSettings(Checked, section="explanations"):
    """What is explained how."""

    methods: tuple[str, ...] = ("attnlrp", "chefer", "gradient-input")
    """Integrated gradients would take tens of passes for each example."""
    examples: Annotated[int, Range(1, 1_000_000)] = 24
    """At most so many of the sample, evenly spread."""
    show: bool = True
    """Explain the first example in full, to be drawn on its text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for method in self.methods:
            if method not in METHODS:
                raise unknown_name("attribution method", method, METHODS)


class ExplanationAnalysis(Analysis):
    """Scores of several methods, and one text with them drawn on it."""

    name = "explanations"
    title = "Explanations"
    settings = ExplanationSettings
    needs = frozenset({"head"})

    def measure(
        self, session: Session, rows: Rows[Any], examples: Examples, settings: ExplanationSettings
    ) -> Mapping[str, Any]:
        """See `Analysis.measure`."""
        batches = session.batches(some(rows.one_each(), spread_over(len(examples), settings.examples)))
        measures: dict[str, ByExample] = {}
        notes: list[str] = []
        content, gold = marks_of(batches)
        for method in each(settings.methods, "methods"):
            found: dict[int, Attribution] = {}
            try:
                for batch in batches:
                    found |= zip(batch["example"].tolist(), attributions(session, batch, method, notes), strict=True)
            except UnknownNameError as error:
                notes.append(f"{method} is left out: {error}")
                continue
            measures |= explanation_measures(method, found, content, gold)
        words = {
            "entropy": "entropy of |relevance| (1: spread evenly)",
            "on_gold": "|relevance| on the gold answer",
        }
        parts = {name: name.split(".") for name in measures}
        shown = None
        if settings.show and session.task is not None and not isinstance(examples.items[0], PlainText):
            (first,) = explain(session, examples.items[:1])
            shown = first.to_json()
        return {
            "shown": shown,
            "notes": list(dict.fromkeys(notes)),
            "measures": measures,
            "titles": {name: f"{words[what]}, {method}" for name, (_, method, what) in parts.items()},
        }

    def blocks(self, content: Mapping[str, Any]) -> Iterator[Block]:
        """See `Analysis.blocks`."""
        known = {name: [v for v in values if v is not None] for name, values in content["measures"].items()}
        yield table(
            "How scores are spread",
            ("measure", "mean", "examples"),
            [
                (content["titles"][name], with_interval(mean_interval(np.array(values))), len(values))
                for name, values in known.items()
                if values
            ],
            "Means with 95 % intervals over examples. " + " ".join(content["notes"]),
        )
        if content["shown"] is not None:
            yield Block(kind="figure", title=content["shown"]["question"] or "One text", data=content["shown"])


def marks_of(
    batches: list[dict[str, Tensor]],
) -> tuple[dict[int, Bool[np.ndarray, " _"]], dict[int, Bool[np.ndarray, " _"]]]:
    """For each example which tokens of its row are content, and which are the gold answer's (none without one)."""
    content, gold = {}, {}
    for batch in batches:
        kinds, lengths = is_content(batch["token_classes"]).numpy(), batch["attention_mask"].sum(1).tolist()
        for row, example in enumerate(batch["example"].tolist()):
            content[example] = kinds[row, : lengths[row]]
            marked = np.zeros(lengths[row], dtype=bool)
            if "start_positions" in batch and int(batch["start_positions"][row]) > 0:
                marked[int(batch["start_positions"][row]) : int(batch["end_positions"][row]) + 1] = True
            gold[example] = marked
    return content, gold


def explanation_measures(
    method: str, found: Mapping[int, Attribution], content: Mapping[int, np.ndarray], gold: Mapping[int, np.ndarray]
) -> dict[str, ByExample]:
    """How concentrated a method's scores are over content, and the share on the gold answer (where there is one)."""
    spread, on_gold = {}, {}
    for example, attribution in found.items():
        size = np.abs(attribution.relevance[content[example]])
        shares = size / size.sum() if size.sum() > 0 else np.full(len(size), 1 / max(len(size), 1))
        logs = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
        spread[example] = float(-(shares * logs).sum() / np.log(len(shares))) if len(shares) > 1 else 0.0
        if gold[example].any():
            on_gold[example] = float(shares[gold[example][content[example]]].sum())
    measures: dict[str, ByExample] = {f"explanation.{method}.entropy": spread}
    return measures | ({f"explanation.{method}.on_gold": on_gold} if on_gold else {})
