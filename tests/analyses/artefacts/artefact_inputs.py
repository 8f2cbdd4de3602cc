"""Analysis batches of random tokens, and artefacts planted in tiny models."""

import torch

from regtune.rows.token_classes import TokenClass
from tiny import tiny_model

CLS_ID, SEP_ID, PAD_ID = 2, 3, 1


def batch(lengths=(12, 7, 20), *, seed=1, pad=0, first=0):
    """`[CLS]`, content and `[SEP]` in each row; `pad` more columns than the longest row needs."""
    generator = torch.Generator().manual_seed(seed)
    seq = max(lengths) + pad
    ids = torch.full((len(lengths), seq), PAD_ID)
    classes = torch.full((len(lengths), seq), int(TokenClass.PADDING), dtype=torch.int8)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(5, 120, (length,), generator=generator)
        ids[row, 0], ids[row, length - 1] = CLS_ID, SEP_ID
        classes[row, :length] = int(TokenClass.CONTEXT)
        classes[row, 0], classes[row, length - 1] = int(TokenClass.CLS), int(TokenClass.SEP)
    return {
        "input_ids": ids,
        "attention_mask": (classes != int(TokenClass.PADDING)).long(),
        "token_classes": classes,
        "example": torch.arange(first, first + len(lengths)),
    }


def single_rows(whole):
    """The rows of a batch as batches of one, without their padding."""
    found = []
    for row in range(len(whole["input_ids"])):
        length = int(whole["attention_mask"][row].sum())
        found.append(
            {name: v[row : row + 1, :length] if v.dim() > 1 else v[row : row + 1] for name, v in whole.items()}
        )
    return found


def quiet_model(**changes):
    """A tiny BERT of small weights, wide enough for a dimension to be beyond 6σ: it has no artefacts."""
    model = tiny_model("bert", hidden_size=128, intermediate_size=96, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.25)
    return model


def plant(module, change):
    """From now on `change` is done, in place, to what a module gives; returns the handle that takes it away."""

    def changed(_module, _args, output):
        output = output.clone()
        change(output)
        return output

    return module.register_forward_hook(changed)
