"""The part `faithfulness`: are explanations true to the model, and do they agree with what people marked?

Each method ranks the tokens of each text; tokens are taken away in that order, and the probability of what the model
said of the whole text is watched (`regtune.analyses.faithfulness.orders`). Raw figures of two models differ for
reasons that have nothing to do with explanations, so they are placed between random orders (0) and the best order known
(1), for as many texts as limits are searched for.

`random` is no single draw but the mean of many random orders; its interval is the spread of *single* draws' means: a
method inside it does no better than one throw of the dice.

Agreement: with the gold answer and its sentence where examples have answers, and with the marked words of reviews in
ERASER's format where a folder is named (the gold class is explained, in every window that holds a marked word; a review
counts once, as the mean of its windows).

Cost, for T texts, M methods, R random orders, F fractions and C points of the curve: at most 2 T (M + R) (F + C) copies
of a text through the model, and for each text with limits at most 2 (n + width · g (g + 1) / 2) for n tokens in g
groups. How many went through is in the record.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool, Float64
from torch import Tensor

from regtune.analyses.attribution.attribute import METHODS
from regtune.analyses.attribution.attribution import Attribution
from regtune.analyses.faithfulness.model import (
    How,
    PerturbableText,
    PerturbedModel,
    explained_target,
    perturbable_texts,
)
from regtune.analyses.faithfulness.orders import (
    CURVE,
    ERASER_FRACTIONS,
    HIGHER_IS_BETTER,
    Grid,
    best_known,
    measure_beam,
    measure_orders,
    normalised,
    orders_of,
    random_orders,
)
from regtune.analyses.faithfulness.rationales import AGREEMENTS, Rationale, agreement, read_rationales, words_to_tokens
from regtune.analyses.outcomes import attributions, some
from regtune.analyses.parts import (
    ByExample,
    estimate,
    figure,
    mean_interval,
    table,
    text,
    with_interval,
)
from regtune.analyses.pictures import Estimate, bars
from regtune.errors import DataError, UnknownNameError, UnsupportedModelError, unknown_name
from regtune.interfaces import Analysis, Batch, Block, Examples, Rows
from regtune.progress import each
from regtune.rows.texts import TextRow, text_rows
from regtune.rows.token_classes import is_content
from regtune.session import Session, by_length, spread_over
from regtune.typed import Checked, Range

Values = Float64[np.ndarray, " _"]
Draws = Float64[np.ndarray, "draws _"]
Marks = Bool[np.ndarray, " tokens"]
Mark = tuple[str, Marks, Marks]
"""What is marked, the marked tokens of a row, and those among which they are looked for."""
_LONG = 128
"""Tokens; longer texts get a coarser curve and fewer limits unless the settings say otherwise."""
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]]*\s+|\n+")
_Count = Annotated[int, Range(1, 1_000_000)]


@dataclass(frozen=True, kw_only=True)
class FaithfulnessSettings(Checked, section="faithfulness"):
    """How explanations are measured: two models can be compared only where all of this is the same."""

    methods: tuple[str, ...] = ("attnlrp", "chefer", "gradient-input", "attention")
    """What is measured, beside random orders: attribution methods by name."""
    how: How = "mask"
    """Write [MASK] over a token, or leave it out (`remove`)."""
    texts: _Count | None = None
    """At most so many examples of the sample, evenly spread; by default 60, or 8 where texts are long."""
    fractions: tuple[float, ...] = ERASER_FRACTIONS
    """Shares of the tokens for comprehensiveness and sufficiency."""
    curve: tuple[float, ...] | None = None
    """Shares of the tokens that are gone along the curves; by default 11 points, or 5 where texts are long."""
    limit_texts: Annotated[int, Range(0, 1_000_000)] | None = None
    """The first so many texts get limits, and with them normalised values; by default 20, or 6 where texts are long."""
    random_draws: Annotated[int, Range(2, 1_000_000)] = 20
    """Random orders of each text."""
    beam_width: _Count = 3
    """Sets kept at each level of the search for the best order."""
    max_groups: _Count | None = None
    """Tokens of longer texts are tied into so many groups for the search; by default 24, or 6 where texts are long."""
    batch_tokens: _Count = 4096
    """Tokens in one forward pass."""
    rationales: Path | None = None
    """A folder of documents with marked words, in ERASER's format; agreement with them is measured too."""
    documents: _Count = 60
    """At most so many of those documents."""
    seed: int = 0
    """Of random orders and of the order of ties."""

    def __post_init__(self) -> None:
        super().__post_init__()
        Grid(fractions=self.fractions, curve=self.curve or CURVE)
        for method in self.methods:
            if method not in METHODS:
                raise unknown_name("attribution method", method, METHODS)

    def fitted(self, lengths: Sequence[int]) -> FaithfulnessSettings:
        """With what isn't set chosen by the texts' median length."""
        long = float(np.median(lengths)) > _LONG
        usual: dict[str, Any] = {
            "texts": 8 if long else 60,
            "curve": (0.0, 0.2, 0.5, 0.8, 1.0) if long else CURVE,
            "limit_texts": 6 if long else 20,
            "max_groups": 6 if long else 24,
        }
        return dataclasses.replace(self, **{n: v for n, v in usual.items() if getattr(self, n) is None})

    @property
    def grid(self) -> Grid:
        """Where the model is asked."""
        return Grid(fractions=self.fractions, curve=self.curve or CURVE)


