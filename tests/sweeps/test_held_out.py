"""What is held out of training: whole groups, each class by its share, the same for the same seed."""

from __future__ import annotations

import dataclasses

import pytest

from regtune.errors import ConfigError, DataError
from regtune.interfaces import Examples
from regtune.sweeps.held_out import draw_share, every_group
from regtune.tasks.classify import Classification
from regtune.tasks.labelled import LabelledText
from regtune.tasks.qa.task import QuestionAnswering
from tiny_tokenizer import examples

CLASSES = Classification()


def texts(labels):
    items = tuple(LabelledText(id=f"{place}", text="a", label=label) for place, label in enumerate(labels))
    return Examples(items=items, names=("x",))


def labels_of(part):
    return [item.label for item in part.items]


def test_questions_about_one_passage_are_never_split():
    items = tuple(dataclasses.replace(one, id=f"{one.id}-{i}") for i in range(4) for one in examples(6))
    whole = Examples(items=items, names=("x",))
    parts = [draw_share(whole, QuestionAnswering(), 0.25, seed=seed) for seed in range(5)]
    for learnt, held in [*parts, every_group(whole, QuestionAnswering(), 3)]:
        assert not {one.context for one in learnt.items} & {one.context for one in held.items}
        assert len(held) == 8
        assert sorted(learnt.ids + held.ids) == sorted(one.id for one in items)
    assert len({held.ids for _, held in parts}) > 1
    with pytest.raises(ConfigError, match="at least two texts"):
        draw_share(dataclasses.replace(whole, items=items[:1]), QuestionAnswering(), 0.25, seed=0)
    with pytest.raises(DataError, match="at least two texts"):
        every_group(dataclasses.replace(whole, items=items[:1]), QuestionAnswering(), 3)


@pytest.mark.parametrize("rare", [range(190, 200), range(0, 200, 20)], ids=["at the end", "in turns"])
def test_a_rare_class_has_its_share_of_what_is_held_out(rare):
    """One label in twenty: of 20 texts that are held out 1 has it, whichever the seed and the order of the file."""
    skewed = texts(["rare" if place in rare else "usual" for place in range(200)])
    for seed in range(20):
        learnt, held = draw_share(skewed, CLASSES, 0.1, seed=seed)
        assert (len(held), labels_of(held).count("rare"), labels_of(learnt).count("rare")) == (20, 1, 9)
    learnt, held = every_group(skewed, CLASSES, 10)
    assert (len(held), labels_of(held).count("rare"), labels_of(learnt).count("rare")) == (20, 1, 9)


def test_the_only_text_of_a_class_is_learnt_from():
    skewed = texts(["once", *["usual"] * 30, "also once"])
    for _, held in [every_group(skewed, CLASSES, 2), *(draw_share(skewed, CLASSES, 0.1, seed=s) for s in range(20))]:
        assert set(labels_of(held)) == {"usual"}
    with pytest.raises(DataError, match="two of one label"):
        every_group(texts("abc"), CLASSES, 2)
