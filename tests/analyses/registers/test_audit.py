"""The register audit on tiny models whose registers have planted roles."""

import json

import numpy as np
import pytest
import torch

from regtune.analyses.batches import question_batches
from regtune.analyses.registers.audit import audit_registers, audit_text
from regtune.config import RegisterConfig
from regtune.errors import ConfigError, DataError, UnknownNameError, UnsupportedModelError
from regtune.registers.surgery import add_registers, find_registers, mask_registers
from regtune.tasks.qa.data.squad import write_squad
from regtune.tasks.qa.examples import Answer, QAExample
from regtune.tasks.qa.question_answerer import QuestionAnswerer
from tiny import tiny_model
from tiny_tokenizer import examples, tiny_tokenizer

N = 4
COUNT = 24


def answerer_with(registers=N, *, attention="sdpa", **settings):
    """A tiny model that looks at its registers: their vectors are large."""
    model = tiny_model("bert", attention=attention)
    if registers:
        torch.manual_seed(3)
        add_registers(model, RegisterConfig(num_registers=registers, init_std=1.0, **settings))
    with torch.no_grad():
        model.qa_outputs.weight.mul_(4.0)
    return QuestionAnswerer(model, tiny_tokenizer(), max_length=60, stride=8)


def self_taught(answerer, path):
    """Questions whose gold answers are what the model itself says, so that every change is for the worse."""
    asked = examples(COUNT)
    said = answerer.answer(asked)
    gold = [
        QAExample(
            id=example.id,
            question=example.question,
            context=example.context,
            answers=(Answer(text=prediction.text, start=int(prediction.starts[0])),),
        )
        for example, prediction in zip(asked, said, strict=True)
    ]
    write_squad(gold, path)
    return (str(path),)


def audit(answerer, path, **settings):
    data = self_taught(answerer, path)
    return audit_registers(answerer, data=data, **{"resamples": 500, **settings})


def effects_of(found, how, metric="loss"):
    return [getattr(e, metric) for e in found.effects if e.knock_out.how == how]


