"""An Attribution as JSON: nothing is lost, nothing is no number, and other records are refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regtune.analyses.attribution.attribution import Attribution
from regtune.errors import DataError

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def fields(draw):
    count = draw(st.integers(0, 5))
    pairs = st.tuples(st.integers(0, 99), st.integers(0, 99))
    arrays = [draw(st.lists(NUMBERS, min_size=n, max_size=n)) for n in (count, draw(st.integers(0, 3)))]
    return dict(  # made inside the test: checking types draws random numbers
        method=draw(st.text(max_size=9)),
        target=draw(st.text(max_size=9)),
        tokens=tuple(draw(st.lists(st.text(max_size=5), min_size=count, max_size=count))),
        offsets=draw(st.none() | st.lists(pairs, min_size=count, max_size=count).map(tuple)),
        relevance=np.array(arrays[0], dtype=np.float64),
        registers=np.array(arrays[1], dtype=np.float64),
        steps=draw(st.none() | st.integers(2, 99)),
        **{
            name: draw(NUMBERS) for name in ("value", "positions", "types", "biases", "softmax", "baseline", "residual")
        },
    )


@given(fields())
def test_it_comes_back_from_json_as_it_was(given_fields):
    one = Attribution(**given_fields)
    back = Attribution.from_json(json.loads(json.dumps(one.to_json(), allow_nan=False)))
    for name in one.__dataclass_fields__:
        before, after = getattr(one, name), getattr(back, name)
        assert np.array_equal(before, after) if isinstance(before, np.ndarray) else before == after, name


def example(**changes):
    settings = {
        "method": "attnlrp",
        "target": "class 0",
        "value": 1.0,
        "tokens": ("a",),
        "offsets": ((0, 1),),
        "relevance": np.ones(1),
        "registers": np.zeros(0),
    }
    return Attribution(**{**settings, **changes})


def test_what_is_no_number_becomes_none_and_nan_again():
    record = example(residual=math.nan, relevance=np.array([math.inf])).to_json()
    assert record["residual"] is None
    assert record["relevance"] == [None]
    back = Attribution.from_json(record)
    assert math.isnan(back.residual)
    assert np.isnan(back.relevance).all()


def test_the_ledger_counts_the_baseline():
    one = example(baseline=2.0, positions=0.5)
    assert one.parts()["baseline"] == 2.0
    assert one.total == 3.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "attention"}, "kind='attention', schema_version=1 is no attribution"),
        ({"schema_version": 2}, "schema_version=2 is no attribution that this regtune reads"),
        ({"relevance": ["high"]}, "can't be read"),
        ({"relevance": [1.0, 2.0]}, "1 tokens but 2 scores"),
    ],
)
def test_records_that_are_no_attribution_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        Attribution.from_json({**example().to_json(), **change})


def test_a_record_without_a_field_is_refused():
    record = example().to_json()
    del record["offsets"]
    with pytest.raises(DataError, match="offsets"):
        Attribution.from_json(record)


def test_options_the_error_of_a_score_and_what_is_inside_the_model_come_back_too():
    one = example(
        options={"baseline": "pad", "start_layer": 3, "seed": None},
        error=0.004,
        read_from=(0,),
        by="head",
        inner=np.arange(6.0).reshape(1, 2, 3),
        inner_residual=np.array([1e-9]),
    )
    back = Attribution.from_json(json.loads(json.dumps(one.to_json(), allow_nan=False)))
    assert (back.options, back.error, back.read_from, back.by) == (one.options, 0.004, (0,), "head")
    assert np.array_equal(back.inner, one.inner)
    assert np.array_equal(back.inner_residual, one.inner_residual)


def test_records_from_before_options_were_kept_are_read():
    record = example().to_json()
    for name in ("options", "error", "read_from", "by", "inner", "inner_residual"):
        del record[name]
    back = Attribution.from_json(record)
    assert (back.options, back.error, back.read_from, back.by, back.inner) == ({}, None, (), None, None)
