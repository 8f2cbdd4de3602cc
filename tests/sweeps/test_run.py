"""One run from config to record: what is written, what continues, and what is refused."""

from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from regtune.config import DataConfig, RegisterConfig, RunConfig, TrainConfig
from regtune.errors import CheckpointError, ConfigError, DataError, TrainingError
from regtune.records import inside, load_record, read_json
from regtune.registers.surgery import find_registers, num_registers
from regtune.sweeps.run import build_session, run_experiment
from regtune.tasks.qa.question_answerer import QuestionAnswerer
from regtune.tasks.qa.task import QuestionAnswering
from tiny_tokenizer import save_questions, save_tiny


@pytest.fixture
def config(tmp_path) -> RunConfig:
    save_tiny(tmp_path / "base")
    save_questions(tmp_path / "train.json", 8)
    save_questions(tmp_path / "dev.json", 6)
    return RunConfig(
        model=str(tmp_path / "base"),
        output_dir=tmp_path / "run",
        registers=RegisterConfig(num_registers=3),
        data=DataConfig(
            train=(str(tmp_path / "train.json"),),
            eval=(str(tmp_path / "dev.json"),),
            max_length=64,
        ),
        training=TrainConfig(epochs=2.0, batch_size=4, precision="float32"),
        settings={"stride": 16, "max_question_length": 30, "top_k": 5},
    )


def test_a_run_leaves_everything_a_reader_needs(config):
    record = run_experiment(config, progress=False)
    assert load_record(config.output_dir) == record
    assert set(record.metrics["dev"]) >= {"exact_match", "f1"}
    rows = read_json(inside(config.output_dir, record.predictions["dev"]))
    assert [row["id"] for row in rows] == [f"q{i}" for i in range(6)]
    assert all(len(row["n_best"]) == 5 for row in rows)
    assert record.metrics["dev"]["f1"] == pytest.approx(sum(row["f1"] for row in rows) / 6)
    curve = read_json(config.output_dir / "curve.json")
    assert curve[-1]["step"] == record.training["steps"] == 4
    assert record.parameters["registers"] == 2 * 3 * 32
    assert record.config["registers"]["num_registers"] == 3
    assert {"torch", "transformers", "regtune"} <= set(record.versions)
    assert record.training["peak_memory_bytes"] > 0
    assert record.data["train"]["windows"] == 8


def test_the_models_card_has_the_scores_and_a_push_takes_them_along_but_no_path(config, tmp_path, monkeypatch):
    pushed = {}

    def upload(self, folder, repo_id, *_, **__):
        pushed[repo_id] = (Path(folder) / "README.md").read_text(encoding="utf-8")

    monkeypatch.setattr("transformers.utils.hub.PushToHubMixin._upload_modified_files", upload)
    repository = type("Repository", (), {"create_repo": lambda self, repo_id, **_: SimpleNamespace(repo_id=repo_id)})
    monkeypatch.setattr("transformers.utils.hub.hf_api", repository, raising=False)
    training = dataclasses.replace(config.training, epochs=1.0, push_to_hub="me/mine")
    seen = []
    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.push_to_hub", lambda self, name, **_: seen.append(name))
    record = run_experiment(dataclasses.replace(config, training=training), progress=False)
    assert seen == ["me/mine"]
    for card in ((config.output_dir / "model" / "README.md").read_text(encoding="utf-8"), pushed["me/mine"]):
        assert f"| {record.metrics['dev']['f1']:.3f} |" in card
        assert "| training data | train |" in card
        assert str(tmp_path) not in card


def test_the_saved_model_answers_as_the_run_did(config):
    record = run_experiment(config, progress=False)
    rows = read_json(inside(config.output_dir, record.predictions["dev"]))
    answerer = QuestionAnswerer(config.output_dir / "model", max_length=64, stride=16)
    assert num_registers(answerer.session.model) == 3
    prediction = answerer(question="Who lives in 0?", context="The cat is in the house. Ann lives in house 0.")
    assert prediction.text == rows[0]["text"]
    assert prediction.probabilities[0] == pytest.approx(rows[0]["n_best"][0]["probability"], rel=1e-3)
    several = answerer(question=["Who lives in 0?", "Who is in the house?"], context="The cat is in the house.")
    assert len(several) == 2


def test_a_finished_run_is_read_and_not_run_again(config, monkeypatch):
    record = run_experiment(config, progress=False)
    monkeypatch.setattr("regtune.sweeps.run.fine_tune", None)
    assert run_experiment(config, progress=False) == record


def test_a_run_directory_of_another_config_is_refused_with_the_difference(config):
    run_experiment(config, progress=False)
    other = dataclasses.replace(config, registers=RegisterConfig(num_registers=2))
    with pytest.raises(CheckpointError, match=r"registers\.num_registers \(3 there, 2 now\)"):
        run_experiment(other, progress=False)


