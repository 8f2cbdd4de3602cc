"""Claims about the order of training windows and their padding."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regtune.errors import DataError
from regtune.tasks.qa.task import check_labels, collate, window_rows
from regtune.training.batches import BatchOrder, Collator, check_rows, padded_lengths
from tiny_windows import tiny_window, tiny_windows

LENGTHS = st.lists(st.integers(3, 400), min_size=1, max_size=300)


@given(LENGTHS, st.integers(1, 17), st.integers(0, 3), st.booleans())
def test_every_window_comes_exactly_once_in_every_epoch(lengths, batch_size, epoch, group):
    order = BatchOrder(lengths, batch_size, data_seed=3, group=group).order(epoch)
    assert sorted(order.tolist()) == list(range(len(lengths)))


@given(LENGTHS, st.integers(1, 17))
def test_the_longest_window_is_in_the_first_full_batch(lengths, batch_size):
    order = BatchOrder(lengths, batch_size, data_seed=0).order(0)
    full = len(lengths) // batch_size * batch_size
    if full:
        assert max(lengths[i] for i in order[:batch_size]) == max(lengths[i] for i in order[:full])


def test_the_order_depends_on_data_seed_and_epoch_and_on_no_global_random_state():
    lengths = [len(window.input_ids) for window in tiny_windows(200)]
    np.random.seed(1)
    torch.manual_seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = BatchOrder(lengths, 8, data_seed=0).order(1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    np.random.seed(2)
    torch.manual_seed(2)
    assert np.array_equal(BatchOrder(lengths, 8, data_seed=0).order(1), first)
    assert not np.array_equal(BatchOrder(lengths, 8, data_seed=0).order(2), first)
    assert not np.array_equal(BatchOrder(lengths, 8, data_seed=1).order(1), first)


def test_grouping_leaves_under_five_percent_of_padding_where_a_plain_shuffle_leaves_over_forty():
    lengths = np.random.default_rng(0).lognormal(5, 0.5, 4000).clip(20, 384).astype(int)

    def padding(group):
        order = BatchOrder(lengths.tolist(), 16, data_seed=0, group=group).order(0)
        return 1 - lengths.sum() / (lengths[order].reshape(-1, 16).max(axis=1) * 16).sum()

    assert padding(group=True) < 0.05
    assert padding(group=False) > 0.4


def test_a_batch_is_padded_to_its_longest_window_and_the_mask_says_where():
    rows = window_rows([tiny_window(5), tiny_window(30), tiny_window(9, start=4, end=6)], 1)
    batch = Collator(rows)([0, 2])
    assert batch["input_ids"].shape == (2, 9)
    assert batch["attention_mask"].sum(dim=1).tolist() == [5, 9]
    assert batch["input_ids"][0, 5:].tolist() == [1] * 4
    assert batch["start_positions"].tolist() == [2, 4]
    assert batch["end_positions"].tolist() == [3, 6]


@pytest.mark.parametrize(("padded", "seq"), [([20], 20), ([16, 8, 24], 16), ([9], 9), ([8], 9), ([], 9)])
def test_a_batch_is_padded_to_the_first_length_that_holds_its_longest_window(padded, seq):
    assert Collator(window_rows([tiny_window(9)], 1), padded)([0])["input_ids"].shape == (1, seq)


def wasted(lengths, padded):
    return sum(min(one for one in padded if one >= length) - length for length in lengths)


@given(st.lists(st.integers(1, 80), min_size=1, max_size=60), st.integers(1, 4))
def test_no_other_choice_of_as_many_lengths_wastes_less(lengths, number):
    found = padded_lengths(lengths, number, multiple_of=8).tolist()
    every = sorted({min(-(-length // 8) * 8, max(lengths)) for length in lengths})
    assert len(found) == min(number, len(every))
    others = itertools.combinations(every[:-1], len(found) - 1)
    assert wasted(lengths, found) == min(wasted(lengths, (*other, every[-1])) for other in others)


def test_no_row_is_padded_beyond_the_longest():
    """A model may have no position left for more."""
    assert padded_lengths([3, 50, 50, 13]).tolist() == [8, 16, 50]


def test_there_are_twenty_four_lengths_at_most_and_they_cost_under_five_percent_of_lengths_like_tydi_qas():
    lengths = np.random.default_rng(0).lognormal(4.9, 0.45, 4000).clip(20, 384).astype(int)
    order = BatchOrder(lengths.tolist(), 16, data_seed=0)
    assert len(order.padded) == 24
    longest = lengths[order.order(0)].reshape(-1, 16).max(axis=1)
    taken = order.padded[np.searchsorted(order.padded, longest)]
    assert taken.sum() * 16 / lengths.sum() < 1.05


def test_windows_without_token_types_make_batches_without_them():
    window = dataclasses.replace(tiny_window(9), token_type_ids=None)
    assert "token_type_ids" not in collate([window], 1)


def test_an_empty_training_set_is_refused():
    with pytest.raises(DataError, match="0 training rows"):
        check_rows(window_rows([], 1), 40)


@pytest.mark.parametrize(("start", "end"), [(-1, 3), (2, 9), (9, 9), (4, 3)])
def test_labels_outside_the_text_are_refused_with_their_values(start, end):
    with pytest.raises(DataError, match=rf"window 1 \(example 0\) has the label start={start}, end={end}.* 9 tokens"):
        check_labels([tiny_window(9), tiny_window(9, start=start, end=end)])


def test_a_window_longer_than_max_length_is_refused():
    with pytest.raises(DataError, match="9 positions, more than max_length=8"):
        check_rows(window_rows([tiny_window(9)], 1), 8)
