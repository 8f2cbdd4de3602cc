"""What a model makes of texts that have lost some tokens: many altered copies in one forward pass.

A token is taken away in one of two ways. `mask` writes [MASK] over it, so that the length and all positions stay.
`remove` leaves it out, so that what follows moves up; an answer's positions move along. Both take the model away from
the texts it was trained on, each in its own way, so a finding that holds for one alone is a finding about the way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import nn

from regtune.analyses.attribution.attribution import Attribution
from regtune.analyses.batches import run
from regtune.analyses.reversible import require_eval_mode
from regtune.errors import ConfigError, DataError, UnsupportedModelError
from regtune.interfaces import Batch
from regtune.rows.targets import END, LOGITS, START, Answer, ClassLogit, Row, Target, TargetError
from regtune.rows.texts import pad_tokens
from regtune.rows.token_classes import is_content

How = Literal["mask", "remove"]
"""Ways to take a token away."""
Request = tuple[int, Bool[np.ndarray, " _"]]
"""Index of a text, and which of its features are gone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PerturbableText:
    """One text, the model's own prediction for it, and the tokens that may be masked or removed.

    `features` are content tokens (punctuation included). Special tokens are never touched, nor the tokens of the
    answer itself: without them the question would be another one, and their loss says nothing about the explanation.
    """

    example: int
    """Index into what was given to the batches."""
    place: tuple[int, int]
    """Number of the batch, and row in it."""
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
        """The attribution's scores of this text's features."""
        found: np.ndarray = np.asarray(attribution.relevance, dtype=np.float64)[self.features]
        return found


@torch.inference_mode()
def perturbable_texts(model: nn.Module, batches: Iterable[Batch]) -> list[PerturbableText]:
    """Runs the model once over analysis batches and notes what it predicts.

    Returns:
        The texts in the batches' order, without those in which no token may go (nothing but special tokens and the
        answer).
    """
    require_eval_mode(model)
    found: list[PerturbableText | None] = []
    for number, batch in enumerate(batches):
        outputs = run(model, batch)
        logits = {name: outputs[name].double().cpu().numpy() for name in (START, END, LOGITS) if name in outputs}
        classes = LOGITS in logits and logits[LOGITS].ndim == 2 and logits[LOGITS].shape[1] > 1
        if not classes and not (START in logits and END in logits):
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in logits.items()) or "no logits"
            raise UnsupportedModelError(
                f"{type(model).__name__} gives {shapes}; faithfulness is measured on class probabilities "
                "(logits [batch, classes]) or on answers (start_logits and end_logits)."
            )
        for row in range(len(batch["input_ids"])):
            one = {name: value[row] for name, value in batch.items()}
            own = {name: value[row] for name, value in logits.items()}
            found.append(_text(one, (number, row), own, several=of_several_labels(model)))
    return [text for text in found if text is not None]


def explained_target(label: int, classes: int) -> ClassLogit:
    """What stands for p(class): with two classes its logit minus the other's, which is all that p depends on.

    With more classes the logit of the class, as is usual.
    """
    return ClassLogit(label=label, minus=1 - label if classes == 2 else None)


def of_several_labels(model: Any) -> bool:
    """Whether each logit is of a label of its own (a sigmoid each), not of one class among several."""
    config = getattr(model, "config", None)
    return getattr(config, "problem_type", None) == "multi_label_classification"


def _text(
    row: Batch, place: tuple[int, int], logits: Mapping[str, np.ndarray], *, several: bool
) -> PerturbableText | None:
    mask = row["attention_mask"].bool().numpy()
    size = int(mask.sum())
    if not mask[:size].all():
        raise DataError(f"row {place[1]} has padding before its end, which moves positions; pad on the right.")
    content = is_content(row["token_classes"]).numpy()[:size].copy()
    label: int | None = None
    span: tuple[int, int] | None = None
    target: Target
    if START in logits:  # the best span inside the context, whatever the model thinks of "no answer"
        if "context_start" not in row or "context_end" not in row:
            raise TargetError("A question-answering batch needs context_start and context_end.")
        context = (int(row["context_start"]), int(row["context_end"]))
        terms = Answer(context=context).resolve(Row(logits=dict(logits), text=mask)).terms
        span = (terms[0].position, terms[1].position)
        target = Answer(start=span[0], end=span[1])
        content[span[0] : span[1] + 1] = False
    else:
        label = int(logits[LOGITS].argmax())
        target = ClassLogit(label=label) if several else explained_target(label, len(logits[LOGITS]))
    if not content.any():
        return None
    types = row.get("token_type_ids")
    return PerturbableText(
        example=int(row["example"]),
        place=place,
        input_ids=row["input_ids"][:size].numpy().astype(np.int64),
        token_type_ids=None if types is None else types[:size].numpy().astype(np.int64),
        features=np.flatnonzero(content).astype(np.int64),
        label=label,
        span=span,
        target=target,
    )


