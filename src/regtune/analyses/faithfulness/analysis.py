"""The part `faithfulness`: are explanations true to the model, and do they agree with what people marked?

Each method ranks the tokens of each text; tokens are taken away in that order, and the probability of what the model
said of the whole text is watched (`regtune.analyses.faithfulness.faithfulness`). Raw figures of two models differ for
reasons that have nothing to do with explanations, so they are placed between random orders (0) and the best order known
(1), for as many texts as limits are searched for (`regtune.analyses.faithfulness.limits`).

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

import dataclasses
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from regtune.analyses.attribution.attribute import METHODS, attribute
from regtune.analyses.attribution.attribution import Attribution
from regtune.analyses.faithfulness.faithfulness import (
    CURVE,
    ERASER_FRACTIONS,
    HIGHER_IS_BETTER,
    Grid,
    measure_orders,
    orders_of,
)
from regtune.analyses.faithfulness.limits import best_known, measure_beam, normalised, random_orders
from regtune.analyses.faithfulness.model import (
    HOWS,
    How,
    PerturbableText,
    PerturbedModel,
    explained_target,
    perturbable_texts,
)
from regtune.analyses.faithfulness.rationales import AGREEMENTS, Rationale, agreement, read_rationales, words_to_tokens
from regtune.analyses.outcomes import some
from regtune.analyses.parts import ByExample, estimate, mean_interval, progress, spread_over, with_interval
from regtune.errors import ConfigError, DataError, UnknownNameError, unknown_name
from regtune.interfaces import Batch, Block, Examples, Need, Rows
from regtune.pictures import Estimate, bars
from regtune.session import Session
from regtune.targets import Target
from regtune.token_classes import is_content, token_classes

Values = Float64[np.ndarray, " _"]
_LONG = 128
"""Tokens; longer texts get a coarser curve and fewer limits unless the settings say otherwise."""
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]]*\s+|\n+")
PUBLISHED_SST2: dict[str, dict[str, float]] = {
    "random": {"deletion": 0.079, "deletion-lerf": 0.083},
    "gradient-input": {"deletion": 0.109, "deletion-lerf": 0.032},
    "attention": {"deletion": 0.095, "deletion-lerf": 0.051},
    "integrated-gradients": {"deletion": 0.125, "deletion-lerf": 0.022},
    "decompx": {"deletion": 0.346, "deletion-lerf": -0.030},
    "beam limit": {"deletion": 0.595, "deletion-lerf": -0.050},
}
"""Raw values for bert-base on SST-2 (arXiv 2408.08137), called comprehensiveness and sufficiency there. The paper (so
its released code) masks tokens one by one and averages over *every* step, which here are the two areas."""


@dataclass(frozen=True, kw_only=True)
class FaithfulnessSettings:
    """How explanations are measured: two models can be compared only where all of this is the same."""

    methods: tuple[str, ...] = ("attnlrp", "chefer", "gradient-input", "attention")
    """What is measured, beside random orders: attribution methods by name."""
    how: How = "mask"
    """Write [MASK] over a token, or leave it out (`remove`)."""
    texts: int | None = None
    """At most so many examples of the sample, evenly spread; by default 60, or 12 where texts are long."""
    fractions: tuple[float, ...] = ERASER_FRACTIONS
    """Shares of the tokens for comprehensiveness and sufficiency."""
    curve: tuple[float, ...] | None = None
    """Shares of the tokens that are gone along the curves; by default 11 points, or 5 where texts are long."""
    limit_texts: int | None = None
    """The first so many texts get limits, and with them normalised values; by default 20, or 6 where texts are long."""
    random_draws: int = 20
    """Random orders of each text."""
    beam_width: int = 3
    """Sets kept at each level of the search for the best order."""
    max_groups: int | None = None
    """Tokens of longer texts are tied into so many groups for the search; by default 24, or 8 where texts are long."""
    batch_tokens: int = 4096
    """Tokens in one forward pass."""
    rationales: Path | None = None
    """A folder of documents with marked words, in ERASER's format; agreement with them is measured too."""
    documents: int = 60
    """At most so many of those documents."""
    seed: int = 0
    """Of random orders and of the order of ties."""

    def __post_init__(self) -> None:
        Grid(fractions=self.fractions, curve=self.curve or CURVE)
        for method in self.methods:
            if method not in METHODS:
                raise unknown_name("attribution method", method, METHODS)
        if self.how not in HOWS:
            raise unknown_name("way to take tokens away", self.how, HOWS)
        least = {"texts": 1, "limit_texts": 0, "random_draws": 2, "beam_width": 1, "max_groups": 1, "documents": 1}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ConfigError(f"{name}={value} must be at least {smallest}.")

    def fitted(self, lengths: Sequence[int]) -> FaithfulnessSettings:
        """With what isn't set chosen by the texts' median length."""
        long = float(np.median(lengths)) > _LONG
        usual: dict[str, Any] = {
            "texts": 12 if long else 60,
            "curve": (0.0, 0.2, 0.5, 0.8, 1.0) if long else CURVE,
            "limit_texts": 6 if long else 20,
            "max_groups": 8 if long else 24,
        }
        return dataclasses.replace(self, **{n: v for n, v in usual.items() if getattr(self, n) is None})

    @property
    def grid(self) -> Grid:
        """Where the model is asked."""
        return Grid(fractions=self.fractions, curve=self.curve or CURVE)


