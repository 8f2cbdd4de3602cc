"""peft's methods as methods of a run: trained, saved as an adapter, opened again, resumed, compared in a sweep."""

from __future__ import annotations

import dataclasses
import gzip
import json
import sys

import pytest
import torch

import regtune
from regtune import registry
from regtune.config import DataConfig, RegisterConfig, RunConfig, TrainConfig
from regtune.errors import CheckpointError, ConfigError, MissingExtraError
from regtune.methods.used import methods_of
from regtune.records import load_record
from regtune.registers.in_peft import base_facts, require_same_base
from regtune.registers.surgery import num_registers
from regtune.session import SharedInputs, load_model
from regtune.sweeps.run import build_session, run_experiment
from regtune.sweeps.sweep import run_sweep
from regtune.training.trainer import RegisterTrainer
from tiny_sweep import tiny_sweep
from tiny_tokenizer import save_questions, save_tiny


@pytest.fixture
def config(tmp_path):
    save_tiny(tmp_path / "base")
    sets = (str(save_questions(tmp_path / "q.json")),)
    return RunConfig(
        model=str(tmp_path / "base"),
        output_dir=tmp_path / "run",
        data=DataConfig(train=sets, eval=sets, max_length=60),
        settings={"stride": 12, "max_question_length": 24},
        training=TrainConfig(epochs=1.0, batch_size=3, precision="float32"),
        methods={"lora": {"r": 2}},
    )


def with_n(config, n):
    return dataclasses.replace(config, registers=RegisterConfig(num_registers=n))


@pytest.mark.parametrize("n", [0, 2])
def test_a_run_leaves_an_adapter_that_opens_with_the_same_answers(config, n):
    record = run_experiment(with_n(config, n), progress=False)
    folder = config.output_dir / "model"
    assert not list(folder.glob("model*.safetensors"))
    saved = json.loads((folder / "adapter_config.json").read_text())
    assert saved["peft_type"] == ("REGISTER_LORA" if n else "LORA")
    assert saved["base_model_name_or_path"] == config.model
    session = regtune.open(config.output_dir)
    assert num_registers(session.model) == n
    answers = [prediction.to_json() for prediction in session.predict(session.sample())]
    with gzip.open(config.output_dir / record.predictions["q"]) as file:
        expected = json.load(file)
    assert [answer.items() <= row.items() for answer, row in zip(answers, expected, strict=True)] == [True] * 6
    facts = regtune.info(str(config.output_dir))
    assert facts["adapter"] == {"kind": saved["peft_type"], "base": config.model}
    assert (facts["registers"] or {"num_registers": 0})["num_registers"] == n
    assert record.parameters["registers"] == n * 64
    assert record.parameters["trainable"] < record.parameters["total"] / 4


@pytest.mark.parametrize("n", [0, 2])
def test_a_pooler_that_the_base_hasn_t_got_is_the_adapters_and_tells_no_bases_apart(config, tmp_path, n):
    (tmp_path / "rows.csv").write_text("text,label\nthe cat,x\na house,y\nwho was in,x\nwhat is it,y\n")
    sets = (str(tmp_path / "rows.csv"),)
    classes = dataclasses.replace(
        config, task="classify", data=DataConfig(train=sets, eval=sets, max_length=32), settings={}
    )
    record = run_experiment(with_n(classes, n), progress=False)  # the base is a model for questions, without a pooler
    session = regtune.open(config.output_dir)
    with gzip.open(config.output_dir / record.predictions["rows"]) as file:
        expected = json.load(file)
    for answer, row in zip(session.predict(session.sample()), expected, strict=True):
        assert answer.probabilities == pytest.approx(row["probabilities"], abs=1e-6)
    with torch.no_grad():
        model = load_model("AutoModelForQuestionAnswering", config.model)
        model.bert.encoder.layer[0].output.dense.bias.add_(1)
        model.save_pretrained(tmp_path / "base")
    with pytest.raises(CheckpointError, match="digest_without_pooler"):
        regtune.open(config.output_dir)


def test_an_adapter_of_an_older_regtune_is_compared_by_its_whole_digest(config):
    here = base_facts(load_model("AutoModelForQuestionAnswering", config.model))
    older = {name: value for name, value in here.items() if name != "digest_without_pooler"}
    require_same_base(older, here, "The adapter")
    with pytest.raises(CheckpointError, match=r"\(digest 0 there"):
        require_same_base(older | {"digest": "0"}, here, "The adapter")


