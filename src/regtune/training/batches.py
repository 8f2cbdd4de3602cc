"""Rows to batches: the order of training (its own seed, resumable, the same for every model) and the padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64
from torch.utils.data import Sampler

from regtune.errors import DataError
from regtune.interfaces import Batch, Rows

LENGTH_MULTIPLE = 8
"""What a batch's length is rounded up to: a GPU's matrix units like it."""
PADDED_LENGTHS = 24
"""How many lengths batches have at most. A CPU keeps kernels for each length, half a megabyte a matrix product, and
few lengths leave holes in its heap that the next batch fits; fewer waste more on padding (docs/log.md)."""


def padded_lengths(
    lengths: Sequence[int], number: int = PADDED_LENGTHS, multiple_of: int = LENGTH_MULTIPLE
) -> Int64[np.ndarray, " padded"]:
    """The lengths, in tokens and rising, that waste least when each row is padded to the first one not below its own.

    At most `number`, multiples of `multiple_of` or the longest row's own, by dynamic programming over how many rows
    have each length: the best first k lengths for the rows up to one length end in it and go on from the best k - 1.
    """
    own = np.asarray(lengths, dtype=np.int64)
    rounded = np.minimum(-(-own // multiple_of) * multiple_of, own.max(initial=0))
    rounded, rows = np.unique(rounded, return_counts=True)
    if len(rounded) <= number:
        return rounded
    before = np.concatenate([[0], np.cumsum(rows)])  # [lengths + 1] rows below each length
    cost = np.full(len(before), np.inf)  # tokens that the rows up to a length take with the lengths chosen so far
    cost[0] = 0
    previous = np.zeros((number, len(before)), dtype=np.int64)
    for chosen in range(number):
        last, cost = cost, np.full(len(before), np.inf)
        for end in range(1, len(before)):
            tried = last[:end] + rounded[end - 1] * (before[end] - before[:end])
            previous[chosen, end] = start = int(tried.argmin())
            cost[end] = tried[start]
    best, end = [], len(rounded)
    for chosen in reversed(range(number)):
        best.append(int(rounded[end - 1]))
        end = int(previous[chosen, end])
    return np.array(best[::-1], dtype=np.int64)


class BatchOrder(Sampler[int]):
    """Indices of rows, batch after batch, in an order that depends on the data seed and the epoch alone.

    The rows are shuffled, those that are padded to one length (`padded_lengths`) are put together, cut into batches,
    and the batches are shuffled again. The batch with the longest row comes first, so that memory that runs out does
    so in the first step, and an incomplete batch comes last. No global random state is read or written.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, data_seed: int, group: bool = True) -> None:
        """`batch_size` counts the rows of one whole optimiser step; `group=False` is a plain shuffle."""
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.batch_size = batch_size
        self.data_seed = data_seed
        self.group = group
        self.padded = padded_lengths(lengths) if group else self.lengths[:0]
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
        ordered = order[np.argsort(-np.searchsorted(self.padded, self.lengths[order]), kind="stable")]
        full = len(ordered) // self.batch_size
        batches = ordered[: full * self.batch_size].reshape(full, self.batch_size)
        if full > 1:
            batches = random.permutation(batches)
            longest = int(self.lengths[batches].max(axis=1).argmax())
            batches[[0, longest]] = batches[[longest, 0]]
        return np.concatenate([batches.reshape(-1), ordered[full * self.batch_size :]])


class Collator:
    """Makes the tensors of the rows with these indices, padded to the first of some lengths that holds them all."""

    def __init__(self, rows: Rows[Any], padded: Sequence[int] = ()) -> None:
        """`padded` are rising lengths, in tokens; a batch that fits none of them has its longest row's own."""
        self.rows = rows
        self.padded = sorted(padded)

    def __call__(self, indices: Sequence[int]) -> Batch:
        """One batch, as `Rows.collate` makes it."""
        longest = max(self.rows.lengths[index] for index in indices)
        length = next((length for length in self.padded if length >= longest), longest)
        return self.rows.collate([self.rows.rows[index] for index in indices], length)


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
