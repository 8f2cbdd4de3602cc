"""Rows to batches: the order of training (its own seed, resumable, the same for every model) and the padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64
from torch.utils.data import Sampler

from regtune.errors import DataError
from regtune.interfaces import Batch, Rows

POOL_BATCHES = 50
"""Batches whose rows are drawn together before they are sorted by length: more wastes less, fewer mixes more."""


LENGTH_MULTIPLE = 8
"""What a batch's length is rounded up to: a GPU's matrix units like it, and a CPU keeps kernels for each new length."""


class BatchOrder(Sampler[int]):
    """Indices of rows, batch after batch, in an order that depends on the data seed and the epoch alone.

    The rows are shuffled, cut into pools of `POOL_BATCHES` batches, sorted by length inside a pool, and the
    batches are shuffled again. The batch with the longest row comes first, so that memory that runs out does so in
    the first step, and an incomplete batch comes last. No global random state is read or written.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, data_seed: int, group: bool = True) -> None:
        """`batch_size` counts the rows of one whole optimiser step; `group=False` is a plain shuffle."""
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

    def order(self, epoch: int) -> Int64[np.ndarray, " rows"]:
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


class Collator:
    """Makes the tensors of the rows with these indices, padded to one length for all or to the batch's own longest."""

    def __init__(self, rows: Rows[Any], *, length: int | None = None, multiple_of: int = 1) -> None:
        """`length` pads every batch to it; None pads to the batch's longest, rounded up to `multiple_of`."""
        self.rows = rows
        self.length = length
        self.multiple_of = multiple_of

    def __call__(self, indices: Sequence[int]) -> Batch:
        """One batch, as `Rows.collate` makes it."""
        longest = max(self.rows.lengths[index] for index in indices)
        rounded = -(-longest // self.multiple_of) * self.multiple_of
        chosen = [self.rows.rows[index] for index in indices]
        return self.rows.collate(chosen, rounded if self.length is None else self.length)


def check_rows(rows: Rows[Any], max_length: int | None) -> None:
    """Refuses rows that cannot be trained on."""
    if not len(rows):
        raise DataError("There is nothing to train on: 0 training rows. Check data.train and max_train_examples.")
    for index, size in enumerate(rows.lengths):
        if max_length is not None and size > max_length:
            raise DataError(
                f"training row {index} (example {rows.example[index]}) has {size} positions, more than "
                f"max_length={max_length}. Make the rows with the same max_length."
            )