class PerturbedModel:
    """The probability that a model still gives what it said of the whole text, for any set of lost tokens.

    Of a class head: the softmax of the predicted class, or the sigmoid of the likeliest of several labels. Of a
    question-answering head: p(start) · p(end) of the predicted span, each a softmax over all tokens of the window
    (special tokens included, as in training). Every set is scored once, however often it is asked for.
    """

    def __init__(
        self,
        model: nn.Module,
        texts: Sequence[PerturbableText],
        *,
        how: How = "mask",
        mask_token_id: int | None = None,
        pad_token_id: int = 0,
        batch_tokens: int = 4096,
    ) -> None:
        """Keeps the model and the texts; nothing runs yet."""
        if how == "mask" and mask_token_id is None:
            raise ConfigError("how='mask' needs mask_token_id, and this tokenizer has none. Use how='remove'.")
        require_eval_mode(model)
        self.model, self.texts, self.how = model, list(texts), how
        self.mask_token_id, self.pad_token_id, self.batch_tokens = mask_token_id, pad_token_id, batch_tokens
        self.forwarded = 0
        """Copies that went through the model so far."""
        self._known: dict[tuple[int, bytes], float] = {}

    def probabilities(self, requests: Sequence[Request]) -> Float64[np.ndarray, " requests"]:
        """The probability for each request, in their order."""
        keys = [(text, np.packbits(gone).tobytes()) for text, gone in requests]
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in self._known}
        copies = {
            key: perturbed(self.texts[t], gone, self.how, self.mask_token_id) for key, (t, gone) in missing.items()
        }
        waiting = sorted(copies, key=lambda key: -len(copies[key].input_ids))  # of like length together, longest first
        while waiting:
            room = max(1, self.batch_tokens // len(copies[waiting[0]].input_ids))
            part, waiting = waiting[:room], waiting[room:]
            found = self._forward([copies[key] for key in part])
            self._known |= dict(zip(part, found.tolist(), strict=True))
            self.forwarded += len(part)
        return np.array([self._known[key] for key in keys], dtype=np.float64)

    @torch.inference_mode()
    def _forward(self, copies: Sequence[PerturbableText]) -> Float64[np.ndarray, " copies"]:
        batch = pad_tokens(copies, self.pad_token_id)
        outputs = run(self.model, batch)
        rows = torch.arange(len(copies))
        if copies[0].span is None:
            labels = torch.tensor([copy.label for copy in copies])
            logits = outputs[LOGITS].double().cpu()
            shares = logits.sigmoid() if of_several_labels(self.model) else logits.softmax(dim=-1)
            return np.asarray(shares[rows, labels], dtype=np.float64)
        product = torch.ones(len(copies), dtype=torch.float64)
        for name, end in ((START, 0), (END, 1)):
            logits = outputs[name].double().cpu().masked_fill(batch["attention_mask"] == 0, -torch.inf)
            product *= logits.softmax(dim=-1)[rows, torch.tensor([copy.span[end] for copy in copies if copy.span])]
        return np.asarray(product, dtype=np.float64)


def perturbed(text: PerturbableText, gone: np.ndarray, how: str, mask_token_id: int | None) -> PerturbableText:
    """A copy of a text that has lost some of its features (its own `features` are then of no use)."""
    places = text.features[gone]
    if how == "mask":
        ids = text.input_ids.copy()
        ids[places] = mask_token_id
        return dataclasses.replace(text, input_ids=ids)
    kept = np.ones(len(text.input_ids), dtype=bool)
    kept[places] = False
    before = np.cumsum(kept) - 1
    return dataclasses.replace(
        text,
        input_ids=text.input_ids[kept],
        token_type_ids=None if text.token_type_ids is None else text.token_type_ids[kept],
        span=None if text.span is None else (int(before[text.span[0]]), int(before[text.span[1]])),
    )