class FaithfulnessAnalysis:
    """Comprehensiveness, sufficiency and deletion of every method, and agreement with marked words."""

    name: ClassVar[str] = "faithfulness"
    title: ClassVar[str] = "Faithfulness of explanations"
    settings: ClassVar[type] = FaithfulnessSettings
    needs: ClassVar[frozenset[Need]] = frozenset({"head"})

    def measure(
        self, session: Session, rows: Rows[Any], examples: Examples, settings: FaithfulnessSettings
    ) -> Mapping[str, Any]:
        """See `Analysis.measure`.

        Raises:
            DataError: no text has a token that may be taken away, or rationales that can't be read.
            UnsupportedModelError: a head that gives neither classes nor answers.
        """
        began = time.perf_counter()
        one_each = rows.one_each()
        settings = settings.fitted(one_each.lengths)
        assert settings.texts is not None
        chosen = spread_over(len(examples), settings.texts)
        run = _Run(session, session.batches(some(one_each, chosen)), examples, settings)
        content, measures = run.measure()
        if settings.rationales is not None:
            reviews = _reviews(session, settings, run.notes)
            content["rationales"] = reviews
        content["facts"] |= {"seconds": round(time.perf_counter() - began, 1)}
        titles = {name: name.removeprefix("faithfulness.").replace(".", ": ", 1) for name in measures}
        return {
            **content,
            "notes": list(dict.fromkeys(run.notes)),
            "measures": measures,
            "titles": titles,
        }

    def blocks(self, content: Mapping[str, Any]) -> Iterator[Block]:
        """See `Analysis.blocks`."""
        return _blocks(content)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """One row of the batches, with its text."""

    batch: int
    row: int
    text: PerturbableText


