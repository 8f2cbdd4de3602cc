"""Models compared by what is inside them."""

import numpy as np
import pytest

from regtune.analyses.inside_compare import compare_inside
from regtune.errors import DataError


def record(n, seed, values, questions=None, name="sink"):
    questions = questions or [f"q{index}" for index in range(len(values))]
    return {"num_registers": n, "seed": seed, "questions": questions, "measures": {name: list(values)}}


def models(effect, *, counts=(0, 4), seeds=5, questions=60, noise=0.05):
    random = np.random.default_rng(3)
    hard = random.normal(0.5, 0.1, questions)
    return [
        record(n, seed, hard + (effect if n else 0.0) + random.normal(0, 0.01) + random.normal(0, noise, questions))
        for n in counts
        for seed in range(seeds)
    ]


def test_a_difference_that_is_there_is_found_with_its_size_and_sign():
    (row,) = compare_inside(models(-0.2), resamples=2000)
    assert row.verdict == "lower"
    assert row.interval[0] < -0.2 < row.interval[1]
    assert (row.seeds, row.questions, row.num_registers) == (5, 60, 4)


def test_no_difference_is_not_shown():
    (row,) = compare_inside(models(0.0), resamples=2000)
    assert row.verdict == "not shown"


def test_holm_counts_every_measure_and_every_n():
    once = models(-0.02)
    both = models(-0.02, counts=(0, 4, 16))
    alone = compare_inside(once, resamples=2000)[0].p_value
    assert compare_inside(both, resamples=2000)[0].p_value >= alone


def test_questions_without_a_number_in_one_model_are_left_out_everywhere():
    found = models(-0.2)
    found[3]["measures"]["sink"][7] = None
    (row,) = compare_inside(found, resamples=2000)
    assert row.questions == 59


def test_only_shared_seeds_are_compared():
    found = [each for each in models(-0.2) if not (each["num_registers"] == 4 and each["seed"] > 2)]
    assert compare_inside(found, resamples=2000)[0].seeds == 3


def test_other_questions_are_refused():
    found = models(0.0, seeds=2)
    found[1]["questions"] = ["other", *found[1]["questions"][1:]]
    with pytest.raises(DataError, match="N=0 and seed 1 was measured on other questions"):
        compare_inside(found)


def test_the_same_model_twice_is_refused():
    found = models(0.0, seeds=2)
    with pytest.raises(DataError, match="Two models have N=0 and seed 1"):
        compare_inside([*found, found[1]])


def test_one_seed_is_nothing_to_compare():
    with pytest.raises(DataError, match="two seeds in common"):
        compare_inside(models(0.0, seeds=1))
