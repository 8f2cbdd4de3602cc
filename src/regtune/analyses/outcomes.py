"""How a model does on every example: its loss, the task's first metric, and what it says. What knock-outs change."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from regtune.analyses.attribution.attribute import attribute
from regtune.analyses.attribution.attribution import Attribution
from regtune.analyses.batches import run_backbone
from regtune.interfaces import Batch, Examples, Metric, Rows
from regtune.rows.targets import Answer, LabelLogit, SurestTag, Target
from regtune.rows.texts import PlainText
from regtune.rows.token_classes import is_content
from regtune.session import Session, by_length

Floats = Float64[np.ndarray, " _"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcomes:
    """One entry an example; None where the model has no head, or the examples no labels."""

    loss: Floats | None = None
    """In nats, averaged over the example's rows (windows); NaN for an example without a label."""
    score: Floats | None = None
    """Of `metric`, as a ratio."""
    metric: Metric | None = None
    said: tuple[str, ...] | None = None
    """What was predicted, as text."""
    moved: Floats | None = None
    """What was measured for want of a loss: how far the last hidden state moved (`Runs`), or the like."""

    @property
    def change(self) -> Floats:
        """What a changed model is judged by: the loss or, without one, how far the last hidden state moved."""
        values = self.moved if self.loss is None else self.loss
        assert values is not None
        return values


@torch.inference_mode()
def outcomes(session: Session, rows: Rows[Any], examples: Examples) -> Outcomes:
    """Runs the model over all rows of the examples, labels among them; without a task nothing is found."""
    task = session.task
    if task is None or (examples.items and isinstance(examples.items[0], PlainText)):
        return Outcomes()
    sums, counts = np.zeros(len(examples)), np.zeros(len(examples))

    def run() -> Iterator[tuple[Sequence[int], Any]]:
        for indices in by_length(rows, 16):
            batch = rows.batch(indices)
            output = session.forward(batch)
            losses = row_losses(output, batch, ahead=_ahead(session))
            if losses is not None:
                for loss, example in zip(losses.tolist(), batch["example"].tolist(), strict=True):
                    sums[example] += loss
                    counts[example] += 1
            yield indices, output

    predictions = task.decode(rows, run(), examples, session)
    metric = task.metrics[0]
    scores = task.score(predictions, examples)
    with np.errstate(invalid="ignore"):
        loss = sums / counts if counts.any() else None
    return Outcomes(
        loss=loss,
        score=np.asarray(metric.value(metric.select(scores)), dtype=np.float64),
        metric=metric,
        said=tuple(str(prediction.to_json().get(task.said, "")) for prediction in predictions),
    )


def _ahead(session: Session) -> int:
    return int(session.reads.head == "AutoModelForCausalLM")


def row_losses(output: Any, batch: Mapping[str, Tensor], *, ahead: int = 0) -> Float64[Tensor, " rows"] | None:
    """Each row's loss in nats, from the logits and labels that there are; None without any.

    Spans: −(log p(start) + log p(end)) / 2 over the window's tokens, padding aside. Classes: −log p(class), or the
    squared error where there is one logit; of several labels a text the mean of −log p over all labels. Labelled
    tokens: the mean of −log p over them (label −100 is none), from the logits `ahead` positions before them (1 where
    the next token is predicted).
    """
    if "start_logits" in output and "start_positions" in batch:
        text = batch["attention_mask"].bool()
        ends = [
            cross_entropy(
                output[f"{name}_logits"].double().cpu().masked_fill(~text, -torch.inf),
                batch[f"{name}_positions"],
                reduction="none",
            )
            for name in ("start", "end")
        ]
        return torch.stack(ends).mean(0)
    if "logits" not in output or "labels" not in batch:
        return None
    logits, labels = output["logits"].double().cpu(), batch["labels"]
    if logits.dim() == 2:
        return _class_losses(logits, labels)
    if logits.dim() == 3 and labels.shape == logits.shape[:2]:
        labels = labels[:, ahead:]
        each = cross_entropy(logits[:, : labels.shape[1]].mT, labels.long(), reduction="none")
        return each.sum(1) / (labels != -100).sum(1).clamp(min=1)
    return None


