"""Two lists in, a model out: predictions in the labels' own type, scores, saving, and sentences for what can't be."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import regtune
from regtune.errors import CheckpointError, ConfigError, DataError
from tiny_tokenizer import save_tiny

TEXTS = ["the cat is in the house", "who lives, where", "a cat in a house", "who, what, where"] * 3
LABELS = [1, 0, 1, 0] * 3
LONG = regtune.TrainConfig(epochs=20.0, learning_rate=3e-3, batch_size=4, precision="float32")
FEW = regtune.TrainConfig(epochs=4.0, learning_rate=3e-3, batch_size=4, precision="float32")
"""For long lists: as many steps as `LONG`, and a fifth of its checkpoints."""
LONGER = regtune.TrainConfig(epochs=50.0, learning_rate=3e-3, batch_size=4, precision="float32")
"""For labels that are learnt one by one, whatever order the sums are taken in."""
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


@pytest.mark.parametrize("task", ["qa", "lm", "mlm", "choose"])
def test_a_task_that_two_lists_cannot_hold_says_which_can(model, task):
    others = "classify, multi-label, regress, tag, instruct, images"
    with pytest.raises(ConfigError, match=f"The task {task} isn't learnt from two lists; what can be: {others}"):
        regtune.fit(TEXTS, LABELS, model=model, task=task)


# Other tasks than one label a text


def test_several_labels_a_text_come_back_as_lists_of_what_was_given(model):
    texts, labels = ["cat", "who", "the", "who, cat"] * 3, [["pet", 7], ["asked"], [], ["asked", "pet", 7]] * 3
    some = regtune.fit(texts, labels, model=model, num_registers=2, task="multi-label", training=LONGER)
    assert [set(one) for one in some.predict(texts[:4])] == [set(one) for one in labels[:4]]
    assert set(some.classes) == {"pet", "asked", 7}
    shares = some.predict_proba(texts[:4])
    assert ((shares >= 0.5).sum(axis=1) == [2, 1, 0, 3]).all(), "each label by itself"
    assert some.score(texts[:4], labels[:4]) == 1.0


def test_numbers_are_learnt_as_numbers(model):
    scored = regtune.fit(TEXTS * 5, np.array([0.5, -0.5] * 30), model=model, task="regress", training=FEW)
    said = scored.predict(TEXTS[:2])
    assert said[0] > said[1]
    assert scored.score(TEXTS[:4], [0.5, -0.5, 0.5, -0.5]) > 0.5, "Pearson"
    for ask in (lambda: scored.classes, lambda: scored.predict_proba(TEXTS[:1])):
        with pytest.raises(ConfigError, match=r"The task regress .*; use predict"):
            ask()


def test_tags_are_learnt_of_lists_of_words_and_given_for_texts_too(model):
    words, tags = [["the", "cat", "lives"], ["the", "house"]] * 20, [[0, 1, 0], [0, 2]] * 20
    tagger = regtune.fit(words, tags, model=model, task="tag", training=FEW)
    assert tagger.predict([*words[:2], "the cat lives"]) == [*tags[:2], tags[0]]
    assert tagger.classes == [0, 1, 2]
    assert tagger.score(words[:2], [[0, 1, 0], [0, 1]]) == pytest.approx(4 / 5)
    with pytest.raises(ConfigError, match="The task tag gives no probabilities of classes; use predict"):
        tagger.predict_proba(words)
    with pytest.raises(DataError, match="the words are 'the cat'; a list of words is needed"):
        regtune.fit(["the cat"], [["a", "b"]], model=model, task="tag")
    with pytest.raises(DataError, match="words: 3, tags: 2; give a list with one tag a word"):
        regtune.fit(words, tags[1:] + tags[:1], model=model, task="tag")


def test_answers_are_learnt_by_a_decoder_which_writes_them(tmp_path):
    decoder = str(save_tiny(tmp_path / "decoder", "gpt2", head="causal-lm", max_position_embeddings=400))
    asked, answers = ["who lives in the house"] * 32, ["cat"] * 32
    training = regtune.TrainConfig(epochs=4.0, learning_rate=1e-2, batch_size=4, precision="float32")
    writer = regtune.fit(asked, answers, model=decoder, num_registers=1, task="instruct", training=training)
    assert writer.predict(asked[:1])[0].startswith("cat")
    assert 1.0 <= writer.score(asked[:1], answers[:1]) < 2.0, "perplexity of the answer"


def test_images_are_paths_or_images_in_memory(tmp_path):
    tiny_images = pytest.importorskip("tiny_images")
    vit = str(tiny_images.save_tiny(tmp_path / "vit"))
    folder = tiny_images.folder_of(tmp_path / "seen")
    paths = [str(path) for path in sorted(folder.rglob("*.png"))]
    given = [paths[0], Path(paths[1]), Image.open(paths[2]), *paths[3:]]
    kinds = (["cat"] * 3 + ["dog"] * 3) * 5
    seen = regtune.fit(given * 5, kinds, model=vit, num_registers=1, task="images", training=FEW)
    assert seen.predict([paths[0], Image.open(paths[5])]) == ["cat", "dog"]
    assert seen.score([Image.open(paths[2]), paths[3]], ["cat", "cat"]) == 0.5
    with pytest.raises(DataError, match=r"there is no image .*nowhere\.png"):
        regtune.fit(["nowhere.png"], ["cat"], model=vit, task="images")
