"""What a model's folder may make regtune do: read numbers, and nothing else."""

from __future__ import annotations

import ast
import builtins
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, BertForQuestionAnswering

import regtune
from command_line import invoke
from regtune.errors import CheckpointError, DataError
from regtune.models.loading import load_tokenizer
from regtune.registers.saving import from_pretrained
from tiny import tiny_model
from tiny_tokenizer import save_questions, save_tiny, tiny_tokenizer

SOURCES = Path(regtune.__file__).parent
CODE = """
from pathlib import Path
Path({mark!r}).write_text("ran")
from transformers import BertConfig, BertForQuestionAnswering, BertTokenizerFast
class OwnConfig(BertConfig):
    model_type = "own"
class OwnModel(BertForQuestionAnswering):
    config_class = OwnConfig
class OwnTokenizer(BertTokenizerFast):
    pass
"""


def edit(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def hostile(tmp_path):
    """A folder whose config and tokenizer name code beside them, which would leave a mark."""
    folder, mark = save_tiny(tmp_path / "hostile"), tmp_path / "mark"
    names = {
        "AutoConfig": "own.OwnConfig",
        "AutoModelForQuestionAnswering": "own.OwnModel",
        "AutoModel": "own.OwnModel",
    }
    edit(folder / "config.json", model_type="own", auto_map=names)
    tokenizer = {"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]}
    edit(folder / "tokenizer_config.json", auto_map=tokenizer, tokenizer_class="OwnTokenizer")
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    return folder, mark


@pytest.fixture
def willing(monkeypatch):
    """Somebody who answers yes to every question; returns the questions."""
    asked: list[str] = []
    monkeypatch.setattr(builtins, "input", lambda question="": asked.append(question) or "y")
    return asked


@pytest.mark.parametrize(
    "command",
    [
        ["info", "hostile"],
        ["doctor", "hostile"],
        ["ask", "hostile", "--question", "Who?", "--context", "Ann lives here."],
        ["evaluate", "hostile", "--data", "q.json"],
        ["train", "--model", "hostile", "--data.train", "q.json", "--data.eval", "q.json", "--output-dir", "run"],
        ["explain", "hostile", "--question", "Who?", "--context", "Ann lives here."],
        ["inspect", "hostile"],
    ],
    ids=lambda command: command[0],
)
def test_no_command_runs_a_folders_code_or_asks_whether_it_may(
    hostile, willing, tmp_path, capsys, monkeypatch, command
):
    save_questions(tmp_path / "q.json")
    monkeypatch.chdir(tmp_path)
    code, _, error = invoke(capsys, tuple(command))
    assert code != 0
    assert "hostile" in error
    assert willing == []
    assert not hostile[1].exists()


def test_the_reason_is_said_and_what_to_do(hostile, willing):
    folder, mark = hostile
    for load in (
        lambda: from_pretrained(AutoModelForQuestionAnswering, folder),
        lambda: regtune.open(folder),
        lambda: load_tokenizer(folder),
    ):
        with pytest.raises(CheckpointError, match=r"needs Python code of its own.*trust_remote_code=True"):
            load()
    assert (willing, mark.exists()) == ([], False)


def test_yes_on_standard_input_is_not_read(hostile):
    folder, mark = hostile
    done = subprocess.run(
        [sys.executable, "-m", "regtune.cli.main", "info", str(folder)],
        input="y\n" * 100,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert not mark.exists()
    assert done.returncode == 1
    assert "needs Python code of its own" in " ".join(done.stderr.replace("│", " ").split())


def test_code_in_a_folder_of_a_known_architecture_is_left_alone(tmp_path, willing):
    folder = save_tiny(tmp_path / "model")
    edit(folder / "config.json", auto_map={"AutoModelForQuestionAnswering": "own.OwnModel"})
    (folder / "own.py").write_text(CODE.format(mark=str(tmp_path / "mark")))
    assert type(from_pretrained(AutoModelForQuestionAnswering, folder)) is BertForQuestionAnswering
    assert (willing, (tmp_path / "mark").exists()) == ([], False)


def test_every_call_that_could_run_a_repositorys_code_says_whether_it_may():
    """`AutoX.from_pretrained` asks on standard input where nothing is said."""
    silent = []
    for file in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner = ast.unparse(node.func.value)
            if node.func.attr in ("from_pretrained", "from_config") and ("Auto" in owner or owner == "auto_class"):
                said = {keyword.arg for keyword in node.keywords}
                if not said & {"trust_remote_code", None}:
                    silent.append(f"{file.relative_to(SOURCES)}:{node.lineno}")
            if node.func.attr == "pipeline":
                silent.append(f"{file.relative_to(SOURCES)}:{node.lineno}")
    assert silent == []


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_implementation": "someone/kernel"},
        {"_attn_implementation": "someone/kernel:attend"},
        {"experts_implementation": {"": "someone/kernel"}},
        {"encoder": {"attn_implementation": "someone/kernel"}},
    ],
)
def test_a_config_that_names_code_on_the_hub_is_refused(tmp_path, changes):
    folder = save_tiny(tmp_path / "model")
    edit(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match="would fetch and run code from the hub"):
        from_pretrained(AutoModelForQuestionAnswering, folder)


# Weights


def sharded(folder: Path) -> tuple[Path, dict]:
    tiny_model("bert").save_pretrained(folder, max_shard_size="20KB")
    index = folder / "model.safetensors.index.json"
    return index, json.loads(index.read_text())


def test_shards_beside_their_index_are_read(tmp_path):
    _, content = sharded(tmp_path)
    assert len(set(content["weight_map"].values())) > 2
    loaded = from_pretrained(AutoModelForQuestionAnswering, tmp_path)
    expected = tiny_model("bert").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize(
    "shard",
    [
        "pytorch_model.bin",
        "../model.safetensors",
        "/etc/model.safetensors",
        "a/b.safetensors",
        "..\\m.safetensors",
        "C:m.safetensors",
        "model.safetensors\n",
        "",
        3,
        None,
        ["model.safetensors"],
        "x" * 10**6,
    ],
    ids=lambda shard: repr(shard)[:30],
)
def test_an_index_that_leads_elsewhere_is_refused_before_anything_is_read(tmp_path, monkeypatch, shard):
    index, content = sharded(tmp_path / "model")
    content["weight_map"]["qa_outputs.bias"] = shard
    index.write_text(json.dumps(content))
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("a pickle was read"))
    monkeypatch.setattr("transformers.modeling_utils.load_state_dict", lambda *args, **kwargs: pytest.fail("was read"))
    with pytest.raises(CheckpointError, match=r"nothing of this model was read") as caught:
        from_pretrained(AutoModelForQuestionAnswering, tmp_path / "model")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"weight_map": []}', '{"weight_map": {}, "metadata": 3}', "[" * 99_999, "\ud800"]
)
def test_an_index_that_is_none_is_refused_in_words(tmp_path, content):
    index, _ = sharded(tmp_path)
    index.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match="is not an index of weights"):
        from_pretrained(AutoModelForQuestionAnswering, tmp_path)


