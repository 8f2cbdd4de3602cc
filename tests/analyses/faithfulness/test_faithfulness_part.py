"""The part `faithfulness`: limits, random orders, agreement with answers and with marked reviews."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from regtune.analyses.faithfulness.analysis import (
    FaithfulnessAnalysis,
    FaithfulnessSettings,
    review_windows,
    sentence_of,
)
from regtune.analyses.faithfulness.orders import HIGHER_IS_BETTER
from regtune.analyses.faithfulness.rationales import read_rationales
from regtune.analyses.parts import mean_interval
from regtune.config import RegisterConfig
from regtune.errors import ConfigError, UnknownNameError
from regtune.interfaces import Examples
from regtune.records import plain
from regtune.registers.surgery import add_registers
from regtune.session import Session
from regtune.tasks.classify import Classification, ClassifySettings
from regtune.tasks.qa.task import QASettings, QuestionAnswering
from tiny import tiny_model
from tiny_tokenizer import examples, tiny_tokenizer

METHODS = ("attnlrp", "attention", "random")
QUICK = {"curve": (0.0, 0.5, 1.0), "beam_width": 1, "max_groups": 4, "random_draws": 20}
REAL = Path(__file__).parents[4] / "shared" / "data" / "eraser-movies"


def classifier(registers=0):
    torch.manual_seed(0)
    model = tiny_model("bert", "sequence-classification", "sdpa")
    add_registers(model, RegisterConfig(num_registers=registers, init_std=0.5)).eval()
    return Session(
        name="m", model=model, reader=tiny_tokenizer(), task=Classification(), task_settings=ClassifySettings()
    )


def sentences(tmp_path, session, count=9):
    words = ["cat", "house", "the", "lives", "in", "who"]
    random = np.random.default_rng(0)
    lines = [f"{row % 2} {' '.join(random.choice(words, 5 + row % 3))} ." for row in range(count)]
    path = tmp_path / "sentences.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return session.task.read([str(path)], session.task_settings)


def measured(session, asked, **settings):
    chosen = FaithfulnessSettings(**{"methods": METHODS, **QUICK, **settings})
    return plain(FaithfulnessAnalysis().measure(session, session.rows(asked), asked, chosen))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    session = classifier(registers=3)
    asked = sentences(tmp_path_factory.mktemp("sst"), session)
    return measured(session, asked, texts=6, limit_texts=3)


def test_every_method_gets_every_metric_with_an_interval(found):
    assert {(row["method"], row["metric"]) for row in found["rows"]} == {
        (m, k) for m in METHODS for k in HIGHER_IS_BETTER
    }
    for row in found["rows"]:
        assert row["raw"]["low"] <= row["raw"]["value"] <= row["raw"]["high"]
    assert 0 <= found["facts"]["accuracy"] <= 1
    assert json.dumps(found, allow_nan=False)


def test_n_counts_the_texts_behind_each_number(found):
    """Six texts are measured and three have limits: a normalised value is of three."""
    placed = [row for row in found["rows"] if row["normalised"] is not None]
    assert placed
    assert all((row["n"], row["normalised_n"]) == (6, 3) for row in placed)
    normalised = {name: values for name, values in found["measures"].items() if name.endswith(".normalised")}
    assert all(len(values) == 3 for values in normalised.values())
    (table,) = [block for block in FaithfulnessAnalysis().blocks(found) if block.title == "Faithfulness of the methods"]
    ends = {(row[3], row[5]) for row in table.rows}
    assert ends <= {(6, 3), (6, None)}


def test_random_is_the_mean_of_many_orders_and_0_lies_inside_its_spread(found):
    for row in found["rows"]:
        if row["method"] == "random" and row["normalised"] is not None:
            low, value, high = (row["normalised"][name] for name in ("low", "value", "high"))
            assert value == pytest.approx(0, abs=1e-9)
            assert low < 0 < high
            assert row["raw"]["low"] < row["raw"]["value"] < row["raw"]["high"]


def test_no_method_is_better_than_the_best_order_known(found):
    for row in found["rows"]:
        if row["normalised"] is not None:
            assert row["normalised"]["value"] <= 1 + 1e-9


def test_random_orders_are_the_same_for_every_model(tmp_path):
    session = classifier()
    asked = sentences(tmp_path, session, 4)
    first, second = (measured(one, asked, methods=(), limit_texts=0) for one in (session, classifier()))
    assert first["rows"] == second["rows"]


def test_without_limits_nothing_is_normalised(tmp_path):
    session = classifier()
    rows = measured(session, sentences(tmp_path, session, 3), methods=("attention",), limit_texts=0)["rows"]
    assert all(row["normalised"] is None for row in rows)


def test_answers_and_their_sentences_are_marks_too():
    model = tiny_model("bert", attention="sdpa")
    session = Session(
        name="m", model=model, reader=tiny_tokenizer(), task=QuestionAnswering(), task_settings=QASettings()
    )
    content = measured(session, Examples(items=tuple(examples(4)), names=("made up",)), texts=3, limit_texts=2)
    metrics = {row["metric"] for row in content["rows"] if row["method"] == "attention"}
    assert metrics == {
        *HIGHER_IS_BETTER,
        *(f"{k} {n}" for k in ("answer", "sentence") for n in ("auprc", "f1_own_length")),
    }
    assert content["prevalence"]["answer"] < content["prevalence"]["sentence"] < 1
    assert len(content["measures"]["faithfulness.attention.answer auprc"]) == 3


def test_a_sentence_ends_where_it_should():
    context = examples(1)[0].context
    assert context == "The cat is in the house. Ann lives in house 0."
    start = context.index("Ann")
    first, last = sentence_of(context, start, start + 3)
    assert context[first:last] == "Ann lives in house 0."
    first, last = sentence_of(context, 4, 7)
    assert context[first:last].strip() == "The cat is in the house."
    assert sentence_of(context, 20, start + 3) == (0, len(context))


def test_an_interval_covers_the_mean():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        interval = mean_interval(random.normal(0.3, 0.1, 60))
        covered += interval.low <= 0.3 <= interval.high
    assert 180 <= covered <= 200
    assert mean_interval(np.array([0.5])).low is None


# Marked reviews


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eraser")
    text = " ".join(["the cat lives in the house ."] * 6 + ["who was in the house ?"] * 4)
    evidence = {"docid": "", "start_token": 1, "end_token": 3, "text": "cat lives"}
    docs = [{"docid": f"d{n}", "text": f"{text} {n}"} for n in range(4)]
    marks = [
        {
            "annotation_id": f"d{n}",
            "classification": "NEG" if n < 2 else "POS",
            "evidences": [[evidence | {"docid": f"d{n}"}]] if n else [],
        }
        for n in range(4)
    ]
    for name, rows in (("docs", docs), ("test", marks)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def test_reviews_count_once_and_windows_without_evidence_not(tmp_path, reviews):
    session = classifier()
    session.model.config.max_position_embeddings = 40  # so that a review has several windows
    asked = sentences(tmp_path, session, 2)
    found = measured(session, asked, methods=("attention",), limit_texts=0, rationales=reviews)["rationales"]
    assert (found["documents"], found["windows"]) == (4, 3)
    assert found["windows_without_evidence"] > 3
    assert list(found["per_document"]["attention"]["evidence auprc"]) == ["d1", "d2", "d3"]
    assert {row["metric"] for row in found["rows"]} == {"evidence auprc", "evidence f1_own_length"}
    assert {row["n"] for row in found["rows"]} == {3}
    assert 0 < found["prevalence"] < 1


def test_marked_tokens_are_the_marked_words(reviews):
    tokenizer = tiny_tokenizer()
    rows, marks, _ = review_windows(read_rationales(reviews), tokenizer, 20)
    assert rows.example == [1, 2, 3]
    for row, marked in zip(rows.rows, marks, strict=True):
        assert tokenizer.convert_ids_to_tokens(row.input_ids[marked].tolist()) == ["cat", "lives"]


def test_the_class_that_is_explained_is_the_marked_one_in_every_window(tmp_path, reviews, monkeypatch):
    import regtune.analyses.faithfulness.analysis as module

    targets = []
    real = module.attributions

    def watch(session, batch, method, notes, wanted):
        targets.extend(wanted)
        return real(session, batch, method, notes, wanted)

    session = classifier()
    session.model.config.label2id = {"positive": 0, "negative": 1}
    asked = sentences(tmp_path, session, 2)
    monkeypatch.setattr(module, "attributions", watch)
    measured(session, asked, methods=(), limit_texts=0, rationales=reviews)
    assert sorted((one.label, one.minus) for one in targets) == [(0, 1), (0, 1), (1, 0)]


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data is not here")
def test_real_windows_hold_every_word_and_the_marks_of_the_documents():
    tokenizer = tiny_tokenizer()
    documents = read_rationales(REAL, "test")[:3]
    rows, marks, _ = review_windows(documents, tokenizer, 256)
    for index, document in enumerate(documents):
        count = sum(int(one.sum()) for one, document in zip(marks, rows.example, strict=True) if document == index)
        words = [document.text[start:end] for start, end in document.spans]
        coded = tokenizer(words, add_special_tokens=False)["input_ids"]
        assert count == pytest.approx(sum(map(len, coded)), rel=0.02)


# Bad input


def test_impossible_settings_are_refused():
    with pytest.raises(UnknownNameError, match="Did you mean 'attention'"):
        FaithfulnessSettings(methods=("atention",))
    for name, value in (("beam_width", 0), ("random_draws", 1), ("texts", 0), ("limit_texts", -1)):
        with pytest.raises(ConfigError, match=f"faithfulness.{name}={value} must be"):
            FaithfulnessSettings(**{name: value})
    assert FaithfulnessSettings(limit_texts=0).limit_texts == 0
