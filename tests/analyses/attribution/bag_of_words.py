"""Models whose right explanation is known: a class logit that is a sum over words, or over words and pairs of words."""

from __future__ import annotations

import numpy as np
import torch

from regtune.rows.token_classes import TokenClass

PAD, CLS, SEP, MASK, FIRST_WORD = 0, 1, 2, 3, 4


class BagOfWords(torch.nn.Module):
    """Logit of class 1 = scale · sum of the words' weights (and of pairs'); special tokens weigh nothing."""

    def __init__(self, weights, *, pairs=None, scale: float = 1.0):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.tensor([0.0] * FIRST_WORD + list(weights), dtype=torch.float64))
        self.pairs = None if pairs is None else torch.nn.functional.pad(torch.tensor(pairs), (FIRST_WORD, 0) * 2)
        self.scale = scale
        self.seen: list[torch.Tensor] = []

    def forward(self, input_ids, attention_mask, return_dict=True):
        self.seen.append(input_ids)
        there = torch.zeros(len(input_ids), len(self.weights), dtype=torch.float64)
        there.scatter_(1, input_ids * attention_mask, 1.0)  # padding counts as [PAD], which weighs nothing
        logit = there @ self.weights
        if self.pairs is not None:
            logit = logit + torch.einsum("bi,ij,bj->b", there, self.pairs, there)
        return {"logits": torch.stack([torch.zeros_like(logit), self.scale * logit], dim=1)}


def batch_of(*texts):
    """An analysis batch of texts given as lists of word numbers."""
    length = max(len(text) for text in texts) + 2
    ids = torch.full((len(texts), length), PAD)
    mask = torch.zeros_like(ids)
    classes = torch.full(ids.shape, int(TokenClass.PADDING), dtype=torch.int8)
    for row, text in enumerate(texts):
        ids[row, : len(text) + 2] = torch.tensor([CLS, *(FIRST_WORD + word for word in text), SEP])
        mask[row, : len(text) + 2] = 1
        classes[row, : len(text) + 2] = int(TokenClass.CONTEXT)
        classes[row, 0], classes[row, len(text) + 1] = int(TokenClass.CLS), int(TokenClass.SEP)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_classes": classes,
        "example": torch.arange(len(texts)),
    }


def oracle(model, texts):
    """What each word does for the predicted class."""
    weights = model.weights.detach().numpy()
    return [weights[text.input_ids[text.features]] * (1 if text.label == 1 else -1) for text in texts]


def random_scores(texts, seed: int = 0):
    random = np.random.default_rng(seed)
    return [random.normal(size=len(text.features)) for text in texts]