def test_no_pickle_is_read_whoever_names_it(tmp_path, monkeypatch):
    folder = save_tiny(tmp_path / "model")
    torch.save({}, folder / "adapter_model.bin")
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("a pickle was read"))
    with pytest.raises(CheckpointError, match="would read a pickle"):
        from_pretrained(AutoModelForQuestionAnswering, folder, use_safetensors=False)
    edit(folder / "config.json", transformers_weights="adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"names 'adapter_model\.bin' as the file with the weights"):
        from_pretrained(AutoModelForQuestionAnswering, folder)
    edit(folder / "config.json", transformers_weights=None)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x"}')
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin is a pickle"):
        from_pretrained(AutoModelForQuestionAnswering, folder)


# Models that regtune can't work with


@pytest.mark.parametrize("quantised", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "new"}, {}, [1], "int8"])
def test_a_quantised_model_is_refused_with_its_method(tmp_path, quantised):
    folder = save_tiny(tmp_path / "model")
    edit(folder / "config.json", quantization_config=quantised)
    with pytest.raises(CheckpointError, match=r"was saved quantised .*take the model that it was made from"):
        regtune.open(folder)


@pytest.mark.parametrize("content", ["[]", "3", "null", '"x"', "{", "[" * 99_999])
def test_a_config_that_is_none_is_refused_in_words(tmp_path, content, capsys):
    folder = save_tiny(tmp_path / "model")
    (folder / "config.json").write_text(content)
    with pytest.raises((CheckpointError, DataError), match=r"can't be (loaded|read)"):
        regtune.open(folder)
    code, _, error = invoke(capsys, ("info", folder))
    assert (code, "can't be loaded" in error or "can't be read" in error) == (1, True)


@pytest.mark.parametrize(("need", "sentence"), [("pad", "has no padding token"), ("sep", "has no separator token")])
def test_a_tokenizer_without_a_token_that_the_task_needs_is_refused_before_training(
    tmp_path, capsys, monkeypatch, need, sentence
):
    folder = save_tiny(tmp_path / "model")
    tokenizer = tiny_tokenizer()
    setattr(tokenizer, f"{need}_token", None)
    tokenizer.save_pretrained(folder)
    assert getattr(load_tokenizer(folder), f"{need}_token") is None
    save_questions(tmp_path / "q.json")
    monkeypatch.chdir(tmp_path)
    arguments = ("train", "--model", "model", "--data.train", "q.json", "--data.eval", "q.json", "--output-dir", "run")
    code, _, error = invoke(capsys, arguments)
    assert (code, sentence in error) == (1, True)
    assert not (tmp_path / "run").exists()
