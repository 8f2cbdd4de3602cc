"""Two lists in, a model out: predictions in the labels' own type, scores, saving, and sentences for what can't be."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

import regtune
from regtune.errors import CheckpointError, ConfigError, DataError
from tiny_tokenizer import save_tiny

TEXTS = ["the cat is in the house", "who lives, where", "a cat in a house", "who, what, where"] * 3
LABELS = [1, 0, 1, 0] * 3
LONG = regtune.TrainConfig(epochs=20.0, learning_rate=3e-3, batch_size=4, precision="float32")
SHORT = regtune.TrainConfig(epochs=1.0, precision="float32")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("fit") / "model", max_position_embeddings=400, head="none"))


@pytest.fixture(scope="module")
def fitted(model):
    return regtune.fit(TEXTS, np.array(LABELS), model=model, num_registers=2, training=LONG)


def test_it_learns_the_labels_and_gives_them_back_as_they_were(fitted):
    assert fitted.predict(TEXTS[:4]) == [1, 0, 1, 0]
    assert fitted.classes == [0, 1]
    shares = fitted.predict_proba(TEXTS[:3])
    assert shares.shape == (3, 2)
    assert shares.sum(axis=1) == pytest.approx([1, 1, 1])
    assert [fitted.classes[index] for index in shares.argmax(axis=1)] == [1, 0, 1]
    assert fitted.predict([]) == []
    assert fitted.predict_proba([]).shape == (0, 2)


def test_the_score_is_the_share_that_is_right(fitted):
    assert fitted.score(TEXTS[:4], [1, 0, 1, 1]) == 0.75


def test_it_prints_what_it_is(fitted):
    assert repr(fitted).startswith("<FittedModel classification: ")
    assert "2 registers" in repr(fitted)
    assert "12 texts" in str(fitted)
    assert "<table>" in fitted._repr_html_()


def test_a_saved_model_is_a_run_that_opens_again_after_the_object_is_gone(model, tmp_path):
    pairs = [(text, text) for text in TEXTS[:4]]
    once = regtune.fit(pairs, ["yes", "no", "yes", "no"], model=model, num_registers=3, training=SHORT)
    said, place = once.predict(pairs), once.session.run_dir
    folder = once.save(tmp_path / "saved")
    del once
    gc.collect()
    assert not place.exists(), "the run's own folder goes with the object"
    session = regtune.open(folder)
    assert regtune.num_registers(session.model) == 3
    assert [one["label"] for one in regtune.predict(folder, [{"text": a, "pair": b} for a, b in pairs])] == said
    assert not any(Path(folder).glob("checkpoints"))


def test_saving_over_something_is_refused(fitted, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"is not empty\. Name another folder"):
        fitted.save(tmp_path)


@pytest.mark.parametrize(
    ("texts", "labels", "options", "words"),
    [
        (TEXTS, LABELS[:-1], {}, "12 texts and 11 labels; give a label for each text"),
        ([], [], {}, "texts is empty"),
        (TEXTS, ["a"] * 12, {}, r"have 1 label \(a\); a classifier needs at least two"),
        (["", "b"], ["x", "y"], {}, "the text is ''"),
        (["a", "b"], ["x", None], {}, "the label is None"),
        (["a", "b"], ["x", b"y"], {}, "b'y' is a bytes"),
        ("a text", ["x"], {}, "texts is a str; give a list"),
        ([("a", "b", "c")], ["x"], {}, "3 parts; the task classify reads text, pair"),
    ],
)
def test_lists_that_cannot_be_learnt_get_a_sentence(model, texts, labels, options, words):
    with pytest.raises(DataError, match=words):
        regtune.fit(texts, labels, model=model, **options)


def test_a_task_that_two_lists_cannot_hold_says_which_can(model):
    with pytest.raises(ConfigError, match=r"The task qa isn't learnt from two lists; what can be: classify"):
        regtune.fit(TEXTS, LABELS, model=model, task="qa")
