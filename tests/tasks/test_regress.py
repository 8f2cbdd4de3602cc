"""A number a text: what is read as one, scipy's correlation from means, one logit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import regtune
from regtune.analyses.faithfulness.model import perturbable_texts
from regtune.errors import DataError, UnsupportedModelError
from regtune.interfaces import Examples
from regtune.tasks.labelled import LabelledSettings, LabelledText
from regtune.tasks.regress import MSE, PEARSON, NumberPrediction, Regression
from tiny_tokenizer import save_tiny

TASK = Regression()


def read(path, text):
    path.write_text(text)
    return TASK.read([str(path)], LabelledSettings())


def test_a_csv_file_may_have_semicolons(tmp_path):
    found = read(tmp_path / "a.csv", "text;score\nwell, good;4\nbad;1\n")
    assert [(item.text, item.label) for item in found.items] == [("well, good", 4.0), ("bad", 1.0)]
    assert read(tmp_path / "b.csv", "text,score\na; b,2\n").items[0].text == "a; b"


def test_numbers_of_texts_and_pairs_are_read(tmp_path):
    found = read(tmp_path / "a.csv", "sentence1,sentence2,score\na,b,3.5\nc,d,-1\n")
    assert [(item.text, item.pair, item.label) for item in found.items] == [("a", "b", 3.5), ("c", "d", -1.0)]
    assert read(tmp_path / "a.train", "2.5 a text\n").items[0].label == 2.5


@pytest.mark.parametrize("value", ["null", "true", '"3,5"', '""', "NaN", "[1]"])
def test_what_is_no_number_is_said(tmp_path, value):
    with pytest.raises(DataError, match=r"a\.jsonl, record 1: the label is .*; a number is needed"):
        read(tmp_path / "a.jsonl", f'{{"text": "a", "score": {value}}}\n')


def scored(gold, said):
    items = tuple(LabelledText(id=str(i), text="x", label=label) for i, label in enumerate(gold))
    return TASK.score([NumberPrediction(id="", number=one) for one in said], Examples(items=items, names=("x",)))


NUMBERS = st.integers(-100, 100).map(lambda n: n / 10)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=30))
def test_the_metrics_are_those_of_scipy_and_the_definition(pairs):
    gold, said = map(np.array, zip(*pairs, strict=True))
    found = scored(gold, said)
    assert MSE.of(found) == pytest.approx(np.mean((gold - said) ** 2))
    varies = np.ptp(gold) > 0 and np.ptp(said) > 0
    assert PEARSON.of(found) == pytest.approx(stats.pearsonr(gold, said)[0] if varies else 0.0, abs=1e-6)


def test_a_metric_of_many_resamples_at_once_is_that_of_each():
    random = np.random.default_rng(0)
    found = scored(random.normal(size=40), random.normal(size=40))
    weights = random.dirichlet(np.ones(40), 7)
    columns = PEARSON.select(found)
    alone = [float(PEARSON.value(row @ columns)) for row in weights]
    assert PEARSON.value(weights @ columns) == pytest.approx(alone)


def test_one_logit_is_the_number_and_one_label_means_a_number(tmp_path):
    session = regtune.open(save_tiny(tmp_path, head="sequence-classification", num_labels=1))
    assert session.task.name == "regress"
    examples = Examples(items=(LabelledText(id="1", text="the cat", label=2.0),), names=("x",))
    rows = session.rows(examples)
    with torch.no_grad():
        output = session.forward(rows.batch([0]), labels=True)
    (said,) = session.predict(examples, rows)
    assert said.number == pytest.approx(float(output.logits))
    assert float(output.loss) == pytest.approx((said.number - 2.0) ** 2, rel=1e-5)
    assert session.task.shown(rows, examples, session).text == f"{said.number:.4g}"
    with pytest.raises(UnsupportedModelError, match="faithfulness is measured on class probabilities"):
        perturbable_texts(session.model, session.batches(rows))
