"""Several labels a text: lists and separators, scikit-learn's scores, a probability for each label."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import regtune
from regtune.analyses.attribution.explain import explain
from regtune.analyses.faithfulness.model import PerturbedModel, perturbable_texts
from regtune.analyses.outcomes import row_losses
from regtune.errors import DataError
from regtune.interfaces import Examples
from regtune.tasks.classify import Classification, ClassifySettings
from regtune.tasks.labelled import LabelledText
from regtune.tasks.metrics import EXACT_MATCH, MACRO_F1, MICRO_F1
from regtune.tasks.multi_label import MultiLabelClassification, MultiLabelPrediction, MultiLabelSettings
from tiny_tokenizer import save_tiny

TASK = MultiLabelClassification()
NAMES = ("calm", "glad", "sad")


def read(path, text, **more):
    path.write_text(text)
    return TASK.read([str(path)], MultiLabelSettings(**more))


def labels(found):
    return [item.label for item in found.items]


def test_labels_are_lists_or_texts_with_separators_and_there_may_be_none(tmp_path):
    found = read(tmp_path / "a.csv", 'text,labels\nwell,"sad, glad"\nso,\nno,calm\n')
    assert labels(found) == [("sad", "glad"), (), ("calm",)]
    assert found.facts["labels"] == {"sad": 1, "glad": 1, "calm": 1}
    rows = [{"text": "a", "labels": ["x", "x", 1]}, {"text": "b", "labels": []}]
    named = read(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)), label_names=("q", "r"))
    assert labels(named) == [("x", "r"), ()]
    assert labels(read(tmp_path / "a.train", "sad|glad a text\n", separator="|")) == [("sad", "glad")]


@pytest.mark.parametrize("value", ["null", "0.5", '[["a"]]', '["a", ""]'])
def test_what_is_no_label_is_said(tmp_path, value):
    with pytest.raises(DataError, match=r"a\.jsonl, record 1: the labels? (is|are) "):
        read(tmp_path / "a.jsonl", f'{{"text": "a", "labels": {value}}}\n')


SOME = st.sets(st.sampled_from(NAMES))


def scored(pairs):
    items = tuple(LabelledText(id=str(i), text="x", label=tuple(gold)) for i, (gold, _) in enumerate(pairs))
    said = [
        MultiLabelPrediction(id=str(i), labels=tuple(one), probabilities=dict.fromkeys(NAMES, 0.5))
        for i, (_, one) in enumerate(pairs)
    ]
    return TASK.score(said, Examples(items=items, names=("x",)))


@settings(max_examples=60)
@given(st.lists(st.tuples(SOME, SOME), min_size=1, max_size=20))
def test_the_metrics_are_those_of_scikit_learn(pairs):
    sklearn = pytest.importorskip("sklearn.metrics")
    gold, said = ([[int(name in one) for name in NAMES] for one in side] for side in zip(*pairs, strict=True))
    found = scored(pairs)
    assert MICRO_F1.of(found) == pytest.approx(sklearn.f1_score(gold, said, average="micro", zero_division=0))
    seen = [n for n in range(3) if any(row[n] for row in (*gold, *said))]
    macro = sklearn.f1_score(gold, said, average="macro", labels=seen, zero_division=0) if seen else 0.0
    assert MACRO_F1.of(found) == pytest.approx(macro)
    assert EXACT_MATCH.of(found) == pytest.approx(sklearn.accuracy_score(gold, said))


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    table = dict(enumerate(NAMES))
    config = {"id2label": table, "label2id": {name: n for n, name in table.items()}, "num_labels": 3}
    folder = tmp_path_factory.mktemp("moods")
    return regtune.open(
        save_tiny(folder, head="sequence-classification", problem_type="multi_label_classification", **config)
    )


def test_a_model_of_several_labels_is_known_by_its_config(session):
    assert session.task.name == "multi-label"


def test_each_label_has_a_probability_of_its_own(session):
    item = LabelledText(id="1", text="the cat", label=("sad", "calm"))
    examples = Examples(items=(item,), names=("x",))
    rows = session.rows(examples)
    batch = rows.batch([0])
    assert batch["labels"].tolist() == [[1.0, 0.0, 1.0]]
    (said,) = session.predict(examples, rows)
    with torch.no_grad():
        output = session.forward(batch, labels=True)
    assert list(said.probabilities.values()) == pytest.approx(output.logits[0].sigmoid().tolist())
    assert set(said.labels) == {name for name, share in said.probabilities.items() if share >= 0.5}
    assert float(row_losses(output, batch)[0]) == pytest.approx(float(output.loss), rel=1e-5)
    with pytest.raises(DataError, match="has the label 'yak', which the model doesn't know"):
        session.rows(Examples(items=(LabelledText(id="1", text="x", label=("yak",)),), names=("x",)))


def test_the_labels_that_are_given_are_explained(session):
    text = "the cat lives in the house"
    found = explain(session, text, method="gradient-input")
    (said,) = session.predict(Examples(items=(LabelledText(id="1", text=text),), names=("x",)))
    likeliest = max(said.probabilities, key=said.probabilities.get)
    assert [one.asked for one in found.attributions] == list(said.labels or (likeliest,))


def test_faithfulness_watches_the_likeliest_labels_own_probability(session):
    examples = Examples(items=(LabelledText(id="1", text="the cat lives", label=()),), names=("x",))
    texts = perturbable_texts(session.model, session.batches(session.rows(examples)))
    scorer = PerturbedModel(session.model, texts, mask_token_id=session.reader.mask_token_id)
    whole = scorer.probabilities([(0, torch.zeros(3, dtype=torch.bool).numpy())])
    (said,) = session.predict(examples)
    assert whole[0] == pytest.approx(max(said.probabilities.values()))


@pytest.mark.parametrize(
    ("rows", "sign"),
    [
        (("cold|loud", "cold", "warm"), "|"),
        (("cold|loud", "loud|warm"), "|"),
        (("cold;loud", "cold", "warm"), ";"),
        (("rock & roll|live", "jazz"), None),  # nothing says that its parts are labels
        (("cold", "warm"), None),
    ],
)
def test_a_sign_that_seems_to_stand_between_labels_is_said_for_both_tasks(tmp_path, rows, sign):
    file = tmp_path / "a.tsv"
    file.write_text("text\tlabel\n" + "\n".join(f"so\t{row}" for row in rows) + "\n")
    several, one = TASK.read([str(file)], MultiLabelSettings()), Classification().read([str(file)], ClassifySettings())
    if sign is None:
        assert several.notes == one.notes == ()
        return
    assert several.notes == (
        f"{rows[0]!r} is one label; if {sign!r} stands between several: --settings.separator {sign!r}.",
    )
    assert f"--task multi-label --settings.separator {sign!r}" in one.notes[0]
    assert TASK.read([str(file)], MultiLabelSettings(separator=sign)).notes == ()
