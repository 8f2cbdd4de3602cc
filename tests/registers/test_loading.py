"""Registers are restored or missed aloud: in encoder-decoders, shared encoders, frames, and without regtune."""

from __future__ import annotations

import copy
import json
import logging
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    EncoderDecoderModel,
    PreTrainedModel,
)

from damage import mutated
from regtune.config import RegisterConfig
from regtune.errors import CheckpointError, RegtuneError
from regtune.registers.registers import Registers
from regtune.registers.saving import from_pretrained, load_registers, save_registers
from regtune.registers.surgery import (
    add_registers,
    disable_registers,
    find_registers,
    mask_registers,
    num_registers,
    remove_registers,
)
from tiny import inputs, tiny_config, tiny_model

FOUR = RegisterConfig(num_registers=4, init_std=1.0)


def with_registers(family="bert", head="question-answering", config=FOUR, **changes):
    return add_registers(tiny_model(family, head, attention="sdpa", **changes), config)


def encoder_decoder():
    decoder = BertLMHeadModel(tiny_config("bert", is_decoder=True, add_cross_attention=True))
    return EncoderDecoderModel(encoder=with_registers(head="none"), decoder=decoder).eval()


def two_heads(*, told=False):
    """A tagger on the encoder of a classifier that got registers; only the classifier's config knows."""
    heads = ("sequence-classification", "token-classification")
    first, second = (tiny_model("bert", head, attention="sdpa") for head in heads)
    second.bert = first.bert
    add_registers(first, FOUR)
    if told:
        second.config.registers = second.base_model.config.registers
    return second


class Frame(PreTrainedModel):
    """A model of a user's own around an encoder and two heads."""

    config_class = BertConfig

    def __init__(self, config):
        super().__init__(config)
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.tags, self.spans = nn.Linear(config.hidden_size, 3), nn.Linear(config.hidden_size, 2)
        self.post_init()

    def _init_weights(self, module):
        if not isinstance(module, Registers):
            super()._init_weights(module)

    def forward(self, **batch):
        return self.spans(self.encoder(**batch).last_hidden_state)


def framed():
    model = Frame(tiny_config("bert")).eval()
    add_registers(model.encoder, FOUR)
    return model


def test_an_encoder_decoder_gets_its_encoders_registers_back(tmp_path):
    model = encoder_decoder()
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(EncoderDecoderModel, tmp_path)
    assert find_registers(loaded.encoder).config == FOUR
    batch = inputs("bert", pad=5) | {"decoder_input_ids": inputs("bert", seq=7)["input_ids"]}
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, loaded.eval()(**batch).logits)


def test_a_frame_of_ones_own_gets_the_registers_of_its_encoder_back(tmp_path):
    model = framed()
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(Frame, tmp_path)
    assert type(loaded) is Frame
    with torch.no_grad():
        assert torch.equal(model(**inputs("bert")), loaded.eval()(**inputs("bert")))


def test_registers_that_the_config_does_not_speak_of_are_refused_with_two_remedies_that_work(tmp_path):
    model = two_heads()
    model.save_pretrained(tmp_path / "untold")
    with pytest.raises(CheckpointError, match=r"bert\.registers\.positions.*doesn't mention.*registers=RegisterConfig"):
        from_pretrained(AutoModelForTokenClassification, tmp_path / "untold")
    two_heads(told=True).save_pretrained(tmp_path / "told")
    by_hand = from_pretrained(AutoModelForTokenClassification, tmp_path / "untold", registers=FOUR)
    for loaded in (by_hand, from_pretrained(AutoModelForTokenClassification, tmp_path / "told")):
        assert loaded.config.registers["num_registers"] == 4
        with torch.no_grad():
            assert torch.equal(model(**inputs("bert")).logits, loaded(**inputs("bert")).logits)


@pytest.mark.parametrize(
    ("weights", "asked"),
    [
        ({"num_registers": 4}, {"num_registers": 3}),
        ({"num_registers": 4}, {"num_registers": 4, "position": "none"}),
        ({"num_registers": 4, "position": "none"}, {"num_registers": 4}),
        ({"num_registers": 4}, {"num_registers": 4, "depth": "every_layer"}),
        ({"num_registers": 4, "depth": "every_layer"}, {"num_registers": 4}),
        ({}, {"num_registers": 4}),
    ],
)
def test_a_config_that_speaks_of_other_registers_than_the_weights_hold_is_refused(tmp_path, weights, asked):
    model = with_registers(config=RegisterConfig(**weights)) if weights else tiny_model("bert")
    model.config.registers = dict(vars(RegisterConfig(**asked)))
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="registers"):
        from_pretrained(AutoModelForQuestionAnswering, tmp_path)