class FaithfulnessAnalysis(Analysis):
    """Comprehensiveness, sufficiency and deletion of every method, and agreement with marked words."""

    name = "faithfulness"
    title = "Faithfulness of explanations"
    settings = FaithfulnessSettings
    needs = frozenset({"head"})
    by_default = False

    def measure(
        self, session: Session, rows: Rows[Any], examples: Examples, settings: FaithfulnessSettings
    ) -> Mapping[str, Any]:
        """See `Analysis.measure`."""
        if session.modality == "image":
            raise UnsupportedModelError("it takes words away from texts; of images, `explanations` is measured.")
        began = time.perf_counter()
        one_each = rows.one_each()
        settings = settings.fitted(one_each.lengths)
        assert settings.texts is not None
        chosen = spread_over(len(examples), settings.texts)
        run = _Run(session, session.batches(some(one_each, chosen)), examples, settings)
        content = run.measure()
        if settings.rationales is not None:
            content["rationales"] = _reviews(session, settings, run.notes)
        content["facts"]["seconds"] = round(time.perf_counter() - began, 1)
        titles = {name: name.removeprefix("faithfulness.").replace(".", ": ", 1) for name in content["measures"]}
        return {**content, "notes": list(dict.fromkeys(run.notes)), "titles": titles}

    def blocks(self, content: Mapping[str, Any]) -> Iterator[Block]:
        """See `Analysis.blocks`."""
        facts = content["facts"]
        yield text(
            "Are the explanations faithful?",
            f"What the highlighted tokens do when they are taken away or kept alone, over {facts['texts']} texts "
            f"({facts['texts_left_out']} had nothing to take away). Random is the mean of many random orders, its "
            "interval where single ones lie: a method inside it has not been shown to be better than noise. Raw values "
            "of two models can't be compared; normalised ones can. " + " ".join(content["notes"]),
        )
        metrics: dict[str, list[Mapping[str, Any]]] = {}
        for row in [*content["rows"], *content.get("rationales", {}).get("rows", [])]:
            metrics.setdefault(row["metric"], []).append(row)
        for metric, found in metrics.items():
            placed, raw = (
                {row["method"]: one for row in found if (one := estimate(row[kind])) is not None}
                for kind in ("normalised", "raw")
            )
            less = not placed and not all(row["higher_is_better"] for row in found)
            words = (
                "0: random order, 1: best order known" if placed else f"raw value{', less is better' if less else ''}"
            )
            shown = placed or raw
            yield figure(
                metric,
                bars(shown, xlabel=words, falling=not less, marks=(1.0,) if placed else ()),
                "; ".join(f"{method}: {one.value:.3g}" for method, one in shown.items()),
            )
        yield table(
            "Faithfulness of the methods",
            ("metric", "method", "raw (95 %)", "n", "normalised (95 %)", "n normalised"),
            [
                (
                    f"{metric} {'↑' if row['higher_is_better'] else '↓'}",
                    row["method"],
                    with_interval(estimate(row["raw"])),
                    row["n"],
                    with_interval(estimate(row["normalised"])),
                    row["normalised_n"] or None,
                )
                for metric, found in metrics.items()
                for row in found
            ],
            "↑: more is better. n: texts behind each number. Normalised: 0 is a random order, 1 the best known.",
        )
        if content["limits"]:
            yield table(
                "Limits",
                ("metric", "random", "search", "best known"),
                [
                    (metric, *(with_interval(estimate(ends[name])) for name in ("random", "beam", "limit")))
                    for metric, ends in content["limits"].items()
                ],
                "Means over the texts with limits: what random orders reach, what the search found, the best known.",
            )


