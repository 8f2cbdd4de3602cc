"""How a model does on every example: its loss, the task's first metric, and what it says. What knock-outs change."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from regtune.analyses.artefacts.sites import run_backbone
from regtune.interfaces import Batch, Examples, Metric, Rows
from regtune.session import Session, by_length
from regtune.targets import Answer
from regtune.texts import PlainText
from regtune.token_classes import is_content

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


@torch.inference_mode()
def outcomes(session: Session, rows: Rows[Any], examples: Examples, *, batch_size: int = 16) -> Outcomes:
    """Runs the model over all rows.

    Args:
        session: the model; without a task nothing is found.
        rows: all rows of the examples, labels among them.
        examples: the examples.
        batch_size: rows that run together.
    """
    task = session.task
    if task is None or (examples.items and isinstance(examples.items[0], PlainText)):
        return Outcomes()
    sums, counts = np.zeros(len(examples)), np.zeros(len(examples))

    def run() -> Iterator[tuple[Sequence[int], Any]]:
        for indices in by_length(rows, batch_size):
            batch = rows.batch(indices)
            output = session.forward(batch)
            losses = row_losses(output, batch)
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
        said=tuple(_said(prediction.to_json()) for prediction in predictions),
    )


def row_losses(output: Any, batch: Mapping[str, Tensor]) -> Float64[Tensor, " rows"] | None:
    """Each row's loss in nats, from the logits and labels that there are; None without any.

    Spans: −(log p(start) + log p(end)) / 2 over the window's tokens, padding aside. Classes: −log p(class), or the
    squared error where there is one logit. Labelled tokens: the mean of −log p over them (label −100 is none).
    """
    if "start_logits" in output and "start_positions" in batch:
        text = batch["attention_mask"].bool()
        found = []
        for name in ("start", "end"):
            logits = output[f"{name}_logits"].double().cpu().masked_fill(~text, -torch.inf)
            found.append(-logits.log_softmax(-1).gather(1, batch[f"{name}_positions"][:, None])[:, 0])
        both: Tensor = (found[0] + found[1]) / 2
        return both
    if "logits" not in output or "labels" not in batch:
        return None
    logits, labels = output["logits"].double().cpu(), batch["labels"]
    if logits.dim() == 2 and labels.dim() == 1:
        if logits.shape[1] == 1:
            squared: Tensor = (logits[:, 0] - labels.double()).square()
            return squared
        crossed: Tensor = -logits.log_softmax(-1).gather(1, labels.long()[:, None])[:, 0]
        return crossed
    if logits.dim() == 3 and labels.shape == logits.shape[:2]:
        known = labels != -100
        each = -logits.log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
        means: Tensor = (each * known).sum(1) / known.sum(1).clamp(min=1)
        return means
    return None


def _said(prediction: Mapping[str, Any]) -> str:
    for name in ("text", "label"):
        if name in prediction:
            return str(prediction[name])
    return str({name: value for name, value in prediction.items() if not isinstance(value, float)})


def some(rows: Rows[Any], chosen: Sequence[int]) -> Rows[Any]:
    """The rows of some examples (by index); they keep their examples' numbers."""
    wanted = set(chosen)
    kept = [index for index, example in enumerate(rows.example) if example in wanted]
    return dataclasses.replace(
        rows,
        rows=[rows.rows[index] for index in kept],
        lengths=[rows.lengths[index] for index in kept],
        example=[rows.example[index] for index in kept],
        main=None,
    )


def labelled(batch: Batch) -> bool:
    """Whether a batch holds labels."""
    return "labels" in batch or "start_positions" in batch


def explained(batch: Mapping[str, Tensor]) -> list[Any] | None:
    """What is explained of each row: the best answer in the context of a question, else what the head predicts."""
    if "context_end" not in batch:
        return None
    ranges = zip(batch["context_start"].tolist(), batch["context_end"].tolist(), strict=True)
    return [Answer(context=between) for between in ranges]


@torch.inference_mode()
def state_changes(
    session: Session, batches: Iterable[Mapping[str, Tensor]], changed: Callable[[], Any], count: int
) -> Floats:
    """‖h' − h‖ / ‖h‖ over each example's content tokens, h being the last hidden state, h' the same inside a context.

    Args:
        session: the model.
        batches: one row an example.
        changed: makes the context in which the model is another one.
        count: examples; those without content get NaN.
    """
    found = np.full(count, np.nan)
    for batch in batches:
        plain = run_backbone(session.model, batch)
        with changed():
            other = run_backbone(session.model, batch)
        content = is_content(batch["token_classes"]).to(plain.device)
        for row, example in enumerate(batch["example"].tolist()):
            h, moved = plain[row][content[row]].double(), other[row][content[row]].double()
            found[example] = float((moved - h).norm() / h.norm().clamp(min=1e-30))
    return found
