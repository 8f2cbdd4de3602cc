"""One call from a model's folder to faithfulness, limits, agreement, JSON and a comparison."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from regtune.analyses.faithfulness.compare import compare_faithfulness, faithfulness_text
from regtune.analyses.faithfulness.eraser import read_rationales
from regtune.analyses.faithfulness.faithfulness import METRICS
from regtune.analyses.faithfulness.inputs import drawn, review_windows, sentence_of
from regtune.analyses.faithfulness.measure import measure_faithfulness
from regtune.analyses.faithfulness.results import Faithfulness, mean_interval
from regtune.analyses.faithfulness.settings import FaithfulnessSettings
from regtune.config import RegisterConfig
from regtune.errors import CheckpointError, ConfigError, DataError, UnknownNameError
from regtune.registers.surgery import add_registers
from tiny import tiny_model
from tiny_tokenizer import examples, save_questions, save_tiny, tiny_tokenizer

METHODS = ("attnlrp", "attention", "random")
SETTINGS = FaithfulnessSettings(
    curve=(0.0, 0.5, 1.0), limit_texts=3, random_orders=2, beam_width=1, max_groups=4, max_length=40
)
REAL = Path(__file__).parents[4] / "shared" / "data" / "eraser-movies"


def classifier(folder, *, registers=0, seed=0):
    torch.manual_seed(seed)
    model = tiny_model("bert", "sequence-classification", "sdpa", seed=seed)
    add_registers(model, RegisterConfig(num_registers=registers, init_std=0.5)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    path = tmp_path_factory.mktemp("sst") / "stsa.binary.test"
    words = ["cat", "house", "the", "lives", "in", "who"]
    random = np.random.default_rng(0)
    lines = [f"{row % 2} {' '.join(random.choice(words, 5 + row % 3))} ." for row in range(9)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eraser")
    text = " ".join(["the cat lives in the house ."] * 6 + ["who was in the house ?"] * 4)
    docs = [{"docid": f"d{n}", "text": f"{text} {n}"} for n in range(4)]
    marks = [
        {
            "annotation_id": f"d{n}",
            "classification": "NEG" if n < 2 else "POS",
            "evidences": [[{"docid": f"d{n}", "start_token": 1, "end_token": 3, "text": "cat lives"}]] if n else [],
        }
        for n in range(4)
    ]
    for name, rows in (("docs", docs), ("test", marks)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def measured(tmp_path_factory, sentences):
    found = []
    for seed in (0, 1):
        for registers in (0, 3):
            folder = classifier(tmp_path_factory.mktemp("model"), registers=registers, seed=seed)
            options = {"kind": "sentiment", "data": sentences, "methods": METHODS, "limit": 6, "settings": SETTINGS}
            found.append(measure_faithfulness(folder, **options))
    return found


def test_every_method_gets_every_metric_with_an_interval_and_a_share(measured):
    for registers, found in zip((0, 3, 0, 3), measured, strict=True):
        rows = found.rows(resamples=200)
        assert {(row.method, row.metric) for row in rows} == {(m, k) for m in METHODS for k in METRICS}
        assert all(row.raw.low <= row.raw.value <= row.raw.high for row in rows)
        assert all((row.n, row.normalised_n) == (6, 3) for row in rows)
        assert all(row.normalised.value <= 1 + 1e-9 for row in rows if row.normalised is not None)
        assert found.num_registers == registers
        assert found.facts["copies"] > 0
        assert 0 <= found.facts["accuracy"] <= 1


def test_json_holds_plain_numbers_and_comes_back(measured):
    text = json.dumps(measured[1].to_json(resamples=200), allow_nan=False)
    back = Faithfulness.from_json(json.loads(text))
    assert (back.texts, back.settings) == (measured[1].texts, measured[1].settings)
    for row, again in zip(measured[1].rows(resamples=200), back.rows(resamples=200), strict=True):
        assert (row.method, row.metric, row.n) == (again.method, again.metric, again.n)
        assert again.raw.value == pytest.approx(row.raw.value, abs=1e-5)
    content = json.loads(text)
    assert content["kind"] == "faithfulness"
    assert set(content["curves"]["random"]) == {"deletion_morf", "deletion_lerf", "insertion_morf", "insertion_lerf"}
    with pytest.raises(DataError, match="schema_version=99"):
        Faithfulness.from_json(content | {"schema_version": 99})


def test_a_model_does_not_differ_from_itself(measured):
    for row in compare_faithfulness(measured[0], measured[0], resamples=200):
        assert row.difference == row.low == row.high == 0
        assert row.p_value == pytest.approx(1, abs=0.01)


def test_two_models_are_compared_text_by_text(measured):
    rows = compare_faithfulness(measured[0], measured[1], resamples=400)
    for row in rows:
        if not row.normalised:
            change = measured[1].values[row.method][row.metric] - measured[0].values[row.method][row.metric]
            assert row.difference == pytest.approx(change.mean())
            assert row.low <= row.difference <= row.high
            assert (row.n, row.seeds) == (6, 1)
        else:
            first, second = (one.normalised(row.method, row.metric).mean() for one in measured[:2])
            assert row.difference == pytest.approx(second - first)
    assert any(row.normalised for row in rows)


def test_several_seeds_widen_the_interval_by_how_they_differ(measured):
    plain, registers = measured[0::2], measured[1::2]
    many = {(r.method, r.metric): r for r in compare_faithfulness(plain, registers, resamples=200) if not r.normalised}
    for (method, metric), row in many.items():
        means = [
            (b.values[method][metric] - a.values[method][metric]).mean() for a, b in zip(plain, registers, strict=True)
        ]
        assert row.seeds == 2
        assert row.difference == pytest.approx(np.mean(means))
        assert row.low <= min(means) <= max(means) <= row.high  # Student's t with one degree of freedom


def test_measurements_of_other_settings_are_not_compared(measured, tmp_path, sentences):
    options = {"kind": "sentiment", "data": sentences, "methods": ["random"], "limit": 6}
    folder = classifier(tmp_path)
    other = measure_faithfulness(folder, settings=FaithfulnessSettings(how="remove", limit_texts=0), **options)
    assert all(row.normalised is None for row in other.rows(resamples=200))
    with pytest.raises(ConfigError, match="was measured with settings"):
        compare_faithfulness(measured[0], other)
    with pytest.raises(ConfigError, match="2 and 1 measurements"):
        compare_faithfulness(measured[:2], measured[0])


def test_the_text_shows_limits_and_what_was_published_as_such(measured):
    text = faithfulness_text(measured[0], resamples=200)
    assert "limits of comprehensiveness: random" in text
    assert "published for bert-base" in text
    assert text.count("\nrandom ") == len(METRICS)


def test_random_scores_are_the_same_for_every_model(measured):
    first, second = (one.settings for one in measured[:2])
    assert first == second
    assert measured[0].texts == measured[1].texts


def test_questions_are_compared_with_their_answers_too(tmp_path):
    folder = save_tiny(tmp_path / "model", attention="sdpa")
    data = save_questions(tmp_path / "questions.json", 4)
    found = measure_faithfulness(
        folder, kind="questions", data=str(data), methods=("attention", "random"), limit=3, settings=SETTINGS
    )
    measures = {
        f"{kind} {name}" for kind in ("answer", "sentence") for name in ("auprc", "f1_own_length", "f1_threshold")
    }
    assert set(found.agreement["attention"]) == measures
    assert len(found.texts) == len(found.agreement_texts) == 3
    assert found.facts["answer prevalence"] < found.facts["sentence prevalence"] < 1
    assert json.dumps(found.to_json(resamples=200), allow_nan=False)
    assert "answer auprc" in faithfulness_text(found, resamples=200)
    assert {row.metric for row in compare_faithfulness(found, found, resamples=200)} == {*METRICS, *measures}


def test_a_sentence_ends_where_it_should():
    (example,) = examples(1)
    assert example.context == "The cat is in the house. Ann lives in house 0."
    start = example.answers[0].start
    first, last = sentence_of(example, start, start + 3)
    assert example.context[first:last] == "Ann lives in house 0."
    first, last = sentence_of(example, 4, 7)
    assert example.context[first:last].strip() == "The cat is in the house."
    assert sentence_of(example, 20, start + 3) == (0, len(example.context))


def test_reviews_count_once_and_windows_without_evidence_not(tmp_path, reviews):
    found = measure_faithfulness(
        classifier(tmp_path), kind="rationales", data=reviews, methods=METHODS, limit=None, settings=SETTINGS
    )
    assert found.agreement_texts == ("d1", "d2", "d3")
    assert found.facts["windows"] == 3
    assert found.facts["windows_without_evidence"] > 3
    assert found.values == {}
    assert {row.metric for row in found.rows(resamples=200)} == {
        f"evidence {name}" for name in ("auprc", "f1_own_length", "f1_threshold")
    }
    assert json.dumps(found.to_json(resamples=200), allow_nan=False)


def test_marked_tokens_are_the_marked_words(reviews):
    tokenizer = tiny_tokenizer()
    texts = review_windows(reviews, tokenizer, limit=None, seed=0, max_length=20, batch_size=2)
    for batch, marks in zip(texts.batches, texts.marked["evidence"], strict=True):
        for row, marked in enumerate(marks):
            assert tokenizer.convert_ids_to_tokens(batch["input_ids"][row][torch.tensor(marked)].tolist()) == [
                "cat",
                "lives",
            ]


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data is not here")
def test_real_windows_hold_every_word_and_the_marks_of_the_documents():
    tokenizer = tiny_tokenizer()
    texts = review_windows(REAL, tokenizer, limit=3, seed=0, max_length=256, batch_size=8)
    found = {one.id: one for one in read_rationales(REAL, "test")}
    letters = dict.fromkeys(texts.names, 0)
    for batch, marks in zip(texts.batches, texts.marked["evidence"], strict=True):
        for row, marked in enumerate(marks):
            name = texts.names[int(batch["example"][row])]
            letters[name] += int(marked.sum())
    for name, count in letters.items():
        words = [found[name].text[start:end] for start, end in found[name].spans]
        coded = tokenizer(words, add_special_tokens=False)["input_ids"]
        assert count == pytest.approx(sum(map(len, coded)), rel=0.02)


def test_texts_are_drawn_by_seed_and_in_order():
    assert drawn(5, None, 0) == drawn(5, 9, 0) == [0, 1, 2, 3, 4]
    assert drawn(100, 10, 0) == drawn(100, 10, 0) == sorted(drawn(100, 10, 0))
    assert drawn(100, 10, 0) != drawn(100, 10, 1)
    with pytest.raises(ConfigError, match="limit=0"):
        drawn(5, 0, 0)


def test_an_interval_covers_the_mean():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        interval = mean_interval(random.normal(0.3, 0.1, 60), resamples=400)
        covered += interval.low <= 0.3 <= interval.high
    assert 180 <= covered <= 200
    assert mean_interval(np.array([0.5])).low is None


# Bad input


def test_wrong_names_and_models_are_refused(tmp_path, sentences):
    folder = classifier(tmp_path / "classifier")
    options = {"data": sentences, "settings": SETTINGS}
    with pytest.raises(UnknownNameError, match="Did you mean 'attention'"):
        measure_faithfulness(folder, kind="sentiment", methods=["atention"], **options)
    with pytest.raises(CheckpointError, match="no head for question answering"):
        measure_faithfulness(folder, kind="questions", **options)
    answering = save_tiny(tmp_path / "answering")
    with pytest.raises(CheckpointError, match="its classes would be random"):
        measure_faithfulness(answering, kind="sentiment", **options)
    with pytest.raises(DataError, match="can't be read"):
        measure_faithfulness(folder, kind="sentiment", data=tmp_path / "missing")
    with pytest.raises(ConfigError, match="beam_width=0"):
        FaithfulnessSettings(beam_width=0)