def test_a_folder_that_is_no_run_directory_is_refused(config):
    config.output_dir.mkdir()
    (config.output_dir / "thesis.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="is not empty and is no run directory"):
        run_experiment(config, progress=False)


def test_runs_that_differ_in_registers_alone_start_from_the_same_head(config):
    plain = dataclasses.replace(config, registers=RegisterConfig(num_registers=0))
    first, second = build_session(config).model, build_session(plain).model
    assert torch.equal(first.qa_outputs.weight, second.qa_outputs.weight)
    assert (num_registers(first), num_registers(second)) == (3, 0)


def test_the_seed_decides_the_registers_start(config):
    def tokens(seed):
        changed = dataclasses.replace(config, training=dataclasses.replace(config.training, seed=seed))
        return find_registers(build_session(changed).model).tokens

    assert torch.equal(tokens(1), tokens(1))
    assert not torch.equal(tokens(1), tokens(2))


def test_a_frozen_backbone_leaves_head_and_registers_to_learn(config):
    frozen = dataclasses.replace(config, methods={"linear_probe": {}})
    names = {name for name, p in build_session(frozen).model.named_parameters() if p.requires_grad}
    assert names == {"qa_outputs.weight", "qa_outputs.bias", "bert.registers.tokens", "bert.registers.positions"}


def test_windows_longer_than_the_models_positions_are_refused(config):
    data = dataclasses.replace(config.data, max_length=200)
    with pytest.raises(ConfigError, match=r"max_length=200 is more than the 66 text tokens .* beside 3 registers"):
        run_experiment(dataclasses.replace(config, data=data), progress=False)


def test_skipped_records_are_counted_in_the_record(config, tmp_path):
    content = json.loads((tmp_path / "train.json").read_text())
    content["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] += 1
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"train\.json.*q0"):
        run_experiment(config, progress=False)
    data = dataclasses.replace(config.data, on_bad_record="skip")
    elsewhere = dataclasses.replace(config, data=data, output_dir=tmp_path / "other")
    record = run_experiment(elsewhere, progress=False)
    assert record.data["train"]["examples"] == 7
    assert "q0" in json.dumps(record.data["train"]["skipped"])


def test_a_set_with_unanswerable_questions_is_scored_by_the_rules_of_squad_v2(config, tmp_path):
    content = json.loads((tmp_path / "dev.json").read_text())
    question = content["data"][0]["paragraphs"][0]["qas"][0]
    question |= {"answers": [], "is_impossible": True}
    (tmp_path / "v2.json").write_text(json.dumps(content))
    data = dataclasses.replace(config.data, eval=(str(tmp_path / "v2.json"),))
    own = {**config.settings, "null_answers": True}
    record = run_experiment(dataclasses.replace(config, data=data, settings=own), progress=False)
    assert {"exact_match", "f1", "HasAns_f1", "NoAns_f1", "best_f1"} <= set(record.metrics["v2"])


def test_a_mistyped_data_path_does_not_claim_the_run_directory(config):
    data = dataclasses.replace(config.data, train=("nowhere/train.json",))
    with pytest.raises(DataError, match="nowhere"):
        run_experiment(dataclasses.replace(config, data=data), progress=False)
    assert run_experiment(config, progress=False).metrics


def test_evaluation_sets_that_a_record_could_not_tell_apart_are_refused(config, tmp_path):
    (tmp_path / "other").mkdir()
    save_questions(tmp_path / "other" / "dev.json", 3)
    data = dataclasses.replace(config.data, eval=(*config.data.eval, str(tmp_path / "other" / "dev.json")))
    with pytest.raises(ConfigError, match="would both be recorded as 'dev'"):
        run_experiment(dataclasses.replace(config, data=data), progress=False)


def test_a_model_folder_without_a_tokenizer_is_refused(config, tmp_path):
    save_tiny(tmp_path / "bare", tokenizer=False)
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        run_experiment(dataclasses.replace(config, model=str(tmp_path / "bare")), progress=False)


def test_a_disk_that_is_full_when_the_model_is_saved_costs_nothing_but_the_second_command(config, monkeypatch):
    from transformers import BertForQuestionAnswering

    undisturbed = run_experiment(dataclasses.replace(config, output_dir=config.output_dir.parent / "other"))
    save = BertForQuestionAnswering.save_pretrained

    def full(self, folder, *args, **kwargs):
        save(self, folder, *args, **kwargs)
        if "model" in str(folder).rsplit("/", 1)[-1]:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(BertForQuestionAnswering, "save_pretrained", full)
    with pytest.raises(TrainingError, match=r"trained model could not be written to .*run/model: .*No space left"):
        run_experiment(config, progress=False)
    assert not (config.output_dir / "model").exists()
    monkeypatch.undo()
    assert run_experiment(config, progress=False).metrics == undisturbed.metrics


def test_the_last_weights_are_kept_and_the_rule_is_recorded(config, monkeypatch):
    from regtune.session import Session

    falling = iter([0.9, 0.1])
    monkeypatch.setattr(QuestionAnswering, "figures", lambda *_: {"f1": next(falling, 0.0), "exact_match": 0.0})
    seen = []
    original = Session.predict

    def predict(self, *args, **kwargs):
        seen.append(self.model.qa_outputs.weight.detach().clone())
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Session, "predict", predict)
    record = run_experiment(config, progress=False)
    assert record.training["checkpoint"] == {"rule": "last", "step": 4}
    assert not torch.equal(seen[0], seen[1])  # the first epoch scored better
    assert torch.equal(seen[2], seen[1])


def test_a_checkpoint_is_chosen_on_passages_held_out_of_training(config, monkeypatch):
    training = dataclasses.replace(config.training, checkpoint="best", held_out=0.3, epochs=3.0)
    watched = []
    rising_and_falling = iter([0.2, 0.9, 0.1])

    def figures(self, predictions, found):
        watched.append({item.context for item in found.items})
        return {"f1": next(rising_and_falling, 0.0), "exact_match": 0.0}

    monkeypatch.setattr(QuestionAnswering, "figures", figures)
    record = run_experiment(dataclasses.replace(config, training=training), progress=False)
    rule = record.training["checkpoint"]
    assert (rule["rule"], rule["metric"], rule["held_out"], rule["trained_on"]) == ("best", "f1", 3, 5)
    assert rule["step"] == record.training["best_step"] == 4
    assert record.data["train"]["windows"] == 5
    assert len(watched[0]) == 3
    assert watched[0] == watched[1] == watched[2] != watched[3]  # only at the end the evaluation set
