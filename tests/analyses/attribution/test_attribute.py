"""`explain`: targets, batches, and what an Attribution carries."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tiny
from analyses.attribution.explained import decoder, encoder, leave_out
from regtune.analyses.attribution.attribute import attribute
from regtune.analyses.attribution.attribution import ConservationError
from regtune.errors import UnknownNameError
from regtune.rows.targets import (
    Answer,
    ClassLogit,
    EndLogit,
    Row,
    StartLogit,
    TargetError,
    TokenLogit,
    target_named,
)
from tiny_tokenizer import tiny_tokenizer


@pytest.fixture(scope="module")
def qa():
    return encoder("bert", num_registers=2)


@pytest.fixture(scope="module")
def batch():
    return tiny.inputs("bert", pad=4)


@pytest.fixture(scope="module")
def logits(qa, batch):
    with torch.no_grad():
        output = qa(**batch)
    return output.start_logits.numpy(), output.end_logits.numpy()


def spans(start, end, row, text):
    scores = {(i, j): start[row, i] + end[row, j] for i in range(1, text) for j in range(i, text)}
    return sorted(scores.values(), reverse=True)


def test_question_answering_targets_have_the_values_they_name(qa, batch, logits):
    start, end = logits
    lengths = (20, 16, 20)

    def values(target):
        return [one.value for one in attribute(qa, batch, target=target)]

    for row, text in enumerate(lengths):
        best, second = spans(start, end, row, text)[:2]
        null = start[row, 0] + end[row, 0]
        expected = {
            "start": start[row, 1:text].max(),
            "end": end[row, 1:text].max(),
            "answer": best,
            "answer-minus-runner-up": best - second,
            "answer-minus-null": best - null,
        }
        for target, value in expected.items():
            assert values(target)[row] == pytest.approx(value, abs=1e-10), target
        assert values(StartLogit(position=3))[row] == pytest.approx(start[row, 3], abs=1e-10)
        assert values(EndLogit(position=3))[row] == pytest.approx(end[row, 3], abs=1e-10)
        assert values(Answer(start=3, end=5))[row] == pytest.approx(start[row, 3] + end[row, 5], abs=1e-10)
        given = values(Answer(start=3, end=5, minus="runner-up"))[row]
        assert given == pytest.approx(start[row, 3] + end[row, 5] - best, abs=1e-10)


def test_class_tag_and_next_token_targets(batch):
    model = encoder("bert", "sequence-classification")
    with torch.no_grad():
        logits = model(**batch).logits.numpy()
    assert [one.value for one in attribute(model, batch)] == pytest.approx(logits.max(1).tolist())
    contrast = [one.value for one in attribute(model, batch, target=ClassLogit(label=1, minus=0))]
    assert contrast == pytest.approx((logits[:, 1] - logits[:, 0]).tolist())

    tagger = encoder("bert", "token-classification")
    with torch.no_grad():
        logits = tagger(**batch).logits.numpy()
    tags = attribute(tagger, batch, target=[TokenLogit(position=row, label=1) for row in range(3)])
    assert [one.value for one in tags] == pytest.approx([logits[row, row, 1] for row in range(3)])

    model = decoder("llama")
    with torch.no_grad():
        logits = model(**batch).logits.numpy()
    default = [one.value for one in attribute(model, batch)]
    assert default == pytest.approx([logits[0, 19].max(), logits[1, 15].max(), logits[2, 19].max()])
    given = attribute(model, batch, target=TokenLogit(label=7, position=4))[0]
    assert given.value == pytest.approx(float(logits[0, 4, 7]))
    assert np.abs(given.relevance[5:]).max() == 0  # later tokens cannot have mattered


def test_a_masked_token_is_explained_where_it_is_missing(batch):
    class Tokenizer:
        mask_token_id = 9

        def convert_ids_to_tokens(self, ids):
            return [str(i) for i in ids]

    model = encoder("bert", "masked-lm", num_registers=2)
    ids = batch["input_ids"].where(batch["input_ids"] != 9, torch.tensor(8))
    ids[:, 4] = 9
    masked = {**batch, "input_ids": ids}
    with torch.no_grad():
        logits = model(**masked).logits[:, 4]
    for target, values in ((None, logits.amax(1)), (TokenLogit(label=7), logits[:, 7])):
        found = attribute(model, masked, target=target, tokenizer=Tokenizer())
        assert [one.value for one in found] == pytest.approx(values.tolist())
    assert found[0].target == "token 7 at [MASK] 4"
    given = attribute(model, masked, target=TokenLogit(label=7, position=4))
    assert [one.value for one in given] == pytest.approx(logits[:, 7].tolist())
    for target, text, message in (
        (TokenLogit(position=5), masked, r"position=5 holds no \[MASK\]"),
        (None, {**masked, "input_ids": ids.where(ids != 9, torch.tensor(8))}, r"The text has 0 \[MASK\]"),
        (TokenLogit(label=120), masked, "label 120 doesn't exist"),
    ):
        with pytest.raises(TargetError, match=message):
            attribute(model, text, target=target, tokenizer=Tokenizer())
    with pytest.raises(TargetError, match=r"Which token is \[MASK\] is unknown"):
        attribute(model, masked)


def test_a_tagger_has_no_default_target(batch):
    with pytest.raises(TargetError, match=r"tags for every token; name one"):
        attribute(encoder("bert", "token-classification"), batch)


@pytest.mark.parametrize("method", ["attnlrp", "integrated-gradients", "occlusion", "rollout"])
def test_a_question_without_an_answer_is_explained_against_the_null_answer_and_says_so(batch, method):
    model = encoder("bert")
    with torch.no_grad():
        words = model.bert.embeddings.word_embeddings.weight
        words[2] = 3 * words[2]
        batch = {**batch, "input_ids": batch["input_ids"].clone()}
        batch["input_ids"][:, 0] = 2
        logits = model(**batch)
        gap = [
            float((logits.start_logits + logits.end_logits)[row, 0])
            - spans(logits.start_logits.numpy(), logits.end_logits.numpy(), row, (20, 16, 20)[row])[0]
            for row in range(3)
        ]
    options = {"special_tokens": "moved"} if method in ("integrated-gradients", "occlusion") else {}
    found = attribute(model, batch, method=method, target="answer-minus-null", **options)
    for one, less in zip(found, gap, strict=True):
        assert one.value == pytest.approx(-less, abs=1e-9)
        assert one.target.endswith("minus no answer, which the model prefers") == (less >= 0)


def test_batches_change_no_score(qa, batch):
    whole, single = attribute(qa, batch), attribute(qa, batch, batch_size=1)
    for one, other in zip(whole, single, strict=True):
        assert one.relevance == pytest.approx(other.relevance, abs=1e-12)
        assert one.registers == pytest.approx(other.registers, abs=1e-12)
        assert one.parts() == pytest.approx(other.parts(), abs=1e-12)


def test_an_attribution_carries_tokens_and_offsets_of_the_text_alone(qa, batch):
    class Tokenizer:
        def convert_ids_to_tokens(self, ids):
            return [f"piece{i}" for i in ids]

    places = torch.arange(20).expand(3, -1)
    offsets = torch.stack([places * 2, places * 2 + 2], dim=-1)
    found = attribute(qa, {**batch, "offset_mapping": offsets}, tokenizer=Tokenizer())
    assert [len(one.tokens) for one in found] == [20, 16, 20]
    assert found[1].tokens[3] == f"piece{int(batch['input_ids'][1, 3])}"
    assert found[1].offsets[-1] == (30, 32)
    assert found[1].relevance.shape == (16,)
    with pytest.raises(ValueError, match="read-only"):
        found[0].relevance[0] = 1.0
    with pytest.raises(AttributeError):
        found[0].value = 1.0


def test_a_float32_model_is_explained_within_its_own_tolerance(batch):
    model = encoder("bert", num_registers=2).float()
    double = attribute(encoder("bert", num_registers=2), batch)
    for one, exact in zip(attribute(model, batch), double, strict=True):
        assert one.relevance == pytest.approx(exact.relevance, abs=1e-4)


def test_a_residual_above_the_tolerance_is_refused_or_warned_about(qa, batch, monkeypatch):
    leave_out(monkeypatch, "activation")
    with pytest.raises(ConservationError, match=r"attnlrp doesn't conserve: row .* has a residual of"):
        attribute(qa, batch)
    with pytest.warns(RuntimeWarning, match="doesn't conserve"):
        found = attribute(qa, batch, on_residual="warn")
    assert len(found) == 3


def test_logits_that_are_no_numbers_are_refused(batch):
    model = encoder("bert")
    with torch.no_grad():
        model.qa_outputs.bias[0] = float("nan")
    with pytest.raises(ConservationError):
        attribute(model, batch, target=StartLogit(position=3))


def test_every_option_that_a_result_was_made_with_is_in_it(qa, batch):
    found = {
        method: attribute(qa, batch, method=method, target="start", **options, on_residual="warn")[0].options
        for method, options in (
            ("attnlrp", {}),
            ("chefer", {"start_layer": 1}),
            ("attention", {}),
            ("occlusion", {"special_tokens": "moved", "baseline": torch.zeros(32)}),
        )
    }
    assert found == {
        "attnlrp": {},
        "chefer": {"start_layer": 1},
        "attention": {"layers": "last"},
        "occlusion": {"special_tokens": "moved", "baseline": "a vector [32]"},
    }


def test_parts_inside_need_a_ledger(qa, batch):
    with pytest.raises(UnknownNameError, match=r"option of chefer 'by'. Available: start_layer"):
        attribute(qa, batch, method="chefer", by="head")
    with pytest.raises(UnknownNameError, match=r"part to look at \(by\) 'heads'.*head, layer, neuron"):
        attribute(qa, batch, by="heads")


def row_of(logits, **more):
    return Row(logits={"logits": logits}, text=np.ones(4, dtype=bool), **more)


NAMES = ("negative", "positive", "B-PER", "PER-B")


@pytest.mark.parametrize(
    ("name", "label", "minus"),
    [
        ("predicted", None, None),
        ("positive", 1, None),
        ("positive-negative", 1, 0),
        ("B-PER", 2, None),
        ("B-PER-PER-B", 2, 3),
        ("predicted-B-PER", None, 2),
    ],
)
def test_targets_are_called_by_the_names_of_labels(name, label, minus):
    row = row_of(np.array([0.0, 0.1, 0.2, 0.3]), labels=NAMES)
    assert target_named(name, row) == ClassLogit(label=label, minus=minus)
    row = row_of(np.zeros((4, 4)), labels=NAMES)
    assert target_named(f"{name}@2", row) == TokenLogit(position=2, label=label, minus=minus)


def test_labels_without_names_are_called_by_their_numbers():
    row = row_of(np.zeros(2), labels=("LABEL_0", "LABEL_1"))
    assert target_named("1-0", row) == target_named("LABEL_1-LABEL_0", row) == ClassLogit(label=1, minus=0)
    assert target_named("1-0", row).resolve(row).label == "class 1 minus class 0"


def test_words_are_found_in_the_vocabulary_and_in_the_text():
    reader = tiny_tokenizer()
    ids = reader("the cat is 12 cat")["input_ids"]
    row = Row(
        logits={"logits": np.zeros((len(ids), len(reader)))},
        text=np.ones(len(ids), dtype=bool),
        causal=True,
        writes=True,
        ids=ids,
        reader=reader,
    )
    cat, house = reader.convert_tokens_to_ids(["cat", "house"])
    assert target_named("house-cat", row) == TokenLogit(label=house, minus=cat)
    assert target_named("house@cat", row) == TokenLogit(position=2, label=house)
    assert target_named("predicted@5", row).position == 5
    assert target_named("house-cat", row).resolve(row).label == f"token house minus cat after token {len(ids) - 1}"


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("positiv", UnknownNameError, r"label 'positiv'\. Did you mean 'positive'"),
        ("positive-positive", TargetError, "class positive minus itself is 0"),
        ("positive@cat", TargetError, "has no word 'cat'"),
    ],
)
def test_names_that_mean_nothing_are_refused(name, error, message):
    row = row_of(np.zeros(4), labels=NAMES)
    with pytest.raises(error, match=message):
        target_named(name, row).resolve(row)