@pytest.mark.parametrize("settings", [3, "four", [4], {"num_registers": "4"}, {"num_registers": True}, {"size": 4}])
def test_register_settings_of_a_wrong_kind_are_refused_in_words(tmp_path, settings):
    with_registers().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"registers": settings}))
    with pytest.raises(CheckpointError, match=r"the registers' settings in config\.json of "):
        from_pretrained(AutoModelForQuestionAnswering, tmp_path)


@pytest.mark.grid
@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize(
    "options",
    [
        {"num_labels": 5, "ignore_mismatched_sizes": True},
        {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}},
        {"num_labels": 5, "id2label": dict(enumerate("abcde")), "ignore_mismatched_sizes": True},
        {"hidden_dropout_prob": 0.3},
        {"problem_type": "multi_label_classification"},
        {"dtype": torch.bfloat16},
        {"dtype": "auto"},
        {"attn_implementation": "eager"},
        {"output_attentions": True, "attn_implementation": "eager"},
    ],
    ids="+".join,
)
def test_what_from_pretrained_of_transformers_takes_is_taken_and_does_the_same(tmp_path, registers, options):
    model = tiny_model("bert", "sequence-classification")
    if registers:
        add_registers(model, FOUR)
    model.save_pretrained(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path, **options)
    loaded, report = from_pretrained(AutoModelForSequenceClassification, tmp_path, output_loading_info=True, **options)
    assert loaded.config.to_dict() == plain.config.to_dict()
    assert (loaded.dtype, type(loaded)) == (plain.dtype, type(plain))
    assert loaded.config._attn_implementation == plain.config._attn_implementation
    assert not report["unexpected_keys"]
    assert num_registers(loaded) == registers


def test_a_head_of_another_size_is_refused_with_both_sizes_and_the_way_out(tmp_path):
    tiny_model("bert", "sequence-classification").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"classifier\.weight \(2, 32\) there, \(5, 32\) here.*ignore_mismatched"):
        from_pretrained(AutoModelForSequenceClassification, tmp_path, num_labels=5)


def test_a_config_object_of_ones_own_is_used(tmp_path):
    with_registers().save_pretrained(tmp_path)
    config = copy.deepcopy(BertConfig.from_pretrained(tmp_path))
    config.hidden_dropout_prob = 0.4
    loaded = from_pretrained(AutoModelForQuestionAnswering, tmp_path, config=config)
    assert (num_registers(loaded), loaded.config.hidden_dropout_prob) == (4, 0.4)
    del config.registers
    with pytest.raises(CheckpointError, match="doesn't mention"):
        from_pretrained(AutoModelForQuestionAnswering, tmp_path, config=config)


# Where regtune is not asked


def test_plain_transformers_names_the_registers_in_its_report(tmp_path, caplog, monkeypatch):
    with_registers().save_pretrained(tmp_path)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger="transformers"):  # its own default
        AutoModelForQuestionAnswering.from_pretrained(tmp_path)
    for key in ("bert.registers.tokens", "bert.registers.positions"):
        assert any(key in line and "UNEXPECTED" in line for line in caplog.text.splitlines())


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForQuestionAnswering])
def test_a_model_that_lost_its_registers_says_so_as_soon_as_regtune_is_asked(tmp_path, auto_class):
    with_registers().save_pretrained(tmp_path)
    plain = auto_class.from_pretrained(tmp_path)
    asked = [
        lambda: num_registers(plain),
        lambda: disable_registers(plain).__enter__(),
        lambda: mask_registers(plain).__enter__(),
        lambda: remove_registers(plain),
        lambda: save_registers(plain, tmp_path / "alone"),
    ]
    for question in asked:
        with pytest.raises(CheckpointError, match=r"was loaded without regtune: its config has 4 registers"):
            question()
    del plain.config.registers
    assert num_registers(plain) == 0


def test_a_lost_encoder_is_seen_from_the_model_around_it(tmp_path):
    encoder_decoder().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="loaded without regtune"):
        num_registers(EncoderDecoderModel.from_pretrained(tmp_path))


# Registers alone


def _nan(settings, weights):
    weights["tokens"][1, 2] = float("nan")


def _infinite(settings, weights):
    weights["positions"][3, 0] = float("-inf")


