"""`explain` refuses what it cannot explain, and says with the value what to do instead."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tiny
from analyses.attribution.explained import encoder
from regtune.analyses.attribution.attribute import attribute
from regtune.analyses.attribution.attribution import Attribution
from regtune.errors import ConfigError, UnknownNameError, UnsupportedModelError
from regtune.rows.targets import (
    Answer,
    ClassLogit,
    EndLogit,
    StartLogit,
    TargetError,
    TokenLogit,
)


@pytest.fixture(scope="module")
def qa():
    return encoder("bert", num_registers=2)


@pytest.fixture(scope="module")
def batch():
    return tiny.inputs("bert", pad=4)


def test_a_model_in_training_mode_is_refused(batch):
    model = encoder("bert")
    model.bert.encoder.layer[1].train()
    with pytest.raises(UnsupportedModelError, match=r"bert\.encoder\.layer\.1 is in training mode.*model\.eval"):
        attribute(model, batch)


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
        (TokenLogit(), "A token's logit needs logits"),
    ],
    ids=str,
)
def test_targets_that_the_text_or_the_head_does_not_have_are_refused(qa, batch, target, message):
    with pytest.raises(TargetError, match=message):
        attribute(qa, batch, target=target)


def test_targets_that_make_no_sense_are_refused(batch):
    with pytest.raises(TargetError, match="start=5 lies behind end=3"):
        Answer(start=5, end=3)
    with pytest.raises(TargetError, match="both ends"):
        Answer(start=5)
    with pytest.raises(UnknownNameError, match="runner-up"):
        Answer(minus="runner")
    model = encoder("bert", "sequence-classification")
    with pytest.raises(TargetError, match="label 2 doesn't exist; the head has 0 to 1"):
        attribute(model, batch, target=ClassLogit(label=2))
    with pytest.raises(TargetError, match="minus itself"):
        attribute(model, batch, target=ClassLogit(label=1, minus=1))
    with pytest.raises(TargetError, match="no head"):
        attribute(encoder("bert", "none"), batch)


def test_unknown_names_are_refused_with_what_there_is(qa, batch):
    with pytest.raises(UnknownNameError, match=r"'attnlpr'.*Did you mean 'attnlrp'.*attnlrp, chefer, cp-lrp"):
        attribute(qa, batch, method="attnlpr")
    with pytest.raises(UnknownNameError, match=r"target of an answer 'anser'.*Did you mean 'answer'"):
        attribute(qa, batch, target="anser")
    with pytest.raises(UnknownNameError, match=r"part to look at \(by\) 'block'"):
        attribute(qa, batch, by="block")


def test_inputs_that_cannot_be_explained_are_refused(qa, batch):
    with pytest.raises(ConfigError, match="needs input_ids; it was given inputs_embeds"):
        attribute(qa, {"inputs_embeds": torch.zeros(1, 4, 32)})
    with pytest.raises(ConfigError, match="whole numbers"):
        attribute(qa, {"input_ids": torch.zeros(1, 4)})
    with pytest.raises(ConfigError, match=r"attention_mask is \[3, 5\]"):
        attribute(qa, {**batch, "attention_mask": torch.ones(3, 5)})
    with pytest.raises(ConfigError, match="row 1 is nothing but padding"):
        attribute(qa, {**batch, "attention_mask": torch.tensor([[1], [0], [1]]).expand(3, 20)})
    with pytest.raises(ConfigError, match="row 1 has padding before its end"):
        attribute(qa, {**batch, "attention_mask": batch["attention_mask"].flip(1)})
    with pytest.raises(ConfigError, match="2 targets for 3 rows"):
        attribute(qa, batch, target=["start", "end"])
    with pytest.raises(ConfigError, match="batch_size=0"):
        attribute(qa, batch, batch_size=0)


def test_attention_that_hides_its_weights_is_refused(batch):
    model = encoder("bert")
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(UnsupportedModelError, match="attn_implementation='flash_attention_2' can't be explained"):
        attribute(model, batch)


def test_a_family_without_rules_is_refused():
    from transformers import AutoModelForSequenceClassification, T5Config

    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with pytest.raises(UnsupportedModelError, match=r"no relevance rules for model_type='t5'.*BERT"):
        attribute(model, {"input_ids": torch.ones(1, 3, dtype=torch.long)})


@pytest.mark.parametrize("method", ["attnlrp", "integrated-gradients", "occlusion", "rollout", "random"])
def test_every_method_refuses_training_mode_and_targets_in_the_padding(batch, method):
    model = encoder("bert")
    with pytest.raises(TargetError, match="end=17 is padding"):
        attribute(model, batch, method=method, target=EndLogit(position=17))
    with pytest.raises(TargetError, match="start=20 is outside the text"):
        attribute(model, batch, method=method, target=StartLogit(position=20))
    model.bert.encoder.layer[1].train()
    with pytest.raises(UnsupportedModelError, match="training mode"):
        attribute(model, batch, method=method)


def test_whole_numbers_where_embeddings_belong_are_refused(qa, batch):
    with pytest.raises(ConfigError, match="Whole numbers are input_ids"):
        attribute(qa, {"inputs_embeds": batch["input_ids"]})
    with pytest.raises(ConfigError, match=r"token_classes is \[3, 5\]"):
        attribute(qa, {**batch, "token_classes": torch.zeros(3, 5, dtype=torch.int8)})


def test_bfloat16_weights_are_refused_on_a_cpu_that_has_none(monkeypatch, batch):
    model = encoder("bert").bfloat16()
    monkeypatch.setattr("regtune.analyses.attribution.attribute.has_bfloat16", lambda _device: False)
    with pytest.raises(UnsupportedModelError, match=r"word_embeddings.weight is bfloat16.*model\.float\(\)"):
        attribute(model, batch)
    assert len(attribute(model.float(), batch)) == 3


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
