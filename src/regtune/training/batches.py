"""Windows to batches: the order of training (its own seed, resumable, the same for every model) and the padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import Sampler

from regtune.errors import DataError
from regtune.tasks.qa.collate import collate
from regtune.tasks.qa.examples import Window

POOL_BATCHES = 50
"""Batches whose windows are drawn together before they are sorted by length: more wastes less, fewer mixes more."""


class BatchOrder(Sampler[int]):
    """Indices of windows, batch after batch, in an order that depends on the data seed and the epoch alone.

    The windows are shuffled, cut into pools of `POOL_BATCHES` batches, sorted by length inside a pool, and the
    batches are shuffled again. The batch with the longest window comes first, so that memory that runs out does so in
    the first step, and an incomplete batch comes last. No global random state is read or written.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, data_seed: int, group: bool = True) -> None:
        """`batch_size` counts the windows of one whole optimiser step; `group=False` is a plain shuffle."""
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.batch_size = batch_size
        self.data_seed = data_seed
        self.group = group
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order(self.epoch).tolist())

    def order(self, epoch: int) -> Int64[np.ndarray, " windows"]:
        """The order of one epoch."""
        random = np.random.default_rng([self.data_seed, epoch])
        order = random.permutation(len(self.lengths))
        if not self.group:
            return order
        pool = self.batch_size * POOL_BATCHES
        pieces = [order[start : start + pool] for start in range(0, len(order), pool)]
        ordered = np.concatenate([piece[np.argsort(-self.lengths[piece], kind="stable")] for piece in pieces])
        full = len(ordered) // self.batch_size
        batches = ordered[: full * self.batch_size].reshape(full, self.batch_size)
        if full > 1:
            batches = random.permutation(batches)
            longest = int(self.lengths[batches].max(axis=1).argmax())
            batches[[0, longest]] = batches[[longest, 0]]
        return np.concatenate([batches.reshape(-1), ordered[full * self.batch_size :]])


def length_multiple(device: torch.device) -> int:
    """What batches are padded up to a multiple of: a GPU's matrix units like 8.

    On a CPU oneDNN keeps kernels and memory of its own for each new length, so there are few.
    """
    return 8 if device.type == "cuda" else 16


class WindowCollator:
    """Makes the tensors of one batch, padded to one length for all or to the batch's own longest window."""

    def __init__(self, pad_token_id: int, *, length: int | None = None, multiple_of: int = 1) -> None:
        """`length` pads every batch to it; None pads to the batch's longest, rounded up to `multiple_of`."""
        self.pad_token_id = pad_token_id
        self.length = length
        self.multiple_of = multiple_of

    def __call__(self, windows: Sequence[Window]) -> dict[str, Tensor]:
        """One batch, as `regtune.tasks.qa.collate.collate` makes it."""
        longest = max(len(window.input_ids) for window in windows)
        rounded = -(-longest // self.multiple_of) * self.multiple_of
        return collate(windows, self.pad_token_id, pad_to=rounded if self.length is None else self.length)


def check_windows(windows: Sequence[Window], max_length: int) -> None:
    """Refuses windows that cannot be trained on.

    Raises:
        DataError: there are none, one is longer than `max_length`, or a label lies outside its window.
    """
    if not len(windows):
        raise DataError("There is nothing to train on: 0 training windows. Check data.train and max_train_examples.")
    for index, window in enumerate(windows):
        size = len(window.input_ids)
        start, end = window.start_position, window.end_position
        if size > max_length:
            raise DataError(
                f"training window {index} has {size} tokens, more than max_length={max_length}. "
                "Make the windows with the same max_length."
            )
        if not 0 <= start <= end < size:
            raise DataError(
                f"training window {index} (example {window.example}) has the label start={start}, end={end}, which is "
                f"no span of its {size} tokens. Labels count text tokens only: never add the number of registers."
            )
