"""Self-distillation: targets against a loop, what learns and what stays, and that it can be interrupted."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

import regtune
from command_line import QUICK, invoke
from methods.test_warm_up import TEXTS, changed, is_register
from regtune.config import DataConfig, RegisterConfig, RunConfig, TrainConfig
from regtune.errors import ConfigError, UnsupportedModelError
from regtune.interfaces import Examples
from regtune.methods.self_distil import SelfDistilSettings, averaged, distance, masks
from regtune.records import read_json
from regtune.registers.surgery import add_registers, backbone_of, num_registers, register_parameters
from regtune.registry import METHODS
from regtune.sweeps.run import build_session, run_experiment
from regtune.tasks.qa.examples import QAExample
from tiny import inputs, tiny_model
from tiny_images import FAMILIES, folder_of
from tiny_images import save_tiny as save_images
from tiny_tokenizer import save_questions, save_tiny

METHOD = METHODS.get("self_distil")
EXAMPLES = Examples(
    items=tuple(QAExample(id=str(n), question="who?", context=text, answers=()) for n, text in enumerate(TEXTS)),
    names=("x",),
)


def config_for(folder, family="bert", registers=3, head="question-answering"):
    if not (folder / family).is_dir():
        save_tiny(folder / family, family, head=head)
        save_questions(folder / "q.json", 8)
    return RunConfig(
        model=str(folder / family),
        output_dir=folder / "run",
        registers=RegisterConfig(num_registers=registers),
        data=DataConfig(train=(str(folder / "q.json"),), eval=(str(folder / "q.json"),), max_length=40),
        settings={"stride": 8, "max_question_length": 20},
        training=TrainConfig(precision="float32", batch_size=4, epochs=1.0),
        methods={"self_distil": {"steps": 8, "batch_size": 6, "learning_rate": 1e-3, "register_learning_rate": 1e-2}},
    )


def distilled(folder, config, **more):
    folder.mkdir(exist_ok=True)
    session = build_session(config)
    before = {name: value.clone() for name, value in session.model.state_dict().items()}
    settings = SelfDistilSettings(**(dict(config.methods["self_distil"]) | more))
    facts = METHOD.before(session, settings, EXAMPLES, folder)
    return session, before, session.model.state_dict(), facts


def test_targets_are_means_of_the_frozen_models_states_over_copies_in_which_a_token_stands():
    model = add_registers(tiny_model("bert", "none"), RegisterConfig(num_registers=2))
    batch = inputs("bert", pad=4)
    special = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    special[:, 0] = True
    masked = masks(special | (batch["attention_mask"] == 0), 3, 0.5, torch.Generator().manual_seed(0))
    assert not masked[:, :, 0].any()
    assert not masked[:, 1, -4:].any()
    target, known = averaged(model, batch["input_ids"], batch["attention_mask"], masked, 4)
    plain = tiny_model("bert", "none")
    for row in range(3):
        for place in range(20):
            kept = [one for one in range(3) if batch["attention_mask"][row, place] and not masked[one, row, place]]
            assert bool(known[row, place]) == bool(kept)
            states = []
            for one in kept:
                ids = torch.where(masked[one, row], 4, batch["input_ids"][row])[None]
                with torch.no_grad():
                    states.append(plain(ids, attention_mask=batch["attention_mask"][row][None])[0][0, place])
            if kept:
                assert torch.allclose(target[row, place], torch.stack(states).mean(0), atol=1e-5)


def test_the_distance_is_zero_of_the_target_itself_and_grows():
    target = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    assert float(distance(target, target)) == pytest.approx(0, abs=1e-6)
    assert float(distance(2 * target, target)) > 0.1
    assert float(distance(-target, target)) > 2


@pytest.mark.parametrize(("trainable", "most"), [("registers", ()), ("last_layer", (".layer.2.",)), ("all", ("",))])
def test_what_is_asked_for_learns_and_all_else_stays_bit_identical(tmp_path, trainable, most):
    session, before, after, facts = distilled(tmp_path / "run", config_for(tmp_path), trainable=trainable)
    touched = changed(before, after)
    assert {name for name in before if is_register(name)} <= touched
    assert all(is_register(name) or any(part in name for part in most) for name in touched)
    assert any(not is_register(name) for name in touched) == bool(most)
    assert "qa_outputs.weight" not in touched
    assert all(parameter.requires_grad for parameter in session.model.parameters())
    assert facts["steps"] == 8


def test_the_distance_to_the_targets_falls(tmp_path):
    *_, facts = distilled(tmp_path / "run", config_for(tmp_path), steps=60)
    losses = [point["loss"] for point in facts["curve"]]
    assert losses[-1] < 0.9 * losses[0]


def test_a_second_start_goes_on_from_what_was_learnt(tmp_path, monkeypatch):
    config = config_for(tmp_path)
    _, _, first, facts = distilled(tmp_path / "run", config)
    monkeypatch.setattr("regtune.methods.self_distil.learn", None)
    _, _, again, same = distilled(tmp_path / "run", config)
    assert facts == same
    assert not changed(first, again)


def test_a_run_records_it_and_names_what_it_leaves(tmp_path):
    record = run_experiment(config_for(tmp_path), progress=False)
    assert record.training["self_distil"]["steps"] == 8
    assert "self-distilled" in record.label
    assert [(tmp_path / "run" / name).exists() for name in METHOD.leftovers()] == [True]


# Images


def config_of_images(folder, family="vit", **more):
    if not (folder / family).is_dir():
        save_images(folder / family, family, "none" if family == "deit" else "image-classification")
        folder_of(folder / "pets")
    settings = {"steps": 8, "batch_size": 4, "learning_rate": 1e-3, "register_learning_rate": 1e-2, "shift": 0.4}
    return RunConfig(
        model=str(folder / family),
        output_dir=folder / "run",
        task="images",
        registers=RegisterConfig(num_registers=2),
        data=DataConfig(train=(str(folder / "pets"),), eval=(str(folder / "pets"),)),
        training=TrainConfig(precision="float32", batch_size=4, epochs=1.0),
        methods={"self_distil": settings | more},
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_images_is_distilled_trained_saved_and_opened_and_its_registers_have_learnt(tmp_path, family):
    config = config_of_images(tmp_path, family)
    start = [value.clone() for value in register_parameters(build_session(config).model)]
    record = run_experiment(config, progress=False)
    assert record.training["self_distil"]["images"] == 6
    assert "self-distilled" in record.label
    session = regtune.open(tmp_path / "run")
    assert num_registers(session.model) == 2
    assert session.predict(session.sample())
    learnt = load_file(tmp_path / "run" / METHOD.leftovers()[0])
    moved = [value for name, value in learnt.items() if is_register(f".{name}")]
    assert [tuple(value.shape) for value in moved] == [tuple(value.shape) for value in start]
    assert all(not torch.equal(one, other) for one, other in zip(start, moved, strict=True))


def test_of_images_too_what_is_asked_for_learns_labels_are_not_read_and_the_distance_falls(tmp_path):
    config = config_of_images(tmp_path, steps=60)
    session = build_session(config)
    before = {name: value.clone() for name, value in session.model.state_dict().items()}
    examples = session.sample()
    settings = SelfDistilSettings(**config.methods["self_distil"])
    facts = METHOD.before(session, settings, examples, tmp_path)
    touched = changed(before, session.model.state_dict())
    assert {name for name in before if is_register(name)} < touched
    assert all(is_register(name) or ".layers.2." in name for name in touched)
    losses = [point["loss"] for point in facts["curve"]]
    assert losses[-1] < 0.9 * losses[0]
    again = build_session(config)
    nameless = dataclasses.replace(examples, items=tuple(dataclasses.replace(i, label="cat") for i in examples.items))
    (tmp_path / "other").mkdir()
    METHOD.before(again, settings, nameless, tmp_path / "other")
    assert not changed(session.model.state_dict(), again.model.state_dict())
    assert backbone_of(again.model).training is False


def test_it_is_an_arm_of_a_sweep_of_images_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config_of_images(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE)
    code, _, error = invoke(capsys, ("sweep", "r.yaml", "--folder", "sweep"))
    assert code == 0, error
    records = [read_json(path) for path in (tmp_path / "sweep").glob("*/run.json")]
    assert sorted(len(record["methods"]) for record in records) == [0, 2]
    (one,) = (record for record in records if record["methods"])
    assert one["training"]["self_distil"]["steps"] == 2
    words = ("train", "--task", "images", "--model", "vit", "--data.train", "pets", "--data.eval", "pets")
    more = ("--methods", "self_distil:steps=2,shift=0.3", "--registers.num-registers", "2", "--output-dir", "one")
    code, _, error = invoke(capsys, (*words, *more, *QUICK))
    assert code == 0, error
    assert read_json(tmp_path / "one/run.json")["training"]["self_distil"]["images"] == 6


RECIPE = """
arms: [baseline, distilled]
own_arms: {distilled: {registers: {}, self_distil: {steps: 2, batch_size: 4}}}
num_registers: [2]
seeds: [0]
training_sets: {pets: [pets]}
evaluation_sets: [pets]
base: {task: images, model: vit, training: {epochs: 1.0, batch_size: 4, precision: float32}}
"""


def test_models_without_registers_or_masks_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"has 0 and none that learn\. Set registers\.num_registers"):
        distilled(tmp_path / "run", config_for(tmp_path, registers=0))
    with pytest.raises(UnsupportedModelError, match="it is no encoder"):
        distilled(tmp_path / "run", config_for(tmp_path, "llama"))
