"""The task `classify` from a labelled table to an exported report, by commands alone; the steps agree."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from command_line import QUICK, invoke
from regtune.records import read_json
from tiny_tokenizer import save_tiny

PLACES = ("house", "cat", "is", "who")
RECIPE = {
    "arms": ["baseline", "registers"],
    "num_registers": [2],
    "seeds": [0, 1],
    "training_sets": {"moods": ["train.csv"]},
    "evaluation_sets": ["dev.csv"],
    "search": {"learning_rates": [0.01], "register_learning_rates": [0.01, 0.1], "num_registers": 2, "held_out": 4},
    "base": {
        "model": "model",
        "task": "classify",
        "data": {"max_length": 32},
        "settings": {"label_column": "mood", "text_column": "said"},
        "training": {"epochs": 1, "batch_size": 3, "precision": "float32"},
    },
}


def write_table(path: str, count: int) -> None:
    """A mood a text: every third one is bad, and says so."""
    rows = [
        (
            "bad" if number % 3 == 0 else "good",
            f"the {PLACES[number % 4]} was {'0' if number % 3 == 0 else '1'} {number}",
        )
        for number in range(count)
    ]
    Path(path).write_text("mood,said\n" + "".join(f"{mood},{said}\n" for mood, said in rows))


def test_classify_from_a_table_to_a_report_by_commands_alone(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        code, out, err = invoke(capsys, arguments)
        assert code == 0, f"{' '.join(arguments)}\n{out}\n{err}"
        return out

    save_tiny(tmp_path / "model", head="sequence-classification")
    write_table("train.csv", 24)
    write_table("dev.csv", 12)
    data = ["--task", "classify", "--model", "model", "--data.train", "train.csv", "--data.eval", "dev.csv"]
    data += ["--data.max-length", "32", "--settings.label-column", "mood", "--settings.text-column", "said"]
    rate = ["--training.learning-rate", "0.01"]
    for registers in ("0", "2"):
        out = run(
            "train", *data, *QUICK, *rate, "--registers.num-registers", registers, "--output-dir", f"n{registers}"
        )
        assert "accuracy" in out
    scores = read_json(tmp_path / "n2" / "run.json")["metrics"]["dev"]

    assert "accuracy" in run("evaluate", "n2")
    assert read_json(tmp_path / "n2" / "evaluation" / "evaluation.json")["sets"][0]["metrics"] == scores

    said = [json.loads(line) for line in run("predict", "n2", "--file", "dev.csv").splitlines()]
    kept = read_json(tmp_path / "n2" / "predictions" / "dev.json.gz")
    assert [one["label"] for one in said] == [one["label"] for one in kept]
    assert {name for one in said for name in one["probabilities"]} == {"bad", "good"}

    compared = run("compare", "n0", "n2", "--resamples", "500")
    assert "accuracy" in compared
    assert "12 texts" in compared

    explained = json.loads(run("explain", "n2", "the cat was 1", "--target", "good-bad", "--json"))
    assert "good" in json.dumps(explained)
    assert "cat" in json.dumps(explained)

    assert "Attention" in run("inspect", "n2", "--parts", "attention", "--limit", "4")
    assert len(read_json(tmp_path / "n2" / "inspect" / "attention.json")["data"]["ids"]) == 4

    Path("moods.yaml").write_text(yaml.safe_dump(RECIPE))
    assert "4 cells finished" in run("sweep", "moods.yaml", "--search", "--folder", "sweep")
    search = read_json(tmp_path / "sweep" / "search.json")
    assert (search["metric"], search["training_examples"], search["held_out_examples"]) == ("accuracy", 18, 6)
    best = search["best"]["registers"]
    cells = [read_json(path) for path in sorted((tmp_path / "sweep").glob("*/run.json"))]
    found = {cell["config"]["training"]["register_learning_rate"] for cell in cells if cell["methods"]}
    assert found == {best["register_learning_rate"]}

    assert "4 cells in small" in run("sweep", "moods.yaml", "--folder", "sweep", "--export", "small")
    page = Path(run("report", "small", "--output-dir", "page", "--resamples", "500").removeprefix("Report: ").strip())
    for words in ("accuracy", "registers, N = 2", "dev"):
        assert words in page.read_text()
