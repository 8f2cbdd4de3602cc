"""The part `registers` on tiny models whose registers have planted roles."""

import dataclasses
from typing import get_args

import numpy as np
import pytest
import torch

from regtune.analyses.inspection import settings_of_parts
from regtune.analyses.outcomes import outcomes
from regtune.analyses.registers.analysis import RegisterAnalysis, RegisterSettings
from regtune.analyses.registers.knock_out import How
from regtune.config import RegisterConfig
from regtune.errors import ConfigError, UnknownNameError
from regtune.interfaces import Examples
from regtune.records import plain
from regtune.registers.surgery import add_registers, find_registers, mask_registers
from regtune.session import Session
from regtune.tasks.qa.examples import Answer, QAExample
from regtune.tasks.qa.task import QASettings, QuestionAnswering
from tiny import tiny_model
from tiny_tokenizer import examples, tiny_tokenizer

N = 4
COUNT = 24


def session_with(registers=N, family="bert", **settings):
    """A tiny model that looks at its registers: their vectors are large."""
    model = tiny_model(family, attention="sdpa")
    torch.manual_seed(3)
    add_registers(model, RegisterConfig(num_registers=registers, init_std=1.0, **settings)).eval()
    with torch.no_grad():
        getattr(model, "qa_outputs", getattr(model, "classifier", None)).weight.mul_(4.0)
    cut = QASettings(max_length=60, stride=8)
    return Session(name="m", model=model, reader=tiny_tokenizer(), task=QuestionAnswering(), task_settings=cut)


def asked(items):
    return Examples(items=tuple(items), names=("made up",))


def self_taught(session):
    """Questions whose gold answers are what the model itself says, so that every change is for the worse."""
    said = session.predict(asked(examples(COUNT)))
    return asked(
        QAExample(
            id=example.id,
            question=example.question,
            context=example.context,
            answers=(Answer(text=prediction.text, start=int(prediction.starts[0])),),
        )
        for example, prediction in zip(examples(COUNT), said, strict=True)
    )


def audit(session, **settings):
    taught = self_taught(session)
    settings = RegisterSettings(**{"resamples": 500, "hows": get_args(How), **settings})
    return plain(RegisterAnalysis().measure(session, session.rows(taught), taught, settings))


def effects_of(content, how, metric="loss"):
    return [one[metric] for one in content["knock_outs"] if one["how"] == how]