def taught(answerer, register, steps=40):
    """With the register the model learns to give the answer, without it to give the context's last token."""
    (batch,) = question_batches(examples(COUNT), answerer.tokenizer, max_length=60, stride=8, batch_size=COUNT)
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    gold = {name: batch[name] for name in ("start_positions", "end_positions")}
    last = dict.fromkeys(gold, batch["context_end"] - 1)
    optimiser = torch.optim.AdamW(answerer.model.parameters(), lr=5e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        answerer.model(**given, **gold).loss.backward()
        with mask_registers(answerer.model, [register]):
            answerer.model(**given, **last).loss.backward()
        optimiser.step()
    return answerer


@pytest.fixture(scope="module")
def one_that_matters(tmp_path_factory):
    """No token may attend to any register but number 2."""
    torch.manual_seed(0)
    answerer = answerer_with()
    find_registers(answerer.model).masked = frozenset({0, 1, 3})
    return audit(taught(answerer, 2), tmp_path_factory.mktemp("audit") / "gold.json")


def test_the_one_register_that_matters_is_found(one_that_matters):
    found = one_that_matters
    assert found.roles.matter == (2,)
    assert found.roles.p_value < 0.01
    assert "do not play equal roles" in found.verdict
    assert "register 2 (+" in found.verdict
    assert found.f1 == pytest.approx(1.0)
    for how in ("mask", "zero", "swap"):
        loss = [change.difference for change in effects_of(found, how)]
        assert loss[2] > 0.05
        assert np.abs(np.delete(loss, [2, N])).max() < 1e-5
    alone, together = effects_of(found, "mask")[2], effects_of(found, "mask")[N]
    assert alone.difference == together.difference, "all of them are that one"
    assert effects_of(found, "mask", "answers_changed")[2] > 0
    assert effects_of(found, "mask", "answers_changed")[0] == 0
    assert effects_of(found, "mask")[2].low > 0


def test_attention_and_relevance_point_to_it_too(one_that_matters):
    found = one_that_matters
    assert (found.attention_in[:, 2] > 0.01).all()
    assert found.attention_in[:, [0, 1, 3]].max() < 1e-6
    assert found.relevance.argmax() == 2
    assert np.delete(found.relevance, 2).max() < 1e-6
    assert np.allclose(found.attention_out.sum(-1), 1, atol=1e-5)
    assert "N = 4 is small" in found.rank_correlation.sentence


def test_the_json_holds_what_the_report_reads_and_no_nan(one_that_matters):
    plain = json.loads(json.dumps(one_that_matters.to_json(), allow_nan=False))
    assert (plain["schema_version"], plain["kind"], plain["num_registers"]) == (1, "audit", N)
    assert [(entry["register"], entry["how"]) for entry in plain["knock_outs"]] == [
        (register, how) for how in ("mask", "mean", "swap", "zero") for register in (0, 1, 2, 3, None)
    ]
    assert {"difference", "low", "high"} <= set(plain["knock_outs"][0]["loss"])
    shapes = {"similarity_initial": (N, N), "similarity_contextual": (3, N, N), "relevance": (N,)}
    shapes |= dict.fromkeys(("variation", "attention_in", "attention_out"), (3, N))
    assert {name: np.shape(plain[name]) for name in shapes} == shapes
    assert np.shape(plain["lens"]["embedding"]) == (N, 4, 5, 2)
    assert plain["lens"]["head"] is None
    assert plain["verdict"] == one_that_matters.verdict


def test_the_text_has_a_row_for_each_register_and_the_verdict(one_that_matters):
    lines = audit_text(one_that_matters).splitlines()
    rows = [line.split()[0] for line in lines[3 : 3 + N + 1]]
    assert rows == ["0", "1", "2", "3", "all"]
    assert one_that_matters.verdict in lines


def test_identical_registers_play_equal_roles(tmp_path):
    answerer = answerer_with(position="none")
    with torch.no_grad():
        tokens = find_registers(answerer.model).tokens
        tokens.copy_(tokens[:1].expand_as(tokens).clone())
    found = audit(answerer, tmp_path / "gold.json")
    assert found.roles.p_value == 1.0
    assert "no evidence that the 4 registers play unequal roles" in found.verdict
    assert found.roles.spread_high < 1e-4
    assert all(abs(change.difference) < 1e-5 for change in effects_of(found, "swap"))
    assert np.allclose(found.states.similarity_zscored, 1, atol=1e-5)
    assert found.rank_correlation.rho is None or found.rank_correlation.registers == N


def test_fresh_registers_of_every_layer_are_called_constants_and_exported(tmp_path):
    answerer = answerer_with(depth="every_layer")
    found = audit(answerer, tmp_path / "gold.json", constants_dir=tmp_path / "constants")
    assert found.constant == (0, 1, 2, 3)
    assert "Constant key and value biases" in audit_text(found)
    said = json.loads((tmp_path / "constants" / "constant_registers.json").read_text())
    assert said["registers"] == said["error"]["registers"] == [0, 1, 2, 3]
    assert abs(said["error"]["loss"]["difference"]) < 1e-5
    assert said["error"]["answers_changed"] == 0


def test_the_model_is_left_as_it_was(tmp_path):
    answerer = answerer_with(2)
    asked = examples(4)
    before = [prediction.scores.tolist() for prediction in answerer.answer(asked)]
    keys = set(answerer.model.state_dict())
    audit(answerer, tmp_path / "gold.json", hows=("mean",), limit=6)
    assert [prediction.scores.tolist() for prediction in answerer.answer(asked)] == before
    assert set(answerer.model.state_dict()) == keys
    assert all(parameter.requires_grad for parameter in answerer.model.parameters())


def test_a_single_register_has_an_effect_but_no_equals(tmp_path):
    found = audit(answerer_with(1), tmp_path / "gold.json", limit=8, hows=("swap", "zero"))
    assert [effect.knock_out.how for effect in found.effects] == ["zero", "zero"]
    assert found.roles.p_value is None
    assert found.verdict.startswith("The model has a single register")
    assert found.rank_correlation.rho is None
    assert "single register" in audit_text(found)


def test_a_saved_model_is_audited_by_its_folder_and_can_borrow_a_head(tmp_path):
    answerer = answerer_with(2)
    folder = tmp_path / "model"
    answerer.model.save_pretrained(folder)
    answerer.tokenizer.save_pretrained(folder)
    data = self_taught(answerer, tmp_path / "gold.json")
    base = tiny_model("bert", "masked-lm")
    found = audit_registers(folder, data=data, limit=6, hows=("mask",), resamples=500, head_from=base)
    assert (found.model, found.questions) == (str(folder), 6)
    assert len(found.lens.head) == 2
    assert found.lens.norms == ("cls.predictions.transform.LayerNorm",)


def test_what_cannot_be_audited_is_refused_in_words(tmp_path):
    path = tmp_path / "gold.json"
    with pytest.raises(UnsupportedModelError, match="BertForQuestionAnswering has no registers"):
        audit(answerer_with(0), path)
    answerer = answerer_with(2)
    for settings, error, words in (
        ({"resamples": 100}, ConfigError, "use resamples=160 at least"),
        ({"hows": ()}, ConfigError, "at least one way"),
        ({"hows": ("mask", "mask")}, ConfigError, "each once"),
        ({"hows": ("zeros",)}, UnknownNameError, "Did you mean 'zero'"),
        ({"limit": 1}, DataError, "1 question shows nothing"),
    ):
        with pytest.raises(error, match=words):
            audit(answerer, path, **settings)
    with pytest.raises(ConfigError, match="second register"):
        audit(answerer_with(1), path, hows=("swap",))
