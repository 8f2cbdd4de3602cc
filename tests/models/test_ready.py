"""Adapters that come with regtune: packed from a run, opened by a name, and what is asked for without a name."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import regtune
from command_line import invoke
from regtune.config import DataConfig, RegisterConfig, RunConfig, TrainConfig
from regtune.errors import CheckpointError, DataError
from regtune.models import loading
from regtune.sweeps.run import run_experiment
from tiny_tokenizer import save_questions, save_tiny

QUESTION = {"question": "Who lives in 3?", "context": "The cat is in the house. Dan lives in house 3."}


def packing():
    path = Path(__file__).parents[2] / "recipes" / "pack_adapter.py"
    spec = importlib.util.spec_from_file_location("pack_adapter", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base model that has a name, a run with an adapter for it, and where ready adapters are."""
    folder = tmp_path_factory.mktemp("ready")
    save_tiny(folder / "base")
    sets = (str(save_questions(folder / "q.json")),)
    config = RunConfig(
        model="minilm",
        output_dir=folder / "minilm-questions",
        registers=RegisterConfig(num_registers=2),
        data=DataConfig(train=sets, eval=sets, max_length=60),
        settings={"stride": 12, "max_question_length": 24},
        training=TrainConfig(epochs=1.0, batch_size=3, precision="float32", learning_rate=1e-2),
        methods={"lora": {"r": 2}},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "minilm_folder", lambda: folder / "base")
        patch.setattr(loading, "READY", folder / "there")
        run_experiment(config, progress=False)
        made = packing().pack(config.output_dir, folder / "there" / "minilm-questions")
        yield folder, made


def answers(name):
    return [one.to_json()["text"] for one in regtune.QuestionAnswerer(name)(**{k: [v] for k, v in QUESTION.items()})]


def test_a_packed_adapter_is_half_as_long_and_names_no_folder_of_this_machine(place):
    folder, made = place
    packed, run = folder / "there" / "minilm-questions", folder / "minilm-questions" / "model"
    weights, own = (load_file(each / "adapter_model.safetensors") for each in (packed, run))
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert all(torch.equal(weights[name], own[name].half()) for name in own)
    assert made["bytes"] == (packed / "adapter_model.safetensors").stat().st_size
    assert (made["examples"], made["changed"]) == (6, 0)
    for file in (*packed.glob("*.json"), *run.glob("*.json")):
        assert str(folder) not in file.read_text(encoding="utf-8"), file.name
    assert json.loads((packed / "adapter_config.json").read_text())["base_facts"]["name"] == "minilm"


def test_it_opens_by_its_name_with_its_bases_tokenizer(place):
    folder, _ = place
    assert not list((folder / "there").rglob("*token*"))
    session = regtune.open("minilm-questions")
    assert regtune.num_registers(session.model) == 2
    assert session.reader.get_vocab() == regtune.open(folder / "base").reader.get_vocab()
    assert answers("minilm-questions") == answers(folder / "minilm-questions")


def test_without_a_name_it_is_asked(place, capsys):
    said = regtune.QuestionAnswerer()(**QUESTION)
    assert said.to_json()["text"] == answers("minilm-questions")[0]
    asked = ("ask", "--question", QUESTION["question"], "--context", QUESTION["context"], "--json")
    code, out, err = invoke(capsys, asked)
    assert code == 0, err
    assert json.loads(out)["text"] == said.to_json()["text"]


def test_a_base_that_is_gone_is_named_with_what_to_do(place, tmp_path):
    folder, _ = place
    alone = Path(shutil.copytree(folder / "there" / "minilm-questions", tmp_path / "alone"))
    file = alone / "adapter_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"base_model_name_or_path": str(tmp_path / "gone")}))
    words = r"needs its base model .*gone, and that can't be opened: .*Bring it there, or name the place where it is"
    with pytest.raises(CheckpointError, match=words):
        regtune.open(alone)
    file.write_text(json.dumps(settings | {"base_model_name_or_path": None}))
    with pytest.raises(CheckpointError, match=r"adapter_config\.json names no base model"):
        regtune.open(alone)
    file.write_text("[]")
    with pytest.raises(DataError, match=r"adapter_config\.json.*Copy or download it again"):
        regtune.open(alone)