WEIGHTS = {
    "not a number": _nan,
    "infinite": _infinite,
    "whole numbers": lambda settings, weights: weights.update(tokens=weights["tokens"].long()),
    "narrower": lambda settings, weights: weights.update({k: v[:, :16].contiguous() for k, v in weights.items()}),
    "fewer": lambda settings, weights: weights.update({k: v[:3].contiguous() for k, v in weights.items()}),
    "flat": lambda settings, weights: weights.update(tokens=weights["tokens"].flatten()),
    "one missing": lambda settings, weights: weights.pop("positions"),
    "one more": lambda settings, weights: weights.update(deep=torch.zeros(2, 4, 32)),
}
SETTINGS = {
    "none": {"num_registers": 0},
    "text": {"num_registers": "4"},
    "true": {"num_registers": True},
    "fraction": {"num_registers": 4.0},
    "infinite": {"init_std": "Infinity"},
    "number for truth": {"trainable": 1},
    "list for text": {"placement": ["prefix"]},
    "not a number": {"init_std": float("nan")},
    "unknown": {"size": 4},
}
WHOLE = {
    "list": "[1]",
    "null": '{"format_version": 1, "registers": null}',
    "version": '{"format_version": true}',
    "deep": "[" * 100_000,
    "no UTF-8": b"\xff\xfe{",
    "long": json.dumps({"format_version": "9" * 10**6}),
}


def damaged(folder: Path, kind: str, damage: str) -> None:
    settings = json.loads((folder / "registers.json").read_text())
    if kind == "weights":
        weights = load_file(folder / "registers.safetensors")
        WEIGHTS[damage](settings, weights)
        save_file(weights, folder / "registers.safetensors")
    elif kind == "settings":
        settings["registers"] |= SETTINGS[damage]
        (folder / "registers.json").write_text(json.dumps(settings))
    else:
        whole = WHOLE[damage]
        (folder / "registers.json").write_bytes(whole if isinstance(whole, bytes) else whole.encode())


DAMAGE = [("weights", name) for name in WEIGHTS] + [("settings", name) for name in SETTINGS]
DAMAGE += [("whole", name) for name in WHOLE]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Without a checksum, so that all other checks are needed."""
    folder = save_registers(with_registers(), tmp_path_factory.mktemp("registers"))
    settings = json.loads((folder / "registers.json").read_text())
    (folder / "registers.json").write_text(json.dumps(settings | {"sha256": ""}))
    return folder


def as_it_was(model, before):
    return (
        find_registers(model) is None
        and not hasattr(model.config, "registers")
        and model.state_dict().keys() == before.keys()
        and not model.bert._forward_pre_hooks
    )


@pytest.mark.parametrize(("kind", "damage"), DAMAGE)
def test_a_refused_register_file_leaves_the_model_as_it_was(alone, tmp_path, kind, damage):
    shutil.copytree(alone, tmp_path / "copy")
    damaged(tmp_path / "copy", kind, damage)
    model = tiny_model("bert")
    before = model.state_dict()
    with pytest.raises(CheckpointError) as caught:
        load_registers(model, tmp_path / "copy")
    assert len(str(caught.value)) < 1500
    assert as_it_was(model, before)


def fuzz(alone, folder, rounds):
    """Damages the files by structure and by bytes; they are loaded or refused, and then the model is as it was."""
    draw = random.Random(0)
    model = tiny_model("bert")
    before, refused = model.state_dict(), 0
    for round_ in range(rounds):
        shutil.copytree(alone, folder, dirs_exist_ok=True)
        file = folder / draw.choice(["registers.json", "registers.safetensors"])
        content = bytearray(file.read_bytes())
        if file.suffix == ".json" and round_ % 2:
            content = bytearray(json.dumps(mutated(json.loads(content), draw)).encode(errors="backslashreplace"))
        else:
            limit = min(len(content), 300)  # the header of the numbers, and all of the JSON
            for _ in range(draw.randint(1, 4)):
                content[draw.randrange(limit)] = draw.randrange(256)
        file.write_bytes(content)
        try:
            load_registers(model, folder)
        except RegtuneError:
            refused += 1
            assert as_it_was(model, before)
        else:
            remove_registers(model)
    return refused


@pytest.mark.slow
def test_no_damage_to_registers_ends_in_a_raw_error_or_half_a_load(alone, tmp_path):
    assert fuzz(alone, tmp_path, 200) > 100


@pytest.mark.slow
def test_no_damage_to_registers_ends_in_a_raw_error_or_half_a_load_in_a_long_run(alone, tmp_path):
    assert fuzz(alone, tmp_path, 1_500) > 750


def test_registers_shared_out_by_fsdp2_are_gathered(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    model = with_registers()
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        registers = find_registers(model)
        expected = {name: value.detach().clone() for name, value in registers.named_parameters()}
        for name, value in expected.items():
            setattr(registers, name, nn.Parameter(distribute_tensor(value, mesh, [Shard(0)])))
        saved = load_file(save_registers(model, tmp_path) / "registers.safetensors")
    finally:
        torch.distributed.destroy_process_group()
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], value) for name, value in expected.items())
