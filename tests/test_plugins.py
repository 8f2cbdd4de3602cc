"""The examples in docs/extending.md: a file outside the package adds a task, a family, a method and an analysis."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import ErnieConfig, ErnieForQuestionAnswering

from command_line import QUICK, invoke
from regtune.registry import ANALYSES, FAMILIES, METHODS, TASKS, load_plugin
from regtune.testing import check_analysis, check_family, check_method, check_task
from tiny_tokenizer import save_tiny

PLUGINS = Path(__file__).parents[1] / "examples" / "plugins"
LINES = [f"who was in the house {n}?" if n % 2 else f"the cat lives in the house {n}." for n in range(24)]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a tiny model and lines of text; what plugins add is forgotten afterwards."""
    for table in (ANALYSES, FAMILIES, METHODS, TASKS):
        monkeypatch.setattr(table, "_added", dict(table._added))
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "model")
    (tmp_path / "lines.txt").write_text("\n".join(LINES))
    return tmp_path


@pytest.fixture
def run(capsys, monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.startswith("regtune_plugin_")]:
        monkeypatch.delitem(sys.modules, name)  # so that each test runs the files again
    return lambda *arguments: invoke(capsys, arguments)


def plugins(*names):
    return [part for name in names for part in ("--plugin", str(PLUGINS / f"{name}.py"))]


@pytest.mark.parametrize("file", sorted(PLUGINS.glob("*.py")), ids=lambda file: file.stem)
def test_each_example_is_short(file):
    assert len(file.read_text().splitlines()) <= 60


def test_each_example_keeps_the_promises_of_its_noun(place):
    for file in PLUGINS.glob("*.py"):
        load_plugin(file)
    check_task("questions", "lines.txt", "model")
    check_method("last_layers", "model", task="questions")
    check_analysis("drift", "model", ["lines.txt"], limit=5)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    check_family(ErnieForQuestionAnswering(ErnieConfig(**sizes, vocab_size=120, max_position_embeddings=66)).eval())


def test_a_task_and_a_method_from_outside_are_trained_swept_and_reported(place, run):
    both = plugins("questions_task", "last_layers_method")
    sets = [
        "--settings.mark",
        "?",
        "--data.train",
        "lines.txt",
        "--data.eval",
        "lines.txt",
        "--model",
        "model",
        "--data.max-length",
        "48",
        *QUICK,
    ]
    code, out, err = run(*both, "train", "--task", "questions", *sets, "--methods", "last_layers:layers=1")
    assert code == 0, err
    assert "accuracy" in out
    record = json.loads(Path("runs/latest/run.json").read_text())
    assert record["config"]["settings"] == {"mark": "?", "batch_size": 32}
    assert 0 <= next(iter(record["metrics"].values()))["accuracy"] <= 1
    assert record["parameters"]["trainable"] < record["parameters"]["total"]
    recipe = {
        "base": {
            "model": "model",
            "task": "questions",
            "data": {"max_length": 48},
            "settings": {"mark": "?"},
            "training": {"epochs": 1, "batch_size": 8, "precision": "float32"},
        },
        "arms": ["baseline", "registers", "short"],
        "own_arms": {"short": {"registers": {}, "last_layers": {"layers": 1}}},
        "num_registers": [0, 2],
        "seeds": [0, 1],
        "training_sets": {"lines": ["lines.txt"]},
        "evaluation_sets": ["lines.txt"],
    }
    Path("mine.yaml").write_text(json.dumps(recipe))
    code, out, err = run(*both, "sweep", "mine.yaml", "--folder", "s")
    assert code == 0, out + err
    assert "6 cells finished" in out
    code, out, err = run(*both, "report", "s", "--resamples", "200")
    assert code == 0, err
    page = Path("s/report/report.html").read_text()
    assert "accuracy" in page
    assert "last 1 layers" in page


def test_a_family_from_outside_is_examined(place, run):
    from tiny_tokenizer import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    config = ErnieConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    ErnieForQuestionAnswering(config).save_pretrained("ernie")
    tokenizer.save_pretrained("ernie")
    code, out, err = run(*plugins("ernie_family"), "doctor", "ernie", "--registers.num-registers", "3")
    assert code == 0, out + err
    assert "all that the family 'ERNIE' names are there" in out


def test_an_analysis_from_outside_is_inspected_and_reported(place, run):
    from tiny_tokenizer import save_questions

    save_questions(place / "q.json")
    sets = ["--data.train", "q.json", "--data.eval", "q.json", "--model", "model"]
    sets += ["--data.max-length", "60", "--settings.stride", "12", "--settings.max-question-length", "24", *QUICK]
    code, _, err = run("train", *sets, "--registers.num-registers", "2")
    assert code == 0, err
    code, out, err = run(*plugins("drift_analysis"), "inspect", "runs/latest", "--parts", "drift")
    assert code == 0, err
    assert "cosine of [CLS]" in out
    record = json.loads(Path("runs/latest/inspect/drift.json").read_text())
    values = record["measures"]["drift.cosine"]
    assert values
    assert all(-1 <= value <= 1 for value in values)
    code, _, err = run(*plugins("drift_analysis"), "report", "runs/latest")
    assert code == 0, err
    assert "how far [CLS] comes" in Path("runs/latest/report/report.html").read_text()
