"""`explain`: targets, batches, what an Attribution carries, and everything that is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tiny
from analysis.explained import decoder, encoder
from regtune.analysis.attribution import Attribution, ConservationError
from regtune.analysis.explain import explain
from regtune.analysis.targets import (
    Answer,
    ClassLogit,
    EndLogit,
    NextToken,
    StartLogit,
    TargetError,
    TokenTag,
)
from regtune.errors import ConfigError, UnknownNameError, UnsupportedModelError


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
        return [one.value for one in explain(qa, batch, target=target)]

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
    assert [one.value for one in explain(model, batch)] == pytest.approx(logits.max(1).tolist())
    contrast = [one.value for one in explain(model, batch, target=ClassLogit(label=1, minus=0))]
    assert contrast == pytest.approx((logits[:, 1] - logits[:, 0]).tolist())

    tagger = encoder("bert", "token-classification")
    with torch.no_grad():
        logits = tagger(**batch).logits.numpy()
    tags = explain(tagger, batch, target=[TokenTag(position=row, label=1) for row in range(3)])
    assert [one.value for one in tags] == pytest.approx([logits[row, row, 1] for row in range(3)])

    model = decoder("llama")
    with torch.no_grad():
        logits = model(**batch).logits.numpy()
    default = [one.value for one in explain(model, batch)]
    assert default == pytest.approx([logits[0, 19].max(), logits[1, 15].max(), logits[2, 19].max()])
    given = explain(model, batch, target=NextToken(token_id=7, position=4))[0]
    assert given.value == pytest.approx(float(logits[0, 4, 7]))
    assert np.abs(given.relevance[5:]).max() == 0  # later tokens cannot have mattered


def test_batches_change_no_score(qa, batch):
    whole, single = explain(qa, batch), explain(qa, batch, batch_size=1)
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
    found = explain(qa, {**batch, "offset_mapping": offsets}, tokenizer=Tokenizer())
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
    double = explain(encoder("bert", num_registers=2), batch)
    for one, exact in zip(explain(model, batch), double, strict=True):
        assert one.relevance == pytest.approx(exact.relevance, abs=1e-4)


def test_a_residual_above_the_tolerance_is_refused_or_warned_about(qa, batch):
    broken = {"options": {"without": ["activation"]}}
    with pytest.raises(ConservationError, match=r"attnlrp doesn't conserve: row .* has a residual of"):
        explain(qa, batch, **broken)
    with pytest.warns(RuntimeWarning, match="doesn't conserve"):
        found = explain(qa, batch, on_residual="warn", **broken)
    assert len(found) == 3


def test_logits_that_are_no_numbers_are_refused(batch):
    model = encoder("bert")
    with torch.no_grad():
        model.qa_outputs.bias[0] = float("nan")
    with pytest.raises(ConservationError):
        explain(model, batch, target=StartLogit(position=3))


def test_a_model_in_training_mode_is_refused(batch):
    model = encoder("bert")
    model.bert.encoder.layer[1].train()
    with pytest.raises(UnsupportedModelError, match=r"bert\.encoder\.layer\.1 is in training mode.*model\.eval"):
        explain(model, batch)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (StartLogit(position=20), "start=20 is outside the text; its tokens are 0 to 19"),
        (StartLogit(position=-1), "start=-1 is outside the text"),
        (EndLogit(position=17), "end=17 is padding; the text has 16 tokens"),
        (Answer(start=3, end=18), "end=18 is padding"),
        (Answer(context=(30, 40)), "holds no text token"),
        (Answer(context=(5, 6), minus="runner-up"), "no runner-up"),
        (ClassLogit(), "A class needs logits with 1 axes a row; this model's head gives: start_logits"),
        (NextToken(), "A next token needs logits"),
    ],
    ids=str,
)
def test_targets_that_the_text_or_the_head_does_not_have_are_refused(qa, batch, target, message):
    with pytest.raises(TargetError, match=message):
        explain(qa, batch, target=target)


def test_targets_that_make_no_sense_are_refused(batch):
    with pytest.raises(TargetError, match="start=5 lies behind end=3"):
        Answer(start=5, end=3)
    with pytest.raises(TargetError, match="both ends"):
        Answer(start=5)
    with pytest.raises(UnknownNameError, match="runner-up"):
        Answer(minus="runner")
    model = encoder("bert", "sequence-classification")
    with pytest.raises(TargetError, match="label 2 doesn't exist; the head has 0 to 1"):
        explain(model, batch, target=ClassLogit(label=2))
    with pytest.raises(TargetError, match="minus itself"):
        explain(model, batch, target=ClassLogit(label=1, minus=1))
    with pytest.raises(TargetError, match="no head"):
        explain(encoder("bert", "none"), batch)


def test_unknown_names_are_refused_with_what_there_is(qa, batch):
    with pytest.raises(UnknownNameError, match=r"'attnlpr'.*Did you mean 'attnlrp'.*attnlrp, chefer, cp-lrp"):
        explain(qa, batch, method="attnlpr")
    with pytest.raises(UnknownNameError, match=r"target 'anser'.*Did you mean 'answer'"):
        explain(qa, batch, target="anser")
    with pytest.raises(UnknownNameError, match="rule 'relu'"):
        explain(qa, batch, options={"without": ["relu"]})


def test_inputs_that_cannot_be_explained_are_refused(qa, batch):
    with pytest.raises(ConfigError, match="needs input_ids; it was given inputs_embeds"):
        explain(qa, {"inputs_embeds": torch.zeros(1, 4, 32)})
    with pytest.raises(ConfigError, match="whole numbers"):
        explain(qa, {"input_ids": torch.zeros(1, 4)})
    with pytest.raises(ConfigError, match=r"attention_mask is \[3, 5\]"):
        explain(qa, {**batch, "attention_mask": torch.ones(3, 5)})
    with pytest.raises(ConfigError, match="row 1 is nothing but padding"):
        explain(qa, {**batch, "attention_mask": torch.tensor([[1], [0], [1]]).expand(3, 20)})
    with pytest.raises(ConfigError, match="row 1 has padding before its end"):
        explain(qa, {**batch, "attention_mask": batch["attention_mask"].flip(1)})
    with pytest.raises(ConfigError, match="2 targets for 3 rows"):
        explain(qa, batch, target=["start", "end"])
    with pytest.raises(ConfigError, match="batch_size=0"):
        explain(qa, batch, batch_size=0)


def test_attention_that_hides_its_weights_is_refused(batch):
    model = encoder("bert")
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(UnsupportedModelError, match="attn_implementation='flash_attention_2' can't be explained"):
        explain(model, batch)


def test_a_family_without_rules_is_refused():
    from transformers import AutoModelForSequenceClassification, T5Config

    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with pytest.raises(UnsupportedModelError, match=r"no relevance rules for model_type='t5'.*BERT"):
        explain(model, {"input_ids": torch.ones(1, 3, dtype=torch.long)})


def test_an_attribution_with_scores_for_other_tokens_is_refused():
    with pytest.raises(ValueError, match="2 tokens but 3 scores"):
        Attribution(
            method="attnlrp",
            target="class 0",
            value=1.0,
            tokens=("a", "b"),
            offsets=None,
            relevance=np.zeros(3),
            registers=np.zeros(0),
        )