class _Run:
    """One model, its texts, and what is to be measured."""

    def __init__(
        self, session: Session, batches: list[Batch], examples: Examples, settings: FaithfulnessSettings
    ) -> None:
        self.session, self.batches, self.examples, self.settings = session, batches, examples, settings
        self.notes: list[str] = []
        self.texts = sorted(perturbable_texts(session.model, batches), key=lambda one: one.example)
        self.left_out = sum(len(batch["example"]) for batch in batches) - len(self.texts)
        if not self.texts:
            raise DataError(f"None of the {self.left_out} texts has a token that may be taken away.")
        self.scorer = PerturbedModel(
            session.model,
            self.texts,
            how=settings.how,
            mask_token_id=session.reader.mask_token_id,
            pad_token_id=int(session.reader.pad_token_id or 0),
            batch_tokens=settings.batch_tokens,
        )

    def measure(self) -> dict[str, Any]:
        """The content of the record."""
        settings, grid = self.settings, self.settings.grid
        numbers = [one.example for one in self.texts]
        marks = [list(self._marks(one)) for one in self.texts]
        values: dict[str, Mapping[str, Values]] = {}
        agreed: dict[str, dict[str, dict[Any, float]]] = {}
        curves = {}
        methods = [method for method in settings.methods if method != "random"]  # which has draws of its own
        for method in each(methods, "methods"):
            try:
                attributions = self._attributions(method)
            except UnknownNameError as error:
                self.notes.append(f"{method} is left out: {error}")
                continue
            scores = [owner.scores(one) for owner, one in zip(self.texts, attributions, strict=True)]
            measured = measure_orders(self.scorer, orders_of(scores, seed=settings.seed), grid=grid)
            values[method] = measured.values
            both = {"deletion_morf": measured.morf, "deletion_lerf": measured.lerf}
            curves[method] = {name: probabilities.mean(axis=0).round(6) for name, probabilities in both.items()}
            agreed[method] = _agreements(numbers, marks, attributions)
        orders = random_orders(self.scorer, count=settings.random_draws, seed=settings.seed)
        draws = [measure_orders(self.scorer, one, grid=grid).values for one in each(orders, "random orders")]
        random = {metric: np.stack([draw[metric] for draw in draws]) for metric in HIGHER_IS_BETTER}
        limited = list(range(min(settings.limit_texts or 0, len(numbers))))
        ends = self._limits(values, random, limited)
        rows, measures = _rows(values, random, ends, limited, numbers)
        for method, kinds in agreed.items():
            measures |= {f"faithfulness.{method}.{name}": kinds[name] for name in _scored(kinds)}
        shares: dict[str, list[float]] = {}
        for kind, marked, among in itertools.chain(*marks):
            shares.setdefault(kind, []).append(float(marked[among].mean()))
        right = [
            _is_right(one.label, self.batches[one.place[0]]["labels"][one.place[1]])
            for one in self.texts
            if one.label is not None and "labels" in self.batches[one.place[0]]
        ]
        facts = {"texts": len(numbers), "texts_left_out": self.left_out, "copies": self.scorer.forwarded}
        return {
            "rows": rows + _agreement_rows(agreed),
            "limits": {
                metric: {name: mean_interval(one) for name, one in found.items()} for metric, found in ends.items()
            },
            "curves": curves,
            "curve": grid.curve,
            "facts": facts | ({"accuracy": float(np.mean(right))} if right else {}),
            "prevalence": {kind: float(np.mean(one)) for kind, one in shares.items()},
            "measures": measures,
        }

    def _limits(
        self, values: Mapping[str, Mapping[str, Values]], random: Mapping[str, Draws], limited: Sequence[int]
    ) -> dict[str, dict[str, Values]]:
        """By metric, for each text with limits: the mean of `random` orders, the search (`beam`), the `limit`."""
        settings, found = self.settings, {}
        if len(limited) < 2:
            return {}
        assert settings.max_groups is not None
        searched = measure_beam(
            self.scorer, limited, width=settings.beam_width, max_groups=settings.max_groups, grid=settings.grid
        )
        for metric, beam in searched.items():
            reached = [one[metric][limited] for one in values.values()]
            zero = random[metric][:, limited].mean(axis=0)
            found[metric] = {"random": zero, "beam": beam, "limit": best_known(metric, beam, reached)}
        return found

    def _attributions(self, method: str) -> list[Attribution]:
        """One attribution a text, computed in the batches of like length that there are."""
        found: dict[int, Attribution] = {}
        for index, batch in enumerate(self.batches):
            here = [number for number, one in enumerate(self.texts) if one.place[0] == index]
            if here:
                rows = {name: value[[self.texts[number].place[1] for number in here]] for name, value in batch.items()}
                targets = [self.texts[number].target for number in here]
                found |= dict(zip(here, attributions(self.session, rows, method, self.notes, targets), strict=True))
        return [found[number] for number in range(len(self.texts))]

    def _marks(self, of: PerturbableText) -> Iterator[Mark]:
        """The gold answer and its sentence; nothing where there is none."""
        batch = {name: value[of.place[1]] for name, value in self.batches[of.place[0]].items()}
        if "start_positions" not in batch or int(batch["start_positions"]) < int(batch["context_start"]):
            return
        first, last = int(batch["context_start"]), int(batch["context_end"])
        start, end = int(batch["start_positions"]), int(batch["end_positions"])
        size = len(of.input_ids)
        among = is_content(batch["token_classes"][:size]).numpy().copy()
        among[:first] = False
        answer, sentence = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
        answer[start : end + 1] = True
        offsets = batch["offset_mapping"][first:last].numpy()
        context = self.examples.items[of.example].context
        span = sentence_of(context, int(offsets[start - first, 0]), int(offsets[end - first, 1]))
        sentence[first:last] = words_to_tokens(offsets, [span])
        if (answer & among).any():
            yield "answer", answer, among
            yield "sentence", sentence, among


