"""Whole models and registers alone, on disk: what loads, and what is refused and why."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForQuestionAnswering, BertForQuestionAnswering

from regtune.config import RegisterConfig
from regtune.errors import CheckpointError, UnsupportedModelError
from regtune.models.loading import load_tokenizer, resolve_model
from regtune.models.packaged import check_weights
from regtune.registers.reg_bert import RegBertForQuestionAnswering, RegBertModel, with_registers
from regtune.registers.saving import from_pretrained, load_registers, save_registers
from regtune.registers.surgery import add_registers, find_registers, num_registers, remove_registers
from tiny import inputs, tiny_config, tiny_model

FOUR = RegisterConfig(num_registers=4, init_std=0.5)


@pytest.fixture
def saved(tmp_path):
    model = add_registers(tiny_model("bert", attention="sdpa"), FOUR)
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**inputs("bert", pad=5)).start_logits


def test_an_auto_class_finds_the_registers_in_the_checkpoint(saved):
    model, folder = saved
    loaded = from_pretrained(AutoModelForQuestionAnswering, folder)
    assert type(loaded) is BertForQuestionAnswering
    assert find_registers(loaded).config == FOUR
    assert torch.equal(logits(model), logits(loaded))


def test_options_reach_transformers(saved):
    loaded = from_pretrained(AutoModelForQuestionAnswering, saved[1], dtype=torch.bfloat16)
    assert find_registers(loaded).tokens.dtype == torch.bfloat16


def test_a_saved_model_loaded_saved_and_loaded_again_is_the_same(saved, tmp_path):
    model, folder = saved
    from_pretrained(AutoModelForQuestionAnswering, folder).save_pretrained(tmp_path / "again")
    assert torch.equal(logits(model), logits(from_pretrained(AutoModelForQuestionAnswering, tmp_path / "again")))


def test_a_plain_model_loads_without_registers(tmp_path):
    model = tiny_model("bert", attention="sdpa")
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(AutoModelForQuestionAnswering, tmp_path)
    assert num_registers(loaded) == 0
    assert torch.equal(logits(model), logits(loaded))


def test_a_model_saved_after_removal_has_no_trace_of_registers(saved, tmp_path):
    model, _ = saved
    remove_registers(model).save_pretrained(tmp_path / "plain")
    assert "registers" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert not [key for key in load_file(tmp_path / "plain" / "model.safetensors") if "registers" in key]


def test_the_papers_classes_read_what_add_registers_wrote_and_the_other_way_round(saved, tmp_path):
    model, folder = saved
    paper = RegBertForQuestionAnswering.from_pretrained(folder)
    assert torch.equal(logits(model), logits(paper))
    paper.save_pretrained(tmp_path / "paper")
    assert torch.equal(logits(model), logits(from_pretrained(AutoModelForQuestionAnswering, tmp_path / "paper")))


@pytest.mark.parametrize("model_class", [RegBertModel, RegBertForQuestionAnswering])
def test_the_papers_classes_start_with_the_papers_registers(model_class, tmp_path):
    tiny_model("bert", "none").save_pretrained(tmp_path)
    torch.manual_seed(11)
    registers = find_registers(model_class.from_pretrained(tmp_path))
    assert registers.config == RegisterConfig(num_registers=5)
    for values in (registers.tokens, registers.positions):
        assert values.abs().max() <= 0.04, "truncated at two standard deviations"
        assert values.std().item() == pytest.approx(0.0176, rel=0.2), "normal(0, 0.02), truncated"
    other = model_class(with_registers(tiny_config("bert"), RegisterConfig(num_registers=2)))
    assert num_registers(other) == 2


def test_settings_without_weights_are_refused(saved):
    _, folder = saved
    weights = load_file(folder / "model.safetensors")
    del weights["bert.registers.positions"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"has registers, but the weights lack bert\.registers\.positions"):
        from_pretrained(AutoModelForQuestionAnswering, folder)


def test_settings_that_make_no_sense_are_refused(saved):
    _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    config["registers"]["num_registers"] = -1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"settings in config\.json of .*num_registers=-1"):
        from_pretrained(AutoModelForQuestionAnswering, folder)


def test_a_pickle_is_refused_with_the_reason(saved):
    model, folder = saved
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="is a pickle, and loading a pickle can run any code"):
        from_pretrained(AutoModelForQuestionAnswering, folder)


def test_a_truncated_checkpoint_is_refused(saved):
    file = saved[1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cut short or damaged"):
        from_pretrained(AutoModelForQuestionAnswering, saved[1])


def test_a_git_lfs_pointer_is_recognised(saved):
    (saved[1] / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(CheckpointError, match=r"is a Git-LFS pointer.*git lfs pull"):
        from_pretrained(AutoModelForQuestionAnswering, saved[1])


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere is not a folder with a model in it"):
        resolve_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="has no tokenizer that can be loaded"):
        load_tokenizer(tmp_path)


def test_registers_alone_are_two_small_files(saved, tmp_path):
    model, _ = saved
    folder = save_registers(model, tmp_path / "small")
    assert sorted(file.name for file in folder.iterdir()) == ["registers.json", "registers.safetensors"]
    loaded = load_registers(remove_registers(from_pretrained(AutoModelForQuestionAnswering, saved[1])), folder)
    assert torch.equal(logits(model), logits(loaded))
    assert loaded.config.registers == model.config.registers


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, r"format_version in .*registers\.json: '99'.*update this one"),
        ({"hidden_size": 64}, r"made for hidden_size=64, this model has 32"),
        ({"family": "ELECTRA"}, r"made for family='ELECTRA', this model has 'BERT'"),
        ({"registers": {"num_registers": -1}}, "num_registers=-1 must be"),
        ({"registers": {"num_registers": 3}}, "doesn't hold the registers its JSON describes"),
    ],
)
def test_registers_that_dont_fit_are_refused(saved, tmp_path, change, message):
    model, _ = saved
    folder = save_registers(model, tmp_path / "small")
    settings = json.loads((folder / "registers.json").read_text())
    (folder / "registers.json").write_text(json.dumps(settings | change))
    with pytest.raises(CheckpointError, match=message):
        load_registers(tiny_model("bert"), folder)


def test_broken_register_files_are_refused(saved, tmp_path):
    model, _ = saved
    folder = save_registers(model, tmp_path / "small")
    shutil.copytree(folder, tmp_path / "cut")
    weights = folder / "registers.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="cut short"):
        load_registers(tiny_model("bert"), folder)
    (tmp_path / "cut" / "registers.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cut/registers\.json can't be read"):
        load_registers(tiny_model("bert"), tmp_path / "cut")
    with pytest.raises(CheckpointError, match=r"missing/registers\.json can't be read"):
        load_registers(tiny_model("bert"), tmp_path / "missing")


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("after", [0, 1])
def test_registers_saved_over_others_are_the_old_ones_or_refused_when_the_process_is_killed(
    saved, tmp_path, monkeypatch, after
):
    model, _ = saved
    old = save_registers(model, tmp_path / "small")
    before = {file.name: file.read_bytes() for file in old.iterdir()}
    add_registers(remove_registers(model), RegisterConfig(num_registers=4, placement="suffix"))
    real, calls = os.replace, iter(range(9))

    def replace(*names):
        if next(calls) == after:
            raise Killed
        real(*names)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        patch.setattr(Path, "replace", replace)
        with pytest.raises(Killed):
            save_registers(model, old)
    if after == 0:
        assert {file.name: file.read_bytes() for file in old.iterdir()} == before
        load_registers(tiny_model("bert"), old)
    else:
        with pytest.raises(CheckpointError, match=r"is not the file that registers\.json was written with"):
            load_registers(tiny_model("bert"), old)


def test_saving_registers_of_a_plain_model_is_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="has no registers"):
        save_registers(tiny_model("bert"), tmp_path)


def test_weights_with_another_checksum_are_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match="is missing"):
        check_weights(file, "0" * 64, "this")
    file.write_bytes(b"other")
    with pytest.raises(CheckpointError, match="expected 0000"):
        check_weights(file, "0" * 64, "this")


def test_pushing_to_the_hub_uploads_a_model_that_from_pretrained_reads(saved, tmp_path, monkeypatch):
    model, _ = saved
    uploaded = tmp_path / "hub"

    def upload(self, working_dir, repo_id, files_timestamps, **options):
        shutil.copytree(working_dir, uploaded)
        return repo_id

    class Api:
        def create_repo(self, repo_id, **options):
            return type("Repo", (), {"repo_id": repo_id})

    monkeypatch.setattr("transformers.utils.hub.PushToHubMixin._upload_modified_files", upload)
    monkeypatch.setattr("transformers.utils.hub.hf_api", Api, raising=False)
    monkeypatch.setattr("transformers.utils.hub.create_repo", Api().create_repo, raising=False)  # before 5.2x
    model.push_to_hub("someone/model")
    assert torch.equal(logits(model), logits(from_pretrained(AutoModelForQuestionAnswering, uploaded)))


@pytest.mark.network
def test_a_model_loads_from_the_hub():
    model = from_pretrained(AutoModelForQuestionAnswering, "hf-internal-testing/tiny-random-BertForQuestionAnswering")
    assert num_registers(add_registers(model, FOUR)) == 4


def test_a_hub_name_is_left_to_transformers_and_a_folder_is_checked(tmp_path):
    assert resolve_model("bert-base-uncased") == "bert-base-uncased"
    assert resolve_model(tmp_path) == str(tmp_path)
