"""The model card beside saved weights: what it says, when it has scores, and whose text it leaves alone."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError

from regtune.config import RegisterConfig, RunConfig, to_dict
from regtune.records import RunRecord, checksums, save_record
from regtune.registers.card import START, write_card
from regtune.registers.saving import from_pretrained
from regtune.registers.surgery import add_registers, num_registers, remove_registers
from tiny import tiny_model

FOUR = RegisterConfig(num_registers=4, placement="suffix", init_std=0.5)


def model():
    return add_registers(tiny_model("bert"), FOUR)


def card(folder) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def metadata(folder) -> dict:
    return yaml.safe_load(card(folder).split("---\n")[1])


def lines_that_load(folder) -> str:
    return re.search(r"```python\n(.*?)```", card(folder), re.DOTALL)[1]


def finished(run_dir, saved):
    """A run directory with these weights, its card and a record of local data."""
    saved.save_pretrained(run_dir / "model")
    config = to_dict(RunConfig(model="someone/base"))
    config["data"]["train"] = ["/home/me/secret/mine.json.gz", "tydiqa:train:english"]
    record = RunRecord(
        config=config,
        config_hash="0",
        metrics={"dev": {"f1": 0.6127, "exact_match": 0.5}},
        training={},
        data={"dev": {"examples": 440}},
        parameters={},
        versions={"regtune": "0.1.0"},
        machine={},
        task="qa",
        methods=[],
        label="registers, N = 4",
        files=checksums(run_dir, ["model/model.safetensors"]),
    )
    save_record(run_dir, record)
    write_card(run_dir / "model", saved)
    return run_dir / "model"


def test_a_saved_model_says_which_registers_it_has_and_three_lines_load_it(tmp_path):
    model().save_pretrained(tmp_path)
    assert {"regtune", "registers"} <= set(metadata(tmp_path)["tags"])
    for row in ("| num\\_registers | 4 |", "| placement | suffix |", "| depth | input |", "| base model | a local"):
        assert row in card(tmp_path)
    lines = lines_that_load(tmp_path).replace("PATH/OF/THIS/FOLDER", str(tmp_path))
    assert len(lines.splitlines()) == 3
    names: dict = {}
    exec(lines, names)
    assert num_registers(names["model"]) == 4
    assert "0.6" not in card(tmp_path)


def test_a_card_of_ones_own_keeps_its_text_and_its_section_is_renewed(tmp_path):
    own = b"---\nlicense: mit\nbroken: [\n---\n# Mine\n\xff\n"
    (tmp_path / "README.md").write_bytes(own)
    model().save_pretrained(tmp_path)
    (tmp_path / "README.md").write_bytes((tmp_path / "README.md").read_bytes() + b"\n## Thanks\n")
    add_registers(tiny_model("bert"), RegisterConfig(num_registers=2)).save_pretrained(tmp_path)
    raw = (tmp_path / "README.md").read_bytes()
    assert raw.startswith(own.rstrip())
    assert raw.endswith(b"## Thanks\n")
    assert raw.count(START.encode()) == 1
    assert b"| num\\_registers | 2 |" in raw
    assert b"| num\\_registers | 4 |" not in raw


def test_scores_are_there_for_the_weights_that_were_scored_alone(tmp_path):
    folder = finished(tmp_path / "run", model())
    for line in ("| base model | someone/base |", "| dev | 440 | 0.613 | 0.500 |", "mine, tydiqa:train:english"):
        assert line in card(folder)
    assert metadata(folder)["base_model"] == "someone/base"
    assert "secret" not in card(folder)
    same = from_pretrained(type(tiny_model("bert")), folder)
    same.save_pretrained(tmp_path / "same")
    assert "0.613" in card(tmp_path / "same")
    same.base_model.registers.tokens.data += 1
    same.save_pretrained(tmp_path / "other")
    assert "0.613" not in card(tmp_path / "other")
    same.save_pretrained(folder)
    assert "0.613" not in card(folder)


@pytest.mark.parametrize("there", [False, True])
def test_a_push_brings_the_card_and_keeps_the_one_on_the_hub(tmp_path, monkeypatch, there):
    uploaded = {}

    def load(*_, **__):
        if not there:
            raise EntryNotFoundError("no card")
        return ModelCard("---\nlicense: mit\n---\n# Mine\n")

    class Api:
        def create_repo(self, repo_id, **_):
            return type("Repo", (), {"repo_id": repo_id})

    monkeypatch.setattr(ModelCard, "load", load)
    monkeypatch.setattr("transformers.utils.hub.hf_api", Api, raising=False)
    monkeypatch.setattr(
        "transformers.utils.hub.PushToHubMixin._upload_modified_files",
        lambda self, folder, repo_id, *_, **__: uploaded.update(text=card(Path(folder))),
    )
    model().push_to_hub("someone/model")
    assert 'from_pretrained(BertForQuestionAnswering, "someone/model")' in uploaded["text"]
    assert "[More Information Needed]" not in uploaded["text"]
    assert ("# Mine" in uploaded["text"]) == there
    assert yaml.safe_load(uploaded["text"].split("---\n")[1])["license" if there else "library_name"]


def test_an_adapter_says_its_own_registers_in_place_of_a_blank_form(tmp_path):
    peft = pytest.importorskip("peft")
    from regtune.methods.peft import RegisterLoraConfig

    adapter = RegisterLoraConfig(r=2, target_modules=["query"], registers=RegisterConfig(num_registers=3))
    peft.get_peft_model(tiny_model("bert"), adapter).save_pretrained(tmp_path)
    assert metadata(tmp_path)["library_name"] == "peft"
    assert "| num\\_registers | 3 |" in card(tmp_path)
    assert "PeftModel.from_pretrained(base_model," in lines_that_load(tmp_path)
    assert "[More Information Needed]" not in card(tmp_path)


def test_a_copy_writes_its_own_card_and_without_registers_there_is_none(tmp_path):
    first = model()
    second = copy.deepcopy(first)
    remove_registers(first).save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "plain" / "README.md").exists()
    assert set(vars(first)) == set(vars(tiny_model("bert")))
    second.save_pretrained(tmp_path / "copy")
    assert num_registers(from_pretrained(type(second), tmp_path / "copy")) == 4
    assert "| num\\_registers | 4 |" in card(tmp_path / "copy")