def _is_right(label: int, gold: Tensor) -> bool:
    """Whether a label is the gold one, or one of the gold ones."""
    return bool(gold[label]) if gold.dim() else label == int(gold)


def _agreements(
    keys: Sequence[Any], marks: Sequence[Sequence[Mark]], attributions: Sequence[Attribution]
) -> dict[str, dict[Any, float]]:
    """Agreement with what is marked: measure to key (of an example, a document) to the mean over its rows."""
    found: dict[str, dict[Any, list[float]]] = {}
    for key, kinds, one in zip(keys, marks, attributions, strict=True):
        for kind, marked, among in kinds:
            if marked[among].any():
                scores = np.asarray(one.relevance, dtype=np.float64)[among]
                for name, value in agreement(scores, marked[among]).items():
                    found.setdefault(f"{kind} {name}", {}).setdefault(key, []).append(value)
    return {name: {key: float(np.mean(one)) for key, one in by_key.items()} for name, by_key in found.items()}


def _scored(agreed: Mapping[str, Any]) -> list[str]:
    """Those of the measures that a method can be better or worse in."""
    return [name for name in agreed if name.rpartition(" ")[2] in AGREEMENTS]


def _agreement_rows(agreed: Mapping[str, Mapping[str, Mapping[Any, float]]]) -> list[dict[str, Any]]:
    return [
        _row(method, name, np.array(list(kinds[name].values()), dtype=np.float64))
        for method, kinds in agreed.items()
        for name in _scored(kinds)
    ]


# From values to rows


def _row(
    method: str, metric: str, values: Values, *, raw: Estimate | None = None, placed: Estimate | None = None, n: int = 0
) -> dict[str, Any]:
    return {
        "method": method,
        "metric": metric,
        "higher_is_better": HIGHER_IS_BETTER.get(metric, True),
        "raw": mean_interval(values) if raw is None else raw,
        "n": len(values),
        "normalised": placed,
        "normalised_n": 0 if placed is None else n,
    }


def _rows(
    values: Mapping[str, Mapping[str, Values]],
    random: Mapping[str, Draws],
    ends: Mapping[str, Mapping[str, Values]],
    limited: list[int],
    numbers: Sequence[int],
) -> tuple[list[dict[str, Any]], dict[str, ByExample]]:
    """A row a method and metric, `random` last, and the numbers by example."""
    rows: list[dict[str, Any]] = []
    measures: dict[str, ByExample] = {}
    for method, metrics in values.items():
        for metric, found in metrics.items():
            named = f"faithfulness.{method}.{metric}"
            measures[named] = dict(zip(numbers, found.tolist(), strict=True))
            placed = None
            if metric in ends:
                placed = normalised(found[limited], ends[metric]["random"], ends[metric]["limit"])
            if placed is not None:
                measures[f"{named}.normalised"] = {numbers[i]: float(v) for i, v in zip(limited, placed, strict=True)}
            estimated = None if placed is None else mean_interval(placed)
            rows.append(_row(method, metric, found, placed=estimated, n=len(limited)))
    for metric, drawn in random.items():
        measures[f"faithfulness.random.{metric}"] = dict(zip(numbers, drawn.mean(axis=0).tolist(), strict=True))
        estimated = None
        if metric in ends:
            zero = ends[metric]["random"].mean()
            gap = float(ends[metric]["limit"].mean() - zero)
            if abs(gap) > 1e-6:
                estimated = _spread((drawn[:, limited].mean(axis=1) - zero) / gap)
        mean, spread = drawn.mean(axis=0), _spread(drawn.mean(axis=1))
        rows.append(_row("random", metric, mean, raw=spread, placed=estimated, n=len(limited)))
    return rows, measures