def test_only_adapter_registers_and_head_learn(config):
    session = build_session(with_n(config, 2))
    learns = [name for name, parameter in session.model.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name or "registers" in name or "qa_outputs" in name for name in learns)
    assert sum("lora_A" in name for name in learns) == 3 * 6, "all linear layers of all layers"
    assert any("registers" in name for name in learns)


def test_detached_the_model_is_as_it_was_before(config):
    session = build_session(dataclasses.replace(with_n(config, 0), methods={}))
    (used,) = methods_of(with_n(config, 0))
    before = {name: value.clone() for name, value in session.model.state_dict().items()}
    attached = used.method.attach(session, used.settings)
    batch = {"input_ids": torch.randint(5, 60, (2, 9)), "attention_mask": torch.ones(2, 9).long()}
    with attached.disabled(), torch.no_grad():
        off = session.model.eval()(**batch).start_logits
    attached.detach()
    assert type(session.model).__name__ == "BertForQuestionAnswering"
    assert session.model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in session.model.state_dict().items())
    assert all(parameter.requires_grad for parameter in session.model.parameters())
    with torch.no_grad():
        assert torch.equal(session.model.eval()(**batch).start_logits, off)


def test_registers_start_from_the_same_values_with_and_without_lora(config):
    alone = build_session(dataclasses.replace(with_n(config, 2), methods={})).model
    both = build_session(with_n(config, 2)).model
    for one, other in zip(regtune.register_parameters(alone), regtune.register_parameters(both), strict=True):
        assert torch.equal(one, other)


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(config, tmp_path, monkeypatch):
    config = dataclasses.replace(
        with_n(config, 2), training=dataclasses.replace(config.training, epochs=2.0, evals_per_epoch=1)
    )
    run_experiment(config, progress=False)
    step, steps = RegisterTrainer.training_step, []

    def killed(trainer, *args, **options):
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return step(trainer, *args, **options)

    again = dataclasses.replace(config, output_dir=tmp_path / "again")
    with monkeypatch.context() as patch:
        patch.setattr(RegisterTrainer, "training_step", killed)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(again, progress=False)
    record = run_experiment(again, progress=False)
    assert record.training["resumed_from"] == 2
    weights = [folder / "model" / "adapter_model.safetensors" for folder in (config.output_dir, again.output_dir)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_it_is_an_arm_of_a_sweep_alone_and_with_registers(tmp_path):
    sweep = tiny_sweep(tmp_path, arms=("baseline", "registers", "lora", "registers+lora"))
    outcome = run_sweep(sweep, tmp_path / "sweep", progress=False)
    assert not outcome.failed
    assert [load_record(tmp_path / "sweep" / cell.key).label for cell in outcome.finished] == [
        "baseline",
        "registers, N = 2",
        "LoRA, r = 8",
        "registers, N = 2 + LoRA, r = 8",
    ]


def test_an_adapter_whose_base_has_changed_is_refused(config, tmp_path):
    run_experiment(config, progress=False)
    save_tiny(tmp_path / "base", seed=5)
    with pytest.raises(CheckpointError, match=r"made for the base model .*base, and this one is .*base \(digest"):
        regtune.open(config.output_dir)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ("linear_probe", "so they are frozen already"),
        ("warm_up", "is not saved with it"),
        ("bitfit", "a model has one kind of adapter"),
    ],
)
def test_methods_that_exclude_each_other_are_refused_before_anything_is_read(config, other, why):
    both = dataclasses.replace(config, methods={"lora": {}, other: {}}, model="nowhere")
    with pytest.raises(ConfigError, match=rf"lora and {other} exclude each other.*{why}.*Take one of the two out"):
        build_session(both, SharedInputs())


def test_without_peft_its_methods_say_which_extra_brings_it(config, monkeypatch):
    monkeypatch.setattr(registry, "_load", registry._load.__wrapped__)  # without what it remembers
    ours = [f"regtune.{name}" for name in ("methods.peft", "methods.adapters", "methods.bitfit", "registers.in_peft")]
    for name in ours:
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "peft"]:
        monkeypatch.setitem(sys.modules, name, None)
    for method in ("lora", "bitfit", "prefix"):
        with pytest.raises(MissingExtraError, match=r"needs the package 'peft'.*pip install 'regtune\[peft\]'"):
            build_session(dataclasses.replace(config, methods={method: {}}, model="nowhere"), SharedInputs())