class _Run:
    """One model, its texts, and what is to be measured."""

    def __init__(
        self, session: Session, batches: list[Batch], examples: Examples, settings: FaithfulnessSettings
    ) -> None:
        self.session, self.batches, self.examples, self.settings = session, batches, examples, settings
        self.notes: list[str] = []
        self.left_out = 0
        flat = iter(perturbable_texts(session.model, batches))
        places = []
        for index, batch in enumerate(batches):
            for row in range(len(batch["input_ids"])):
                text = next(flat)
                if text is None:
                    self.left_out += 1
                else:
                    places.append(_Place(batch=index, row=row, text=text))
        if not places:
            raise DataError(f"None of the {self.left_out} texts has a token that may be taken away.")
        self.places = sorted(places, key=lambda place: place.text.example)
        self.scorer = PerturbedModel(
            session.model,
            [place.text for place in self.places],
            how=settings.how,
            mask_token_id=session.reader.mask_token_id,
            pad_token_id=int(session.reader.pad_token_id or 0),
            batch_tokens=settings.batch_tokens,
        )

    def measure(self) -> tuple[dict[str, Any], dict[str, ByExample]]:
        """The content of the record, and the numbers by example."""
        settings, grid = self.settings, self.settings.grid
        numbers = [place.text.example for place in self.places]
        values: dict[str, Mapping[str, Values]] = {}
        agreed: dict[str, dict[str, dict[int, float]]] = {}
        curves = {}
        methods = [method for method in settings.methods if method != "random"]  # which has draws of its own
        for method in progress(methods, "faithfulness"):
            try:
                attributions = self._attributions(method)
            except UnknownNameError as error:
                self.notes.append(f"{method} is left out: {error}")
                continue
            scores = [place.text.scores(one) for place, one in zip(self.places, attributions, strict=True)]
            measured = measure_orders(self.scorer, orders_of(scores, seed=settings.seed), grid=grid)
            values[method] = measured.values
            curves[method] = {
                "deletion_morf": measured.curves.deletion_morf.round(6).tolist(),
                "deletion_lerf": measured.curves.deletion_lerf.round(6).tolist(),
            }
            agreed[method] = self._answers(attributions)
        orders = random_orders(self.scorer, count=settings.random_draws, seed=settings.seed)
        draws = [measure_orders(self.scorer, each, grid=grid).values for each in progress(orders, "random orders")]
        random = {metric: np.stack([draw[metric] for draw in draws]) for metric in HIGHER_IS_BETTER}
        limited = list(range(min(settings.limit_texts or 0, len(numbers))))
        beam = self._beam(limited)
        rows, measures = _rows(values, random, beam, limited, numbers)
        for method, kinds in agreed.items():
            for metric, found in kinds.items():
                measures[f"faithfulness.{method}.{metric}"] = found
                rows.append(_row(method, metric, np.array(list(found.values()), dtype=np.float64)))
        prevalence = {name.removeprefix("prevalence."): value for name, value in self._prevalence().items()}
        facts = {"texts": len(numbers), "texts_left_out": self.left_out, "copies": self.scorer.forwarded}
        return {
            "rows": rows,
            "limits": _limits(values, random, beam, limited),
            "curves": curves,
            "curve": list(grid.curve),
            "facts": facts | self._accuracy(),
            "prevalence": prevalence,
            "published": PUBLISHED_SST2 if any("sst" in name.lower() for name in self.examples.names) else {},
        }, measures

    def _beam(self, limited: Sequence[int]) -> Mapping[str, Values]:
        settings = self.settings
        if len(limited) < 2:
            return {}
        assert settings.max_groups is not None
        return measure_beam(
            self.scorer, limited, width=settings.beam_width, max_groups=settings.max_groups, grid=settings.grid
        )

    def _attributions(self, method: str) -> list[Attribution]:
        """One attribution a place, computed in the batches of like length that there are."""
        found: dict[int, Attribution] = {}
        for index, batch in enumerate(self.batches):
            here = [number for number, place in enumerate(self.places) if place.batch == index]
            if here:
                rows = {name: value[[self.places[number].row for number in here]] for name, value in batch.items()}
                targets = [self.places[number].text.target for number in here]
                found |= dict(zip(here, _explained(self.session, rows, targets, method, self.notes), strict=True))
        return [found[number] for number in range(len(self.places))]

    def _answers(self, attributions: Sequence[Attribution]) -> dict[str, dict[int, float]]:
        """Agreement with the gold answer and its sentence, over the context's tokens: measure to example to value."""
        found: dict[str, dict[int, float]] = {}
        for place, one in zip(self.places, attributions, strict=True):
            for kind, marked, among in self._marks(place):
                scores = np.asarray(one.relevance, dtype=np.float64)[among]
                for name, value in agreement(scores, marked[among]).items():
                    if name in AGREEMENTS:
                        found.setdefault(f"{kind} {name}", {})[place.text.example] = value
        return found

    def _marks(self, place: _Place) -> Iterator[tuple[str, Bool[np.ndarray, " tokens"], Bool[np.ndarray, " tokens"]]]:
        """Kind of mark, the marked tokens, and those among which they are looked for; nothing where none is marked."""
        batch, row = self.batches[place.batch], place.row
        if "start_positions" not in batch or int(batch["start_positions"][row]) < int(batch["context_start"][row]):
            return
        first, last = int(batch["context_start"][row]), int(batch["context_end"][row])
        start, end = int(batch["start_positions"][row]), int(batch["end_positions"][row])
        size = len(place.text.input_ids)
        among = is_content(batch["token_classes"][row, :size]).numpy().copy()
        among[:first] = False
        answer, sentence = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
        answer[start : end + 1] = True
        offsets = [tuple(pair) for pair in batch["offset_mapping"][row, first:last].tolist()]
        context = self.examples.items[place.text.example].context
        span = sentence_of(context, offsets[start - first][0], offsets[end - first][1])
        sentence[first:last] = words_to_tokens(offsets, [span])
        if (answer & among).any():
            yield "answer", answer, among
            yield "sentence", sentence, among

    def _prevalence(self) -> dict[str, float]:
        """The share of tokens that are marked, which is what random scores reach."""
        shares: dict[str, list[float]] = {}
        for place in self.places:
            for kind, marked, among in self._marks(place):
                shares.setdefault(kind, []).append(float(marked[among].mean()))
        return {kind: float(np.mean(values)) for kind, values in shares.items()}

    def _accuracy(self) -> dict[str, float]:
        """Share of right predictions among the measured texts, where classes are predicted."""
        pairs = [
            (place.text.label, int(self.batches[place.batch]["labels"][place.row]))
            for place in self.places
            if place.text.label is not None and "labels" in self.batches[place.batch]
        ]
        return {"accuracy": float(np.mean([said == gold for said, gold in pairs]))} if pairs else {}


