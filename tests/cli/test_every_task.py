"""Tasks on texts from a labelled file to a report, by commands alone; others have such a test of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from command_line import invoke
from regtune.records import read_json
from tiny_tasks import ASKED, save_examples
from tiny_tokenizer import save_tiny

BASE = {
    "model": "model",
    "data": {"max_length": 40},
    "training": {"epochs": 2, "batch_size": 4, "learning_rate": 0.01, "precision": "float32"},
}
SWEEP = {"arms": ["baseline", "registers"], "num_registers": [2], "seeds": [0], "keep_models": "all"}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["multi-label", "regress", "tag", "choose"])
def test_a_task_from_a_file_to_a_report_by_commands_alone(capsys, tmp_path, monkeypatch, task):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> str:
        code, out, err = invoke(capsys, arguments)
        assert code == 0, f"{arguments}\n{out}\n{err}"
        return out

    save_tiny(tmp_path / "model", head="none")
    data = save_examples(task, tmp_path, 12).name
    sets = {"training_sets": {"mine": [data]}, "evaluation_sets": [data]}
    Path("all.yaml").write_text(yaml.safe_dump({**SWEEP, **sets, "base": {**BASE, "task": task}}))
    assert "2 cells finished" in run("sweep", "all.yaml", "--folder", "s")
    cells = {read_json(path)["label"]: path.parent for path in Path("s").glob("*/run.json")}
    plain, registers = (cells[label] for label in sorted(cells, key=lambda label: "registers" in label))
    record = read_json(registers / "run.json")
    (name,) = record["metrics"]

    run("evaluate", registers, "--output-dir", "again")
    assert read_json(Path("again/evaluation.json"))["sets"][0]["metrics"] == record["metrics"][name]

    Path("asked.jsonl").write_text(json.dumps({"id": "x", **ASKED[task]}) + "\n")
    (said,) = map(json.loads, run("predict", registers, "--file", "asked.jsonl").splitlines())
    assert said["id"] == "x"

    explained = json.loads(run("explain", registers, "--file", "asked.jsonl", "--methods", "attnlrp", "--json"))
    explained = explained[0] if isinstance(explained, list) else explained
    (model,) = explained["models"]
    assert model["attributions"]
    assert model["answer"]["text"]

    assert "12 " in run("compare", plain, registers, "--resamples", "200")
    parts = ("attention", "artefacts", "registers")
    run("inspect", registers, "--parts", *parts, "--limit", "3", "--set", "registers.resamples=200")
    assert {path.stem for path in (registers / "inspect").glob("*.json")} >= set(parts)

    out = run("report", "s", "--output-dir", "page", "--resamples", "200")
    page = Path(out.removeprefix("Report: ").strip()).read_text()
    assert record["label"] in page
