"""Windows to a padded batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from regtune.tasks.qa.examples import Window


def collate(windows: Sequence[Window], pad_token_id: int, *, pad_to: int | None = None) -> dict[str, Tensor]:
    """Pads windows on the right to their longest, or to `pad_to` tokens.

    Args:
        windows: at least one window.
        pad_token_id: id of the padding token.
        pad_to: a fixed length in tokens; windows must not be longer.

    Returns:
        `input_ids`, `attention_mask`, `token_type_ids` (where the tokenizer makes them), each `[batch, seq]`, and
        `start_positions`, `end_positions`, `[batch]`.
    """
    length = pad_to or max(len(window.input_ids) for window in windows)
    input_ids = np.full((len(windows), length), pad_token_id, dtype=np.int64)
    mask = np.zeros((len(windows), length), dtype=np.int64)
    types = np.zeros((len(windows), length), dtype=np.int64)
    for row, window in enumerate(windows):
        n = len(window.input_ids)
        input_ids[row, :n] = window.input_ids
        mask[row, :n] = 1
        if window.token_type_ids is not None:
            types[row, :n] = window.token_type_ids
    batch = {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(mask)}
    if windows[0].token_type_ids is not None:
        batch["token_type_ids"] = torch.from_numpy(types)
    batch["start_positions"] = torch.tensor([window.start_position for window in windows])
    batch["end_positions"] = torch.tensor([window.end_position for window in windows])
    return batch