def taught(session, register, steps=40):
    """With the register the model learns to give the answer, without it to give the context's last token."""
    (batch,) = session.batches(session.rows(asked(examples(COUNT))).one_each(), batch_size=COUNT)
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    gold = {name: batch[name] for name in ("start_positions", "end_positions")}
    last = dict.fromkeys(gold, batch["context_end"] - 1)
    optimiser = torch.optim.AdamW(session.model.parameters(), lr=5e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        session.model(**given, **gold).loss.backward()
        with mask_registers(session.model, [register]):
            session.model(**given, **last).loss.backward()
        optimiser.step()
    return session


@pytest.fixture(scope="module")
def one_that_matters():
    """No token may attend to any register but number 2."""
    torch.manual_seed(0)
    session = session_with()
    with mask_registers(session.model, [0, 1, 3]):
        return audit(taught(session, 2))


def test_the_one_register_that_matters_is_found(one_that_matters):
    found = one_that_matters
    assert found["roles"]["matter"] == [2]
    assert found["roles"]["p_value"] < 0.01
    assert "do not play equal roles" in found["verdict"]
    assert "register 2 (+" in found["verdict"]
    assert found["score"] == pytest.approx(1.0)
    for how in ("mask", "zero", "swap"):
        loss = [change["difference"] for change in effects_of(found, how)]
        assert loss[2] > 0.05
        assert np.abs(np.delete(loss, [2, N])).max() < 1e-5
    alone, together = effects_of(found, "mask")[2], effects_of(found, "mask")[N]
    assert alone["difference"] == together["difference"], "all of them are that one"
    assert alone["low"] > 0
    assert effects_of(found, "mask", "said")[2]["difference"] > 0
    assert effects_of(found, "mask", "said")[0]["difference"] == 0


def test_attention_and_relevance_point_to_it_too(one_that_matters):
    attended, relevance = (np.array(one_that_matters[name]) for name in ("attention_in", "relevance"))
    assert (attended[:, 2] > 0.01).all()
    assert attended[:, [0, 1, 3]].max() < 1e-6
    assert relevance.argmax() == 2
    assert np.delete(relevance, 2).max() < 1e-6
    assert "N = 4 is small" in one_that_matters["rank_correlation"]["sentence"]


def test_a_person_reads_a_row_a_register_and_the_verdict(one_that_matters):
    blocks = {block.title: block for block in RegisterAnalysis().blocks(one_that_matters)}
    assert [row[0] for row in blocks["Each register knocked out"].rows] == [0, 1, 2, 3, "all"]
    assert one_that_matters["verdict"] in blocks["Do all registers play the same role?"].text
    assert "F1 100.0" in blocks["Each register knocked out"].text


def test_identical_registers_play_equal_roles():
    session = session_with(position="none")
    with torch.no_grad():
        tokens = find_registers(session.model).tokens
        tokens.copy_(tokens[:1].expand_as(tokens).clone())
    found = audit(session)
    assert found["roles"]["p_value"] == 1.0
    assert "no evidence that the 4 registers play unequal roles" in found["verdict"]
    assert found["roles"]["spread_high"] < 1e-4
    assert all(abs(change["difference"]) < 1e-5 for change in effects_of(found, "swap"))
    assert np.allclose(found["similarity_contextual_zscored"], 1, atol=1e-5)


def test_fresh_registers_of_every_layer_are_called_constants():
    found = audit(session_with(depth="every_layer"), hows=("mask",))
    assert found["constant"] == [0, 1, 2, 3]
    assert any("Constant key and value biases" in block.text for block in RegisterAnalysis().blocks(found))


def test_the_model_is_left_as_it_was():
    session = session_with(2)
    before = [prediction.scores.tolist() for prediction in session.predict(asked(examples(4)))]
    keys = set(session.model.state_dict())
    audit(session, hows=("mean",))
    assert [prediction.scores.tolist() for prediction in session.predict(asked(examples(4)))] == before
    assert set(session.model.state_dict()) == keys
    assert all(parameter.requires_grad for parameter in session.model.parameters())


def test_a_single_register_has_an_effect_but_no_equals():
    found = audit(session_with(1), hows=("swap", "zero"))
    assert [one["how"] for one in found["knock_outs"]] == ["zero", "zero"]
    assert found["roles"]["p_value"] is None
    assert found["verdict"].startswith("The model has a single register")
    assert found["rank_correlation"]["rho"] is None
    assert list(RegisterAnalysis().blocks(found))


def test_few_draws_are_made_enough_for_the_correction():
    assert len(effects_of(audit(session_with(2), hows=("mask",), resamples=10), "mask")) == 3


@pytest.mark.parametrize(
    ("family", "placement"), [("bert", "prefix"), ("modernbert", "suffix"), ("modernbert", "prefix")]
)
def test_losses_and_answers_are_of_the_windows_that_answer_also_in_rotary_models(family, placement):
    """The windows that the loss is taken over are those that `predict` reads: as long, and as many."""
    session = session_with(3, family, placement=placement)
    session.task_settings = QASettings(max_length=30, stride=6)
    long = [
        dataclasses.replace(one, context=f"{one.context} " + "the cat was in the house. " * 6) for one in examples(4)
    ]
    seen = []
    backbone = session.model.base_model
    hook = backbone.register_forward_pre_hook(
        lambda _, args, kwargs: seen.extend(map(tuple, (args[0] if args else kwargs["input_ids"]).tolist())),
        with_kwargs=True,
    )

    def windows():
        found = sorted(tuple(i for i in row if i != 1) for row in seen)
        seen.clear()
        return found

    rows = session.rows(asked(long))
    assert len(rows) > 2 * len(long)
    said = [prediction.text for prediction in session.predict(asked(long), rows)]
    answered = windows()
    found = outcomes(session, rows, asked(long))
    hook.remove()
    assert windows() == answered
    assert list(found.said) == said


def test_what_cannot_be_asked_is_refused_in_words():
    for settings, error, words in (
        ({"hows": ()}, ConfigError, "at least one way"),
        ({"hows": ("mask", "mask")}, ConfigError, "each once"),
    ):
        with pytest.raises(error, match=words):
            RegisterSettings(**settings)
    with pytest.raises(ConfigError, match="second register"):
        audit(session_with(1), hows=("swap",))
    with pytest.raises(UnknownNameError, match="Did you mean 'zero'"):
        settings_of_parts(("registers",), {"registers": {"hows": "zeros"}})
