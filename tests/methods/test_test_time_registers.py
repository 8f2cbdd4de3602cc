"""Test-time registers: a planted neuron is found and moved, with the norms that it makes; and what a run does."""

from __future__ import annotations

import dataclasses
import gzip
import json

import numpy as np
import pytest
import torch

import regtune
import tiny
import tiny_images
from regtune.config import DataConfig, RegisterConfig, RunConfig, TrainConfig
from regtune.errors import ConfigError, UnsupportedModelError
from regtune.families import family_of
from regtune.methods.test_time_registers import (
    TestTimeRegistersSettings,
    find_register_neurons,
    largest_norms,
)
from regtune.registers.moved_neurons import move_neurons, moved_neurons, neuron_layers
from regtune.registers.surgery import (
    add_registers,
    backbone_of,
    disable_registers,
    num_registers,
    require_registers,
)
from regtune.rows.token_classes import TokenClass
from regtune.session import around
from regtune.sweeps.run import run_experiment
from regtune.testing import check_method
from tiny_tokenizer import save_questions, save_tiny, tiny_tokenizer

LAYER, INDEX, WORD, PLACE = 1, 7, 77, 4
KINDS = ("bert", "llama", "vit")
_PATHS = {  # of the two projections that read and write the planted neuron, and of gates
    "bert": ("intermediate.dense", "output.dense", None, "attention.output.dense"),
    "llama": ("mlp.up_proj", "mlp.down_proj", "mlp.gate_proj", "self_attn.o_proj"),
    "vit": ("mlp.fc1", "mlp.fc2", None, "attention.o_proj"),
}


@torch.no_grad()
def planted(kind):
    """A model in which dimension 0 is that of one word (or patch) alone, and one neuron makes a huge state of it."""
    images = kind == "vit"
    model = tiny_images.tiny_model("vit", attention="sdpa") if images else tiny.tiny_model(kind, "none", "sdpa")
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(0.25)
    backbone = backbone_of(model)
    if kind == "vit":
        backbone.embeddings.patch_embeddings.projection.weight[0] = 0
        backbone.embeddings.patch_embeddings.projection.bias[0] = 0
        backbone.embeddings.cls_token[..., 0] = 0
        backbone.embeddings.position_embeddings[..., 0] = 0
        backbone.embeddings.position_embeddings[0, PLACE, 0] = 20
    else:
        table = backbone.get_input_embeddings().weight
        table[:, 0] = 0
        table[WORD, 0] = 20
    reads, writes, gate, attends = _PATHS[kind]
    for number, (layer, _) in enumerate(neuron_layers(backbone, family_of(backbone.config))):
        for path in (writes, attends):
            layer.get_submodule(path).weight[0] = 0
        if number == LAYER:
            for path in filter(None, (reads, gate)):
                row = layer.get_submodule(path)
                row.weight[INDEX] = 0
                row.weight[INDEX, 0] = 10
                if row.bias is not None:
                    row.bias[INDEX] = -20
            column = torch.randn(32, generator=torch.Generator().manual_seed(2))
            column[0] = 0
            layer.get_submodule(writes).weight[:, INDEX] = 100 * column / column.norm()
    return model


def batches_of(kind):
    if kind == "vit":
        classes = torch.full((3, 10), int(TokenClass.CONTEXT), dtype=torch.int8)
        classes[:, 0] = TokenClass.CLS
        batch = {**tiny_images.images(), "attention_mask": torch.ones(3, 10, dtype=torch.long)}
    else:
        batch = tiny.inputs(kind, pad=4)
        batch["input_ids"][batch["input_ids"] == WORD] = 78
        batch["input_ids"][:, PLACE] = WORD
        classes = torch.where(batch["attention_mask"].bool(), int(TokenClass.CONTEXT), int(TokenClass.PADDING))
    return [{**batch, "token_classes": classes.to(torch.int8), "example": torch.arange(3)}]


