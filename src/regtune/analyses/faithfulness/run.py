"""The measuring itself: texts explained by every method, taken apart, and compared with what people marked."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from regtune.analyses.attribution.attribution import Attribution
from regtune.analyses.attribution.explain import explain
from regtune.analyses.batches import Batch
from regtune.analyses.faithfulness.faithfulness import measure_orders, orders_of
from regtune.analyses.faithfulness.inputs import MeasuredTexts, content_of, rows_of
from regtune.analyses.faithfulness.limits import measure_beam, measure_random
from regtune.analyses.faithfulness.model import PerturbedModel
from regtune.analyses.faithfulness.rationales import AGREEMENTS, agreement
from regtune.analyses.faithfulness.settings import FaithfulnessSettings
from regtune.analyses.faithfulness.texts import PerturbableText, explained_target, perturbable_texts
from regtune.errors import DataError
from regtune.targets import Target

Found = dict[str, Any]
"""Fields of `Faithfulness`."""


@dataclass(frozen=True, kw_only=True)
class _Place:
    """One row of the batches, with its text."""

    batch: int
    row: int
    text: PerturbableText


@dataclass(frozen=True, kw_only=True, eq=False)
class Measuring:
    """One model, its texts, and what is to be measured."""

    model: Any
    tokenizer: Any
    texts: MeasuredTexts
    settings: FaithfulnessSettings
    methods: tuple[str, ...]
    seed: int
    options: Mapping[str, Mapping[str, Any]]
    notes: list[str]

    def texts_taken_apart(self) -> Found:
        """Faithfulness of every method on every text, limits, and agreement with marked answers where there are any."""
        places, left_out = self._places()
        scorer = self._scorer([place.text for place in places])
        names = tuple(self.texts.names[place.text.example] for place in places)
        found: Found = {"texts": names, "values": {}, "curves": {}, "agreement": {}, "agreement_texts": ()}
        for method in self.methods:
            attributions = self._attributions(places, method)
            scores = [place.text.scores(one) for place, one in zip(places, attributions, strict=True)]
            measured = measure_orders(scorer, orders_of(scores, seed=self.seed), grid=self.settings.grid)
            found["values"][method] = dict(measured.values)
            found["curves"][method] = measured.curves
            if self.texts.marked:
                found["agreement_texts"], found["agreement"][method] = self._answers(places, attributions)
        prevalence = _prevalence(found["agreement"])
        found |= self._limits(scorer, names)
        found["facts"] = {"texts_left_out": left_out, "copies": scorer.forwarded, **prevalence} | self._accuracy(places)
        return found

    def reviews(self) -> Found:
        """Agreement of every method with the marked words, averaged over the windows of each review."""
        found: Found = {"texts": (), "values": {}, "agreement": {}, "agreement_texts": ()}
        (marked,) = self.texts.marked.values()
        classes = int(self.model.config.num_labels)
        for method in self.methods:
            by_review: dict[int, list[dict[str, float]]] = {}
            for batch, marks in zip(self.texts.batches, marked, strict=True):
                examples = batch["example"].tolist()
                targets = [explained_target(self.texts.labels[example], classes) for example in examples]
                for row, one in enumerate(self._explained(batch, targets, method)):
                    agreed = self._agreed("evidence", one, marks[row], content_of(batch, row))
                    if agreed is not None:
                        by_review.setdefault(examples[row], []).append(agreed)
            if not by_review:
                raise DataError("No window has a marked word among its content tokens.")
            reviews = sorted(by_review)
            found["agreement_texts"] = tuple(self.texts.names[review] for review in reviews)
            found["agreement"][method] = {
                name: np.array([np.mean([window[name] for window in by_review[review]]) for review in reviews])
                for name in by_review[reviews[0]][0]
            }
        found["facts"] = _prevalence(found["agreement"])
        return found

    def _places(self) -> tuple[list[_Place], int]:
        """The rows in the order of their examples, and how many have nothing to take away."""
        flat = iter(perturbable_texts(self.model, self.texts.batches))
        places, left_out = [], 0
        for index, batch in enumerate(self.texts.batches):
            for row in range(len(batch["input_ids"])):
                text = next(flat)
                if text is None:
                    left_out += 1
                else:
                    places.append(_Place(batch=index, row=row, text=text))
        if not places:
            raise DataError(f"None of the {left_out} texts has a token that may be taken away.")
        return sorted(places, key=lambda place: place.text.example), left_out

    def _scorer(self, texts: Sequence[PerturbableText]) -> PerturbedModel:
        return PerturbedModel(
            self.model,
            texts,
            how=self.settings.how,
            mask_token_id=self.tokenizer.mask_token_id,
            pad_token_id=int(self.tokenizer.pad_token_id or 0),
            batch_tokens=self.settings.batch_tokens,
            precision=self.settings.precision,
        )

    def _attributions(self, places: Sequence[_Place], method: str) -> list[Attribution]:
        """One attribution a place, computed in the batches of like length that there are."""
        found: dict[int, Attribution] = {}
        for index, batch in enumerate(self.texts.batches):
            here = [number for number, place in enumerate(places) if place.batch == index]
            if here:
                rows = rows_of(batch, [places[number].row for number in here])
                explained = self._explained(rows, [places[number].text.target for number in here], method)
                found |= dict(zip(here, explained, strict=True))
        return [found[number] for number in range(len(places))]

    def _explained(self, batch: Batch, targets: Sequence[Target], method: str) -> list[Attribution]:
        options: Mapping[str, Any] = {"seed": self.seed} if method == "random" else {}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RuntimeWarning)
            found = explain(
                self.model,
                batch,
                method=method,
                target=list(targets),
                tokenizer=self.tokenizer,
                on_residual="warn",
                options={**options, **self.options.get(method, {})},
            )
        self.notes.extend(f"{method}: {entry.message}" for entry in caught)
        return found

    def _limits(self, scorer: PerturbedModel, names: Sequence[str]) -> Found:
        settings = self.settings
        chosen = list(range(min(settings.limit_texts, len(names))))
        if not chosen:
            return {}
        beam = measure_beam(
            scorer, chosen, width=settings.beam_width, max_groups=settings.max_groups, grid=settings.grid
        )
        random = measure_random(scorer, chosen, count=settings.random_orders, seed=self.seed, grid=settings.grid)
        return {"limit_texts": tuple(names[text] for text in chosen), "beam": beam, "random": random}

    def _answers(
        self, places: Sequence[_Place], attributions: Sequence[Attribution]
    ) -> tuple[tuple[str, ...], dict[str, Float64[np.ndarray, " _"]]]:
        """Agreement with the gold answer and its sentence, over the context's tokens."""
        names, rows = [], []
        for place, one in zip(places, attributions, strict=True):
            batch = self.texts.batches[place.batch]
            context = content_of(batch, place.row).copy()
            context[: int(batch["context_start"][place.row])] = False
            agreed = [
                self._agreed(kind, one, marks[place.batch][place.row], context)
                for kind, marks in self.texts.marked.items()
            ]
            if None not in agreed:
                names.append(self.texts.names[place.text.example])
                rows.append({name: value for part in agreed if part for name, value in part.items()})
        if not rows:
            return (), {}
        return tuple(names), {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def _agreed(
        self, kind: str, one: Attribution, marks: Bool[np.ndarray, " seq"], among: Bool[np.ndarray, " tokens"]
    ) -> dict[str, float] | None:
        """Agreement over some of a row's tokens; None where none of them is marked."""
        marked = marks[: len(among)][among]
        if not marked.any():
            return None
        scores = np.asarray(one.relevance, dtype=np.float64)[among]
        measured = agreement(scores, marked, threshold=self.settings.threshold)
        found = {f"{kind} {name}": getattr(measured, name) for name in AGREEMENTS}
        return {**found, f"{kind} prevalence": measured.prevalence}

    def _accuracy(self, places: Sequence[_Place]) -> dict[str, float]:
        """Share of right predictions among the measured texts, where classes are predicted."""
        if not self.texts.labels:
            return {}
        right = [place.text.label == self.texts.labels[place.text.example] for place in places]
        return {"accuracy": float(np.mean(right))}


def _prevalence(agreed: dict[str, dict[str, np.ndarray]]) -> dict[str, float]:
    """Takes the shares of marked tokens, which are the same for all methods, out of the measures."""
    found: dict[str, float] = {}
    for measures in agreed.values():
        for name in [name for name in measures if name.endswith("prevalence")]:
            found[name] = float(measures.pop(name).mean())
    return found
