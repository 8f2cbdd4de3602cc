"""Texts that can be taken apart: which of their tokens may go, and which answer's probability is watched meanwhile."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from regtune.analyses.attribution.attribution import Attribution
from regtune.errors import ConfigError, DataError, UnsupportedModelError
from regtune.models.precision import device_of
from regtune.targets import END, LOGITS, START, Answer, ClassLogit, Row, Target, TargetError
from regtune.token_classes import is_content

_FORWARDED = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True, kw_only=True, eq=False)
class PerturbableText:
    """One text, the model's own prediction for it, and the tokens that may be masked or removed.

    `features` are content tokens (punctuation included). Special tokens are never touched, nor the tokens of the
    answer itself: without them the question would be another one, and their loss says nothing about the explanation.
    """

    example: int
    """Index into what was given to the batches."""
    input_ids: Int64[np.ndarray, " tokens"]
    token_type_ids: Int64[np.ndarray, " _"] | None
    features: Int64[np.ndarray, " features"]
    """Positions of the tokens that may go, rising."""
    label: int | None = None
    """The predicted class, of a model with a class head."""
    span: tuple[int, int] | None = None
    """First and last token of the model's best answer in the context, of a question-answering model."""
    target: Target
    """What an attribution method is to explain for this text; see `explained_target`."""

    def scores(self, attribution: Attribution) -> np.ndarray:
        """The attribution's scores of this text's features.

        Raises:
            ConfigError: it belongs to a text of another length.
        """
        if len(attribution.relevance) != len(self.input_ids):
            raise ConfigError(
                f"An attribution of {len(attribution.relevance)} tokens was given for a text of {len(self.input_ids)} "
                f"(example {self.example})."
            )
        found: np.ndarray = np.asarray(attribution.relevance, dtype=np.float64)[self.features]
        return found


@torch.inference_mode()
def perturbable_texts(model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> list[PerturbableText | None]:
    """Runs the model once over analysis batches and notes what it predicts.

    Args:
        model: with a class head or a question-answering head, in evaluation mode.
        batches: with `input_ids`, `attention_mask`, `token_classes`, `example`; for questions also `context_start` and
            `context_end`. Padding is on the right.

    Returns:
        One text a row, in the batches' order; None where no token may go (nothing but special tokens and the answer).

    Raises:
        UnsupportedModelError: training mode, or another kind of head.
    """
    refuse_training_mode(model)
    found: list[PerturbableText | None] = []
    for batch in batches:
        outputs = outputs_of(model, batch)
        logits = {name: outputs[name].double().cpu().numpy() for name in (START, END, LOGITS) if name in outputs}
        _check_head(model, logits)
        found.extend(_text(batch, row, {name: value[row] for name, value in logits.items()}) for row in _rows(batch))
    return found


def explained_target(label: int, classes: int) -> ClassLogit:
    """What stands for p(class): with two classes its logit minus the other's, which is all that p depends on.

    With more classes the logit of the class, as is usual.
    """
    return ClassLogit(label=label, minus=1 - label if classes == 2 else None)


def outputs_of(model: nn.Module, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The model's output for what it takes of a batch."""
    accepted = inspect.signature(model.forward).parameters
    device = device_of(model)
    given: dict[str, Any] = {name: batch[name].to(device) for name in _FORWARDED if name in batch and name in accepted}
    outputs: Mapping[str, Tensor] = model(**given, return_dict=True)
    return outputs


def refuse_training_mode(model: nn.Module) -> None:
    """Refuses a model whose dropout would make every probability a different one.

    Raises:
        UnsupportedModelError: some part of the model is in training mode.
    """
    if any(part.training for part in model.modules()):
        raise UnsupportedModelError(
            f"{type(model).__name__} is in training mode, where dropout makes every probability a different one. "
            "Call model.eval() first."
        )


def _rows(batch: Mapping[str, Tensor]) -> range:
    return range(len(batch["input_ids"]))


def _check_head(model: nn.Module, logits: Mapping[str, np.ndarray]) -> None:
    classes = LOGITS in logits and logits[LOGITS].ndim == 2 and logits[LOGITS].shape[1] > 1
    if not classes and not (START in logits and END in logits):
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in logits.items()) or "no logits"
        raise UnsupportedModelError(
            f"{type(model).__name__} gives {shapes}; faithfulness is measured on class probabilities "
            "(logits [batch, classes]) or on answers (start_logits and end_logits)."
        )


def _text(batch: Mapping[str, Tensor], row: int, logits: Mapping[str, np.ndarray]) -> PerturbableText | None:
    mask = batch["attention_mask"][row].bool()
    size = int(mask.sum())
    if not mask[:size].all():
        raise DataError(f"row {row} has padding before its end, which moves positions; pad on the right.")
    content = is_content(batch["token_classes"][row]).numpy()[:size].copy()
    types = batch.get("token_type_ids")
    label: int | None = None
    span: tuple[int, int] | None = None
    target: Target
    if START in logits:
        span, target = _answer(batch, row, logits, mask.numpy())
        content[span[0] : span[1] + 1] = False
    else:
        label = int(logits[LOGITS].argmax())
        target = explained_target(label, len(logits[LOGITS]))
    features = np.flatnonzero(content)
    if not len(features):
        return None
    return PerturbableText(
        example=int(batch["example"][row]),
        input_ids=batch["input_ids"][row, :size].numpy().astype(np.int64),
        token_type_ids=None if types is None else types[row, :size].numpy().astype(np.int64),
        features=features.astype(np.int64),
        label=label,
        span=span,
        target=target,
    )


def _answer(
    batch: Mapping[str, Tensor], row: int, logits: Mapping[str, np.ndarray], text: np.ndarray
) -> tuple[tuple[int, int], Answer]:
    """The model's best span inside the context, whatever it thinks of "no answer"."""
    if "context_start" not in batch or "context_end" not in batch:
        raise TargetError("A question-answering batch needs context_start and context_end.")
    context = (int(batch["context_start"][row]), int(batch["context_end"][row]))
    terms = Answer(context=context).resolve(Row(logits=dict(logits), text=text)).terms
    start, end = terms[0].position, terms[1].position
    return (start, end), Answer(start=start, end=end)