def session_of(model, kind):
    return around(model, None if kind == "vit" else tiny_tokenizer())


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_neuron_is_found_and_its_norm_moves_to_the_register(kind):
    model, batches = planted(kind), batches_of(kind)
    session = session_of(model, kind)
    settings = TestTimeRegistersSettings(neurons=1, sigmas=2.0)
    found = find_register_neurons(session, batches, settings)
    (neuron, score), (_, second) = find_register_neurons(
        session, batches, TestTimeRegistersSettings(neurons=2, sigmas=2.0)
    ).neurons
    assert (neuron.layer, neuron.index, neuron.sign) == (LAYER, INDEX, 1)
    assert found.neurons[0] == (neuron, score)
    assert score > 20 * second
    assert (found.layer, found.outliers, found.rows) == (LAYER, 3, 3)
    add_registers(model, RegisterConfig(num_registers=1, position="none", trainable=False))
    require_registers(model).tokens.data.zero_()
    before = largest_norms(session, batches, LAYER)
    move_neurons(model, [neuron])
    after = largest_norms(session, batches, LAYER)
    assert before["text_norm"] > 20 * before["register_norm"]
    assert after["register_norm"] == pytest.approx(before["text_norm"], rel=0.1)
    assert after["text_norm"] < before["text_norm"] / 20


def test_scores_and_threshold_are_those_of_the_definition():
    model, batches = planted("bert"), batches_of("bert")
    session, (batch,) = session_of(model, "bert"), batches
    kept, states = [], []
    for layer in model.encoder.layer:
        layer.output.dense.register_forward_pre_hook(lambda _, args: kept.append(args[0].double()))
        layer.output.LayerNorm.register_forward_pre_hook(lambda _, args: states.append(args[0].double()))
    with torch.no_grad():
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    norms, real = states[2].norm(dim=-1), batch["attention_mask"].bool()
    threshold = float(np.mean(norms[real].numpy()) + 2 * np.std(norms[real].numpy()))
    outliers = (norms > threshold) & real
    rows = [row for row in range(3) if outliers[row].any()]
    scores = {
        (layer, index): sum(float(kept[layer][row, outliers[row], index].abs().mean()) for row in rows) / len(rows)
        for layer in range(3)
        for index in range(48)
    }
    found = find_register_neurons(session, batches, TestTimeRegistersSettings(layer=2, sigmas=2.0, neurons=5))
    assert found.threshold == pytest.approx(threshold, rel=1e-6)
    assert (found.outliers, found.rows, found.tokens) == (int(outliers.sum()), len(rows), int(real.sum()))
    best = sorted(scores, key=lambda place: -scores[place])[:5]
    assert [(neuron.layer, neuron.index) for neuron, _ in found.neurons] == best
    for neuron, score in found.neurons:
        own = kept[neuron.layer][..., neuron.index]
        assert score == pytest.approx(scores[neuron.layer, neuron.index], rel=1e-6)
        extremes = [float((own[row][real[row]] * neuron.sign).max()) * neuron.sign for row in range(3)]
        assert neuron.held == pytest.approx(float(np.mean(extremes)), rel=1e-6)


def test_neurons_behind_the_layer_of_the_outliers_do_not_count():
    found = find_register_neurons(
        session_of(planted("bert"), "bert"), batches_of("bert"), TestTimeRegistersSettings(layer=1, neurons=96)
    )
    assert {neuron.layer for neuron, _ in found.neurons} == {0, 1}


def test_without_outliers_and_beyond_the_last_layer_it_says_what_to_do():
    session, batches = session_of(planted("bert"), "bert"), batches_of("bert")
    with pytest.raises(ConfigError, match=r"of 56 at layer 1 the largest norm is .*sigmas \(or threshold\) lower"):
        find_register_neurons(session, batches, TestTimeRegistersSettings(threshold=1e8))
    with pytest.raises(ConfigError, match=r"layer=3 doesn't exist; .* has layers 0 to 2"):
        find_register_neurons(session, batches, TestTimeRegistersSettings(layer=3))


def config_for(folder, *, registers=0, **settings):
    save_tiny(folder / "tiny")
    sets = (str(save_questions(folder / "qa.json", 4)),)
    return RunConfig(
        model=str(folder / "tiny"),
        output_dir=folder / "run",
        registers=RegisterConfig(num_registers=registers),
        data=DataConfig(train=sets, eval=sets, max_length=40),
        settings={"stride": 8, "max_question_length": 20},
        training=TrainConfig(epochs=1.0, batch_size=4, precision="float32", learning_rate=1e-3, warmup_ratio=0.0),
        methods={"test_time_registers": {"sigmas": 1.0, **settings}},
    )


