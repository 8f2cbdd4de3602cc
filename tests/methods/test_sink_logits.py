"""Sink logits as a method: where they start, that they learn at a rate of their own, and what a run keeps of them."""

from __future__ import annotations

import dataclasses
import gzip
import json

import pytest
import torch

import regtune
from regtune.config import DataConfig, RunConfig, TrainConfig
from regtune.errors import ConfigError, UnsupportedModelError
from regtune.methods.used import methods_of
from regtune.registers.in_peft import AdaptedModel, RegisterLoraConfig
from regtune.registers.sinks import sinks_in
from regtune.session import SharedInputs
from regtune.sweeps.run import build_session, run_experiment
from regtune.testing import check_method
from regtune.training.parameter_groups import parameter_groups
from tiny import tiny_model
from tiny_tokenizer import save_questions, save_tiny


def config_for(folder, family="bert", methods=("sink_logits",)):
    save_tiny(folder / "tiny", family)
    sets = (str(save_questions(folder / "qa.json", 4)),)
    return RunConfig(
        model=str(folder / "tiny"),
        output_dir=folder / "run",
        registers=regtune.RegisterConfig(num_registers=0),
        data=DataConfig(train=sets, eval=sets, max_length=40),
        settings={"stride": 8, "max_question_length": 20},
        training=TrainConfig(epochs=1.0, batch_size=2, precision="float32", learning_rate=1e-3),
        methods={name: {} for name in methods},
    )


def test_they_start_with_their_share_of_attention_and_a_run_trains_saves_and_opens_them(tmp_path):
    record = run_experiment(config_for(tmp_path), progress=False)
    seen = record.training["sink_logits"]["seen"]
    start, end = (torch.tensor(seen[moment]["logits"]) for moment in ("start", "end"))
    assert start.shape == (3, 4)
    assert (start != end).all()
    session = regtune.open(tmp_path / "run")
    assert [sinks.logits.tolist() for sinks in sinks_in(session.model)] == seen["end"]["logits"]
    config = build_session(config_for(tmp_path), SharedInputs())
    rows = config.rows(config.sample())
    methods_of(config.config)[0].method.initialise(config, methods_of(config.config)[0].settings, rows)
    assert torch.tensor([sinks.logits.tolist() for sinks in sinks_in(config.model)]).allclose(start, atol=1e-4)
    config.model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = config.model(
            **{k: v for k, v in rows.batch([0]).items() if k in config.accepted}, output_attentions=True
        )
    assert 0.002 < float((1 - maps.attentions[0].sum(-1)).mean()) < 0.03


def test_they_learn_at_the_registers_rate_without_decay_also_beside_a_frozen_backbone(tmp_path):
    session = build_session(config_for(tmp_path, methods=("sink_logits", "linear_probe")))
    training, used = session.config.training, methods_of(session.config)
    for each in used:
        each.method.initialise(session, each.settings, session.rows(session.sample()))
    claimed = [group for each in used for group in each.method.groups(session.model, each.settings, training)]
    groups = {group["name"]: group for group in parameter_groups(session.model, training, claimed=claimed)}
    assert len(groups["sink_logits"]["params"]) == 3
    assert groups["sink_logits"]["lr"] == training.register_learning_rate
    assert groups["sink_logits"]["weight_decay"] == 0
    learning = {name for name, value in session.model.named_parameters() if value.requires_grad}
    assert {name for name in learning if "qa_outputs" not in name} == {
        f"bert.encoder.layer.{layer}.attention.self.sink_logits.logits" for layer in range(3)
    }


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_they_come_and_go_without_a_trace(family, tmp_path):
    check_method("sink_logits", save_tiny(tmp_path, family))


def test_with_an_adapter_or_attention_of_another_kind_they_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="lora and sink_logits exclude each other"):
        methods_of(config_for(tmp_path, methods=("sink_logits", "lora")))
    adapted = AdaptedModel(tiny_model("bert"), RegisterLoraConfig(target_modules=["query"]))
    with pytest.raises(UnsupportedModelError, match="has an adapter of peft, which would be saved without these sinks"):
        regtune.add_sink_logits(adapted)
    with pytest.raises(UnsupportedModelError, match="computes its attention itself"):
        check_method("sink_logits", save_tiny(tmp_path / "deberta", "deberta-v2"))


def test_an_adapter_is_trained_on_the_model_of_a_run_that_trained_sinks(tmp_path):
    run_experiment(config_for(tmp_path), progress=False)
    first = [sinks.logits.tolist() for sinks in sinks_in(regtune.open(tmp_path / "run").model)]
    config = dataclasses.replace(
        config_for(tmp_path, methods=("lora",)), model=str(tmp_path / "run" / "model"), output_dir=tmp_path / "lora"
    )
    run_experiment(config, progress=False)
    session = regtune.open(tmp_path / "lora")
    assert [sinks.logits.tolist() for sinks in sinks_in(session.model)] == first
    with gzip.open(next((tmp_path / "lora" / "predictions").iterdir())) as file:
        kept = json.load(file)
    found = [one.to_json() for one in session.predict(session.sample())]
    assert [one["text"] for one in found] == [one["text"] for one in kept]