def _explained(
    session: Session, batch: Batch, targets: Sequence[Target], method: str, notes: list[str]
) -> list[Attribution]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        found = attribute(
            session.model, batch, method=method, target=list(targets), tokenizer=session.reader, on_residual="warn"
        )
    notes.extend(f"{method}: {entry.message}" for entry in caught)
    return found


# From values to rows


def _row(
    method: str,
    metric: str,
    values: Values,
    *,
    raw: Estimate | None = None,
    shares: Estimate | None = None,
    count: int = 0,
) -> dict[str, Any]:
    return {
        "method": method,
        "metric": metric,
        "higher_is_better": HIGHER_IS_BETTER.get(metric, True),
        "raw": (mean_interval(values) if raw is None else raw),
        "n": len(values),
        "normalised": None if shares is None else shares,
        "normalised_n": 0 if shares is None else count,
    }


def _rows(
    values: Mapping[str, Mapping[str, Values]],
    random: Mapping[str, Float64[np.ndarray, "draws _"]],
    beam: Mapping[str, Values],
    limited: list[int],
    numbers: Sequence[int],
) -> tuple[list[dict[str, Any]], dict[str, ByExample]]:
    """A row a method and metric, `random` last, and the numbers by example."""
    rows: list[dict[str, Any]] = []
    measures: dict[str, ByExample] = {}
    for method, metrics in values.items():
        for metric, found in metrics.items():
            measures[f"faithfulness.{method}.{metric}"] = dict(zip(numbers, found.tolist(), strict=True))
            shares = None
            if metric in beam:
                zero, limit = _ends(metric, values, random, beam, limited)
                placed = normalised(found[limited], zero, limit)
                if placed is not None:
                    shares = mean_interval(placed)
                    named = f"faithfulness.{method}.{metric}.normalised"
                    measures[named] = dict(zip([numbers[i] for i in limited], placed.tolist(), strict=True))
            rows.append(_row(method, metric, found, shares=shares, count=len(limited)))
    for metric, drawn in random.items():
        measures[f"faithfulness.random.{metric}"] = dict(zip(numbers, drawn.mean(axis=0).tolist(), strict=True))
        raw, shares = _spread(drawn.mean(axis=1)), None
        if metric in beam:
            zero, limit = _ends(metric, values, random, beam, limited)
            gap = float((limit - zero).mean())
            if abs(gap) > 1e-6:
                shares = _spread((drawn[:, limited].mean(axis=1) - zero.mean()) / gap)
        rows.append(_row("random", metric, drawn.mean(axis=0), raw=raw, shares=shares, count=len(limited)))
    return rows, measures


