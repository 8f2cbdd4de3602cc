"""LP-FT: the head learns alone first, from where everything goes on."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from regtune.config import DataConfig, RegisterConfig, RunConfig, TrainConfig
from regtune.errors import ConfigError
from regtune.methods.lp_ft import LpFtSettings
from regtune.session import SharedInputs
from regtune.sweeps.run import STAGES, build_session, run_experiment
from tiny_tokenizer import save_questions, save_tiny


@pytest.fixture
def config(tmp_path):
    save_tiny(tmp_path / "model")
    save_questions(tmp_path / "q.json")
    sets = (str(tmp_path / "q.json"),)
    return RunConfig(
        model=str(tmp_path / "model"),
        output_dir=tmp_path / "run",
        registers=RegisterConfig(num_registers=2),
        data=DataConfig(train=sets, eval=sets, max_length=60),
        settings={"stride": 12, "max_question_length": 24},
        training=TrainConfig(epochs=1.0, batch_size=3, precision="float32"),
        methods={"lp_ft": {"epochs": 2, "learning_rate": 0.05}},
    )


def test_the_first_stage_moves_the_head_and_the_registers_alone(config, monkeypatch):
    seen = {}

    def stop(model, *args, **settings):
        raise KeyboardInterrupt

    from regtune.sweeps import run

    start = build_session(config, SharedInputs()).model.state_dict()
    fine_tune = run.fine_tune

    def first_alone(model, *args, **settings):
        if seen:
            stop(model)
        result = fine_tune(model, *args, **settings)
        seen.update({name: value.clone() for name, value in model.state_dict().items()})
        return result

    monkeypatch.setattr(run, "fine_tune", first_alone)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(config, progress=False)
    moved = {name for name, value in seen.items() if not torch.equal(value, start[name])}
    assert moved == {n for n in start if n.startswith("qa_outputs") or "registers." in n}
    assert (config.output_dir / STAGES / "lp_ft").is_dir()


def test_afterwards_everything_learns_and_the_record_tells_both_stages(config):
    record = run_experiment(config, progress=False)
    stage = record.training["lp_ft"]
    assert stage["steps"] == 2 * record.training["steps"]
    assert record.parameters["trainable"] == record.parameters["total"]


def test_without_epochs_it_is_refused():
    with pytest.raises(ConfigError, match=r"lp_ft\.epochs=0\.0 must be a number in"):
        LpFtSettings(epochs=0.0)
    with pytest.raises(ConfigError, match="nan"):
        dataclasses.replace(LpFtSettings(), epochs=float("nan"))


def test_the_record_tells_how_long_the_head_is_and_how_far_features_moved(config):
    record = run_experiment(config, progress=False)
    seen = record.training["lp_ft"]["seen"]
    assert list(seen) == ["start", "lp_ft", "end"]
    model = build_session(config, SharedInputs()).model
    length = torch.cat([p.flatten() for n, p in model.named_parameters() if n.startswith("qa_outputs")]).detach().norm()
    assert seen["start"]["head_norm"] == pytest.approx(float(length), rel=1e-5)
    assert seen["lp_ft"]["head_norm"] != seen["start"]["head_norm"]
    assert seen["start"]["feature_change"] == 0.0
    assert 0 < seen["lp_ft"]["feature_change"] < seen["end"]["feature_change"], "registers move features in the probe"
    assert {"ece", "ece_scaled", "temperature"} <= record.metrics["q"].keys()


def test_without_registers_probing_moves_no_feature(config):
    alone = dataclasses.replace(config, registers=RegisterConfig(num_registers=0))
    seen = run_experiment(alone, progress=False).training["lp_ft"]["seen"]
    assert seen["lp_ft"]["feature_change"] == 0.0
    assert seen["end"]["feature_change"] > 0