def _class_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """From logits `[rows, labels]`."""
    if labels.shape == logits.shape:
        return binary_cross_entropy_with_logits(logits, labels.double(), reduction="none").mean(1)
    if logits.shape[1] == 1:
        squared: Tensor = (logits[:, 0] - labels.double()).square()
        return squared
    return cross_entropy(logits, labels.long(), reduction="none")


def some(rows: Rows[Any], chosen: Sequence[int]) -> Rows[Any]:
    """The rows of some examples (by index); they keep their examples' numbers."""
    wanted = set(chosen)
    return rows.only([index for index, example in enumerate(rows.example) if example in wanted])


def attributions(
    session: Session, batch: Batch, method: str, notes: list[str], targets: Sequence[Target] | None = None
) -> list[Attribution]:
    """One attribution a row, of the targets or of what the model says itself; broken laws go to the notes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        found = attribute(
            session.model,
            batch,
            method=method,
            target=explained(session, batch) if targets is None else list(targets),
            tokenizer=session.reader,
            on_residual="warn",
        )
    notes.extend(f"{method}: {entry.message}" for entry in caught)
    return found


def explained(session: Session, batch: Mapping[str, Tensor]) -> list[Any] | None:
    """What is explained of each row: the best answer in a question's context, a tag, a label, or what is predicted.

    A task whose rows have several labels says which one: `position` and `label` in the batch. Of tags it is the surest.
    """
    if session.task is not None and session.task.head == "AutoModelForTokenClassification":
        return [SurestTag()] * len(batch["input_ids"])
    if "position" in batch:
        pairs = zip(batch["position"].tolist(), batch["label"].tolist(), strict=True)
        return [LabelLogit(position=position, label=label) for position, label in pairs]
    if "context_end" not in batch:
        return None
    ranges = zip(batch["context_start"].tolist(), batch["context_end"].tolist(), strict=True)
    return [Answer(context=between) for between in ranges]


Change = Callable[[int], AbstractContextManager[Any]]
"""Makes the context in which the batch of that number runs, and the model is another one."""


class Runs:
    """What each example loses where a model is changed, run after run over the same batches.

    That is the loss in nats or, where the model has no head or the data no labels, how far the last hidden state has
    moved: ‖h' − h‖ / ‖h‖ over the example's content tokens, h being that of the first run.
    """

    def __init__(self, session: Session, batches: Sequence[Batch], count: int, *, states: bool = False) -> None:
        """For batches of one row an example, of `count` examples; `states`: hidden states although there is a loss."""
        self.session, self.batches, self.count = session, list(batches), count
        lossy = session.task is not None and any({"labels", "start_positions"} & batch.keys() for batch in batches)
        self.quantity = "loss" if lossy and not states else "last hidden state"
        self._first: list[Tensor] = []

    def __call__(self, changed: Change = lambda _: nullcontext(), batches: Sequence[Batch] | None = None) -> Floats:
        """One number an example, NaN for those that aren't in the batches; or of other batches of the same shape."""
        found = np.full(self.count, np.nan)
        for index, (given, own) in enumerate(zip(batches or self.batches, self.batches, strict=True)):
            with torch.inference_mode(), changed(index):
                values = self._measure(index, given, own)
            found[own["example"].numpy()] = values.cpu().numpy()
        return found

    def _measure(self, index: int, given: Batch, own: Batch) -> Tensor:
        if self.quantity == "loss":
            loss = row_losses(self.session.forward(given), own, ahead=_ahead(self.session))
            assert loss is not None
            return loss
        states = run_backbone(self.session.model, given)
        if index == len(self._first):
            self._first.append(states)
        content = is_content(own["token_classes"]).to(states.device).unsqueeze(-1)
        first = self._first[index].double() * content
        moved: Tensor = (states.double() * content - first).flatten(1).norm(dim=1)
        share: Tensor = moved / first.flatten(1).norm(dim=1).clamp(min=1e-30)
        return share
