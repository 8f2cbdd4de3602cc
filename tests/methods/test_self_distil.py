"""Self-distillation: targets against a loop, what learns and what stays, and that it can be interrupted."""

from __future__ import annotations

import pytest
import torch

from methods.test_warm_up import TEXTS, changed, is_register
from regtune.config import DataConfig, RegisterConfig, RunConfig, TrainConfig
from regtune.errors import ConfigError, UnsupportedModelError
from regtune.methods.self_distil import SelfDistilSettings, averaged, distance, masks
from regtune.registers.surgery import add_registers
from regtune.registry import METHODS
from regtune.sweeps.run import build_session, run_experiment
from tiny import inputs, tiny_model
from tiny_tokenizer import save_questions, save_tiny

METHOD = METHODS.get("self_distil")


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
    facts = METHOD.before(session, settings, TEXTS, folder)
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


def test_models_without_registers_or_masks_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"has 0 and none that learn\. Set registers\.num_registers"):
        distilled(tmp_path / "run", config_for(tmp_path, registers=0))
    with pytest.raises(UnsupportedModelError, match="it is no encoder"):
        distilled(tmp_path / "run", config_for(tmp_path, "llama"))
