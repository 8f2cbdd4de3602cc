"""What a model makes of texts that have lost some tokens: many altered copies in one forward pass.

A token is taken away in one of two ways. `mask` writes [MASK] over it, so that the length and all positions stay.
`remove` leaves it out, so that what follows moves up; an answer's positions move along. Both take the model away from
the texts it was trained on, each in its own way, so a finding that holds for one alone is a finding about the way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor, nn

from regtune.analyses.faithfulness.texts import PerturbableText, outputs_of, refuse_training_mode
from regtune.errors import ConfigError, unknown_name
from regtune.models.precision import Precision, autocast, device_of
from regtune.targets import END, LOGITS, START

How = Literal["mask", "remove"]
HOWS: tuple[How, ...] = get_args(How)
"""Ways to take a token away."""
Request = tuple[int, Bool[np.ndarray, " _"]]
"""Index of a text, and which of its features are gone."""


class PerturbedModel:
    """The probability that a model still gives what it said of the whole text, for any set of lost tokens.

    Of a class head: the softmax of the predicted class. Of a question-answering head: p(start) · p(end) of the
    predicted span, each a softmax over all tokens of the window (special tokens included, as in training). Every set is
    scored once, however often it is asked for.
    """

    def __init__(
        self,
        model: nn.Module,
        texts: Sequence[PerturbableText],
        *,
        how: str = "mask",
        mask_token_id: int | None = None,
        pad_token_id: int = 0,
        batch_tokens: int = 4096,
        precision: Precision = "float32",
    ) -> None:
        """Keeps the model and the texts; nothing runs yet.

        Args:
            model: in evaluation mode.
            texts: from `perturbable_texts` of the same model.
            how: the way in which tokens are taken away, one of `HOWS`.
            mask_token_id: id of [MASK], for `mask`.
            pad_token_id: id of the padding.
            batch_tokens: tokens (padding included) in one forward pass.
            precision: of the forward passes; differences of some 1e-3 are lost in bfloat16.

        Raises:
            ConfigError: an unknown `how`, `mask` without an id, or no room in a batch.
            UnsupportedModelError: a model in training mode.
        """
        if how not in HOWS:
            raise unknown_name("way to take tokens away", how, HOWS)
        if how == "mask" and mask_token_id is None:
            raise ConfigError("how='mask' needs mask_token_id, and this tokenizer has none. Use how='remove'.")
        if batch_tokens < 1:
            raise ConfigError(f"batch_tokens={batch_tokens} must be at least 1.")
        refuse_training_mode(model)
        self.model = model
        self.texts = list(texts)
        self.how = how
        self.mask_token_id = mask_token_id
        self.pad_token_id = pad_token_id
        self.batch_tokens = batch_tokens
        self.precision = precision
        self.forwarded = 0
        """Copies that went through the model so far."""
        self._known: dict[tuple[int, bytes], float] = {}

    def probabilities(self, requests: Sequence[Request]) -> Float64[np.ndarray, " requests"]:
        """The probability for each request, in their order.

        Raises:
            ConfigError: a set that doesn't fit its text's features.
        """
        keys = [self._key(text, gone) for text, gone in requests]
        missing: dict[tuple[int, bytes], Request] = {}
        for key, request in zip(keys, requests, strict=True):
            if key not in self._known:
                missing.setdefault(key, request)
        names = list(missing)
        for rows, copies in self._batches(list(missing.values())):
            for row, probability in zip(rows, self._forward(copies), strict=True):
                self._known[names[row]] = float(probability)
            self.forwarded += len(rows)
        return np.array([self._known[key] for key in keys], dtype=np.float64)

    def whole(self) -> Float64[np.ndarray, " texts"]:
        """The probability for every text as it is."""
        return self.probabilities([(i, np.zeros(len(t.features), dtype=bool)) for i, t in enumerate(self.texts)])

    def _key(self, text: int, gone: np.ndarray) -> tuple[int, bytes]:
        features = len(self.texts[text].features)
        if gone.shape != (features,) or gone.dtype != np.bool_:
            raise ConfigError(f"text {text} has {features} features; the set that is gone has shape {gone.shape}.")
        return text, np.packbits(gone).tobytes()

    def _batches(self, requests: Sequence[Request]) -> Iterator[tuple[list[int], list[PerturbableText]]]:
        """Copies of like length together, the longest first."""
        copies = [perturbed(self.texts[text], gone, self.how, self.mask_token_id) for text, gone in requests]
        order = sorted(range(len(copies)), key=lambda row: -len(copies[row].input_ids))
        first = 0
        while first < len(order):
            room = max(1, self.batch_tokens // len(copies[order[first]].input_ids))
            rows = order[first : first + room]
            yield rows, [copies[row] for row in rows]
            first += room

    @torch.inference_mode()
    def _forward(self, copies: Sequence[PerturbableText]) -> Float64[np.ndarray, " copies"]:
        batch = _collate(copies, self.pad_token_id)
        with autocast(device_of(self.model), self.precision):
            outputs = outputs_of(self.model, batch)
        rows = torch.arange(len(copies))
        if copies[0].span is None:
            shares = outputs[LOGITS].double().cpu().softmax(dim=-1)
            return shares[rows, torch.tensor([copy.label for copy in copies])].numpy()
        product = torch.ones(len(copies), dtype=torch.float64)
        for name, end in ((START, 0), (END, 1)):
            logits = outputs[name].double().cpu().masked_fill(batch["attention_mask"] == 0, -torch.inf)
            places = torch.tensor([copy.span[end] for copy in copies if copy.span is not None])
            product *= logits.softmax(dim=-1)[rows, places]
        return product.numpy()


def perturbed(text: PerturbableText, gone: np.ndarray, how: str, mask_token_id: int | None) -> PerturbableText:
    """A copy of a text that has lost some of its features (its own `features` are then of no use)."""
    places = text.features[gone]
    if how == "mask":
        ids = text.input_ids.copy()
        ids[places] = mask_token_id
        return dataclasses.replace(text, input_ids=ids)
    kept = np.ones(len(text.input_ids), dtype=bool)
    kept[places] = False
    span = text.span
    if span is not None:
        before = np.cumsum(kept) - 1
        span = (int(before[span[0]]), int(before[span[1]]))
    types = None if text.token_type_ids is None else text.token_type_ids[kept]
    return dataclasses.replace(text, input_ids=text.input_ids[kept], token_type_ids=types, span=span)


def _collate(copies: Sequence[PerturbableText], pad_token_id: int) -> dict[str, Tensor]:
    length = max(len(copy.input_ids) for copy in copies)
    ids = np.full((len(copies), length), pad_token_id, dtype=np.int64)
    mask, types = np.zeros_like(ids), np.zeros_like(ids)
    for row, copy in enumerate(copies):
        size = len(copy.input_ids)
        ids[row, :size], mask[row, :size] = copy.input_ids, 1
        if copy.token_type_ids is not None:
            types[row, :size] = copy.token_type_ids
    batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    if copies[0].token_type_ids is not None:
        batch["token_type_ids"] = torch.from_numpy(types)
    return batch
