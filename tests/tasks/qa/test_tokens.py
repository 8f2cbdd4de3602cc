"""Offsets: put right at the edges of tokens, and mapped to answers."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regtune.errors import DataError
from regtune.tasks.qa.tokens import clean_offsets, token_range


def clean(context, *ranges, blank=()):
    flags = np.array([index in blank for index in range(len(ranges))], dtype=bool)
    return clean_offsets(np.array(ranges, dtype=np.int32).reshape(-1, 2), context, flags).tolist()


def test_the_space_before_a_word_leaves_its_token():
    assert clean("the cat\n sat", (0, 3), (3, 7), (7, 12)) == [[0, 3], [4, 7], [9, 12]]


def test_a_token_of_spaces_keeps_them():
    assert clean("a  b", (0, 1), (1, 3), (3, 4)) == [[0, 1], [1, 3], [3, 4]]


def test_an_added_space_that_claims_the_next_character_becomes_empty():
    assert clean("日本", (0, 1), (0, 1), (1, 2), blank={0}) == [[0, 0], [0, 1], [1, 2]]


def test_a_real_space_mark_in_the_text_keeps_its_character():
    assert clean("▁a", (0, 1), (1, 2), blank={0}) == [[0, 1], [1, 2]]


def test_marks_that_a_normaliser_dropped_go_to_the_token_before():
    assert clean("he\u0301\u0323 e\u0301", (0, 2), (5, 6)) == [[0, 4], [5, 7]]


def test_marks_that_have_a_token_stay_there():
    assert clean("e\u0301", (0, 1), (1, 2)) == [[0, 1], [1, 2]]


@pytest.mark.parametrize("wrong", [(0, 9), (-1, 2), (3, 2)])
def test_a_range_outside_the_text_is_refused(wrong):
    with pytest.raises(DataError, match="outside a context of 4 characters"):
        clean("abcd", wrong)


def test_an_answer_inside_a_token_maps_to_the_token():
    offsets = np.array([[0, 3], [4, 9], [10, 12]], dtype=np.int32)
    assert token_range(offsets, 5, 7) == (1, 1)
    assert token_range(offsets, 2, 5) == (0, 1)
    assert token_range(offsets, 3, 4) is None


@given(st.text(min_size=1, max_size=30), st.data())
def test_cleaning_only_ever_drops_spaces_and_adds_marks(context, data):
    cuts = sorted(data.draw(st.sets(st.integers(0, len(context)), min_size=2)) | {0, len(context)})
    ranges = list(pairwise(cuts))
    for (start, end), (new_start, new_end) in zip(ranges, clean(context, *ranges), strict=True):
        assert start <= new_start <= new_end <= end
        kept = context[new_start:new_end]
        assert kept == (context[start:end].strip() or context[start:end])