def test_a_run_records_what_it_found_and_opens_with_it(tmp_path):
    config = config_for(tmp_path, num_registers=2, neurons=3, start="mean")
    record = run_experiment(config, progress=False)
    seen = record.training["test_time_registers"]["seen"]
    assert seen["start"]["neurons"] == seen["end"]["neurons"]
    assert seen["end"]["text_norm"] != seen["start"]["text_norm"]
    session = regtune.open(tmp_path / "run")
    assert num_registers(session.model) == 2
    own = [{name: each[name] for name in ("layer", "index", "sign", "held")} for each in seen["start"]["neurons"]]
    assert [vars(neuron) for neuron in moved_neurons(session.model)] == own
    tokens = require_registers(session.model).tokens.detach()
    assert record.parameters["total"] - record.parameters["trainable"] == tokens.numel()
    assert tokens[0].equal(tokens[1])
    assert float(tokens.abs().max()) > 0
    assert record.label == "test-time registers, 3 neurons"
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["register_neurons"]


def test_beside_registers_of_the_run_neurons_go_to_those_and_they_learn(tmp_path):
    config = config_for(tmp_path, registers=2, num_registers=1)
    record = run_experiment(config, progress=False)
    session = regtune.open(tmp_path / "run")
    assert num_registers(session.model) == 2
    assert len(moved_neurons(session.model)) == 10
    assert record.label == "registers, N = 2 + test-time registers, 10 neurons"
    assert require_registers(session.model).tokens.requires_grad


def test_an_adapter_is_trained_on_the_model_of_a_run_that_moved_neurons(tmp_path):
    run_experiment(config_for(tmp_path, num_registers=2, neurons=3), progress=False)
    first = regtune.open(tmp_path / "run")
    on_base = {"model": str(tmp_path / "run" / "model"), "methods": {"lora": {}}, "output_dir": tmp_path / "lora"}
    more = dataclasses.replace(config_for(tmp_path, registers=2), **on_base)
    with pytest.raises(UnsupportedModelError, match=r"has 2 registers already. .*--registers.num-registers 0"):
        run_experiment(more, progress=False)
    run_experiment(dataclasses.replace(config_for(tmp_path), **on_base), progress=False)
    session = regtune.open(tmp_path / "lora")
    assert moved_neurons(session.model) == moved_neurons(first.model) != ()
    assert num_registers(session.model) == 2
    kept = json.loads(gzip.decompress(next((tmp_path / "lora" / "predictions").iterdir()).read_bytes()))
    assert [one.to_json()["text"] for one in session.predict(session.sample())] == [one["text"] for one in kept]
    batch = {"input_ids": torch.tensor([[2, 5, 7, 9, 3]])}
    backbone = backbone_of(session.model)
    with torch.no_grad():
        learnt = backbone(**batch)[0]
        expected = backbone_of(first.model)(**batch)[0]
        with session.model.disable_adapter():
            assert backbone(**batch)[0].equal(expected)
            with disable_registers(session.model):
                assert not backbone(**batch)[0].equal(expected)
    assert not learnt.equal(expected)


def test_beside_an_adapter_in_one_run_it_is_refused_with_the_way_that_works(tmp_path):
    config = config_for(tmp_path)
    config = dataclasses.replace(config, methods={**config.methods, "lora": {}})
    with pytest.raises(ConfigError, match=r"lora and test_time_registers exclude each other.*--model RUN/model"):
        run_experiment(config, progress=False)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_it_comes_and_goes_without_a_trace(family, tmp_path):
    check_method("test_time_registers", save_tiny(tmp_path, family))


def test_a_model_that_shares_its_layers_is_refused_before_anything_is_added(tmp_path):
    with pytest.raises(UnsupportedModelError, match="share one set of weights"):
        check_method("test_time_registers", save_tiny(tmp_path, "albert"))