def _spread(draws: Float64[np.ndarray, " draws"]) -> Estimate:
    """The mean of the draws, and where 95 % of single ones lie."""
    low, high = (float(end) for end in np.quantile(draws, (0.025, 0.975)))
    return Estimate(float(draws.mean()), low, high)


# Marked words


def sentence_of(context: str, start: int, end: int) -> tuple[int, int]:
    """Characters of the sentence, or sentences, that a range of the context lies in; ends are . ! ? and line breaks."""
    breaks = [match.end() for match in _SENTENCE_END.finditer(context)]
    first = max((place for place in breaks if place <= start), default=0)
    return first, min((place for place in breaks if place >= end), default=len(context))


def _reviews(session: Session, settings: FaithfulnessSettings, notes: list[str]) -> dict[str, Any]:
    """Agreement of every method with the marked words, averaged over the windows of each document."""
    assert settings.rationales is not None
    every = read_rationales(settings.rationales, "test")
    documents = [every[index] for index in spread_over(len(every), settings.documents)]
    rows, marks, dropped = review_windows(documents, session.reader, min(session.text_limit or 256, 256))
    if not len(rows):
        raise DataError(f"None of the {len(documents)} documents of {settings.rationales} has a marked word.")
    labels = [_label_of(document, session.model.config.label2id or {}) for document in documents]
    count, batches = int(session.model.config.num_labels), session.batches(rows)
    order = [index for indices in by_length(rows, 16) for index in indices]  # as in the batches
    ids = [documents[rows.example[index]].id for index in order]
    classes = [row for batch in batches for row in batch["token_classes"]]
    marked = [
        [("evidence", marks[index], is_content(row[: len(marks[index])]).numpy())]
        for index, row in zip(order, classes, strict=True)
    ]
    targets = [[explained_target(labels[one], count) for one in batch["example"].tolist()] for batch in batches]
    agreed: dict[str, dict[str, dict[Any, float]]] = {}
    for method in each((*settings.methods, "random"), "methods on reviews"):
        with contextlib.suppress(UnknownNameError):
            pairs = zip(batches, targets, strict=True)
            found = [one for batch, wanted in pairs for one in attributions(session, batch, method, notes, wanted)]
            agreed[method] = _agreements(ids, marked, found)
    prevalence = list(next(iter(agreed.values())).get("evidence prevalence", {}).values())
    return {
        "folder": settings.rationales,
        "documents": len(documents),
        "windows": len(rows),
        "windows_without_evidence": dropped,
        "prevalence": float(np.mean(prevalence)) if prevalence else None,
        "rows": _agreement_rows(agreed),
        "per_document": agreed,
    }


def review_windows(
    documents: Sequence[Rationale], reader: Any, max_length: int
) -> tuple[Rows[TextRow], list[Marks], int]:
    """Windows that hold a marked word, the marked tokens of each, and how many hold none; `example` is the document.

    They don't overlap, from the first word on. Where a cut falls depends on the text alone, never on the evidence.
    """
    every = text_rows([document.text for document in documents], reader, max_length=max_length, windows=True)
    marks = [words_to_tokens(row.offsets, documents[n].spans) for row, n in zip(every.rows, every.example, strict=True)]
    kept = [index for index, one in enumerate(marks) if one.any()]
    return every.only(kept), [marks[index] for index in kept], len(every) - len(kept)


def _label_of(document: Rationale, label2id: Mapping[str, int]) -> int:
    """The class of a document: by the model's own names, else NEG is 0 and POS is 1."""
    named = {str(name).lower(): index for name, index in label2id.items()}
    usual = {"NEG": ("negative", "neg", "0"), "POS": ("positive", "pos", "1")}
    for name in (document.label.lower(), *usual.get(document.label, ())):
        if name in named:
            return int(named[name])
    if document.label not in usual:
        known = ", ".join(map(str, label2id)) or "none"
        raise DataError(f"document {document.id!r} has the class {document.label!r}; the model knows {known}.")
    return int(document.label == "POS")