def _ends(
    metric: str,
    values: Mapping[str, Mapping[str, Values]],
    random: Mapping[str, Float64[np.ndarray, "draws _"]],
    beam: Mapping[str, Values],
    limited: list[int],
) -> tuple[Values, Values]:
    """What random orders reach on average and the best value known, for each text with limits."""
    reached = [found[metric][limited] for found in values.values()]
    return random[metric][:, limited].mean(axis=0), best_known(metric, beam[metric], reached)


def _spread(draws: Float64[np.ndarray, " draws"]) -> Estimate:
    """The mean of the draws, and where 95 % of single ones lie."""
    low, high = (float(end) for end in np.quantile(draws, (0.025, 0.975)))
    return Estimate(float(draws.mean()), low, high)


def _limits(
    values: Mapping[str, Mapping[str, Values]],
    random: Mapping[str, Float64[np.ndarray, "draws _"]],
    beam: Mapping[str, Values],
    limited: list[int],
) -> dict[str, dict[str, Any]]:
    found = {}
    for metric, searched in beam.items():
        zero, limit = _ends(metric, values, random, beam, limited)
        ends = {"random": zero, "beam": searched, "limit": limit}
        found[metric] = {name: mean_interval(each) for name, each in ends.items()}
    return found


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
    windows, dropped = review_windows(documents, session.reader, min(session.text_limit or 256, 256))
    if not windows:
        raise DataError(f"None of the {len(documents)} documents of {settings.rationales} has a marked word.")
    classes = int(session.model.config.num_labels)
    labels = [_label_of(document, session.model.config.label2id or {}) for document in documents]
    order = sorted(windows, key=lambda window: -len(window["input_ids"]))
    values: dict[str, dict[str, dict[int, list[float]]]] = {}
    for first in progress(range(0, len(order), 16), "rationales"):
        part = order[first : first + 16]
        batch, marks = window_batch(part, session.reader)
        targets = [explained_target(labels[window["example"]], classes) for window in part]
        for method in (*settings.methods, "random"):
            try:
                found = _explained(session, batch, targets, method, notes)
            except UnknownNameError:
                continue
            for row, one in enumerate(found):
                among = is_content(batch["token_classes"][row, : len(one.relevance)]).numpy()
                marked = marks[row, : len(one.relevance)][among]
                if marked.any():
                    scores = np.asarray(one.relevance, dtype=np.float64)[among]
                    for name, value in agreement(scores, marked).items():
                        by_name = values.setdefault(method, {}).setdefault(name, {})
                        by_name.setdefault(part[row]["example"], []).append(value)
    by_document = {
        method: {
            name: {documents[index].id: float(np.mean(each)) for index, each in sorted(found.items())}
            for name, found in names.items()
        }
        for method, names in values.items()
    }
    prevalence = next(iter(by_document.values())).get("prevalence", {})
    return {
        "folder": str(settings.rationales),
        "documents": len(documents),
        "windows": len(windows),
        "windows_without_evidence": dropped,
        "prevalence": float(np.mean(list(prevalence.values()))) if prevalence else None,
        "rows": [
            _row(method, f"evidence {name}", np.array(list(names[name].values()), dtype=np.float64))
            for method, names in by_document.items()
            for name in AGREEMENTS
        ],
        "per_document": by_document,
    }


