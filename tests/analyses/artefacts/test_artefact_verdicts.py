"""Verdicts: planted artefacts are called present or weak, and located; a model without any is called so."""

import dataclasses

import pytest
import torch
from transformers import AutoConfig, AutoModel

from analyses.artefacts.artefact_inputs import SEP_ID, batch, plant, quiet_model
from regtune.analyses.artefacts.analysis import ArtefactAnalysis, artefact_verdicts
from regtune.analyses.artefacts.artefacts import artefact_statistics
from regtune.analyses.attention.attention import attention_statistics, attention_verdicts
from regtune.analyses.inspection import inspect
from regtune.analyses.parts import Verdict, graded, verdict_blocks
from regtune.records import plain
from tiny_tokenizer import save_questions, tiny_tokenizer


def verdicts(model, batches=None):
    """Every verdict by its artefact."""
    batches = batches or [batch((20, 18, 30))]
    every = artefact_verdicts(artefact_statistics(model, batches))
    return {one.artefact: one for one in [*every, *attention_verdicts(attention_statistics(model, batches))]}


def test_a_quiet_model_has_no_artefact():
    found = verdicts(quiet_model())
    del found["over-smoothing"]  # three random layers mix little, but texts of one length share positions
    assert {name: one.verdict for name, one in found.items()} == dict.fromkeys(found, "absent")


def test_planted_high_norm_tokens_are_present_and_located():
    model = quiet_model()
    plant(model.base_model.encoder.layer[1].output.dense, lambda states: states[:, 5].mul_(400.0))
    found = verdicts(model)
    high = found["high-norm tokens"]
    assert (high.verdict, high.layer, high.site) == ("present", 1, "feed_forward")
    assert found["outlier dimensions"].verdict == "absent"


def test_one_high_norm_token_alone_is_weak():
    model = quiet_model()
    plant(model.base_model.encoder.layer[1].output.dense, lambda states: states[0, 5].mul_(400.0))
    assert verdicts(model)["high-norm tokens"].verdict == "weak"


def test_a_large_cls_decides_nothing_about_high_norms_of_content():
    model = quiet_model()
    plant(model.base_model.encoder.layer[1].output.dense, lambda states: states[:, 0].mul_(400.0))
    assert verdicts(model)["high-norm tokens"].verdict == "absent"


@pytest.mark.parametrize(("size", "verdict"), [(5000.0, "present"), (60.0, "weak"), (0.1, "absent")])
@pytest.mark.parametrize(("place", "token"), [(3, "content"), (0, "[CLS]")])
def test_massive_activations_by_the_published_definition_special_tokens_among_them(place, token, size, verdict):
    model = quiet_model()

    def change(states):
        states[:, place, 11] = size

    plant(model.base_model.encoder.layer[2].output.dense, change)
    found = verdicts(model)["massive activations"]
    assert found.verdict == verdict
    if verdict == "present":
        assert found.layer == 2
        assert f"tokens: 3 {token}; dimension 11" in found.strength
        assert ("content alone at most" in found.strength) == (token != "content")


def test_a_hundred_times_the_median_is_not_massive_however_large():
    """Sun's definition asks for both: above 100, and 1000 times the median."""
    model = quiet_model()

    def change(states):
        states.mul_(1e4)
        states[:, 3, 11] = 300 * states.abs().median()

    plant(model.base_model.encoder.layer[2].output.dense, change)
    found = verdicts(model)["massive activations"]
    assert found.verdict == "weak"
    assert 250 < found.value < 350


def test_a_planted_outlier_dimension_is_present_and_named():
    model = quiet_model()
    with torch.no_grad():
        model.base_model.encoder.layer[2].output.dense.bias[7] = 200.0
    found = verdicts(model)["outlier dimensions"]
    assert (found.verdict, found.layer) == ("present", 2)
    assert found.strength.startswith("7 (100%)")


def test_a_planted_sep_sink_is_present_and_attributed_and_heads_that_read_nothing_there_are_idle():
    model = quiet_model()
    inside = model.base_model.encoder.layer[1].attention.self
    with torch.no_grad():
        inside.query.bias.fill_(5.0)
    ids = batch((20, 18, 30))["input_ids"]

    def to_sep(keys):
        keys[ids == SEP_ID] = 50.0

    plant(inside.key, to_sep)
    sinks = verdicts(model)["attention sinks"]
    assert (sinks.verdict, sinks.layer) == ("present", 1)
    assert "mostly sep" in sinks.strength
    plant(inside.value, lambda values: values.mul_((ids != SEP_ID)[..., None]))
    idle = verdicts(model)["do-nothing heads"]
    assert (idle.verdict, idle.layer) == ("present", 1)
    assert idle.strength.startswith("4 of 12 heads")


def test_tokens_made_alike_are_over_smoothed():
    model = quiet_model()

    def alike(states):
        states[:, 1:] = states[:, 1:2]

    plant(model.base_model.encoder.layer[2].output.LayerNorm, alike)
    found = verdicts(model, [batch((20, 20, 20))])["over-smoothing"]
    assert (found.verdict, found.layer) == ("present", 2)
    assert found.value == pytest.approx(1, abs=1e-3)


def test_texts_of_one_word_say_nothing_about_likeness():
    assert verdicts(quiet_model(), [batch((3, 3))])["over-smoothing"].verdict == "not measured"


@pytest.mark.parametrize(("value", "word"), [(0.5, "present"), (0.49, "weak"), (0.1, "weak"), (0.09, "absent")])
def test_a_threshold_belongs_to_the_stronger_word(value, word):
    assert graded(value, 0.1, 0.5) == word


def test_a_persons_table_has_word_place_and_definition():
    one = Verdict(artefact="x", verdict="weak", strength="somewhat", definition="as defined", layer=3, site="block")
    nowhere = dataclasses.replace(one, artefact="y", layer=None, site=None)
    (shown,) = verdict_blocks(plain([one, nowhere]))
    assert shown.rows == (("x", "weak", "layer 3, block output", "somewhat"), ("y", "weak", "", "somewhat"))
    assert shown.text == "x: as defined\ny: as defined"


def test_content_and_special_tokens_stand_apart_on_the_page_with_what_is_counted():
    model = quiet_model()

    def change(states):
        states[:, 0, 11] = 5000.0

    plant(model.base_model.encoder.layer[1].output.dense, change)
    found = artefact_statistics(model, [batch()])
    content = plain({name: getattr(found, name) for name in ("sites", "special")})
    content |= {"edges": [], "verdicts": plain(artefact_verdicts(found))}
    tables = {block.title: block for block in ArtefactAnalysis().blocks(content)}
    rows = {row[:2]: row for row in tables["Massive activations"].rows}
    assert rows["feed-forward", "[CLS]"][-1] == 3
    assert rows["feed-forward", "content"][-1] == 0
    assert "1000 × that median (Sun 2024)" in tables["Massive activations"].text


def test_where_attention_cannot_be_read_the_rest_is_still_told(tmp_path):
    config = AutoConfig.for_model(
        "opt", vocab_size=120, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48,
        word_embed_proj_dim=32, max_position_embeddings=66,
    )  # fmt: skip
    AutoModel.from_config(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    data = save_questions(tmp_path / "q.json", 3)
    found = inspect(
        tmp_path / "model",
        parts=("attention", "artefacts"),
        data=(str(data),),
        output_dir=tmp_path / "out",
        settings={"artefacts": {"probes": False}},
    )
    assert [record.part for record in found.records] == ["artefacts"]
    assert "attention is left out" in found.notes[0]
    assert "opt" in found.notes[0]
