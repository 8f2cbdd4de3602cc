"""Sentences to batches, and a classifier's accuracy on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regtune.models.precision import device_of
from regtune.tasks.classify.sentences import Sentence


class SentenceCollator:
    """Makes the tensors of one batch, padded to its longest sentence, rounded up."""

    def __init__(self, pad_token_id: int, *, multiple_of: int) -> None:
        self.pad_token_id = pad_token_id
        self.multiple_of = multiple_of

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask`, `token_type_ids` where there are any, `labels`."""
        longest = max(len(row["input_ids"]) for row in rows)
        length = math.ceil(longest / self.multiple_of) * self.multiple_of
        fill = {"input_ids": self.pad_token_id, "attention_mask": 0, "token_type_ids": 0}
        batch = {
            name: torch.tensor([row[name] + [value] * (length - len(row[name])) for row in rows])
            for name, value in fill.items()
            if name in rows[0]
        }
        batch["labels"] = torch.tensor([row["labels"] for row in rows])
        return batch


def coded_sentences(sentences: Sequence[Sentence], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """Sentences as token ids of at most `max_length`, with their labels."""
    coded = tokenizer([sentence.text for sentence in sentences], truncation=True, max_length=max_length)
    return [
        {name: list(coded[name][row]) for name in coded if name != "offset_mapping"} | {"labels": sentence.label}
        for row, sentence in enumerate(sentences)
    ]


@torch.inference_mode()
def accuracy(
    model: nn.Module, tokenizer: Any, sentences: Sequence[Sentence], *, max_length: int, batch_size: int = 128
) -> float:
    """Share of sentences whose class is predicted, in float32."""
    coded = coded_sentences(sentences, tokenizer, max_length)
    order = sorted(range(len(coded)), key=lambda row: len(coded[row]["input_ids"]))
    collate = SentenceCollator(int(tokenizer.pad_token_id or 0), multiple_of=1)
    right, device = 0, device_of(model)
    for first in range(0, len(order), batch_size):
        batch = collate([coded[row] for row in order[first : first + batch_size]])
        labels = batch.pop("labels")
        logits = model(**{name: value.to(device) for name, value in batch.items()}).logits
        right += int((logits.argmax(dim=-1).cpu() == labels).sum())
    return right / len(order)
