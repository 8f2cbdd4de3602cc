"""Folds by name: every example is in one of them, and nothing that belongs together is in two."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regtune.errors import ConfigError, DataError
from regtune.folds import Fold, deal, fold_named, fold_of
from regtune.records import set_name
from regtune.registry import TASKS
from regtune.rows.reading import files_of, language_of_set, read_sets

POOL = ("embedded:train", "embedded:dev")


def read(name, *, task="qa", limit=None, training=False):
    chosen = TASKS.get(task)
    return read_sets(chosen, [name], chosen.settings(), limit=limit, training=training)


# Names


@pytest.mark.parametrize(
    ("fold", "name", "short"),
    [
        (
            Fold(sets=("a/en.json", "b/dev.json.gz"), number=3, count=10),
            "fold:3/10:a/en.json|b/dev.json.gz",
            "-fold-3-of-10",
        ),
        (
            Fold(sets=("a/en.json", "b/dev.json.gz"), number=3, count=10, seed=7, rest=True),
            "fold:not-3/10,seed=7:a/en.json|b/dev.json.gz",
            "-fold-not-3-of-10",
        ),
        (Fold(sets=("a/en.json", "b/dev.json.gz")), "fold:all:a/en.json|b/dev.json.gz", ""),
    ],
)
def test_a_fold_and_its_name_say_the_same(fold, name, short):
    assert fold.name == name
    assert fold_of(name) == fold_named(name) == fold
    assert set_name(name) == f"en+dev{short}"


def test_other_names_are_no_folds_and_keep_their_short_names():
    for name in ("embedded:dev", "noise:keyboard=0.1:a/en.json", "folds/en.json", "tydiqa:train:english"):
        assert fold_of(name) is None
    assert set_name("embedded:dev") == "embedded-dev"


@pytest.mark.parametrize(
    "name", ["fold:0/3:a", "fold:4/3:a", "fold:1/1:a", "fold:x/3:a", "fold:1/3:", "fold:1/3:a|", "fold:1/2:fold:1/2:a"]
)
def test_a_fold_that_cannot_be_is_refused_with_the_form(name):
    with pytest.raises(ConfigError, match="must be written fold:NUMBER/COUNT"):
        read(name)


def test_a_fold_stands_alone_and_its_sets_have_no_bar_in_their_names():
    with pytest.raises(ConfigError, match="name it alone"):
        read_sets(TASKS.get("qa"), ["fold:1/2:a", "b"], None)
    with pytest.raises(ConfigError, match="in its name"):
        assert Fold(sets=("a|b",), number=1, count=2).name


def test_files_and_language_of_a_fold_are_those_of_its_sets():
    name = "fold:1/2:noise:keyboard=0.1:x/en.json|y/en.dev.json"
    assert files_of(name) == ("x/en.json", "y/en.dev.json")
    qa = TASKS.get("qa")
    one = Fold(sets=("tydiqa-goldp/en.train.json.gz", "tydiqa-goldp/en.dev.json.gz"), number=1, count=2)
    assert language_of_set(qa, one.name) == language_of_set(qa, one.sets[0]) == "en"
    assert language_of_set(qa, Fold(sets=(one.sets[0], "tydiqa-goldp/ko.dev.json.gz")).name) == ""


# Dealing


@settings(max_examples=60, deadline=None)
@given(
    keys=st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=2), min_size=12, max_size=60),
    count=st.integers(2, 5),
    seed=st.integers(0, 3),
)
def test_what_shares_a_key_is_in_one_fold_and_no_fold_is_empty(keys, count, seed):
    try:
        folds = deal(keys, [""] * len(keys), count, seed=seed)
    except DataError as error:
        assert "groups of examples at least" in str(error)  # noqa: PT017
        return
    assert set(folds) == set(range(1, count + 1))
    where: dict[int, set[int]] = {}
    for own, fold in zip(keys, folds, strict=True):
        for key in own:
            where.setdefault(key, set()).add(fold)
    assert all(len(found) == 1 for found in where.values())


def test_folds_are_of_one_size_and_have_each_class_in_its_share():
    strata = ["a"] * 40 + ["b"] * 20
    folds = deal([[i] for i in range(60)], strata, 4, seed=0)
    assert Counter(zip(strata, folds, strict=True)) == {
        (kind, fold): size for kind, size in (("a", 10), ("b", 5)) for fold in (1, 2, 3, 4)
    }


def test_the_seed_alone_deals():
    keys = [[i] for i in range(40)]
    assert deal(keys, [""] * 40, 4, seed=1) == deal(keys, [""] * 40, 4, seed=1) != deal(keys, [""] * 40, 4, seed=2)


def test_more_folds_than_groups_are_refused_with_both_numbers():
    with pytest.raises(DataError, match=r"3 folds need 3 groups .* there are 2 in 4 examples. Set folds to 2 or less"):
        deal([[0], [0], [1], [1]], [""] * 4, 3, seed=0)


# Reading


def test_every_question_is_in_one_fold_and_no_passage_is_on_both_sides():
    pool = read(Fold(sets=POOL).name)
    seen: Counter[str] = Counter()
    for number in (1, 2, 3):
        own, rest = (read(Fold(sets=POOL, number=number, count=3, rest=side).name) for side in (False, True))
        seen.update(own.ids)
        assert {e.context for e in own}.isdisjoint({e.context for e in rest})
        assert sorted((*own.ids, *rest.ids)) == sorted(pool.ids)
        assert f"fold {number} of 3: {len(own)} of {len(pool)} pooled questions" in own.notes
    assert set(seen) == set(pool.ids)
    assert set(seen.values()) == {1}


def test_a_limit_and_being_trained_on_move_no_example_to_another_fold():
    name = Fold(sets=POOL, number=2, count=4).name
    whole = read(name).ids
    assert read(name, limit=5).ids == whole[:5]
    assert read(name, training=True).ids == whole


def test_copies_of_a_text_stay_in_one_fold_whatever_their_ids_files_and_case(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = [f"text number {i}" for i in range(12)]
    Path("a.csv").write_text("text,label\n" + "".join(f"{t},{i % 2}\n" for i, t in enumerate(texts)))
    Path("b.csv").write_text("text,label\n" + "".join(f"{t.upper()}  ,{i % 2}\n" for i, t in enumerate(texts)))
    for number in (1, 2, 3):
        own, rest = (
            {
                e.text.strip().lower()
                for e in read(Fold(sets=("a.csv", "b.csv"), number=number, count=3, rest=r).name, task="classify")
            }
            for r in (False, True)
        )
        assert own.isdisjoint(rest)
        assert len(own) == 4
