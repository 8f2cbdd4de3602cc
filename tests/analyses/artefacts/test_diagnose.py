"""`diagnose`: verdicts on planted artefacts, several models side by side, comparisons, and bad input."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from analyses.artefacts.artefact_inputs import SEP_ID, batch, plant, quiet_model
from regtune.analyses.artefacts.artefacts import artefact_statistics
from regtune.analyses.artefacts.diagnose import DiagnosisSettings, diagnose
from regtune.analyses.artefacts.diagnose_inputs import Material, open_patient, read_material, with_checkpoints
from regtune.analyses.artefacts.diagnose_quantise import QuantisationLoss, quantisation_loss
from regtune.analyses.artefacts.diagnose_text import diagnosis_text
from regtune.analyses.artefacts.diagnose_verdicts import (
    DEFINITIONS,
    artefact_verdicts,
    attention_verdicts,
    over_smoothing,
    quantisation_verdict,
)
from regtune.analyses.attention.attention import attention_statistics
from regtune.config import RegisterConfig, RunConfig, to_dict
from regtune.errors import CheckpointError, ConfigError, DataError, RegtuneError, UnsupportedModelError
from regtune.records import read_json, write_json
from regtune.registers.surgery import add_registers
from tiny import tiny_model
from tiny_tokenizer import examples, save_questions, save_tiny, tiny_tokenizer

QUICK = DiagnosisSettings(max_length=48, batch_size=4, resamples=50, probes=False)


def verdicts(model, batches=None):
    """Word and whole verdict of everything but W8A8."""
    batches = batches or [batch((20, 18, 30))]
    found = artefact_statistics(model, batches)
    every = [
        *artefact_verdicts(found),
        *attention_verdicts(attention_statistics(model, batches)),
        over_smoothing(found, None),
    ]
    return {each.artefact: each for each in every}


# Verdicts


def test_a_quiet_model_has_no_artefact():
    found = verdicts(quiet_model())
    del found["over-smoothing"]  # three random layers mix little, but texts of one length share positions
    assert {name: each.verdict for name, each in found.items()} == dict.fromkeys(found, "absent")


def test_planted_high_norm_tokens_are_present_and_located():
    model = quiet_model()
    plant(model.base_model.encoder.layer[1].output.dense, lambda states: states[:, 5].mul_(400.0))
    found = verdicts(model)
    assert found["high-norm tokens"].verdict == "present"
    assert (found["high-norm tokens"].layer, found["high-norm tokens"].site) == (1, "feed_forward")
    assert found["outlier dimensions"].verdict == "absent"


def test_one_high_norm_token_alone_is_weak():
    model = quiet_model()
    plant(model.base_model.encoder.layer[1].output.dense, lambda states: states[0, 5].mul_(400.0))
    assert verdicts(model)["high-norm tokens"].verdict == "weak"


def test_a_large_cls_decides_nothing_about_content():
    model = quiet_model()
    plant(model.base_model.encoder.layer[1].output.dense, lambda states: states[:, 0].mul_(400.0))
    assert verdicts(model)["high-norm tokens"].verdict == "absent"


@pytest.mark.parametrize(("size", "verdict"), [(5000.0, "present"), (60.0, "weak"), (0.1, "absent")])
def test_massive_activations_by_their_size(size, verdict):
    model = quiet_model()

    def change(states):
        states[:, 3, 11] = size

    plant(model.base_model.encoder.layer[2].output.dense, change)
    found = verdicts(model)["massive activations"]
    assert found.verdict == verdict
    if verdict == "present":
        assert "dimension 11" in found.strength
        assert found.layer == 2


def test_a_planted_outlier_dimension_is_present_and_named():
    model = quiet_model()
    with torch.no_grad():
        model.base_model.encoder.layer[2].output.dense.bias[7] = 200.0
    found = verdicts(model)["outlier dimensions"]
    assert (found.verdict, found.layer) == ("present", 2)
    assert found.strength.startswith("7 (100%)")


def test_a_planted_sep_sink_is_present_and_attributed():
    model = quiet_model()
    inside = model.base_model.encoder.layer[1].attention.self
    with torch.no_grad():
        inside.query.bias.fill_(5.0)
    ids = batch((20, 18, 30))["input_ids"]

    def to_sep(keys):
        keys[ids == SEP_ID] = 50.0

    plant(inside.key, to_sep)
    found = verdicts(model)
    assert (found["attention sinks"].verdict, found["attention sinks"].layer) == ("present", 1)
    assert "mostly sep" in found["attention sinks"].strength
    plant(
        inside.value, lambda values: values[ids == SEP_ID].zero_() if False else values.mul_((ids != SEP_ID)[..., None])
    )
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


@pytest.mark.parametrize(
    ("metric", "value", "low", "verdict"),
    [
        ("f1_loss", 0.05, 0.02, "present"),
        ("f1_loss", 0.005, 0.001, "weak"),
        ("f1_loss", 0.05, -0.01, "unclear"),
        ("f1_loss", 0.001, -0.001, "absent"),
        ("relative_error", 0.3, 0.2, "present"),
        ("relative_error", 0.15, 0.1, "weak"),
        ("relative_error", 0.05, 0.04, "absent"),
    ],
)
def test_the_cost_of_eight_bits_by_size_and_interval(metric, value, low, verdict):
    loss = QuantisationLoss(
        metric=metric, weights="tensor", value=value, low=low, high=2 * value, f1=0.5, by_example={0: value}
    )
    assert quantisation_verdict(loss).verdict == verdict


# The whole


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"), max_position_embeddings=300)


@pytest.fixture
def data(tmp_path):
    return [str(save_questions(tmp_path / "made.json"))]


def test_a_model_folder_is_diagnosed_on_the_embedded_questions(folder, tmp_path):
    settings = dataclasses.replace(QUICK, max_length=256, limit=6, probes=True)
    found = diagnose(str(folder), settings=settings, output_dir=tmp_path)
    assert found.texts == 6
    assert [verdict.artefact for verdict in found.models[0].verdicts] == list(DEFINITIONS)
    saved = read_json(tmp_path / "artefacts.json")
    assert (saved["kind"], saved["layers"], saved["windows"]) == ("artefacts", 3, 6)
    for site in ("norm_input", "feed_forward", "block"):
        first = saved["sites"][site][0]
        assert sum(first["counts"]) == first["tokens"] == saved["sites"]["block"][2]["tokens"]
        assert len(first["edges"]) == len(first["counts"]) + 1
        assert {"mean+3std", "median+kmad", "absolute"} <= first["outlier_rate"].keys()
    assert read_json(tmp_path / "diagnosis.json")["models"][0]["quantisation"]["metric"] == "f1_loss"
    text = diagnosis_text(found)
    assert all(name in text for name in DEFINITIONS)
    assert "3 layers × 32, no registers" in text
    assert "embedded:dev" in text


def test_a_model_compared_with_itself_differs_in_nothing(folder, data, tmp_path):
    found = diagnose(str(folder), data=data, compare=str(folder), settings=QUICK, output_dir=tmp_path)
    names = {each.name for each in found.differences[0]}
    assert {"norm_input: kurtosis", "block: cosine_pairs_z", "attention: sink_rate", "W8A8: f1_loss"} <= names
    assert all((each.difference, each.low, each.high, each.clear) == (0, 0, 0, False) for each in found.differences[0])
    assert "differs" not in diagnosis_text(found, definitions=False)


def test_a_comparison_finds_what_was_planted_in_the_other(data, tmp_path):
    torch.manual_seed(0)
    for name, size in (("quiet", 0.0), ("loud", 200.0)):
        model = quiet_model()
        with torch.no_grad():
            model.base_model.encoder.layer[2].output.dense.bias[7] = size
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    found = diagnose(
        tmp_path / "quiet",
        data=data,
        compare=tmp_path / "loud",
        settings=QUICK,
        output_dir=tmp_path / "out",
    )
    by_name = {each.name: each for each in found.differences[0]}
    kurtosis = by_name["norm_input: kurtosis"]
    assert kurtosis.clear
    assert kurtosis.difference == pytest.approx(kurtosis.other - kurtosis.model)
    assert kurtosis.low > 10
    assert (tmp_path / "out" / "2-loud" / "artefacts.json").is_file()
    assert "differs" in diagnosis_text(found)


def test_several_models_stand_side_by_side(folder, data, tmp_path):
    small = save_tiny(tmp_path / "small", num_hidden_layers=2)
    found = diagnose([folder, small], data=data, settings=QUICK, output_dir=tmp_path / "out")
    assert [model.artefacts.layers for model in found.models] == [3, 2]
    text = diagnosis_text(found)
    assert "[1]" in text
    assert "2 layers × 32" in text


def test_registers_of_a_saved_model_have_their_row(data, tmp_path):
    model = add_registers(tiny_model("bert"), RegisterConfig(num_registers=3))
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    found = diagnose(tmp_path / "model", data=data, settings=QUICK, output_dir=tmp_path / "out")
    assert found.models[0].artefacts.num_registers == 3
    assert "register" in diagnosis_text(found)
    assert set(read_json(tmp_path / "out" / "artefacts.json")["special"]) == {"cls", "sep", "register"}


def test_a_run_is_followed_along_its_checkpoints(data, tmp_path):
    run = tmp_path / "run"
    for number, name in enumerate(("checkpoints/checkpoint-20", "checkpoints/checkpoint-100", "model")):
        save_tiny(run / name, tokenizer=name == "model", seed=number)
    write_json(run / "config.json", to_dict(RunConfig(model="minilm")))
    (run / "run.json").write_text(json.dumps({"config": {}}))
    assert open_patient(run / "checkpoints/checkpoint-20").tokenizer is not None
    names = [str(run / "checkpoints" / name) for name in ("checkpoint-20", "checkpoint-100")]
    assert with_checkpoints(run) == [*names, str(run)]
    found = diagnose(names, data=data, settings=dataclasses.replace(QUICK, quantise=False), output_dir=tmp_path / "out")
    assert [model.name for model in found.models] == names


@pytest.mark.parametrize("head", ["none", "sequence-classification", "masked-lm"])
def test_other_heads_are_read_without_f1(tmp_path, head):
    folder = save_tiny(tmp_path / "model", head=head)
    data = tmp_path / "text.txt"
    data.write_text("the cat is in the house.\n\nwho lives in the house?\nwhere is the cat\n", encoding="utf-8")
    found = diagnose(folder, data=[str(data)], settings=QUICK, output_dir=tmp_path / "out")
    assert found.texts == 3
    assert found.models[0].quantisation.metric == "relative_error"
    kind = {"none": "BertModel", "sequence-classification": "BertForSequenceClassification", "masked-lm": "BertModel"}
    assert found.models[0].summary.startswith(kind[head])


def test_where_attention_cannot_be_read_the_rest_is_still_told(data, tmp_path):
    config = AutoConfig.for_model(
        "gpt_neox", vocab_size=120, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=66,
    )  # fmt: skip
    AutoModel.from_config(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    found = diagnose(tmp_path / "model", data=data, settings=QUICK, output_dir=tmp_path / "out")
    by_name = {verdict.artefact: verdict for verdict in found.models[0].verdicts}
    assert by_name["attention sinks"].verdict == "not measured"
    assert "gpt_neox" in by_name["attention sinks"].strength
    assert by_name["massive activations"].verdict == "absent"
    assert found.models[0].attention is None


def test_a_bfloat16_checkpoint_is_measured_in_float32(tmp_path):
    tiny_model("bert").bfloat16().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert next(open_patient(tmp_path).model.parameters()).dtype == torch.float32


def test_f1_before_rounding_is_the_evaluation_s_and_the_loss_is_the_difference(folder):
    patient = open_patient(folder)
    material = Material(names=("made.json",), questions=tuple(examples(5)))
    batches = material.batches(patient, max_length=48, batch_size=2)
    with torch.no_grad():
        before = patient.model(batches[0]["input_ids"]).start_logits
    loss = quantisation_loss(patient, material, batches, max_length=48, resamples=50)
    with torch.no_grad():
        assert torch.equal(patient.model(batches[0]["input_ids"]).start_logits, before)
    assert loss.value == pytest.approx(np.mean(list(loss.by_example.values())))
    assert loss.low <= loss.value <= loss.high
    assert 0 <= loss.f1 <= 1
    assert len(loss.by_example) == 5


# Data and bad input


def test_questions_are_spread_over_the_set():
    chosen = read_material([], limit=30)
    assert len(chosen.questions) == 30
    assert len({question.title for question in chosen.questions}) > 20
    assert set(chosen.labels()) == {"article"}


def test_texts_without_titles_are_labelled_by_themselves():
    material = Material(names=("x",), questions=tuple(examples(3)))
    assert material.labels() == {"text": [0, 1, 2]}
    assert Material(names=("x",), texts=("a", "b", "a")).text_numbers() == [0, 1, 0]


@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        (["nowhere.txt"], DataError, "nowhere.txt can't be read"),
        (["nowhere.json"], DataError, "nowhere.json"),
        (["embeded:dev"], ConfigError, "Did you mean 'embedded'"),
    ],
)
def test_data_that_does_not_exist_is_named(folder, data, error, match):
    with pytest.raises(error, match=match):
        diagnose(folder, data=data)


def test_text_files_are_checked(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match="holds no text"):
        read_material([str(tmp_path / "empty.txt")], limit=None)
    with pytest.raises(DataError, match="UTF-8"):
        read_material([str(tmp_path / "latin.txt")], limit=None)
    with pytest.raises(ConfigError, match="one kind at a time"):
        read_material([str(tmp_path / "empty.txt"), "embedded:dev"], limit=None)
    with pytest.raises(ConfigError, match="limit=0"):
        read_material([], limit=0)


def test_models_that_cannot_be_read_are_refused_with_words(tmp_path, folder):
    with pytest.raises(CheckpointError, match="doesn't exist"):
        diagnose("./nowhere/at/all")
    with pytest.raises(ConfigError, match="No model is named"):
        diagnose([])
    with pytest.raises(CheckpointError, match="no checkpoints"):
        diagnose(folder, checkpoints=True)
    config = AutoConfig.for_model("t5", vocab_size=120, d_model=32, num_layers=2, num_heads=4, d_ff=48, d_kv=8)
    AutoModel.from_config(config).save_pretrained(tmp_path / "t5")
    tiny_tokenizer().save_pretrained(tmp_path / "t5")
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        diagnose(tmp_path / "t5")
    assert issubclass(UnsupportedModelError, RegtuneError)


def test_one_text_is_too_little_to_compare(folder, data, tmp_path):
    with pytest.raises(DataError, match="1 text is too little"):
        diagnose(folder, data=data, compare=folder, settings=dataclasses.replace(QUICK, limit=1), output_dir=tmp_path)


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="max_length=0"):
        DiagnosisSettings(max_length=0)
