"""The demo: six runs, one page; here with a tiny model, few texts and no network."""

from __future__ import annotations

import dataclasses
import re
import socket

import pytest

from regtune.app import demo
from regtune.app.demo import COUNTS, QUESTION, SEEDS, demo_sweep, run_demo
from regtune.errors import CheckpointError
from tiny_tokenizer import save_tiny


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The demo with a tiny model, few texts, and every connection refused."""
    model = save_tiny(tmp_path / "model", max_position_embeddings=400)
    whole = demo_sweep

    def sweep(*, full=False):
        made = whole(full=full)
        data = dataclasses.replace(made.base.data, max_train_examples=8, max_eval_examples=8)
        training = dataclasses.replace(made.base.training, epochs=1.0, precision="float32")
        return dataclasses.replace(
            made, base=dataclasses.replace(made.base, model=str(model), data=data, training=training)
        )

    def refuse(*_):
        raise AssertionError("the demo opened a connection")

    monkeypatch.setattr(demo, "demo_sweep", sweep)
    monkeypatch.setattr(demo, "minilm_folder", lambda: model)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tmp_path / "runs"


@pytest.mark.slow
def test_the_demo_compares_three_seeds_of_each_and_writes_a_page_that_needs_nothing(small, capsys):
    result = run_demo(small)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"1/4 asking minilm-questions: {QUESTION}")
    assert any(line.startswith("2/4 fine-tuning MiniLM 6 times") for line in lines)
    assert sum("registers N=4" in line for line in lines) >= len(SEEDS), "it is said which run is on"
    page = result.page.read_text(encoding="utf-8")
    for words in (
        QUESTION,
        "1867",
        "Which words matter for the prediction",
        "Attention, with the registers set apart",
        "What to do next",
        "regtune explore",
        "register 0",
        "How measured",
        result.sentence,
    ):
        assert words in page, words
    assert not re.search(r'(src|href)="(?!data:|#)', page), "nothing outside the page is needed"
    assert 'role="button"' not in page, "nothing on the page looks as if it could be clicked"
    assert str(result.page) in str(result)
    assert str(result).index("1867") < str(result).index("Verdict")
    assert "is no evidence" in page
    assert "is no evidence" in repr(result.blocks())
    assert "3 seeds" in str(result) or "baseline" in str(result)
    times = {path: path.stat().st_mtime_ns for path in small.rglob("run.json")}
    assert len(times) == len(COUNTS) * len(SEEDS)
    again = run_demo(small, progress=False)
    assert again.sentence == result.sentence
    assert {path: path.stat().st_mtime_ns for path in small.rglob("run.json")} == times, "finished runs are read"


def test_a_folder_with_something_else_in_it_is_refused(small):
    small.mkdir(parents=True)
    (small / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError):
        run_demo(small, progress=False)


@pytest.mark.parametrize(("full", "task"), [(False, "classify"), (True, "qa")])
def test_the_demo_uses_the_packaged_model_and_the_embedded_sets(full, task):
    cells = demo_sweep(full=full).cells()
    assert {cell.config.model for cell in cells} == {"minilm"}
    assert {cell.config.task for cell in cells} == {task}
    assert {(cell.config.data.train, cell.config.data.eval) for cell in cells} == {
        (("embedded:train",), ("embedded:dev",))
    }
    assert sorted((cell.num_registers, cell.seed) for cell in cells) == sorted((n, s) for n in COUNTS for s in SEEDS)