def review_windows(documents: Sequence[Rationale], tokenizer: Any, max_length: int) -> tuple[list[dict[str, Any]], int]:
    """Windows that don't overlap, from the first word on, of those that hold a marked word; and how many don't.

    Where a cut falls depends on the text alone, never on the evidence.
    """
    found, dropped = [], 0
    for index, document in enumerate(documents):
        coded = tokenizer(
            [document.text],
            truncation=True,
            max_length=max_length,
            stride=0,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        for row in range(len(coded["input_ids"])):
            marks = words_to_tokens(coded["offset_mapping"][row], document.spans)
            if marks.any():
                found.append({"input_ids": coded["input_ids"][row], "marks": marks, "example": index})
            else:
                dropped += 1
    return found, dropped


def window_batch(windows: Sequence[Mapping[str, Any]], tokenizer: Any) -> tuple[Batch, Bool[np.ndarray, "rows seq"]]:
    """An analysis batch of windows, and their marked tokens."""
    shape = (len(windows), max(len(window["input_ids"]) for window in windows))
    ids, mask = torch.full(shape, int(tokenizer.pad_token_id or 0)), torch.zeros(shape, dtype=torch.int64)
    marks = np.zeros(shape, dtype=bool)
    for row, window in enumerate(windows):
        size = len(window["input_ids"])
        ids[row, :size], mask[row, :size] = torch.tensor(window["input_ids"]), 1
        marks[row, :size] = window["marks"]
    batch: dict[str, Tensor] = {
        "input_ids": ids,
        "attention_mask": mask,
        "token_classes": token_classes(ids, mask, tokenizer),
        "example": torch.tensor([window["example"] for window in windows]),
    }
    if "token_type_ids" in tokenizer.model_input_names:
        batch["token_type_ids"] = torch.zeros_like(ids)
    return batch, marks


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


# Blocks


def _blocks(content: Mapping[str, Any]) -> Iterator[Block]:
    facts = content["facts"]
    yield Block(
        kind="text",
        title="Are the explanations faithful?",
        text=f"What the highlighted tokens do when they are taken away or kept alone, over {facts['texts']} texts "
        f"({facts['texts_left_out']} had nothing to take away). Random is the mean of many random orders, its interval "
        "where single ones lie: a method inside it has not been shown to be better than noise. Raw values of two "
        "models can't be compared; normalised ones can. " + " ".join(content["notes"]),
    )
    rows = [*content["rows"], *content.get("rationales", {}).get("rows", [])]
    metrics: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        metrics.setdefault(row["metric"], []).append(row)
    for metric, found in metrics.items():
        placed = {row["method"]: one for row in found if (one := estimate(row["normalised"])) is not None}
        raw = {row["method"]: one for row in found if (one := estimate(row["raw"])) is not None}
        less = not placed and not all(row["higher_is_better"] for row in found)
        words = "0: random order, 1: best order known" if placed else f"raw value{', less is better' if less else ''}"
        shown = placed or raw
        yield Block(
            kind="figure",
            title=metric,
            text="; ".join(f"{method}: {one.value:.3g}" for method, one in shown.items()),
            draw=bars(shown, xlabel=words, falling=not less, marks=(1.0,) if placed else ()),
        )
    yield Block(
        kind="table",
        title="Faithfulness of the methods",
        text="↑: more is better. n: texts behind each number. Normalised: 0 is a random order, 1 the best known.",
        columns=("metric", "method", "raw (95 %)", "n", "normalised (95 %)", "n normalised"),
        rows=tuple(
            (
                f"{metric} {'↑' if row['higher_is_better'] else '↓'}",
                row["method"],
                with_interval(estimate(row["raw"])),
                str(row["n"]),
                with_interval(estimate(row["normalised"])),
                str(row["normalised_n"] or ""),
            )
            for metric, found in metrics.items()
            for row in found
        ),
    )
    if content["limits"]:
        yield Block(
            kind="table",
            title="Limits",
            text="Means over the texts with limits: what random orders reach, what the search found, the best known.",
            columns=("metric", "random", "search", "best known"),
            rows=tuple(
                (metric, *(with_interval(estimate(ends[name])) for name in ("random", "beam", "limit")))
                for metric, ends in content["limits"].items()
            ),
        )
    if content["published"]:
        yield Block(
            kind="table",
            title="Published for bert-base on SST-2",
            text="arXiv 2408.08137, another model: for orientation alone.",
            columns=("method", "deletion ↑", "deletion-lerf ↓"),
            rows=tuple(
                (method, f"{each['deletion']:.3f}", f"{each['deletion-lerf']:.3f}")
                for method, each in content["published"].items()
            ),
        )
